"""Where teacher and students look: attentions and masks of one image.

Everything is shown in the frame that the loss sees: the student's batch as its backbone gets it, resized, normalised
and padded, with the boxes moved along. A feature map covers that batch from edge to edge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fgd_kernels as fgd
from fgd_kernels import foreground, reference

from ..adapters import DetectorAdapter, as_adapter, backbone_features
from ..distiller import layer_names
from ..errors import FGDValueError

TEACHER = "teacher"


@dataclass
class AttentionView:
    """What ``view_attention`` found for one image; level after level in every list.

    Args:
        picture: (3, h, w) in 0..1, the padded batch as it looks.
        boxes: (n, 4) xyxy in pixels of ``picture``.
        foreground: (H, W) each, M·S of the paper's (2) and (3): the largest weight of a box, or of a mask, that covers
            the pixel.
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
    adapter: DetectorAdapter | str | None = None,
    masks: Tensor | None = None,
) -> AttentionView:
    """Runs all models, in eval mode, on the batch that the first student's training step makes of one image.

    Args:
        teacher: the detector that teaches; its mode is left as it was.
        students: detectors by the names to show; their modes and batch statistics are left as they were.
        image: (3, h, w), float, 0..1.
        boxes: (n, 4) xyxy in pixels of ``image``; None for none.
        labels: (n,) as the first student counts them; None for its first. They change nothing in the picture.
        teacher_layers, student_layers: modules whose feature maps are shown; None takes the neck's, as the adapter
            names them.
        temperature: T of (7) and (8); the one that the loss uses.
        adapter: knows how the detectors are run; an object, or its class as ``module:Class``. None chooses one.
        masks: (n, h, w), 0 outside of an object: they are the foreground then, and not the boxes.

    Raises:
        ValueError: no student, a layer that does not exist, a temperature that is not positive, or models that
            cannot share one input or give different numbers of feature maps.
    """
    if not students or TEACHER in students:
        raise FGDValueError(f"students: expected models by names other than {TEACHER!r}, got {list(students)}")
    if not temperature > 0:
        raise FGDValueError(f"temperature: expected a number > 0, got {temperature}")
    first = next(iter(students.values()))
    adapter = as_adapter(adapter, first)
    for student in students.values():
        adapter.check_pair(student, teacher)
    boxes = torch.zeros(0, 4) if boxes is None else torch.as_tensor(boxes).float()
    if labels is None:
        labels = torch.full((len(boxes),), adapter.first_label(first))
    device = next(first.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a training may choose a size by chance
        whole = boxes.new_tensor([[0, 0, image.shape[2], image.shape[1]]])  # where it lies in the batch is asked, too
        some_label = torch.full((1,), adapter.first_label(first))
        target = {"boxes": torch.cat([boxes, whole]), "labels": torch.cat([labels.cpu(), some_label])}
        batch, (moved,) = adapter.frame(first, [image.to(device)], [{k: v.to(device) for k, v in target.items()}])
    moved, place = moved[:-1], moved[-1]
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
    weights: Callable[[int, int], Tensor] = partial(reference.foreground_mask, *packed)
    if masks is not None:
        weights = foreground.instance_masks([_placed(masks.to(device), place, batch)])
    return AttentionView(
        picture=adapter.picture(first, batch)[0].cpu(),
        boxes=moved.cpu(),
        foreground=[weights(*f.shape[-2:])[0].cpu() for f in features[TEACHER]],
        spatial={n: [reference.spatial_attention(f, temperature)[0].cpu() for f in m] for n, m in features.items()},
        channel={n: [reference.channel_attention(f, temperature)[0].cpu() for f in m] for n, m in features.items()},
    )


def _placed(masks: Tensor, place: Tensor, batch: Tensor) -> Tensor:
    """Masks (n, h, w) of an image as bool (n, H, W) of the batch, in which the image fills the box ``place``."""
    left, top, right, bottom = (round(value) for value in place.tolist())
    height, width = batch.shape[-2:]
    there = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    if len(masks):
        resized = F.interpolate((masks != 0).float()[None], size=(bottom - top, right - left))[0] > 0
        there[:, top:bottom, left:right] = resized[:, : height - top, : width - left]
    return there
