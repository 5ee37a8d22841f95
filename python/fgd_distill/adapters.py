"""What the distiller must know of a family of detectors: how a training step goes, and in which frame its boxes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from .taps import LayerTap


@dataclass
class StudentStep:
    """One training step of the student.

    Args:
        losses: the detector's own losses.
        batch: (N, 3, H, W), the very tensor that the backbone got: resized, normalised and padded.
        boxes: one float tensor (n_i, 4) an image, xyxy in pixels of ``batch``.
    """

    losses: dict[str, Tensor]
    batch: Tensor
    boxes: list[Tensor]


class DetectorAdapter(Protocol):
    """Implemented once for each family of detectors."""

    @property
    def neck_and_head(self) -> Sequence[str]:
        """Names of the submodules that a student may inherit; those that a detector lacks are left out."""

    def check_pair(self, student: nn.Module, teacher: nn.Module) -> None:
        """Raises ValueError if the two cannot share one input tensor."""

    def student_step(self, student: nn.Module, images: Any, targets: Any) -> StudentStep:
        """Runs the student on a batch as the data loader gives it."""

    def run_backbone(self, model: nn.Module, batch: Tensor) -> Any:
        """Runs ``model`` on a prepared batch (N, 3, H, W), backbone and neck only."""


class TorchvisionAdapter:
    """torchvision's detectors: FCOS, RetinaNet, Faster R-CNN, Mask R-CNN.

    They resize, normalise and pad inside, in ``transform``. What leaves it is the frame: the padded batch, and the
    boxes scaled to it. The teacher gets that same tensor, because its own transform may size images differently
    (torchvision ignores some of its settings in eval mode), and then feature maps would not correspond.
    """

    neck_and_head = ("backbone.fpn", "head", "rpn", "roi_heads")

    def check_pair(self, student: nn.Module, teacher: nn.Module) -> None:
        for name in ("image_mean", "image_std"):
            ours, theirs = (list(getattr(model.transform, name)) for model in (student, teacher))
            if ours != theirs:
                raise ValueError(
                    f"{name}: the teacher gets the student's normalised batch, so both must normalise alike; "
                    f"got {ours} for the student and {theirs} for the teacher"
                )

    def student_step(self, student: nn.Module, images: Any, targets: Any) -> StudentStep:
        with LayerTap(student, ["transform"]) as tap:
            losses = student(list(images), list(targets))
        prepared, prepared_targets = tap.output("transform")
        boxes = [torch.as_tensor(target["boxes"]) for target in prepared_targets]
        return StudentStep(losses, prepared.tensors, boxes)

    def run_backbone(self, model: nn.Module, batch: Tensor) -> Any:
        return model.get_submodule("backbone")(batch)


def adapter_for(model: nn.Module) -> DetectorAdapter:
    """The adapter that fits ``model``.

    Raises:
        TypeError: there is none.
    """
    if isinstance(getattr(model, "transform", None), GeneralizedRCNNTransform) and hasattr(model, "backbone"):
        return TorchvisionAdapter()
    raise TypeError(
        f"no adapter for {type(model).__name__}: expected one of torchvision's detectors (a module with a "
        "GeneralizedRCNNTransform as 'transform' and a 'backbone'); for others, pass adapter=, an object with the "
        "methods of fgd_distill.adapters.DetectorAdapter"
    )


def probe_channels(model: nn.Module, layers: Sequence[str], adapter: DetectorAdapter, size: int = 128) -> list[int]:
    """The channel count of each feature map that ``layers`` give, found by running a blank image.

    Args:
        model: a detector; its mode and its batch statistics are left as they were.
        layers: names of submodules of the backbone or neck.
        adapter: knows how to run it.
        size: height and width of the blank image in pixels.
    """
    parameter = next(model.parameters())
    blank = torch.zeros(1, 3, size, size, dtype=parameter.dtype, device=parameter.device)
    # Each module by itself: a detector may keep a part in eval mode while the rest trains.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), LayerTap(model, layers) as tap:
            adapter.run_backbone(model, blank)
        return [feature.shape[1] for feature in tap.features()]
    finally:
        for module, mode in modes:
            module.training = mode
