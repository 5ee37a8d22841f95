"""Objects by their names, ``module:name``, as configurations and the command line give them."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from typing import Any

from .errors import FGDValueError


class _Folder(MetaPathFinder):
    """Finds the modules of a folder that no other finder knows. Folders without an ``__init__.py`` are none: logs and
    data often have the name of a package that is not installed."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, [self.folder]) if path is None else None
        return spec if spec is not None and spec.loader is not None else None


def named_object(name: str, argument: str, kind: str) -> Any:
    """What ``module:name`` names.

    A module that is not installed may lie in the working directory, where ``python -m`` would find it and an installed
    command does not; so may what it imports.

    Args:
        name: such as ``my_models:yolo``.
        argument: what a message calls it.
        kind: what a message calls the part behind the colon.

    Raises:
        ValueError: it is no such name, or cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        if find_spec(module.partition(".")[0]) is None:
            sys.meta_path.append(_Folder(os.getcwd()))
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise FGDValueError(f"{argument}: expected module:{kind}, cannot import {name!r}: {error}") from error
