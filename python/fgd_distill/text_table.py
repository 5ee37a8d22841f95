"""Tables on a terminal."""

from __future__ import annotations


def aligned(table: list[list[str]]) -> list[str]:
    """The lines of a table: its first column to the left, the others to the right."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in table
    ]
