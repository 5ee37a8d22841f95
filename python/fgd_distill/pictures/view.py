"""Where teacher and students look: attentions and masks of one image.

Everything is shown in the frame that the loss sees: the student's batch as its backbone gets it, resized, normalised
and padded, with the boxes moved along. A feature map covers that batch from edge to edge.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fgd_kernels as fgd
from fgd_kernels import reference

from ..adapters import DetectorAdapter, adapter_for, backbone_features
from ..distiller import layer_names
from ..errors import FGDValueError

TEACHER = "teacher"


@dataclass
class AttentionView:
    """What ``view_attention`` found for one image; level after level in every list.

    Args:
        picture: (3, h, w) in 0..1, the padded batch as it looks.
        boxes: (n, 4) xyxy in pixels of ``picture``.
        foreground: (H, W) each, M·S of the paper's (2) and (3): the largest weight of a box that covers the pixel.
        spatial: A^S (7) by model, (H, W) each, mean 1. The teacher comes first.
        channel: A^C (8) by model, (C,) each, mean 1.
    """

    picture: Tensor
    boxes: Tensor
    foreground: list[Tensor]
    spatial: dict[str, list[Tensor]]
    channel: dict[str, list[Tensor]]


def view_attention(
    teacher: nn.Module,
    students: Mapping[str, nn.Module],
    image: Tensor,
    boxes: Tensor | None = None,
    labels: Tensor | None = None,
    teacher_layers: str | Sequence[str] | None = None,
    student_layers: str | Sequence[str] | None = None,
    temperature: float = 0.5,
    adapter: DetectorAdapter | None = None,
) -> AttentionView:
    """Runs all models, in eval mode, on the batch that the first student's training step makes of one image.

    Args:
        teacher: the detector that teaches; its mode is left as it was.
        students: detectors by the names to show; their modes and batch statistics are left as they were.
        image: (3, h, w), float, 0..1.
        boxes: (n, 4) xyxy in pixels of ``image``; None for none.
        labels: (n,) as the first student counts them; None for 0 each. They change nothing in the picture.
        teacher_layers, student_layers: modules whose feature maps are shown; None takes the neck's, as the adapter
            names them.
        temperature: T of (7) and (8); the one that the loss uses.
        adapter: knows how the detectors are run; None chooses one.

    Raises:
        ValueError: no student, a layer that does not exist, a temperature that is not positive, or models that
            cannot share one input or give different numbers of feature maps.
    """
    if not students or TEACHER in students:
        raise FGDValueError(f"students: expected models by names other than {TEACHER!r}, got {list(students)}")
    if not temperature > 0:
        raise FGDValueError(f"temperature: expected a number > 0, got {temperature}")
    first = next(iter(students.values()))
    adapter = adapter or adapter_for(first)
    for student in students.values():
        adapter.check_pair(student, teacher)
    batch, moved = _frame(first, adapter, image, boxes, labels)
    layers = {name: layer_names(student_layers or adapter.default_layers(model)) for name, model in students.items()}
    layers[TEACHER] = layer_names(teacher_layers or adapter.default_layers(teacher))
    models = {TEACHER: teacher} | dict(students)
    features = {
        name: [feature.float() for feature in backbone_features(model, layers[name], batch, adapter)]
        for name, model in models.items()
    }
    counts = {name: len(maps) for name, maps in features.items()}
    if len(set(counts.values())) > 1:
        raise FGDValueError(f"layers: expected as many feature maps of every model, got {counts}")
    packed = fgd.pack_boxes([moved], [tuple(batch.shape[-2:])], moved.device)
    return AttentionView(
        picture=_as_seen(batch[0], first),
        boxes=moved.cpu(),
        foreground=[reference.foreground_mask(*packed, *f.shape[-2:])[0].cpu() for f in features[TEACHER]],
        spatial={n: [reference.spatial_attention(f, temperature)[0].cpu() for f in m] for n, m in features.items()},
        channel={n: [reference.channel_attention(f, temperature)[0].cpu() for f in m] for n, m in features.items()},
    )


def _frame(
    student: nn.Module, adapter: DetectorAdapter, image: Tensor, boxes: Tensor | None, labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The padded batch (1, 3, h, w) of a training step on this image, and the boxes in it."""
    device = next(student.parameters()).device
    boxes = torch.zeros(0, 4) if boxes is None else torch.as_tensor(boxes).float()
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else labels
    target = {"boxes": boxes, "labels": labels, "masks": _filled(boxes, image)}
    # A copy, because a step in training mode moves batch statistics; a seed, because it may choose a size by chance.
    probe = copy.deepcopy(student).train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        step = adapter.student_step(probe, [image.to(device)], [{k: v.to(device) for k, v in target.items()}])
    return step.batch, step.boxes[0]


def _filled(boxes: Tensor, image: Tensor) -> Tensor:
    """Masks (n, h, w) of whole boxes: Mask R-CNN's step asks for masks, though only its frame is wanted here."""
    y, x = (torch.arange(size) for size in image.shape[-2:])
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    rows, columns = (y1 <= y) & (y < y2), (x1 <= x) & (x < x2)
    return (rows[:, :, None] & columns[:, None, :]).to(torch.uint8)


def _as_seen(batch: Tensor, model: nn.Module) -> Tensor:
    """An image (3, h, w) of the batch in 0..1: with its normalisation undone where the detector tells it."""
    batch = batch.detach().float().cpu()
    transform: Any = getattr(model, "transform", None)
    if hasattr(transform, "image_mean") and hasattr(transform, "image_std"):
        mean, std = (torch.tensor(list(getattr(transform, key))).view(3, 1, 1) for key in ("image_mean", "image_std"))
        return (batch * std + mean).clamp(0, 1)
    if batch.min() < 0 or batch.max() > 1:  # normalised by something that we do not know: its range becomes 0..1
        batch = (batch - batch.min()) / (batch.max() - batch.min()).clamp(min=1e-12)
    return batch
