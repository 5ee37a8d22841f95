"""Configurations that build on others: one whose first level has ``base: other.yaml`` is laid over that file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from ..errors import FGDFileNotFoundError, FGDValueError
from ..shipped import config_content, package_config

OPTIONS = ("--config", "-c")


def with_bases(args: Sequence[str]) -> list[str]:
    """The arguments with shipped configurations found, and before the first one the bases of all of them.

    Args:
        args: the options of a command; configurations are the values of ``--config``.

    Raises:
        FileNotFoundError: there is no such base.
    """
    found: list[str] = []
    bases: dict[str, None] = {}
    values = False
    for arg in args:
        option, equals, value = arg.partition("=") if arg.startswith("-") else ("", "", arg)
        if values or (option in OPTIONS and equals):
            path = package_config(value)
            bases |= dict.fromkeys(bases_of(path))
            found.append(f"{option}{equals}{path}")
        else:
            found.append(arg)
        values = arg in OPTIONS
    return [f"--config={base}" for base in bases] + found


def bases_of(path: str) -> Iterator[str]:
    """The files that a configuration builds on, the one that all others are laid over first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file builds on itself.
    """
    chain = [path]
    while (base := _base_of(chain[-1])) is not None:
        beside = (Path(chain[-1]).parent if os.path.isfile(chain[-1]) else Path()) / base
        chain.append(str(beside) if beside.is_file() else package_config(base))
        if not Path(chain[-1]).is_file():
            raise FGDFileNotFoundError(f"{chain[-2]}: base: expected a configuration, found none at {beside}")
        if chain[-1] in chain[:-1]:
            raise FGDValueError(f"{chain[-2]}: base: expected another file, got {base}, which builds on it")
    return reversed(chain[1:])


def _base_of(path: str) -> str | None:
    try:
        content = config_content(path)
    except (yaml.YAMLError, UnicodeDecodeError):
        return None  # the parser says where
    base = content.get("base") if isinstance(content, dict) else None
    if base is not None and not isinstance(base, str):
        raise FGDValueError(f"{path}: base: expected the name of a configuration, got {base!r}")
    return base
