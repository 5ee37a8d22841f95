"""Taking the student out of a training checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..data.labels import CategoryLabels
from ..errors import FGDFileNotFoundError, FGDValueError
from ..tensor_files import described, read_tensors, save_tensors, without_blanks
from .by_name import DetectorConfig, build_detector
from .weights import load_state

EXPECTED = "a checkpoint of fgd-distill fit"
STUDENT_PREFIX = "student."
CRITERION_PREFIX = "criterion."
PUBLISHED_PREFIX = "distill_losses.loss_fgd_fpn_"  # of the published code's levels
COMPILED_PREFIX = "_orig_mod."  # where torch.compile(module) took a module's place


def student_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The student's state dict, under the names of the plain detector.

    Args:
        checkpoint: a checkpoint of ``fgd_distill.training.DetectionModule``, the ``state_dict()`` of a distiller, also
            of one in DistributedDataParallel or AveragedModel and with compiled parts, or any dict whose
            ``state_dict`` has entries ``...student.<name>``; or one of ``fgd_distill.mmdet.FGDDetector``, which has the
            student's entries under their own names beside ``criterion.<name>``.

    Raises:
        ValueError: it holds no student, or several.
    """
    state = checkpoint.get("state_dict", checkpoint)
    # The first is the distiller's: a detector may have a part called 'student', too.
    parts = {name: f".{name}".partition(f".{STUDENT_PREFIX}") for name in state}
    found = {name: (owner[1:], inner) for name, (owner, _, inner) in parts.items() if inner}
    owners = sorted({owner for owner, _ in found.values()})
    if not found and any(name.startswith(CRITERION_PREFIX) for name in state):
        return {name: value for name, value in state.items() if not name.startswith(CRITERION_PREFIX)}
    if not found:
        raise FGDValueError(f"checkpoint: expected entries of a student, got {sorted(state)[:5]}")
    if len(owners) > 1:
        raise FGDValueError(f"checkpoint: expected one student, got those of {owners}; keep the entries of one of them")
    return {inner.replace(COMPILED_PREFIX, ""): state[name] for name, (_, inner) in found.items()}


def published_criterion(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The criterion's entries, as ``criterion.levels.<level>.<name>``, of a state dict of the published code, or of a
    model that holds a ``distiller``."""
    places = ((PUBLISHED_PREFIX, f"{CRITERION_PREFIX}levels."), (f"distiller.{CRITERION_PREFIX}", CRITERION_PREFIX))
    return {
        ours + name.removeprefix(theirs): value
        for theirs, ours in places
        for name, value in state.items()
        if name.startswith(theirs)
    }


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
    return _stored(checkpoint, _content(checkpoint))


def _content(checkpoint: str | Path, blanks: bool = False) -> Any:
    if not Path(checkpoint).is_file():
        raise FGDFileNotFoundError(f"checkpoint: expected a file, found none at {checkpoint}")
    return read_tensors(checkpoint, EXPECTED, blanks=blanks)


def _stored(checkpoint: str | Path, content: Any) -> StoredStudent:
    if not isinstance(content, Mapping) or "detector" not in content:
        raise FGDValueError(f"{checkpoint}: expected {EXPECTED}, got {described(content)}")
    try:
        config, labels = DetectorConfig(**content["detector"]), CategoryLabels.from_state(content.get("labels"))
        return StoredStudent(config, student_state_dict(content), labels, content.get("adapter"))
    except (TypeError, KeyError, AttributeError) as error:
        raise FGDValueError(f"{checkpoint}: expected {EXPECTED}, got one of another structure: {error!r}") from error


def _is_runners(content: Any) -> bool:
    """Whether a checkpoint is of MMEngine's runner, or of its predecessor's."""
    return isinstance(content, Mapping) and {"meta", "state_dict"} <= content.keys() and "detector" not in content


def export_student(checkpoint: str, output: str, dtype: Literal["float32", "float16"] = "float32") -> None:
    """Writes the student of a training checkpoint as a plain state dict, without teacher, loss and optimizer.

    Of a checkpoint of ``fgd-distill fit``, the state dict is loaded, strictly, into the detector that the checkpoint
    describes before it is written. Of one of MMDetection, by ``FGDDetector`` or by the published code, becomes one that
    ``init_detector`` and ``load_from`` take: ``state_dict``, and ``meta`` as it was.

    Args:
        checkpoint: a checkpoint written by ``fgd-distill fit``, or by MMEngine's runner.
        output: the file to write.
        dtype: the type to store floating-point tensors in; float16 halves the file and is converted back on loading.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it holds no student.
    """
    content = _content(checkpoint, blanks=True)
    kept: torch.dtype = getattr(torch, dtype)
    if _is_runners(content):
        state = _converted(student_state_dict(content), kept)
        save_tensors(output, {"meta": without_blanks(content["meta"]), "state_dict": state})
    else:
        stored = _stored(checkpoint, content)
        state = _converted(stored.state, kept)
        load_state(build_detector(stored.config), state, Path(checkpoint))
        save_tensors(output, state)
    print(f"wrote {len(state)} tensors, {Path(output).stat().st_size / 1e6:.1f} MB, to {output}")


def _converted(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
