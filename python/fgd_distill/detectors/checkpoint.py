"""Taking the student out of a training checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..data.labels import CategoryLabels
from ..errors import FGDFileNotFoundError, FGDValueError
from ..tensor_files import described, read_tensors, save_tensors
from .by_name import DetectorConfig, build_detector
from .weights import load_state

STUDENT_PREFIX = "student."
COMPILED_PREFIX = "_orig_mod."  # where torch.compile(module) took a module's place


def student_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The student's state dict, under the names of the plain detector.

    Args:
        checkpoint: a checkpoint of ``fgd_distill.training.DetectionModule``, the ``state_dict()`` of a distiller, also
            of one in DistributedDataParallel or AveragedModel and with compiled parts, or any dict whose
            ``state_dict`` has entries ``...student.<name>``.

    Raises:
        ValueError: it holds no student, or several.
    """
    state = checkpoint.get("state_dict", checkpoint)
    # The first is the distiller's: a detector may have a part called 'student', too.
    parts = {name: f".{name}".partition(f".{STUDENT_PREFIX}") for name in state}
    found = {name: (owner[1:], inner) for name, (owner, _, inner) in parts.items() if inner}
    owners = sorted({owner for owner, _ in found.values()})
    if not found:
        raise FGDValueError(f"checkpoint: expected entries of a student, got {sorted(state)[:5]}")
    if len(owners) > 1:
        raise FGDValueError(f"checkpoint: expected one student, got those of {owners}; keep the entries of one of them")
    return {inner.replace(COMPILED_PREFIX, ""): state[name] for name, (_, inner) in found.items()}


class StoredStudent(NamedTuple):
    """The student of a checkpoint: how it is built, without weights, its state dict, what its labels stand for, and its
    adapter as ``module:Class``, if one was given."""

    config: DetectorConfig
    state: dict[str, Tensor]
    labels: CategoryLabels
    adapter: str | None


def read_checkpoint(checkpoint: str | Path) -> StoredStudent:
    """The student of a checkpoint of ``fgd-distill fit``.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it was not written by ``fgd-distill fit``.
    """
    if not Path(checkpoint).is_file():
        raise FGDFileNotFoundError(f"checkpoint: expected a file, found none at {checkpoint}")
    expected = "a checkpoint of fgd-distill fit"
    content = read_tensors(checkpoint, expected)
    if not isinstance(content, Mapping) or "detector" not in content:
        raise FGDValueError(f"{checkpoint}: expected {expected}, got {described(content)}")
    try:
        config, labels = DetectorConfig(**content["detector"]), CategoryLabels.from_state(content.get("labels"))
        return StoredStudent(config, student_state_dict(content), labels, content.get("adapter"))
    except (TypeError, KeyError, AttributeError) as error:
        raise FGDValueError(f"{checkpoint}: expected {expected}, got one of another structure: {error!r}") from error


def export_student(checkpoint: str, output: str, dtype: Literal["float32", "float16"] = "float32") -> None:
    """Writes the student of a training checkpoint as a plain state dict, without teacher, loss and optimizer.

    Before it is written, the state dict is loaded, strictly, into the detector that the checkpoint describes.

    Args:
        checkpoint: a checkpoint written by ``fgd-distill fit``.
        output: the file to write.
        dtype: the type to store floating-point tensors in; float16 halves the file and is converted back on loading.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it was not written by ``fgd-distill fit``.
    """
    stored = read_checkpoint(checkpoint)
    kept: torch.dtype = getattr(torch, dtype)
    state = {name: value.to(kept) if value.is_floating_point() else value for name, value in stored.state.items()}
    load_state(build_detector(stored.config), state, Path(checkpoint))
    save_tensors(output, state)
    print(f"wrote {len(state)} tensors, {Path(output).stat().st_size / 1e6:.1f} MB, to {output}")
