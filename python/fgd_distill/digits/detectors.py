"""The two small detectors of the digits data: FCOS of torchvision with backbones of this module."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

from ..detectors.fcos_start import start_with_boxes

PYRAMID_CHANNELS = 64  # of both, so that a student can inherit the teacher's head


def digits_student(num_classes: int = 11, image_size: int = 128, **options: Any) -> FCOS:
    """FCOS with a plain five-convolution backbone, 0.3 million parameters, strides 8, 16 and 32.

    Args:
        num_classes: the largest label plus one.
        image_size: shorter and longer side in pixels that images are resized to; images of that size are left alone.
        options: further keyword arguments of ``torchvision.models.detection.FCOS``.
    """
    widths = (16, 24, 32, 40, 48)
    stages = OrderedDict()
    for index, (before, after) in enumerate(pairwise((3, *widths))):
        stages[f"layer{index}"] = Conv2dNormActivation(before, after, kernel_size=3, stride=2)
    return _digits_fcos(nn.Sequential(stages), widths[2:], num_classes, image_size, options)


def digits_teacher(num_classes: int = 11, image_size: int = 128, **options: Any) -> FCOS:
    """FCOS with a residual backbone, 1.6 million parameters; same strides, neck and head as the student.

    Args:
        num_classes, image_size, options: as for ``digits_student``.
    """
    widths = (32, 48, 64, 96, 152)
    stages = OrderedDict(layer0=Conv2dNormActivation(3, widths[0], kernel_size=3, stride=2))
    for index, (before, after) in enumerate(pairwise(widths), start=1):
        shortcut = Conv2dNormActivation(before, after, kernel_size=1, stride=2, activation_layer=None)
        stages[f"layer{index}"] = nn.Sequential(
            BasicBlock(before, after, stride=2, downsample=shortcut), BasicBlock(after, after)
        )
    return _digits_fcos(nn.Sequential(stages), widths[2:], num_classes, image_size, options)


class _PyramidBackbone(nn.Sequential):
    """Backbone and FPN under torchvision's names, ``body`` and ``fpn``, but without its additional coarser level."""

    def __init__(self, stages: nn.Module, widths: tuple[int, ...]) -> None:
        body = IntermediateLayerGetter(stages, {f"layer{2 + level}": str(level) for level in range(len(widths))})
        fpn = FeaturePyramidNetwork(list(widths), PYRAMID_CHANNELS)
        super().__init__(OrderedDict(body=body, fpn=fpn))
        self.out_channels = PYRAMID_CHANNELS

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return super().forward(batch)


def _digits_fcos(
    stages: nn.Module, widths: tuple[int, ...], num_classes: int, image_size: int, options: dict[str, Any]
) -> FCOS:
    # FCOS gives an object to the level whose anchor size is within 1/8 to 1/4 of half the object's longer side. Anchor
    # sizes equal to the strides would put every digit of a 128-pixel image on the first level; a quarter of them
    # splits the digits at 32 and 64 pixels. The sampling radius counts in anchor sizes: 6 is the usual 1.5 strides.
    anchors = AnchorGenerator(sizes=((2,), (4,), (8,)), aspect_ratios=((1.0,),) * 3)
    settings = {"min_size": image_size, "max_size": image_size, "center_sampling_radius": 6.0, "score_thresh": 0.05}
    model = FCOS(
        _PyramidBackbone(stages, widths),
        num_classes,
        anchor_generator=anchors,
        head=FCOSHead(PYRAMID_CHANNELS, num_anchors=1, num_classes=num_classes, num_convs=2),
        **(settings | options),
    )
    start_with_boxes(model)
    return model
