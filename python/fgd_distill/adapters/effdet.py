"""EfficientDet of the package ``effdet``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FGDTypeError
from .base import DetectorAdapter, Frame, StudentStep
from .batches import check_images, check_same_normalisation, check_targets, denormalised, detection


class EffDetAdapter(DetectorAdapter):
    """``EfficientDet``, as ``effdet.create_model(name)`` builds it without a bench.

    Its anchors are made for one size, ``config.image_size``: images are resized to fit into it, normalised by the mean
    and deviation of the model's configuration, and padded at the right and at the bottom. Labels count from 1 to its
    ``num_classes``, which does not count the background.
    """

    def neck_and_head(self, model: Any) -> Sequence[str]:
        return "fpn", "class_net", "box_net"

    def default_layers(self, model: Any) -> list[str]:
        _check("model", model)
        return ["fpn"]

    def check_pair(self, student: Any, teacher: Any) -> None:
        for role, model in (("student", student), ("teacher", teacher)):
            _check(role, model)
        check_same_normalisation("config", _normalisation(student), _normalisation(teacher))

    def student_step(self, student: Any, images: Any, targets: Any) -> StudentStep:
        from effdet.anchors import AnchorLabeler, Anchors
        from effdet.loss import DetectionLoss

        batch, boxes = self.frame(student, images, targets)
        labels = _targets(student, images, targets)[1]
        config = student.config
        labeler = AnchorLabeler(Anchors.from_config(config).to(batch.device), config.num_classes, match_threshold=0.5)
        aims = labeler.batch_label_anchors([box[:, [1, 0, 3, 2]] for box in boxes], [label.float() for label in labels])
        _, class_loss, box_loss = DetectionLoss(config)(*student(batch), *aims)
        return StudentStep({"class_loss": class_loss, "box_loss": config.box_loss_weight * box_loss}, batch, boxes)

    def run_backbone(self, model: Any, batch: Tensor) -> Any:
        return model(batch)

    @torch.no_grad()
    def predict(self, model: Any, images: Any) -> list[dict[str, Tensor]]:
        """Those of ``DetBenchPredict``, at most ``config.max_det_per_image``."""
        from effdet import DetBenchPredict

        batch, scales = _fitted(model, images)
        found = DetBenchPredict(model).to(batch.device)(batch)
        kept = [rows[rows[:, 4] > 0] for rows in found]  # it fills up with zeros
        return [
            detection(rows[:, :4] / scale, rows[:, 4], rows[:, 5], image)
            for rows, scale, image in zip(kept, scales, images, strict=True)
        ]

    def preset(self, model: Any) -> str | None:
        return "one_stage_anchor"

    def first_label(self, model: Any) -> int:
        return 1

    def probe_size(self, model: Any) -> tuple[int, int]:
        height, width = model.config.image_size
        return height, width

    def frame(self, model: Any, images: Any, targets: Any) -> Frame:
        batch, scales = _fitted(model, images)
        boxes, _ = _targets(model, images, targets)
        return Frame(batch, [box * scale for box, scale in zip(boxes, scales, strict=True)])

    def picture(self, model: Any, batch: Tensor) -> Tensor:
        return denormalised(batch, *_normalisation(model))


def _check(role: str, model: Any) -> None:
    from effdet import EfficientDet

    if not isinstance(model, EfficientDet):
        inner = isinstance(getattr(model, "model", None), EfficientDet)
        advice = "; pass its attribute model" if inner else ""
        raise FGDTypeError(f"{role}: expected effdet's EfficientDet, got {type(model).__name__}{advice}")


def _normalisation(model: Any) -> tuple[list[float], list[float]]:
    """Mean and deviation, as effdet's loaders take them: ImageNet's, where the configuration has no others."""
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    config = model.config
    return list(config.get("mean", IMAGENET_DEFAULT_MEAN)), list(config.get("std", IMAGENET_DEFAULT_STD))


def _targets(model: Any, images: Any, targets: Any) -> tuple[list[Tensor], list[Tensor]]:
    return check_targets(targets, check_images(images), model.config.num_classes + 1)


def _fitted(model: Any, images: Any) -> tuple[Tensor, list[float]]:
    """The batch (N, 3, H, W) of the model's size, and how much each image was scaled."""
    images = check_images(images)
    height, width = model.config.image_size
    mean, std = (images[0].new_tensor(values).view(3, 1, 1) for values in _normalisation(model))
    scales = [min(height / image.shape[1], width / image.shape[2]) for image in images]
    batch = images[0].new_zeros(len(images), 3, height, width)  # 0 is the mean
    for place, image, scale in zip(batch, images, scales, strict=True):
        size = [max(int(side * scale + 1e-6), 1) for side in image.shape[1:]]
        resized = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=scale < 1)[0]
        place[:, : size[0], : size[1]] = (resized - mean) / std
    return batch, scales
