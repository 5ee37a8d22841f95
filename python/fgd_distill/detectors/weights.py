"""Files of weights: found, read, and loaded whole or not at all."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ..errors import FGDFileNotFoundError, FGDValueError
from ..tensor_files import described, read_tensors

PACKAGE_WEIGHTS = Path(__file__).parents[1] / "weights"


def resolve_weights(weights: str | Path) -> Path:
    """The file that ``weights`` names; ``package:<file>`` lies in this package.

    Raises:
        FileNotFoundError: there is none.
    """
    name = str(weights)
    path = PACKAGE_WEIGHTS / name.removeprefix("package:") if name.startswith("package:") else Path(name)
    if not path.is_file():
        raise FGDFileNotFoundError(f"weights: expected a file with a state dict, found none at {path}")
    return path


def load_weights(model: nn.Module, weights: str | Path) -> None:
    """Loads a state dict, all of it or not at all.

    Args:
        model: the detector to fill.
        weights: a file that holds a state dict, or one under the key ``model`` as torchvision's training scripts
            write it. Other floating types are converted to the model's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names or shapes differ; the message lists the first of them.
    """
    path = resolve_weights(weights)
    load_state(model, read_state(path), path)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, which may have it under the key ``model``.

    Raises:
        ValueError: the file holds something else.
    """
    state = read_tensors(path, "a file of torch.save with tensors")
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        is_checkpoint = isinstance(state, dict) and "state_dict" in state
        hint = "; make one with: fgd-distill export-student" if is_checkpoint else ""
        raise FGDValueError(f"{path}: expected a state dict of tensors, got {described(state)}{hint}")
    return state


def load_state(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = str(error).splitlines()
        shown = "\n".join(line[:300] for line in lines[:8])
        raise FGDValueError(f"{path}: the weights do not fit {type(model).__name__}:\n{shown}") from error
