"""A quicker start: ``torchmetrics``, of which Lightning needs two classes, is not loaded as a whole until it is needed.

Its ``__init__`` imports each of its metrics, and with them scipy.signal, transformers and others: a quarter of the time
that ``fgd-distill fit`` took to start.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

NAME = "torchmetrics"
WHOLE = "_is_whole"
# What Lightning asks for when it is imported, and the module that it is in.
OWN = {"Metric": "metric", "MetricCollection": "collections", "__version__": "__about__"}


class _Late(ModuleType):
    """The package, with modules below it where they are; any other name of its own loads the whole of it."""

    def __getattr__(self, name: str) -> Any:
        if name in OWN and WHOLE not in vars(self):
            try:
                import_module(f"{NAME}.utilities")  # before metric: each of the two imports the other
                return getattr(import_module(f"{NAME}.{OWN[name]}"), name)
            except (ImportError, AttributeError):
                pass  # another version, with its parts in other places
        elif name == "_logger":  # for its own modules
            return logging.getLogger(NAME)
        elif name.startswith("__") or WHOLE in vars(self):  # the former is what the import system and inspect look for
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
        vars(self)[WHOLE] = True
        assert self.__spec__ is not None and self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def load_late() -> None:
    """Puts the package in place, unless it is loaded or not installed."""
    spec = None if NAME in sys.modules else importlib.util.find_spec(NAME)
    if spec is None:
        return
    late = _Late(NAME)
    late.__spec__, late.__loader__, late.__package__ = spec, spec.loader, NAME
    late.__file__, late.__path__ = spec.origin, list(spec.submodule_search_locations or ())
    sys.modules[NAME] = late
