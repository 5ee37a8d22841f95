"""Distilling detectors: data, models, training and evaluation around the loss of ``fgd_kernels``."""

from ._moved import install as install_moved
from .adapters import DetectorAdapter, StudentStep, TorchvisionAdapter
from .distiller import DetectionDistiller, DistilledFeatures, TeacherCache
from .inheriting import InheritReport, inherit
from .schedule import Schedule

__all__ = [
    "DetectionDistiller",
    "DetectorAdapter",
    "DistilledFeatures",
    "InheritReport",
    "Schedule",
    "StudentStep",
    "TeacherCache",
    "TorchvisionAdapter",
    "inherit",
]

install_moved()
