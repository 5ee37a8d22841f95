"""Modules of the first version under the names that they have now: the old name works, and warns of the new one."""

from __future__ import annotations

import sys
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader

# Modules of the first version whose names became packages (data, digits, training) are not here: those packages have
# what the modules had.
MOVED = {
    "ablate": "digits.ablations",
    "cache": "training.teacher_cache",
    "calibrate": "commands.calibrate",
    "cli": "commands.main",
    "coco": "data.coco_folder",
    "demo": "digits.demo",
    "evaluation": "data.evaluation",
    "export": "detectors.checkpoint",
    "learning_rate": "training.learning_rate",
    "loading": "data.resumable_loader",
    "models": "detectors.by_name",
    "predict": "commands.predict",
    "profiling": "training.profiling",
    "summary": "digits.summary",
}
# Run by ``import``, it puts the new module in the old one's place; run by ``python -m``, it runs the new one.
SOURCE = """
import importlib, runpy, sys, warnings
warnings.warn("{old} is {new} now", DeprecationWarning, stacklevel=2)
if __name__ == "__main__":
    runpy.run_module("{new}", run_name="__main__", alter_sys=True)
else:
    sys.modules[__name__] = importlib.import_module("{new}")
"""


class _Loader(InspectLoader):
    def __init__(self, new: str) -> None:
        self.new = new

    def get_source(self, fullname: str) -> str:
        return SOURCE.format(old=fullname, new=self.new)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != __package__ or name not in MOVED:
            return None
        return spec_from_loader(fullname, _Loader(f"{package}.{MOVED[name]}"))


def install() -> None:
    """Lets the old names be imported."""
    sys.meta_path.insert(0, _Finder())  # before finders that may meet an older installation
