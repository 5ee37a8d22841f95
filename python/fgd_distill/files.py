"""Writing files so that a reader never meets half of one, and so that a killed writer leaves nothing behind for long.

A file is written beside its target, under a hidden name that ends in ``.partial``, and renamed. Its writer holds a lock
on it, which ends with the process; so a partial file without one is stale, whoever left it, and removed.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .errors import FGDError, FGDOSError

try:
    import fcntl
except ImportError:  # Windows: partial files of killed runs stay
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic_path(path: str | Path, tidy: bool = True) -> Iterator[Path]:
    """Yields the path of an empty file beside ``path``; moves it to ``path`` when the block succeeds, else removes it.

    Args:
        path: the file to (over)write. Its parent folder is made when it is missing.
        tidy: whether partial files for the same ``path`` that killed runs left are looked for, which lists the folder.

    Raises:
        OSError: it cannot be written; the message says why.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if tidy:
            remove_stale(path.parent, path.name)
        temporary, lock = _claim(path, _new_file)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(lock)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """As ``atomic_path``, for a folder. It takes the place of one that is there.

    Raises:
        OSError: it cannot be written; the message says why.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path.parent, path.name)
        temporary, lock = _claim(path, _new_folder)
        try:
            yield temporary
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(lock)


def write_bytes(path: str | Path, *parts: Any, tidy: bool = True) -> None:
    """Writes buffers, one after the other, as the file ``path``.

    Raises:
        OSError: it cannot be written; the message says why, and how many bytes it needs.
    """
    write_stream(path, lambda out: [out.write(part) for part in parts], tidy)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text in UTF-8. Errors are those of ``write_bytes``."""
    write_bytes(path, text.encode())


def write_stream(path: str | Path, write: Callable[[Any], object], tidy: bool = True, durable: bool = False) -> None:
    """Writes the file ``path`` by a function that takes an open file.

    Args:
        path: the file to (over)write. Its parent folder is made when it is missing.
        write: calls ``write`` of its argument, and closes nothing.
        tidy: as for ``atomic_path``.
        durable: whether the file is on the disk when this returns.

    Raises:
        OSError: it cannot be written; the message says why, and how many bytes it needs.
    """
    path = Path(path)
    with atomic_path(path, tidy) as temporary:
        counted = _Counted(open(temporary, "wb"))  # noqa: SIM115
        try:
            write(counted)
            with writing(path, lambda: counted.bytes):
                counted.finish(durable)
        finally:
            with suppress(OSError):  # the first error is the one to tell
                counted.file.close()


class _Counted:
    """A file that goes on counting when it cannot be written any more, so that an error can say how much is needed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.bytes, self.error = file, 0, None  # type: BinaryIO, int, OSError | None

    def write(self, part: Any) -> int:
        size = memoryview(part).nbytes
        self.bytes += size
        if self.error is None:
            try:
                self.file.write(part)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        pass

    def finish(self, durable: bool) -> None:
        if self.error is not None:
            raise self.error
        self.file.flush()
        if durable:
            os.fsync(self.file.fileno())
        self.file.close()


@contextmanager
def writing(path: Path, needed: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Says of an error of the system which file was meant, what it needs and what is free.

    Raises:
        OSError: the block raised one.
    """
    try:
        yield
    except FGDError:
        raise
    except OSError as error:
        told = f"{path}: could not be written: {error.strerror or error}"
        if needed():
            told += f"; it needs {needed():,} bytes"
        with suppress(OSError):
            there = next(parent for parent in path.absolute().parents if parent.is_dir())
            told += f"; {shutil.disk_usage(there).free:,} bytes are free"
        raise FGDOSError(told) from error


def check_writable(path: str | Path) -> None:
    """Finds out whether ``path`` can be written, for work that takes long and writes its results at its end.

    Raises:
        OSError: it cannot; the message says why.
    """
    path = Path(path)
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, lock = _claim(path, _new_file)
        temporary.unlink(missing_ok=True)
        os.close(lock)


def remove_stale(folder: str | Path, name: str | None = None) -> None:
    """Removes the partial files and folders that nobody writes any more.

    Args:
        folder: where to look, not below it; it need not exist.
        name: of the target; None: any.
    """
    pattern = "*" if name is None else glob.escape(name)
    for path in Path(folder).glob(f".{pattern}.*.partial"):
        with suppress(OSError):  # another process removed it, or it is not ours
            descriptor = os.open(path, os.O_RDONLY)
            try:
                if _lock(descriptor):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(descriptor)


def _claim(path: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """A new partial file or folder for ``path``, and the descriptor that holds its lock."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        descriptor = make(temporary)
        _lock(descriptor)
        if temporary.exists():
            return temporary, descriptor
        os.close(descriptor)  # someone took it for a stale one before it was locked


def _new_file(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)


def _new_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY)


def _lock(descriptor: int) -> bool:
    """Takes the lock of an open file, if nobody has it; where there are no locks nobody gets one."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
