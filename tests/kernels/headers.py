"""The numbers that the C++ and CUDA sources state, read from their text."""

import re

COMMENT = re.compile(r"//.*")
ENUM = re.compile(r"\benum\s+(?:class\s+)?\w*\s*(?::\s*\w+\s*)?\{([^}]*)\}")
CONSTANT = re.compile(r"^(?:inline |static )*constexpr \w+ (k\w+) = ([^;]*);", re.M)  # unindented: not a function's own


def cpp_constants(text: str) -> dict[str, int | None]:
    """Enumerators and constexpr numbers at a file's outermost level; None: an expression."""
    text, found = COMMENT.sub("", text), {}
    for body in ENUM.findall(text):
        value: int | None = -1
        for name, _, given in (entry.strip().partition("=") for entry in body.split(",") if entry.strip()):
            value = _number(given) if given else None if value is None else value + 1
            found[name.strip()] = value
    return found | {name: _number(value) for name, value in CONSTANT.findall(text)}


def _number(text: str) -> int | None:
    return int(text, 0) if re.fullmatch(r"\s*(0x[\da-f]+|\d+)\s*", text) else None
