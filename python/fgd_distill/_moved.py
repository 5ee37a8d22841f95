"""Modules of the first version: their old names can still be imported, with a warning that names the new ones."""

from __future__ import annotations

import sys
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader

# Modules of the first version whose names became packages (data, digits, training) are not here: those packages have
# what the modules had.
MOVED = {
    "ablate": ("digits.ablations",),
    "cache": ("training.teacher_cache",),
    "calibrate": ("commands.calibrate", "calibration.report"),
    "cli": ("commands.main", "training.run", "shipped"),
    "coco": ("data.coco_folder",),
    "demo": ("digits.demo",),
    "evaluation": ("data.evaluation",),
    "export": ("detectors.checkpoint",),
    "learning_rate": ("training.learning_rate",),
    "loading": ("data.resumable_loader", "processes"),
    "models": ("detectors.by_name", "detectors.weights", "digits.detectors"),
    "predict": ("commands.predict",),
    "profiling": ("training.profiling",),
    "summary": ("digits.summary",),
}
# Run by ``import``, the old module has what the new ones have; run by ``python -m``, it runs the first of them.
SOURCE = """
import importlib, runpy, warnings
warnings.warn("{old} is now {told}", DeprecationWarning, stacklevel=2)
if __name__ == "__main__":
    runpy.run_module("{first}", run_name="__main__", alter_sys=True)
else:
    for name in {successors}:
        globals().update((k, v) for k, v in vars(importlib.import_module(name)).items() if not k.startswith("__"))
"""


class _Loader(InspectLoader):
    def __init__(self, successors: list[str]) -> None:
        self.successors = successors

    def get_source(self, fullname: str) -> str:
        told, first = " and ".join(self.successors), self.successors[0]
        return SOURCE.format(old=fullname, told=told, first=first, successors=self.successors)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != __package__ or name not in MOVED:
            return None
        return spec_from_loader(fullname, _Loader([f"{package}.{new}" for new in MOVED[name]]))


def install() -> None:
    """Lets the old names be imported."""
    sys.meta_path.insert(0, _Finder())  # before finders that may meet an older installation
