"""Ultralytics' YOLO. Its package is licensed under the AGPL; nothing here imports it before such a model comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fgd_kernels.foreground import Foreground, instance_masks, rotated_boxes

from ..errors import FGDTypeError, FGDValueError
from .base import DetectorAdapter, Frame, StudentStep
from .batches import check_divides, check_targets, detection, stack_images, to_pixels, to_relative

GREY = 114 / 255  # what Ultralytics pads with


class UltralyticsAdapter(DetectorAdapter):
    """Detectors of the package ``ultralytics``: ``YOLO(...).model``, v3 to v12 and 26, and its RT-DETR.

    They take a ready tensor in 0..1. Images of several sizes are padded at the right and at the bottom to a common
    multiple of the largest stride, with Ultralytics' grey. Labels count from 0. ``images`` may also be the dict that
    Ultralytics' own trainer gives a model (``img``, ``batch_idx``, ``cls``, ``bboxes``), with ``targets`` None. Models
    for segmentation, poses and rotated boxes are trained on such dicts alone. Rotated boxes are foreground as they lie.

    Losses of YOLO are those of an image; Ultralytics' trainer minimises them times the batch size.

    Args:
        masks: whether the foreground is what the instance masks of a batch cover, and not their boxes.
    """

    def __init__(self, masks: bool = False) -> None:
        self.masks = masks

    def neck_and_head(self, model: Any) -> Sequence[str]:
        return [f"model.{index}" for index in range(len(model.yaml["backbone"]), len(model.model))]

    def default_layers(self, model: Any) -> list[str]:
        """The layers that feed the head, from fine to coarse, such as ``model.15``, ``.18`` and ``.21`` of YOLOv8."""
        _check_detector("model", model)
        head = model.model[-1]
        names = [f"model.{index if index >= 0 else head.i + index}" for index in head.f]
        strides = [float(stride) for stride in getattr(head, "stride", ())]
        if len(strides) != len(names):
            return names
        return [name for _, name in sorted(zip(strides, names, strict=True), key=lambda pair: pair[0])]

    def check_pair(self, student: Any, teacher: Any) -> None:
        for role, model in (("student", student), ("teacher", teacher)):
            _check_detector(role, model)
        check_divides("stride", _largest_stride(student), _largest_stride(teacher))
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise FGDValueError(
                "student: expected parameters to train, but none requires a gradient, as in a model that YOLO(...) "
                "loads from a file; call student.requires_grad_(True)"
            )

    def student_step(self, student: Any, images: Any, targets: Any) -> StudentStep:
        _set_up_loss(student)
        foreground = None
        if isinstance(images, Mapping):
            batch = dict(images)
            boxes, foreground = _boxes_of(batch)
            if self.masks:
                foreground = _masks_of(batch, student.args.overlap_mask)
        else:
            _check_plain_task(student)
            batch, boxes = _batch(student, images, targets)
        return StudentStep(_losses(student, batch), batch["img"], boxes, foreground)

    def run_backbone(self, model: Any, batch: Tensor) -> Any:
        return model(batch)

    @torch.no_grad()
    def predict(self, model: Any, images: Any) -> list[dict[str, Tensor]]:
        """With the settings of Ultralytics' validation: scores above 0.001, IoU 0.7, several labels a box."""
        from ultralytics.utils.nms import non_max_suppression

        _check_plain_task(model)
        batch = stack_images(images, _largest_stride(model), GREY)
        if is_rt_detr(model):
            found = model(batch)[0]  # (N, queries, 6): relative boxes by their centres, scores and labels
            corners = [to_pixels(f[:, :4], batch) for f in found]
            return [detection(b, f[:, 4], f[:, 5], i) for b, f, i in zip(corners, found, images, strict=True)]
        found = non_max_suppression(
            model(batch),
            conf_thres=0.001,
            iou_thres=0.7,
            multi_label=True,
            nc=model.model[-1].nc,
            max_time_img=float("inf"),  # otherwise a slow machine loses boxes
        )
        return [detection(f[:, :4], f[:, 4], f[:, 5], image) for f, image in zip(found, images, strict=True)]

    def preset(self, model: Any) -> str | None:
        return "one_stage_anchor_free"

    def frame(self, model: Any, images: Any, targets: Any) -> Frame:
        batch, boxes = _batch(model, images, targets)
        return Frame(batch["img"], boxes)

    def picture(self, model: Any, batch: Tensor) -> Tensor:
        return batch.detach().float().clamp(0, 1)


def is_rt_detr(model: Any) -> bool:
    """Whether it is one of Ultralytics' RT-DETR networks."""
    from ultralytics.nn.tasks import RTDETRDetectionModel

    return isinstance(model, RTDETRDetectionModel)


def _check_detector(role: str, model: Any) -> None:
    from ultralytics.engine.model import Model
    from ultralytics.nn.modules import Detect, RTDETRDecoder, WorldDetect, YOLOEDetect
    from ultralytics.nn.tasks import DetectionModel

    if isinstance(model, Model):
        raise FGDTypeError(
            f"{role}: expected the network, got {type(model).__name__} around it; pass its attribute model"
        )
    layers: Any = getattr(model, "model", [None])
    head = layers[-1]
    prompted = isinstance(head, WorldDetect | YOLOEDetect)  # their losses need texts or prompts
    if not isinstance(model, DetectionModel) or not isinstance(head, Detect | RTDETRDecoder) or prompted:
        head = "none" if layers[-1] is None else type(layers[-1]).__name__
        raise FGDTypeError(f"{role}: expected a YOLO detector, got {type(model).__name__} with the head {head}")


