"""torchvision's detectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ..errors import FGDTypeError, FGDValueError
from ..taps import LayerTap
from .base import StudentStep


class TorchvisionAdapter:
    """torchvision's detectors: FCOS, RetinaNet, Faster R-CNN, Mask R-CNN, SSD.

    They resize, normalise and pad inside, in ``transform``. What leaves it is the frame: the padded batch, and the
    boxes scaled to it. The teacher gets that same tensor, because its own transform may size images differently
    (torchvision ignores some of its settings in eval mode), and then feature maps would not correspond.
    """

    def neck_and_head(self, model: nn.Module) -> Sequence[str]:
        return "backbone.fpn", "head", "rpn", "roi_heads"

    def default_layers(self, model: nn.Module) -> list[str]:
        # SSD has no neck; its backbone returns the maps that the head gets.
        return ["backbone.fpn" if hasattr(model.backbone, "fpn") else "backbone"]

    def check_pair(self, student: nn.Module, teacher: nn.Module) -> None:
        for role, model in (("student", student), ("teacher", teacher)):
            if not isinstance(getattr(model, "transform", None), GeneralizedRCNNTransform):
                raise FGDTypeError(f"{role}: expected one of torchvision's detectors, got {type(model).__name__}")
        for name in ("image_mean", "image_std"):
            ours, theirs = (list(getattr(model.transform, name)) for model in (student, teacher))
            if ours != theirs:
                raise FGDValueError(
                    f"{name}: the teacher gets the student's normalised batch, so both must normalise alike; "
                    f"got {ours} for the student and {theirs} for the teacher"
                )

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
