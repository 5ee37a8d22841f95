"""Focal and Global Knowledge Distillation for Detectors (FGD, CVPR 2022) as fused kernels."""

from . import foreground
from .backend import BackendStatus, backends
from .boxes import PackedBoxes, pack_boxes
from .functional import LOSS_NAMES, fgd_loss
from .modules import PRESETS, FeatureLoss, FGDLoss
from .version import __version__

__all__ = [
    "LOSS_NAMES",
    "PRESETS",
    "BackendStatus",
    "FGDLoss",
    "FeatureLoss",
    "PackedBoxes",
    "__version__",
    "backends",
    "fgd_loss",
    "foreground",
    "pack_boxes",
]
