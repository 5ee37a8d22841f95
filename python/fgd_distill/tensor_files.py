"""Files of torch.save, written whole or not at all, and read with a look at their checksums and without their code."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from .errors import FGDOSError, FGDValueError
from .files import write_stream


def save_tensors(path: str | Path, content: Any) -> None:
    """``torch.save``, without a copy of the file in memory, and on the disk when it returns.

    Raises:
        OSError: it cannot be written; the message says why, and how many bytes it needs.
    """
    write_stream(path, lambda out: torch.save(content, out), durable=True)


class Blank:
    """What an object of an unknown class in a file is read as: nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read_tensors(path: str | Path, expected: str, map_location: Any = "cpu", blanks: bool = False) -> Any:
    """The content of a file of ``torch.save``: tensors and plain values. No code of the file is run.

    torch.load does not look at the checksums that the file has. This does.

    Args:
        path: the file.
        expected: what it should be, for messages.
        map_location: as for ``torch.load``.
        blanks: whether other objects, such as a trainer's records, are read as ``Blank``; otherwise they are an error.

    Raises:
        OSError: the file is missing or the system cannot read it.
        ValueError: it is damaged, or something else.
    """
    try:
        open(path, "rb").close()
    except OSError as error:
        raise FGDOSError(f"{path}: could not be read: {error.strerror or error}") from error
    try:
        damaged = _damaged_record(path)
        if damaged is None:
            blanks = blanks and zipfile.is_zipfile(path)  # torch lists what is unknown for archives alone
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if blanks else []
            with torch.serialization.safe_globals([(Blank, name) for name in unknown]):  # type: ignore[misc]
                return torch.load(path, map_location=map_location, weights_only=True)
        reason = (
            f"its part {damaged} does not fit its checksum: the file is damaged (or was written with "
            "set_crc32_options(False): then load and save it once without)"
        )
    except Exception as error:  # damaged files raise a dozen types
        reason = f"{type(error).__name__}: {[*str(error).splitlines(), ''][0]}"
    raise FGDValueError(f"{path}: expected {expected}, could not read it: {reason}")


def without_blanks(content: Any) -> Any:
    """A copy of plain values in dicts, lists and tuples, without what was read as ``Blank``."""
    if isinstance(content, dict):
        return {name: without_blanks(value) for name, value in content.items() if not isinstance(value, Blank)}
    if isinstance(content, list | tuple):
        return type(content)(without_blanks(value) for value in content if not isinstance(value, Blank))
    return content


def described(content: object) -> str:
    """What a file held instead of what was expected."""
    if not isinstance(content, dict):
        return f"an object of type {type(content).__name__}"
    return f"a dict with the keys {[str(key) for key in content][:5]}"


def _damaged_record(path: str | Path) -> str | None:
    """The first part of the archive that differs from its checksum. Files of torch before 1.6 are no archives."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()
