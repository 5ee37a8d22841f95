"""A quicker start: of ``torchmetrics`` Lightning needs two classes. The rest is not loaded until it is needed.

Its ``__init__`` imports each of its metrics, and with them scipy.signal, transformers and others; its module ``plot``
imports matplotlib. Together they were a third of the time that ``fgd-distill fit`` took to start.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

NAME = "torchmetrics"
PLOT = "torchmetrics.utilities.plot"
WHOLE = "_is_whole"
# What Lightning asks for when it is imported, and the module that it is in.
OWN = {"Metric": "metric", "MetricCollection": "collections", "__version__": "__about__"}


class _Late(ModuleType):
    """A module in whose place `early` gives what is asked for first, or raises LookupError; then it is loaded."""

    def __init__(self, spec: ModuleSpec, early: Callable[[str], Any]) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__loader__, self.__file__ = spec, spec.loader, spec.origin
        self.__package__ = spec.parent
        if spec.submodule_search_locations is not None:
            self.__path__ = list(spec.submodule_search_locations)
        vars(self)["_early"] = early

    def __getattr__(self, name: str) -> Any:
        if WHOLE not in vars(self):
            try:
                return vars(self)["_early"](name)
            except LookupError:
                pass
        if name.startswith("__") or WHOLE in vars(self):  # the former is what the import system and inspect look for
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        load(self)
        return getattr(self, name)


def load(module: ModuleType) -> None:
    """The whole of it."""
    vars(module)[WHOLE] = True
    assert module.__spec__ is not None and module.__spec__.loader is not None
    module.__spec__.loader.exec_module(module)


def of_the_package(name: str) -> Any:
    """What the package's ``__init__`` would import from modules of its own."""
    if name == "_logger":  # for its own modules
        return logging.getLogger(NAME)
    try:
        import_module(f"{NAME}.utilities")  # before metric: each of the two imports the other
        return getattr(import_module(f"{NAME}.{OWN[name]}"), name)
    except (ImportError, AttributeError) as error:
        raise LookupError from error  # another version, with its parts in other places


def of_plot(name: str) -> Any:
    """What the module of the class ``Metric`` imports from ``plot``: types for its annotations, and a function."""
    if name in ("_AX_TYPE", "_PLOT_OUT_TYPE"):
        return Any
    if name == "plot_single_or_multi_val":
        return plot_single_or_multi_val
    raise LookupError(name)


def plot_single_or_multi_val(*values: Any, **options: Any) -> Any:
    """As torchmetrics' own, which is loaded for it."""
    plot = sys.modules[PLOT]
    if WHOLE not in vars(plot):
        load(plot)
    return plot.plot_single_or_multi_val(*values, **options)


def load_late() -> None:
    """Puts the modules in place, unless the package is loaded or not installed."""
    spec = None if NAME in sys.modules else importlib.util.find_spec(NAME)
    if spec is None or spec.origin is None:
        return
    sys.modules[NAME] = _Late(spec, of_the_package)
    path = Path(spec.origin).parent / "utilities" / "plot.py"
    plot = importlib.util.spec_from_file_location(PLOT, path) if path.exists() else None
    if plot is not None:
        sys.modules[PLOT] = _Late(plot, of_plot)
