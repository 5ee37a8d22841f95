"""Slips in a command's options, found from the sources alone: what the commands import takes seconds.

Names and files are looked at here, values by the parser.
"""

from __future__ import annotations

import ast
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from ..shipped import config_content, package_config
from .help import CONFIGURED, DETECTOR, OWN, TEACHER, arguments_of, definition

Names = Mapping[str, "Names | None"]
"""Options below a name; None where anything may follow."""

ALWAYS = ("help", "config", "print_config", "print_shtab")
OF_LIGHTNING = {"fit": ("ckpt_path", "weights_only"), "validate": ("ckpt_path", "weights_only", "verbose")}
SAVED = OF_LIGHTNING["fit"]
"""What the config.yaml of a training has besides; every command reads it."""
OF_FIT = ("c", "base", "seed_everything")


def slip(command: str, function: str, parses: bool, options: Sequence[str]) -> str | None:
    """The first slip in a command's options, in a line; None without.

    Args:
        command: its name.
        function: that it runs, as ``module:function`` relative to this package.
        parses: whether it takes the configuration of ``fit``.
        options: as they were given.
    """
    known = configuration(command) if parses else of_tool(function)
    for name in _named(options):
        if wrong := _unknown(name.split("."), known):
            return f"unrecognized option --{name}{wrong}"
    for path in _files(options):
        inline = not os.path.isfile(path)
        if inline and config_content(path) is None:
            return f"--config: expected a file, or one shipped with the package (fgd-distill --help), got {path!r}"
        named = "--config" if inline else path
        if parses and (told := _slip_in_config(path, named, {**dict.fromkeys(SAVED), **known})):
            return told
    if not parses:
        needed = [argument.name for argument in arguments_of(function) if argument.is_positional]
        missing = needed[_positionals(options) :]
        if missing and "--config" not in options:
            return f"the following arguments are required: {', '.join(missing)}; got {' '.join(options) or 'none'}"
    return None


def configuration(command: str) -> Names:
    """The options of a command that takes the configuration of ``fit``."""
    of_model: dict[str, Names | None] = {
        name: None for name in _parameters(definition("training.module:DetectionModule"))
    }
    detector = {name: None for name in _fields(DETECTOR)}
    nested: dict[str, Names | None] = {
        "student": detector | {"options": None},
        "teacher": detector | {name: None for name in _fields(TEACHER)},
    }
    for section, source in CONFIGURED:
        _, _, name = section.partition(".")
        if name and source not in (DETECTOR, TEACHER):
            nested[name] = {field: None for field in _fields(source)}
    own = dict.fromkeys(_fields(OWN[command]) if command in OWN else OF_LIGHTNING[command])
    return {
        **dict.fromkeys((*ALWAYS, *OF_FIT)),
        **own,
        "model": of_model | nested,
        "data": {name: None for name in _parameters(definition("data.datamodule:CocoDataModule"))},
        "trainer": _of_trainer(),
    }


def of_tool(function: str) -> Names:
    """The options of a command that is a function."""
    return {**dict.fromkeys(ALWAYS), **{argument.name: None for argument in arguments_of(function)}}


def _of_trainer() -> Names | None:
    """Lightning's, read in its source; None where it cannot be found there."""
    found = find_spec("pytorch_lightning")
    for folder in (found.submodule_search_locations if found else None) or ():
        path = Path(folder, "trainer", "trainer.py")
        if path.is_file():
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and node.name == "Trainer":
                    return {name: None for name in _parameters(node)}
    return None


def _parameters(stated: ast.AST) -> list[str]:
    """Of a class's ``__init__``."""
    assert isinstance(stated, ast.ClassDef)
    made = next(n for n in stated.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    return [argument.arg for argument in (*made.args.args, *made.args.kwonlyargs) if argument.arg != "self"]


def _fields(source: str) -> list[str]:
    """Of a dataclass."""
    stated = definition(source)
    return [n.target.id for n in stated.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]


def _named(options: Sequence[str]) -> Iterator[str]:
    for option in options:
        if option.startswith("--"):
            yield option[2:].partition("=")[0].rstrip("+")


def _unknown(parts: Sequence[str], known: Names | None) -> str | None:
    """What to say of a name that is not known, or None."""
    if known is None or not parts or parts[0] in known:
        return None if known is None or not parts else _unknown(parts[1:], known[parts[0]])
    if parts[0] in ("help", "class_path", "init_args"):
        return None
    close = difflib.get_close_matches(parts[0], known, n=2)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(sorted(known))}"


def _files(options: Sequence[str]) -> Iterator[str]:
    for option, value in zip(options, [*options, ""][1:], strict=True):
        if option in ("--config", "-c"):
            yield package_config(value)
        elif option.startswith("--config="):
            yield package_config(option.partition("=")[2])


def _slip_in_config(config: str, told: str, known: Names) -> str | None:
    import yaml

    try:
        content = config_content(config)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return f"{told}: expected YAML, got {' '.join(str(error).split())}"
    for name in _keys(content, known):
        if wrong := _unknown(name.split("."), known):
            return f"{told}: unrecognized key {name}{wrong}"
    return None


def _keys(content: object, known: Names | None, before: str = "") -> Iterator[str]:
    if isinstance(content, dict) and known is not None:
        for key, value in content.items():
            yield f"{before}{key}"
            yield from _keys(value, known.get(str(key)), f"{before}{key}.")


def _positionals(options: Sequence[str]) -> int:
    """How many of them are no option and no option's value."""
    count, value = 0, False
    for option in options:
        is_option = option.startswith("--")
        count += not is_option and not value
        value = is_option and "=" not in option
    return count
