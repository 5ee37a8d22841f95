"""Hugging Face's RT-DETR and its relatives (package ``transformers``)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import FGDTypeError, FGDValueError
from .base import DetectorAdapter, Frame, StudentStep
from .batches import check_targets, detection, stack_images, to_pixels, to_relative


class HuggingFaceAdapter(DetectorAdapter):
    """``RTDetrForObjectDetection``, ``RTDetrV2ForObjectDetection`` and ``DFineForObjectDetection``.

    They take a ready tensor in 0..1, not normalised, as their image processor makes it. Images of several sizes are
    padded at the right and at the bottom to a common multiple of the largest stride, with 0. Labels count from 0.
    ``images`` may also be the dict that the image processor makes (``pixel_values``, ``labels``), with ``targets``
    None.

    Losses carry their weights; those of the decoder's layers and of the denoising queries are summed by name.
    """

    def neck_and_head(self, model: Any) -> Sequence[str]:
        _check("model", model)
        inner = [f"model.{name}" for name, _ in model.model.named_children() if name != "backbone"]
        return [*inner, *(name for name, _ in model.named_children() if name != "model")]

    def default_layers(self, model: Any) -> list[str]:
        """The hybrid encoder's maps: of the top-down path only the last one leaves it, of the bottom-up path all."""
        _check("model", model)
        encoder = model.model.encoder
        top_down, bottom_up = len(encoder.fpn_blocks) - 1, range(len(encoder.pan_blocks))
        return [f"model.encoder.fpn_blocks.{top_down}", *(f"model.encoder.pan_blocks.{i}" for i in bottom_up)]

    def check_pair(self, student: Any, teacher: Any) -> None:
        for role, model in (("student", student), ("teacher", teacher)):
            _check(role, model)
        ours, theirs = _largest_stride(student), _largest_stride(teacher)
        if ours % theirs:
            raise FGDValueError(f"teacher: its largest stride, {theirs}, must divide the student's, {ours}")

    def student_step(self, student: Any, images: Any, targets: Any) -> StudentStep:
        if isinstance(images, Mapping):
            batch = images["pixel_values"]
            labels = [
                {name: torch.as_tensor(value).to(batch.device) for name, value in label.items()}
                for label in images["labels"]
            ]
            boxes = [to_pixels(label["boxes"].float(), batch) for label in labels]
        else:
            batch, boxes, classes = _prepared(student, images, targets)
            labels = [
                {"class_labels": label, "boxes": to_relative(box, batch)}
                for label, box in zip(classes, boxes, strict=True)
            ]
        output = student(pixel_values=batch, labels=labels)
        return StudentStep(_by_name(output.loss_dict), batch, boxes)

    def run_backbone(self, model: Any, batch: Tensor) -> Any:
        return model(pixel_values=batch)

    @torch.no_grad()
    def predict(self, model: Any, images: Any) -> list[dict[str, Tensor]]:
        """The best ``num_queries`` pairs of box and class, as the image processor's post-processing takes them."""
        batch = stack_images(images, _largest_stride(model), 0.0)
        output = model(pixel_values=batch)
        classes = output.logits.shape[-1]
        scores, flat = output.logits.sigmoid().flatten(1).topk(output.logits.shape[1])
        return [
            detection(to_pixels(output.pred_boxes[n, flat[n] // classes], batch), scores[n], flat[n] % classes, image)
            for n, image in enumerate(images)
        ]

    def preset(self, model: Any) -> str | None:
        return None  # the paper distils no detector of this kind

    def frame(self, model: Any, images: Any, targets: Any) -> Frame:
        return Frame(*_prepared(model, images, targets)[:2])

    def picture(self, model: Any, batch: Tensor) -> Tensor:
        return batch.detach().float().clamp(0, 1)


def _check(role: str, model: Any) -> None:
    encoder = getattr(getattr(model, "model", None), "encoder", None)
    if not hasattr(encoder, "fpn_blocks") or not hasattr(encoder, "pan_blocks"):
        raise FGDTypeError(
            f"{role}: expected RT-DETR, RT-DETRv2 or D-FINE for object detection, got {type(model).__name__}; for "
            "another neck write an adapter (docs/guides/your-own-family.md)"
        )


def _prepared(model: Any, images: Any, targets: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The batch, and each image's boxes in its pixels and labels."""
    batch = stack_images(images, _largest_stride(model), 0.0)
    return batch, *check_targets(targets, batch, model.config.num_labels)


def _largest_stride(model: Any) -> int:
    return max(model.config.feat_strides)


def _by_name(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``loss_vfl``, ``loss_vfl_aux_0``, ``loss_vfl_dn_1`` … as one."""
    sums: dict[str, Tensor] = {}
    for name, loss in losses.items():
        base = re.sub(r"(_aux|_dn)?_\d+$", "", name)
        sums[base] = sums[base] + loss if base in sums else loss
    return sums