def _check_plain_task(model: Any) -> None:
    """Masks, key points and angles are in Ultralytics' own batches alone."""
    from ultralytics.nn.tasks import OBBModel, PoseModel, SegmentationModel

    if isinstance(model, OBBModel | PoseModel | SegmentationModel):
        raise FGDTypeError(
            f"images: expected a batch of Ultralytics' own trainer for {type(model).__name__}, got images and targets; "
            "train it by fgd_distill.ultralytics.FGDTrainer"
        )


def _losses(student: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """By name; with YOLO's of an image, whose own are times the batch size."""
    total, items = student.loss(batch)
    if isinstance(items, Mapping) and total.shape == (len(items),):
        return dict(zip(items, total / len(batch["img"]), strict=True))
    if not isinstance(items, Mapping) or total.ndim:
        raise FGDTypeError(
            f"student: expected its loss by name, as Ultralytics 8.4.190 returns it, got {type(items).__name__}"
        )
    # RT-DETR names the last layer's losses, without gradient; the sum of all layers has it.
    named = {name: loss.detach() for name, loss in items.items()}
    return {**named, "other_layers_loss": total - torch.stack(list(named.values())).sum()}


def _largest_stride(model: Any) -> int:
    return int(model.stride.max())


def _set_up_loss(student: Any) -> None:
    """Gives the model what its loss needs, as Ultralytics' trainer does."""
    from ultralytics.utils import DEFAULT_CFG_DICT, IterableSimpleNamespace

    args = getattr(student, "args", None)
    if args is None or isinstance(args, Mapping):  # from YAML there are none, from YOLO(...) there is a dict
        student.args = IterableSimpleNamespace(**{**DEFAULT_CFG_DICT, **(args or {})})
    if is_rt_detr(student) and not hasattr(student, "nc"):
        student.nc = student.model[-1].nc
    # The model keeps its criterion, and that the device on which it was made.
    criterion = getattr(student, "criterion", None)
    made_for = getattr(getattr(criterion, "one2many", criterion), "device", None)
    if made_for is not None and made_for != next(student.parameters()).device:
        student.criterion = None


def _batch(student: Any, images: Any, targets: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Ultralytics' batch, and the boxes as they came."""
    stacked = stack_images(images, _largest_stride(student), GREY)
    boxes, labels = check_targets(targets, stacked, student.model[-1].nc)
    counts = torch.tensor([len(label) for label in labels], device=stacked.device)
    batch = {
        "img": stacked,
        "batch_idx": torch.arange(len(labels), device=stacked.device).repeat_interleave(counts).float(),
        "cls": torch.cat(labels).float()[:, None],
        "bboxes": to_relative(torch.cat(boxes), stacked),
    }
    return batch, boxes


def _boxes_of(batch: dict[str, Tensor]) -> tuple[list[Tensor], Foreground | None]:
    """The boxes in a batch of Ultralytics' trainer, xyxy in pixels; of rotated ones what they cover, too."""
    image = batch["img"]
    if not image.is_floating_point():
        raise FGDTypeError(
            f"images['img']: expected floats in 0..1, as the trainer's preprocess_batch makes, got {image.dtype}"
        )
    boxes = batch["bboxes"].to(image.device, torch.float32)
    index = batch["batch_idx"].to(image.device).view(-1)
    (height, width), numbers = image.shape[-2:], range(len(image))
    if boxes.shape[-1] != 5:
        pixels = to_pixels(boxes, image)
        return [pixels[index == number] for number in numbers], None
    boxes = boxes * boxes.new_tensor([width, height, width, height, 1])
    angle, half = boxes[:, 4:], boxes[:, 2:4] / 2
    reach = (half * angle.cos().abs()) + (half.flip(1) * angle.sin().abs())
    upright = torch.cat([boxes[:, :2] - reach, boxes[:, :2] + reach], 1)
    covered = rotated_boxes([boxes[index == number] for number in numbers], [(height, width)] * len(image))
    return [upright[index == number] for number in numbers], covered


def _masks_of(batch: dict[str, Tensor], overlap: bool) -> Foreground:
    """What the instance masks of a batch cover; with ``overlap`` they are one map of the objects' numbers an image."""
    if "masks" not in batch:
        raise FGDTypeError(f"images: expected masks, as a segmenter's data have them, got {sorted(batch)}")
    masks, index = batch["masks"], batch["batch_idx"].view(-1)
    owned = [index == number for number in range(len(batch["img"]))]
    if not overlap:
        return instance_masks([masks[of_image] for of_image in owned])
    numbers = [torch.arange(1, int(of_image.sum()) + 1, device=masks.device)[:, None, None] for of_image in owned]
    return instance_masks([one[None] == these for one, these in zip(masks, numbers, strict=True)])
