"""Distilling detectors: data, models, training and evaluation around the loss of ``fgd_kernels``."""

from importlib import import_module
from typing import TYPE_CHECKING

from ._moved import install as _install_old_names

if TYPE_CHECKING:
    from .adapters import DetectorAdapter, StudentStep, TorchvisionAdapter, register_adapter
    from .distiller import DetectionDistiller, DistilledFeatures, TeacherCache
    from .distilling import distil
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
    "distil",
    "inherit",
    "register_adapter",
]
_HOMES = {
    "adapters": ("DetectorAdapter", "StudentStep", "TorchvisionAdapter", "register_adapter"),
    "distiller": ("DetectionDistiller", "DistilledFeatures", "TeacherCache"),
    "distilling": ("distil",),
    "inheriting": ("InheritReport", "inherit"),
    "schedule": ("Schedule",),
}


def __getattr__(name: str) -> object:
    """Public names are imported when they are asked for: the command's help needs neither torch nor a detector."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_install_old_names()
