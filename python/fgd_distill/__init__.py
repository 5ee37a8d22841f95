"""Distilling detectors: data, models, training and evaluation around the loss of ``fgd_kernels``."""

from typing import TYPE_CHECKING

from ._lazy import names_from
from ._moved import install as _install_old_names

if TYPE_CHECKING:
    from .adapters import DetectorAdapter, StudentStep, TorchvisionAdapter, register_adapter
    from .distiller import DetectionDistiller, DistilledFeatures, TeacherCache
    from .distilling import distil
    from .feature_taps import FeatureTaps, LossInputs
    from .inheriting import InheritReport, inherit
    from .schedule import Schedule
    from .shares import DetectorShares
    from .teacher_settings import TeacherSettings

__all__ = [
    "DetectionDistiller",
    "DetectorAdapter",
    "DetectorShares",
    "DistilledFeatures",
    "FeatureTaps",
    "InheritReport",
    "LossInputs",
    "Schedule",
    "StudentStep",
    "TeacherCache",
    "TeacherSettings",
    "TorchvisionAdapter",
    "distil",
    "inherit",
    "register_adapter",
]
__getattr__ = names_from(
    __name__,
    {
        "adapters": ("DetectorAdapter", "StudentStep", "TorchvisionAdapter", "register_adapter"),
        "distiller": ("DetectionDistiller", "DistilledFeatures", "TeacherCache"),
        "distilling": ("distil",),
        "feature_taps": ("FeatureTaps", "LossInputs"),
        "inheriting": ("InheritReport", "inherit"),
        "schedule": ("Schedule",),
        "teacher_settings": ("TeacherSettings",),
        "shares": ("DetectorShares",),
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_install_old_names()
