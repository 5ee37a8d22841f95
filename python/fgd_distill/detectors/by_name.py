"""Detectors by name: torchvision's own, and whatever a function builds."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from ..errors import FGDTypeError, FGDValueError
from ..importing import named_object
from ..teacher_settings import TeacherSettings
from .fcos_start import start_with_boxes
from .weights import load_state, load_weights, read_state, resolve_weights

# Short names of the functions that build the two detectors of the digits data.
FUNCTIONS = {
    "digits_student": "fgd_distill.digits.detectors:digits_student",
    "digits_teacher": "fgd_distill.digits.detectors:digits_teacher",
}

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
        name: as torchvision names it, such as ``retinanet_resnet50_fpn``; or your own ``module:function``. That is
            called with ``num_classes`` and ``options``, and returns a detector that has an adapter.
            ``detector_names()`` lists the former.
        num_classes: classes counted as torchvision counts them: the largest category id plus one.
        weights: a file with the detector's state dict; ``package:<file>`` names one shipped with fgd_distill.
            None leaves the random initialisation.
        backbone_weights: a file with the state dict of torchvision's classification network of the same backbone.
            Trained on ImageNet; its last layer is left out. Unused beside ``weights``.
        options: keyword arguments for the detector, such as ``min_size`` and ``max_size``. With
            ``trainable_backbone_layers``, so many backbone stages learn, counted from the last.

    As in torchvision, a ResNet detector with either file has its batch norms frozen and trains three backbone stages;
    one without trains everything.
    """

    name: str
    num_classes: int = 91
    weights: str | None = None
    backbone_weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class TeacherConfig(TeacherSettings, DetectorConfig):
    """A detector to learn from, as a configuration file describes it, and how it runs (``TeacherSettings``)."""


def detector_names() -> list[str]:
    """The names that ``build_detector`` knows."""
    resnets = [f"{family}_{backbone}_fpn" for family in FAMILIES for backbone in BACKBONES]
    return [*FUNCTIONS, *resnets, *OTHER_DETECTORS]


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
    name = FUNCTIONS.get(config.name, config.name)
    model = _own_detector(name, config) if ":" in name else _named_detector(config)
    if config.weights is not None:
        load_weights(model, config.weights)
    return model


def _own_detector(name: str, config: DetectorConfig) -> nn.Module:
    """What the function ``module:function`` builds."""
    if config.backbone_weights is not None:
        raise FGDValueError(f"backbone_weights: expected a detector with a ResNet backbone, got {config.name!r}")
    build = named_object(name, "detector name", "function")
    model = build(num_classes=config.num_classes, **config.options)
    if not isinstance(model, nn.Module):
        raise FGDTypeError(f"detector name: expected {name} to return a torch.nn.Module, got {type(model).__name__}")
    return model


def _named_detector(config: DetectorConfig) -> nn.Module:
    if config.name not in detector_names():
        close = difflib.get_close_matches(config.name, detector_names(), n=3) or detector_names()
        raise FGDValueError(f"detector name: expected one of {close}, or module:function, got {config.name!r}")
    family, _, backbone = config.name.removesuffix("_fpn").partition("_")
    if family in FAMILIES and backbone in BACKBONES:
        return _resnet_detector(family, backbone, config)
    if config.backbone_weights is not None:
        raise FGDValueError(f"backbone_weights: expected a detector with a ResNet backbone, got {config.name!r}")
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
        load_state(pyramid.body, state, path)
    model = FAMILIES[family](pyramid, config.num_classes, **options)
    start_with_boxes(model)
    return model
