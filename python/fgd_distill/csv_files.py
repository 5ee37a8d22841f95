"""CSV files, read with their slips told in one line, and written whole."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from .errors import FGDFileNotFoundError, FGDValueError
from .files import write_text


def read_csv(
    path: str | Path,
    expected: str,
    columns: Collection[str] = (),
    numbers: Collection[str] | None = (),
    growing: bool = False,
) -> tuple[list[str], list[dict[str, str]]]:
    """The names of a file's columns, and its rows.

    Args:
        path: the file.
        expected: what it should be, for messages.
        columns: what it must have.
        numbers: columns whose cells are numbers or empty; None: all.
        growing: whether a training may be writing it line by line, so that a last line without its end is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no CSV file in UTF-8, a column is missing, a row has too many or too few cells, or a cell of
            ``numbers`` holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FGDFileNotFoundError(f"{path}: expected {expected}, found no file there")
    try:
        text = path.read_bytes().decode()
        if growing:
            text = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
        names, rows = list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise FGDValueError(f"{path}: expected {expected}, could not read it: {error}") from error
    if missing := [name for name in columns if name not in names]:
        raise FGDValueError(f"{path}: expected {expected}, missing are the columns {missing}")
    for index, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise FGDValueError(f"{path}: expected {expected}, row {index} has not as many cells as the first line")
        for name in names if numbers is None else numbers:
            _check_number(row.get(name), f"{path}: expected {expected}, row {index} has {name}={row.get(name)!r}")
    return names, rows


def write_csv(path: str | Path, columns: Collection[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Writes a file of these columns, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _check_number(cell: str | None, told: str) -> None:
    try:
        float(cell or "nan")
    except ValueError as error:
        raise FGDValueError(told) from error
