"""What can compute the loss here, what cannot and why, and the one choice of a backend.

Nothing is imported to find out: Triton is looked for, the compiled library says itself what is in it.
"""

import importlib.util
import os
from typing import NamedTuple

import torch

from . import native
from .errors import FGDRuntimeError, FGDTypeError, FGDValueError

BACKENDS = ("cpu", "cuda", "triton", "reference")


class BackendStatus(NamedTuple):
    """Whether a backend runs here, and if not, why."""

    available: bool
    reason: str


def backends() -> dict[str, BackendStatus]:
    """What can compute the loss on this machine, and for what cannot, why not."""
    return {name: _status(name) for name in BACKENDS}


def _status(backend: str) -> BackendStatus:
    if backend == "reference":
        return BackendStatus(True, "plain PyTorch, any device; slow")
    if backend == "triton":
        return _triton_status()
    missing = native.load()
    if missing is not None:
        return BackendStatus(False, missing)
    if backend == "cpu":
        return BackendStatus(True, "compiled for this machine's CPU")
    if not native.has_cuda():
        return BackendStatus(False, f"the compiled library was built without CUDA: {native.cuda_missing()}")
    if torch.version.cuda is None:
        return BackendStatus(False, f"torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        return BackendStatus(False, "no CUDA device is visible")
    return BackendStatus(True, "compiled with CUDA")


def _triton_interprets() -> bool:
    """Whether Triton's kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _triton_status() -> BackendStatus:
    """Found out without importing Triton."""
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:  # nothing, or a mere folder of that name
        return BackendStatus(False, "the package triton is not installed")
    if _triton_interprets():
        return BackendStatus(True, "in Triton's interpreter, because TRITON_INTERPRET=1; slow")
    if not torch.cuda.is_available():
        return BackendStatus(False, "no GPU is visible, and TRITON_INTERPRET is not 1")
    return BackendStatus(True, "compiled by Triton at first use")


def check_backend(name: str, argument: str = "backend") -> None:
    """Raise FGDValueError unless a backend, or 'auto', has that name; whether it runs here is asked when it is to."""
    if name != "auto" and name not in BACKENDS:
        raise FGDValueError(f"{argument}: expected 'auto' or one of {', '.join(BACKENDS)}, got {name!r}")


@torch.compiler.assume_constant_result
def choose_backend(requested: str, device: str, float64: bool = False) -> str:
    """The backend for features on a device of type `device`. FGD_BACKEND takes the place of 'auto'.

    Under torch.compile the answer is a constant of the graph, and with it what FGD_BACKEND said at the time.

    Raises:
        FGDTypeError: it was asked for by name and does not compute in float64.
        FGDValueError: there is no backend of that name, or it does not serve that device.
        FGDRuntimeError: it was asked for by name and cannot run here; the message says why.
    """
    source = "backend"
    if requested == "auto" and "FGD_BACKEND" in os.environ:
        requested, source = os.environ["FGD_BACKEND"], "FGD_BACKEND"
    if requested == "auto":
        if device == "meta":
            return "cpu" if _status("cpu").available else "reference"  # shapes alone
        if device in ("cpu", "cuda") and _status(device).available:
            return device
        return "triton" if device == "cuda" and _status("triton").available and not float64 else "reference"
    check_backend(requested, source)
    status = _status(requested)
    if not status.available:
        raise FGDRuntimeError(f"backend {requested!r} cannot run here: {status.reason}")
    if requested in ("cpu", "cuda") and device != requested:
        raise FGDValueError(
            f"backend {requested!r}: expected features on {requested}, got some on {device}; ask for 'auto'"
        )
    if requested == "triton" and device != "cuda" and not (device == "cpu" and _triton_interprets()):
        raise FGDValueError(f"backend 'triton': expected features on a GPU, got some on {device}; ask for 'auto'")
    if requested == "triton" and float64:
        raise FGDTypeError("backend 'triton': expected float32, float16 or bfloat16 features, got torch.float64")
    return requested
