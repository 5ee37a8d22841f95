"""Taking the student out of a training checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .files import atomic_write
from .models import DetectorConfig, build_detector, load_weights

STUDENT_PREFIX = "student."


def student_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The student's state dict, under the names of the plain detector.

    Args:
        checkpoint: a checkpoint of ``fgd_distill.training.DetectionModule``, or any dict whose ``state_dict`` has
            entries ``...student.<name>``.

    Raises:
        ValueError: it holds no student.
    """
    state = checkpoint.get("state_dict", checkpoint)
    marked = {name: value for name, value in state.items() if f".{STUDENT_PREFIX}" in f".{name}"}
    if not marked:
        raise ValueError(f"checkpoint: expected entries of a student, got {sorted(state)[:5]}")
    return {f".{name}".split(f".{STUDENT_PREFIX}", 1)[1]: value for name, value in marked.items()}


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
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"checkpoint: expected a file, found none at {checkpoint}")
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if "detector" not in content:
        raise ValueError(f"{checkpoint}: expected a checkpoint of fgd-distill fit, got the keys {sorted(content)[:8]}")
    stored = getattr(torch, dtype)
    state = {
        name: value.to(stored) if value.is_floating_point() else value
        for name, value in student_state_dict(content).items()
    }

    def write(path: Path) -> None:
        torch.save(state, path)
        load_weights(build_detector(DetectorConfig(**content["detector"])), path)

    atomic_write(output, write)
    print(f"wrote {len(state)} tensors, {Path(output).stat().st_size / 1e6:.1f} MB, to {output}")
