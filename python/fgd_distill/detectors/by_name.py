"""Detectors by name: the two small ones of the digits data, torchvision's own, and whatever a function builds."""

from __future__ import annotations

import difflib
import importlib
import pickle
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

PYRAMID_CHANNELS = 64  # of both digit detectors, so that a student can inherit the teacher's head
PACKAGE_WEIGHTS = Path(__file__).parents[1] / "weights"
# <family>_<backbone>_fpn is built for every pair of these, with the levels of torchvision's own ResNet-50 detectors.
FAMILIES: dict[str, type[nn.Module]] = {
    "retinanet": detection.RetinaNet,
    "fcos": detection.FCOS,
    "fasterrcnn": detection.FasterRCNN,
    "maskrcnn": detection.MaskRCNN,
}
BACKBONES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
OTHER_DETECTORS = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn_v2",
)


@dataclass
class DetectorConfig:
    """A detector as a configuration file describes it.

    Args:
        name: one of ``detector_names()``, such as ``retinanet_resnet50_fpn`` or ``maskrcnn_resnext101_64x4d_fpn``; or a
            function of one's own as ``module:function``, called with ``num_classes`` and ``options``, that returns a
            detector for which ``fgd_distill.adapters`` has an adapter.
        num_classes: classes counted as torchvision counts them: the largest category id plus one.
        weights: a file with the detector's state dict; ``package:<file>`` names one shipped with fgd_distill.
            None leaves the random initialisation.
        backbone_weights: a file with the state dict of torchvision's classification network of the same backbone,
            trained on ImageNet; its last layer is left out. Unused beside ``weights``.
        options: keyword arguments for the detector, such as ``min_size``, ``max_size`` and
            ``trainable_backbone_layers``, the number of backbone stages that learn, counted from the last.

    As in torchvision, a ResNet detector with either file has its batch norms frozen and trains three backbone stages;
    one without trains everything.
    """

    name: str
    num_classes: int = 91
    weights: str | None = None
    backbone_weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


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
    return FCOS(
        _PyramidBackbone(stages, widths),
        num_classes,
        anchor_generator=anchors,
        head=FCOSHead(PYRAMID_CHANNELS, num_anchors=1, num_classes=num_classes, num_convs=2),
        **(settings | options),
    )


def detector_names() -> list[str]:
    """The names that ``build_detector`` knows."""
    resnets = [f"{family}_{backbone}_fpn" for family in FAMILIES for backbone in BACKBONES]
    return ["digits_student", "digits_teacher", *resnets, *OTHER_DETECTORS]


def build_detector(config: DetectorConfig) -> nn.Module:
    """Builds a detector and loads its weights; nothing is downloaded.

    Args:
        config: name, number of classes, weights files and options.

    Returns:
        the detector, in training mode, on the CPU, float32.

    Raises:
        ValueError: an unknown name, a function that cannot be imported, or weights that do not fit the detector.
        TypeError: a function that builds no module.
        FileNotFoundError: there is no such weights file.
    """
    model = _own_detector(config) if ":" in config.name else _named_detector(config)
    if config.weights is not None:
        load_weights(model, config.weights)
    return model


def _own_detector(config: DetectorConfig) -> nn.Module:
    """What the function ``module:function`` builds."""
    if config.backbone_weights is not None:
        raise ValueError(f"backbone_weights: expected a detector with a ResNet backbone, got {config.name!r}")
    module, _, function = config.name.partition(":")
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"detector name: expected module:function, cannot import {config.name!r}: {error}") from error
    model = build(num_classes=config.num_classes, **config.options)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"detector name: expected {config.name} to return a torch.nn.Module, got {type(model).__name__}"
        )
    return model


def _named_detector(config: DetectorConfig) -> nn.Module:
    if config.name not in detector_names():
        close = difflib.get_close_matches(config.name, detector_names(), n=3) or detector_names()
        raise ValueError(f"detector name: expected one of {close}, or module:function, got {config.name!r}")
    family, _, backbone = config.name.removesuffix("_fpn").partition("_")
    if family in FAMILIES and backbone in BACKBONES:
        return _resnet_detector(family, backbone, config)
    if config.backbone_weights is not None:
        raise ValueError(f"backbone_weights: expected a detector with a ResNet backbone, got {config.name!r}")
    if family == "digits":
        build = {"student": digits_student, "teacher": digits_teacher}[backbone]
        return build(num_classes=config.num_classes, **config.options)
    options = {"weights": None, "weights_backbone": None, **config.options}
    return getattr(detection, config.name)(num_classes=config.num_classes, **options)


def _resnet_detector(family: str, backbone: str, config: DetectorConfig) -> nn.Module:
    """What torchvision builds for ResNet-50, with any backbone."""
    pretrained = config.weights is not None or config.backbone_weights is not None
    options = dict(config.options)
    # Strides 8 to 128 for the one-stage detectors, 4 to 64 for the others; the last by pooling.
    levels = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    pyramid = resnet_fpn_backbone(
        backbone_name=backbone,
        weights=None,
        norm_layer=FrozenBatchNorm2d if pretrained else nn.BatchNorm2d,
        trainable_layers=options.pop("trainable_backbone_layers", 3 if pretrained else 5),
        **(levels if family in ("retinanet", "fcos") else {}),
    )
    if config.backbone_weights is not None and config.weights is None:
        path = resolve_weights(config.backbone_weights)
        state = {name: value for name, value in read_state(path).items() if not name.startswith("fc.")}
        _load(pyramid.body, state, path)
    return FAMILIES[family](pyramid, config.num_classes, **options)


def resolve_weights(weights: str | Path) -> Path:
    """The file that ``weights`` names; ``package:<file>`` lies in this package.

    Raises:
        FileNotFoundError: there is none.
    """
    name = str(weights)
    path = PACKAGE_WEIGHTS / name.removeprefix("package:") if name.startswith("package:") else Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"weights: expected a file with a state dict, found none at {path}")
    return path


def load_weights(model: nn.Module, weights: str | Path) -> None:
    """Loads a state dict, all of it or not at all.

    Args:
        model: the detector to fill.
        weights: a file that holds a state dict, or one under the key ``model`` as torchvision's training scripts
            write it. Other floating types are converted to the model's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names or shapes differ; the message lists the first of them.
    """
    path = resolve_weights(weights)
    _load(model, read_state(path), path)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, which may have it under the key ``model``.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: expected a file of torch.save with tensors, could not read it: {error}") from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        is_checkpoint = isinstance(state, dict) and "state_dict" in state
        hint = "; make one with: fgd-distill export-student" if is_checkpoint else ""
        raise ValueError(f"{path}: expected a state dict of tensors, got {_describe(state)}{hint}")
    return state


def _load(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = str(error).splitlines()
        shown = "\n".join(line[:300] for line in lines[:8])
        raise ValueError(f"{path}: the weights do not fit {type(model).__name__}:\n{shown}") from error


def _describe(state: object) -> str:
    return f"a dict with the keys {list(state)[:5]}" if isinstance(state, dict) else type(state).__name__
