"""What a training begins with: its models' sizes, and what becomes of the images on their way into the network."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ..adapters import DetectorAdapter
from ..data.datamodule import CocoFolder
from .noise import first_process

IMAGES = 8  # looked at
SMALL = 8.0  # pixels: the finest level of most detectors has one pixel for so many


class StartReport(pl.Callback):
    """Prints ``start_report`` before the first step, from the first process alone."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        data = getattr(getattr(trainer, "datamodule", None), "train_set", None)
        if first_process() and isinstance(data, CocoFolder):
            teacher = None if pl_module.distiller is None else pl_module.distiller.teacher
            print("\n".join(start_report(pl_module.detector, teacher, pl_module.adapter, data)), flush=True)


def start_report(
    student: nn.Module, teacher: nn.Module | None, adapter: DetectorAdapter, data: CocoFolder
) -> list[str]:
    """The lines: parameters, and for some images their size as files, after the transforms, and in the network.

    Args:
        student, teacher: the detectors; no teacher without distillation.
        adapter: knows how the student prepares a batch.
        data: the training images; some are loaded, as a training would.
    """
    trained = _millions(p for p in student.parameters() if p.requires_grad)
    lines = [
        f"student {type(student).__name__}: {_millions(student.parameters())} parameters, {trained} of them trained"
    ]
    if teacher is not None:
        lines[0] += f"; teacher {type(teacher).__name__}: {_millions(teacher.parameters())}"
    device = next(student.parameters()).device
    ways: dict[str, None] = {}
    longer: list[float] = []
    with torch.random.fork_rng(devices=[]):
        for index in sorted({round(i * (len(data) - 1) / (IMAGES - 1)) for i in range(IMAGES)}):
            image, target = data[index]
            stated = data.coco.imgs[int(target["image_id"])]
            boxes = {**target, "boxes": target["boxes"].to(device), "labels": target["labels"].to(device)}
            batch, (moved,) = adapter.frame(student, [image.to(device)], [boxes])
            ways[_way(stated.get("width"), stated.get("height"), image, batch)] = None
            longer += (moved[:, 2:] - moved[:, :2]).amax(dim=1).tolist()
    shown = list(ways)[:3]
    more = f" and {len(ways) - 3} other sizes" if len(ways) > 3 else ""
    lines.append(f"images, width x height: {'; '.join(shown)}{more}")
    if longer:
        half = statistics.median(longer)
        small = "; few levels can see that, take a larger size in model.student.options" if half < SMALL else ""
        lines.append(f"objects in the network's input: half of them are longer than {half:.0f} pixels{small}")
    return lines


def _way(width: int | None, height: int | None, image: Tensor, batch: Tensor) -> str:
    steps = [] if width is None or height is None else [(f"{width}x{height}", "in the file")]
    for name, tensor in (("after the transforms", image), ("in the network, with its padding", batch)):
        size = f"{tensor.shape[-1]}x{tensor.shape[-2]}"
        if not steps or steps[-1][0] != size:
            steps.append((size, name))
    if len(steps) == 1:
        return f"{steps[0][0]}, never resized"
    return ", ".join(f"{size} {name}" for size, name in steps)


def _millions(parameters: Iterable[Tensor]) -> str:
    return f"{sum(p.numel() for p in parameters) / 1e6:.3g} million"
