"""PTX text to tokens: comments, debug lines and debug sections fall away, line numbers stay."""

import bisect
import re
from dataclasses import dataclass

from .errors import PtxSyntaxError

TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<string>"(?:\\.|[^"\\])*")
  | (?P<number>0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|0[xX][0-9a-fA-F]+U?|0[bB][01]+U?
      |\d+\.\d*(?:[eE][+-]?\d+)?|\d+U?)
  | (?P<word>[.%$A-Za-z_](?:[\w$.%]|::)*)
  | (?P<mark>[{}()\[\]<>,;:@!|+\-=&*])
""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    start: int
    line: int


def _blank(match: re.Match) -> str:
    """Spaces instead of what matched, so that offsets and line numbers do not move."""
    return re.sub(r"[^\n]", " ", match[0])


def strip_noise(source: str) -> str:
    """``source`` without comments, .loc and .file lines, and debug sections, at unchanged offsets."""
    source = re.sub(r"/\*.*?\*/", _blank, source, flags=re.DOTALL)
    source = re.sub(r"//[^\n]*", _blank, source)
    source = re.sub(r"(?m)^[ \t]*\.(?:loc|file)\b[^\n]*", _blank, source)
    return re.sub(r"(?m)^[ \t]*\.section\s+\S+\s*\{[^}]*\}", _blank, source)


def tokenise(source: str) -> tuple[list[Token], str]:
    """All tokens of ``source``, and the stripped text that their offsets refer to."""
    text = strip_noise(source)
    starts = [0] + [m.end() for m in re.finditer("\n", text)]
    tokens, position = [], 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            line = bisect.bisect_right(starts, position)
            raise PtxSyntaxError(f"line {line}: cannot read {text[position : position + 40]!r}")
        if match.lastgroup != "space":
            line = bisect.bisect_right(starts, position)
            tokens.append(Token(match.lastgroup, match[0], position, line))
        position = match.end()
    return tokens, text
