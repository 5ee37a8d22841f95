"""Distilling detectors: data, models, training and evaluation around the loss of ``fgd_kernels``."""

from .adapters import DetectorAdapter, StudentStep, TorchvisionAdapter
from .distiller import DetectionDistiller
from .inheriting import InheritReport, inherit

__all__ = [
    "DetectionDistiller",
    "DetectorAdapter",
    "InheritReport",
    "StudentStep",
    "TorchvisionAdapter",
    "inherit",
]
