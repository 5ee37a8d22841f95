"""RF-DETR of the package ``rfdetr``; Hugging Face's is in ``huggingface.py``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import FGDTypeError
from .base import DetectorAdapter, Frame, StudentStep
from .batches import IMAGENET, check_divides, check_targets, denormalised, detection, stack_normalised, to_relative


class RFDETRAdapter(DetectorAdapter):
    """``LWDETR``, the network of ``RFDETRBase``, ``RFDETRNano`` and others: ``RFDETRNano().model.model``.

    Its batch is normalised by ImageNet's mean and deviation, and padded at the right and at the bottom to a square
    that its patches times its windows divide. Labels count from 0 to the number of its outputs, which is one more than
    its configuration's ``num_classes``. The losses are those of rfdetr's own training, with its default weights, and
    those of all layers and of the proposals are summed by name.
    """

    def neck_and_head(self, model: Any) -> Sequence[str]:
        _check("model", model)
        return "backbone.0.projector", *(name for name, _ in model.named_children() if name != "backbone")

    def default_layers(self, model: Any) -> list[str]:
        _check("model", model)
        return ["backbone.0.projector"]

    def check_pair(self, student: Any, teacher: Any) -> None:
        for role, model in (("student", student), ("teacher", teacher)):
            _check(role, model)
        check_divides("window", _divisor(student), _divisor(teacher))

    def student_step(self, student: Any, images: Any, targets: Any) -> StudentStep:
        batch, boxes = self.frame(student, images, targets)
        _, labels = check_targets(targets, batch, _classes(student))
        relative = [
            {"boxes": to_relative(box, batch), "labels": label} for box, label in zip(boxes, labels, strict=True)
        ]
        criterion = _criterion(student).to(batch.device).train()
        losses = criterion(student(batch), relative)
        sums: dict[str, Tensor] = {}
        for name, weight in criterion.weight_dict.items():
            base = re.sub(r"_(\d+|enc)$", "", name)
            sums[base] = sums.get(base, 0) + weight * losses[name]
        return StudentStep(sums, batch, boxes)

    def run_backbone(self, model: Any, batch: Tensor) -> Any:
        return model(batch)

    @torch.no_grad()
    def predict(self, model: Any, images: Any) -> list[dict[str, Tensor]]:
        """The best ``num_queries`` pairs of box and class, as rfdetr's post-processing takes them."""
        from rfdetr.models.postprocess import PostProcess

        batch = _batch(model, images)
        size = torch.tensor(batch.shape[-2:], device=batch.device).expand(len(batch), 2)
        found = PostProcess(num_select=model.num_queries)(model(batch), target_sizes=size)
        return [detection(f["boxes"], f["scores"], f["labels"], image) for f, image in zip(found, images, strict=True)]

    def preset(self, model: Any) -> str | None:
        return None  # the paper distils no detector of this kind

    def frame(self, model: Any, images: Any, targets: Any) -> Frame:
        batch = _batch(model, images)
        return Frame(batch, check_targets(targets, batch, _classes(model))[0])

    def probe_size(self, model: Any) -> tuple[int, int]:
        side = -(-320 // _divisor(model)) * _divisor(model)
        return side, side

    def picture(self, model: Any, batch: Tensor) -> Tensor:
        return denormalised(batch, *IMAGENET)


def _check(role: str, model: Any) -> None:
    from rfdetr.models.lwdetr import LWDETR

    if not isinstance(model, LWDETR) or model.segmentation_head is not None or model.use_grouppose_keypoints:
        inner = getattr(getattr(model, "model", None), "model", None)
        advice = "; pass its attribute model.model" if isinstance(inner, LWDETR) else ""
        raise FGDTypeError(f"{role}: expected rfdetr's LWDETR for boxes, got {type(model).__name__}{advice}")


def _divisor(model: Any) -> int:
    encoder = model.backbone[0].encoder
    return encoder.patch_size * encoder.num_windows


def _classes(model: Any) -> int:
    return model.class_embed.out_features


def _batch(model: Any, images: Any) -> Tensor:
    return stack_normalised(images, _divisor(model), *IMAGENET, square=True)


def _criterion(model: Any) -> Any:
    """As rfdetr's training makes it for such a model."""
    from rfdetr.config import RFDETRBaseConfig, TrainConfig
    from rfdetr.models.lwdetr import build_criterion_from_config

    config = RFDETRBaseConfig(
        num_classes=_classes(model) - 1,
        group_detr=model.group_detr,
        dec_layers=model.transformer.decoder.num_layers,
        two_stage=model.two_stage,
    )
    return build_criterion_from_config(config, TrainConfig(dataset_dir=".", output_dir="."))[0]
