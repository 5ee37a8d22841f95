"""The configurations that come with the package."""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"


def package_config(name: str) -> str:
    """The path of the shipped configuration of this name, unless the user has a file of that name; else ``name``."""
    shipped = CONFIGS / name
    if name.endswith((".yaml", ".yml")) and not Path(name).is_file() and shipped.is_file():
        return str(shipped)
    return name
