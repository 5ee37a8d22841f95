"""torchvision's detectors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ..errors import FGDTypeError, FGDValueError
from ..taps import LayerTap
from .base import DetectorAdapter, Frame, StudentStep
from .batches import check_same_normalisation, denormalised


class TorchvisionAdapter(DetectorAdapter):
    """torchvision's detectors: FCOS, RetinaNet, Faster R-CNN, Mask R-CNN, SSD.

    They resize, normalise and pad inside, in ``transform``. What leaves it is the frame: the padded batch, and the
    boxes scaled to it. The teacher gets that same tensor, because its own transform may size images differently
    (torchvision ignores some of its settings in eval mode), and then feature maps would not correspond.
    """

    def neck_and_head(self, model: nn.Module) -> Sequence[str]:
        return "backbone.fpn", "head", "rpn", "roi_heads"

    def default_layers(self, model: nn.Module) -> list[str]:
        """The neck: of one-stage detectors all levels, of two-stage ones, as published, those that are not pooled from
        another, which are P2 to P5. SSD has none; its backbone returns the maps that the head gets."""
        _check("model", model)
        fpn = getattr(model.backbone, "fpn", None)
        if fpn is None:
            return ["backbone"]
        if _is_two_stage(model) and hasattr(fpn, "layer_blocks"):
            return [f"backbone.fpn.layer_blocks.{level}" for level in range(len(fpn.layer_blocks))]
        return ["backbone.fpn"]

    def check_pair(self, student: nn.Module, teacher: nn.Module) -> None:
        for role, model in (("student", student), ("teacher", teacher)):
            _check(role, model)
        for name in ("image_mean", "image_std"):
            check_same_normalisation(name, *(list(getattr(model.transform, name)) for model in (student, teacher)))

    def student_step(self, student: nn.Module, images: Any, targets: Any) -> StudentStep:
        images, targets = list(images), list(targets or [])
        if len(images) != len(targets):
            raise FGDValueError(f"targets: expected one dict for each of {len(images)} images, got {len(targets)}")
        with LayerTap(student, ["transform"]) as tap:
            losses = student(images, targets)
        prepared, prepared_targets = tap.output("transform")
        boxes = [torch.as_tensor(target["boxes"]) for target in prepared_targets]
        return StudentStep(losses, prepared.tensors, boxes)

    def run_backbone(self, model: nn.Module, batch: Tensor) -> Any:
        return model.get_submodule("backbone")(batch)

    @torch.no_grad()
    def predict(self, model: nn.Module, images: Any) -> list[dict[str, Tensor]]:
        return model(list(images))

    def preset(self, model: nn.Module) -> str | None:
        if _is_two_stage(model):
            return "two_stage"
        if isinstance(model, FCOS):
            return "one_stage_anchor_free"
        return "one_stage_anchor" if isinstance(model, RetinaNet | SSD) else None

    def first_label(self, model: nn.Module) -> int:
        """RetinaNet and FCOS have no class for the background, though their own weights leave class 0 unused."""
        return 1 if _is_two_stage(model) or isinstance(model, SSD) else 0

    def frame(self, model: nn.Module, images: Any, targets: Any) -> Frame:
        transform = copy.deepcopy(model.get_submodule("transform")).train()  # in eval mode it takes another size
        prepared, moved = transform(list(images), [{"boxes": torch.as_tensor(target["boxes"])} for target in targets])
        return Frame(prepared.tensors, [target["boxes"] for target in moved])

    def picture(self, model: nn.Module, batch: Tensor) -> Tensor:
        transform: Any = model.get_submodule("transform")
        return denormalised(batch, transform.image_mean, transform.image_std)


def _check(role: str, model: nn.Module) -> None:
    transform = getattr(model, "transform", None)
    if not isinstance(transform, GeneralizedRCNNTransform) or not hasattr(model, "backbone"):
        raise FGDTypeError(f"{role}: expected one of torchvision's detectors, got {type(model).__name__}")


def _is_two_stage(model: nn.Module) -> bool:
    return hasattr(model, "roi_heads")
