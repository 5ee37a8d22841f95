"""What runs here, whether it computes the right loss, and what would make it faster: ``python -m fgd_kernels``."""

import os
import pathlib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch

from . import native
from .backend import backends
from .functional import fgd_loss
from .version import __version__

TOLERANCE = 1e-4  # of the largest number of its kind; float32's own error is some 1e-6


class Check(NamedTuple):
    """A small loss on one backend, beside the same on the float64 reference.

    Args:
        backend: its name.
        error: largest error of the terms and of the gradient, each over its largest number; NaN if it raised.
        raised: what it raised, or "".
    """

    backend: str
    error: float
    raised: str

    @property
    def passed(self) -> bool:
        """Whether the backend ran, and its error is one of rounding."""
        return self.error <= TOLERANCE  # False for NaN


def versions(packages: Sequence[str] = ("torch", "triton", "numpy")) -> str:
    """Installed versions of distributions, in a line.

    Args:
        packages: their names; what is not installed is told.
    """
    return ", ".join(f"{name} {_version(name)}" for name in packages)


def _version(name: str) -> str:
    try:
        return torch.__version__ if name == "torch" else version(name)
    except PackageNotFoundError:
        return "not installed"


def summary() -> str:
    """What a bug report needs, in three lines: versions, the backends that run here, the library."""
    running = [name for name, status in backends().items() if status.available]
    return (
        f"fgd_kernels {__version__}, Python {platform.python_version()}, {versions()}\n"
        f"backends: {', '.join(running)}\n"
        f"library: {_library()}"
    )


def _library() -> str:
    info = native.build_info()
    if info is None:
        return native.load() or "loaded; it is of an older build and says nothing about itself"
    cuda = f"CUDA kernels by {info.cuda}" if info.cuda else f"no CUDA kernels: {info.cuda_missing}"
    return f"CPU kernels in use: {info.instruction_set}; built by {info.compiler}; {cuda}"


def check(backend: str) -> Check:
    """Compute a loss of two levels and its gradient on a backend, and compare with the reference in float64.

    Args:
        backend: one that is available, see `backends`.
    """
    device = "cuda" if backend == "cuda" or (backend == "triton" and torch.cuda.is_available()) else "cpu"
    expected = _loss_and_gradient("reference", "cpu", torch.float64)
    try:
        found = _loss_and_gradient(backend, device, torch.float32)
    except Exception as error:  # whatever it is, the report is to say it
        return Check(backend, float("nan"), f"{type(error).__name__}: {error}".splitlines()[0])
    errors = [(f.double().cpu() - e).abs().max() / e.abs().max() for f, e in zip(found, expected, strict=True)]
    return Check(backend, max(float(error) for error in errors), "")


def _loss_and_gradient(backend: str, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """The four terms, then each level's gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 32, 13, 17), (2, 32, 7, 9)]
    student, teacher = ([torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes] for _ in "st")
    boxes = [torch.tensor([[8.0, 8.0, 70.0, 60.0], [40.0, 20.0, 120.0, 100.0]], device=device)]
    boxes.append(torch.zeros(0, 4, device=device))
    for level in student:
        level.requires_grad_()
    losses = fgd_loss(student, teacher, boxes, [(104, 136)] * 2, backend=backend)
    assert isinstance(losses, dict)
    terms = torch.stack(list(losses.values()))
    return [terms.detach(), *torch.autograd.grad(terms.sum(), student)]


def hints() -> list[str]:
    """What would make the loss faster on this machine, most important first; empty if nothing is known."""
    status, found = backends(), []
    if not status["cpu"].available:
        found.append(f"the CPU kernels are missing, so the slow reference runs: {status['cpu'].reason}")
    if torch.cuda.is_available() and not status["cuda"].available:
        instead = "Triton's kernels run" if status["triton"].available else "the slow reference runs"
        found.append(f"there is a GPU, and {instead} on it: {status['cuda'].reason}")
    if os.environ.get("FGD_BACKEND", "auto") != "auto":
        found.append(f"FGD_BACKEND={os.environ['FGD_BACKEND']} is set; without it the fastest backend is chosen")
    if os.environ.get("TRITON_INTERPRET") == "1":
        found.append("TRITON_INTERPRET=1 is set: Triton's kernels run in its interpreter, which is for tests")
    if os.environ.get("FGD_CPU_ISA"):
        found.append(f"FGD_CPU_ISA={os.environ['FGD_CPU_ISA']} is set, which may keep wider instructions away")
    cores, threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None, torch.get_num_threads()
    if cores and threads < cores:
        found.append(f"torch uses {threads} of {cores} cores (OMP_NUM_THREADS, torch.set_num_threads)")
    if not torch.cuda.is_available() and _allocator_gives_memory_back():
        found.append(
            "glibc's malloc gives large gradients back to the system after each step; jemalloc or tcmalloc "
            "(LD_PRELOAD) keep them: docs/performance.md has figures"
        )
    return found


def _allocator_gives_memory_back() -> bool:
    maps = pathlib.Path("/proc/self/maps")
    return maps.is_file() and not any(name in maps.read_text() for name in ("jemalloc", "tcmalloc", "mimalloc"))


def report(packages: Sequence[str] = ()) -> tuple[str, bool]:
    """The whole examination as text, and whether every backend that is available computes the right loss.

    Args:
        packages: further distributions whose versions are told.
    """
    lines = [summary(), f"machine: {platform.platform()}, {os.cpu_count()} cores{_gpus()}"]
    if packages:
        lines.append(f"also: {versions(packages)}")
    lines += ["", "A small loss and its gradient beside the reference in float64:"]
    passed = True
    for name, status in backends().items():
        if not status.available:
            lines.append(f"  {name:<10} not here: {status.reason}")
            continue
        done = check(name)
        passed &= done.passed
        told = f"raises {done.raised}" if done.raised else f"error {done.error:.1e}"
        lines.append(f"  {name:<10} {'right' if done.passed else 'WRONG'}, {told} ({status.reason})")
    faster = hints() or ["nothing that is known here"]
    return "\n".join([*lines, "", "What would make it faster:", *(f"  - {hint}" for hint in faster)]), passed


def _gpus() -> str:
    if not torch.cuda.is_available():
        return ""
    names = [torch.cuda.get_device_properties(device) for device in range(torch.cuda.device_count())]
    return "".join(f"; {found.name}, sm_{found.major}{found.minor}" for found in names)
