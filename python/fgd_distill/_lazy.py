"""Public names of a package that are imported when they are asked for: a command's help needs neither torch nor a
detector, and a picture of a log no trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def names_from(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """A package's ``__getattr__``.

    Args:
        package: its ``__name__``.
        homes: by module of the package, the public names that it defines.
    """

    def find(name: str) -> object:
        for module, names in homes.items():
            if name in names:
                return getattr(import_module(f".{module}", package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
