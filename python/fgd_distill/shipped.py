"""The configurations that come with the package."""

from __future__ import annotations

import os
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"


def package_config(name: str) -> str:
    """The path of the shipped configuration of this name, unless the user has a file of that name; else ``name``, in
    which ``~`` is the user's folder."""
    name = os.path.expanduser(name)
    shipped = CONFIGS / name
    if name.endswith((".yaml", ".yml")) and not os.path.isfile(name) and shipped.is_file():
        return str(shipped)
    return name


def config_content(config: str) -> object:
    """What a configuration says: a file's, or that of YAML or JSON in its place; None without either.

    Raises:
        yaml.YAMLError, UnicodeDecodeError: of a file.
    """
    if not os.path.isfile(config) and not {":", "{", "\n"} & set(config):
        return None
    import yaml  # not before: help and slips need to be quick

    if os.path.isfile(config):
        return yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    try:
        content = yaml.safe_load(config)
    except yaml.YAMLError:
        return None
    return content if isinstance(content, dict) else None
