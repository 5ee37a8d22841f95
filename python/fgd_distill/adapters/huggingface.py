"""Hugging Face's DETR, RT-DETR, RF-DETR and their relatives (package ``transformers``)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import FGDTypeError, FGDValueError
from .base import DetectorAdapter, Frame, StudentStep
from .batches import (
    IMAGENET,
    check_divides,
    check_targets,
    denormalised,
    detection,
    stack_images,
    stack_normalised,
    to_pixels,
    to_relative,
)


class HuggingFaceAdapter(DetectorAdapter):
    """``RTDetrForObjectDetection`` and its V2, ``DFineForObjectDetection``, ``RfDetrForObjectDetection``,
    ``LwDetrForObjectDetection``, ``DetrForObjectDetection``, and those of Conditional, DAB and Deformable DETR.

    They take a ready tensor, as their image processors make it: in 0..1 for RT-DETR and D-FINE, normalised by
    ImageNet's mean and deviation for the others. Images of several sizes are padded at the right and at the bottom to
    a common multiple of the largest stride, or to a square that the windows of RF-DETR and LW-DETR divide. Labels
    count from 0. ``images`` may also be the dict that the image processor makes (``pixel_values``, ``labels``, and
    ``pixel_mask`` if it pads), with ``targets`` None.

    Losses carry their weights; those of the decoder's layers, of the proposals and of the denoising queries are summed
    by name.
    """

    def neck_and_head(self, model: Any) -> Sequence[str]:
        neck = _neck("model", model)
        inner = [f"model.{name}" for name, _ in model.model.named_children() if name != "backbone"]
        heads = [name for name, _ in model.named_children() if name != "model"]
        return [*(layer for layer in neck.layers if layer.startswith("model.backbone.")), *inner, *heads]

    def default_layers(self, model: Any) -> list[str]:
        return _neck("model", model).layers

    def check_pair(self, student: Any, teacher: Any) -> None:
        ours, theirs = _neck("student", student), _neck("teacher", teacher)
        if ours.normalised != theirs.normalised:
            told = ["normalised" if neck.normalised else "in 0..1" for neck in (ours, theirs)]
            raise FGDValueError(
                "teacher: it gets the student's batch, so both must take the same values, got a student whose batch is "
                f"{told[0]} and a teacher whose is {told[1]}"
            )
        check_divides("window" if ours.square else "stride", ours.divisor, theirs.divisor)

    def student_step(self, student: Any, images: Any, targets: Any) -> StudentStep:
        mask = {}
        if isinstance(images, Mapping):
            batch = images["pixel_values"]
            if images.get("pixel_mask") is not None:  # of padding, where the processor made some
                mask = {"pixel_mask": images["pixel_mask"]}
            labels = [
                {name: torch.as_tensor(value).to(batch.device) for name, value in label.items()}
                for label in images["labels"]
            ]
            boxes = [to_pixels(label["boxes"].float(), batch) for label in labels]
        else:
            batch, boxes = self.frame(student, images, targets)
            _, classes = check_targets(targets, batch, student.config.num_labels)
            labels = [
                {"class_labels": label, "boxes": to_relative(box, batch)}
                for label, box in zip(classes, boxes, strict=True)
            ]
        output = student(pixel_values=batch, labels=labels, **mask)
        return StudentStep(_by_name(output.loss_dict, _neck("student", student).weights), batch, boxes)

    def run_backbone(self, model: Any, batch: Tensor) -> Any:
        return model(pixel_values=batch)

    @torch.no_grad()
    def predict(self, model: Any, images: Any) -> list[dict[str, Tensor]]:
        """The best ``num_queries`` pairs of box and class, as the image processor's post-processing takes them; of
        DETR, each query's best class."""
        batch = _batch(model, images)
        output = model(pixel_values=batch)
        queries, classes = output.logits.shape[1:]
        if classes > model.config.num_labels:  # the last one is 'no object'
            scores, labels = output.logits.softmax(-1)[..., :-1].max(-1)
            boxes = torch.arange(queries, device=batch.device).expand_as(labels)
        else:
            scores, flat = output.logits.sigmoid().flatten(1).topk(queries)
            boxes, labels = flat // classes, flat % classes
        return [
            detection(to_pixels(output.pred_boxes[n, boxes[n]], batch), scores[n], labels[n], image)
            for n, image in enumerate(images)
        ]

    def preset(self, model: Any) -> str | None:
        return None  # the paper distils no detector of this kind

    def frame(self, model: Any, images: Any, targets: Any) -> Frame:
        batch = _batch(model, images)
        boxes, _ = check_targets(targets, batch, model.config.num_labels)
        return Frame(batch, boxes)

    def probe_size(self, model: Any) -> tuple[int, int]:
        divisor = _neck("model", model).divisor
        side = -(-320 // divisor) * divisor
        return side, side

    def picture(self, model: Any, batch: Tensor) -> Tensor:
        if _neck("model", model).normalised:
            return denormalised(batch, *IMAGENET)
        return batch.detach().float().clamp(0, 1)


class _Neck(NamedTuple):
    """What differs between the kinds of detectors.

    Args:
        layers: whose outputs are distilled, from fine to coarse.
        divisor: of the batch's height and width, in pixels.
        normalised: whether the batch is normalised.
        square: whether it is square.
        weights: of the losses in ``loss_dict``; None where they have them already.
    """

    layers: list[str]
    divisor: int
    normalised: bool
    square: bool
    weights: dict[str, float] | None


def _neck(role: str, model: Any) -> _Neck:
    """Raises TypeError for a model of another kind."""
    inner: Any = getattr(model, "model", None)
    encoder: Any = getattr(inner, "encoder", None)
    if hasattr(encoder, "fpn_blocks") and hasattr(encoder, "pan_blocks"):
        # The hybrid encoder's maps: of the top-down path only the last one leaves it, of the bottom-up path all.
        bottom_up = [f"model.encoder.pan_blocks.{i}" for i in range(len(encoder.pan_blocks))]
        layers = [f"model.encoder.fpn_blocks.{len(encoder.fpn_blocks) - 1}", *bottom_up]
        return _Neck(layers, max(model.config.feat_strides), False, False, None)
    if hasattr(getattr(inner, "backbone", None), "projector") and hasattr(model, "bbox_embed"):
        backbone = model.config.backbone_config
        windows = getattr(backbone, "num_windows_side", backbone.num_windows)
        weights = _weights(model.config, model.config.class_loss_coefficient)
        return _Neck(["model.backbone.projector"], backbone.patch_size * windows, True, True, weights)
    if hasattr(inner, "input_projection") and hasattr(model, "bbox_predictor"):  # one map, of the backbone's last stage
        return _Neck(["model.input_projection"], 32, True, False, _weights(model.config))
    if hasattr(inner, "input_proj") and hasattr(model, "bbox_embed"):
        layers = [f"model.input_proj.{level}" for level in range(len(inner.input_proj))]
        return _Neck(layers, 64 if len(layers) > 3 else 32, True, False, _weights(model.config))
    raise FGDTypeError(
        f"{role}: expected RT-DETR, RT-DETRv2, D-FINE, RF-DETR, LW-DETR or DETR (Conditional, DAB, Deformable) for "
        f"object detection, got {type(model).__name__}; for another neck write an adapter "
        "(docs/guides/your-own-family.md)"
    )


def _weights(config: Any, classes: float = 1) -> dict[str, float]:
    return {
        "loss_ce": classes,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
    }


def _batch(model: Any, images: Any) -> Tensor:
    neck = _neck("model", model)
    if neck.normalised:
        return stack_normalised(images, neck.divisor, *IMAGENET, neck.square)
    return stack_images(images, neck.divisor, 0.0)


def _by_name(losses: Mapping[str, Tensor], weights: Mapping[str, float] | None) -> dict[str, Tensor]:
    """``loss_vfl``, ``loss_vfl_aux_0``, ``loss_vfl_dn_1``, ``loss_ce_enc`` … as one, weighted."""
    sums: dict[str, Tensor] = {}
    for name, loss in losses.items():
        base = re.sub(r"(((_aux|_dn)?_\d+)|_enc)$", "", name)
        if weights is not None and base not in weights:
            continue  # counts errors, for logs
        loss = loss if weights is None else loss * weights[base]
        sums[base] = sums[base] + loss if base in sums else loss
    return sums
