"""Files appear whole or not at all, errors name them, and what killed writers left is removed. About 4 seconds."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fgd_distill import files
from fgd_distill.errors import FGDOSError, FGDValueError
from fgd_distill.files import atomic_folder, atomic_path, check_writable, remove_stale, write_bytes, write_text
from fgd_distill.tensor_files import save_tensors

TENSORS = {"weight": torch.arange(50_000.0)}  # 200 kB


@pytest.fixture
def small_files():
    """No file of this process may grow above 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_be_written_leaves_the_last_one(tmp_path, small_files):
    path = tmp_path / "folder" / "last.ckpt"
    save_tensors(path, {"weight": torch.ones(3)})
    before = path.read_bytes()
    with pytest.raises(
        FGDOSError, match=r"last.ckpt: could not be written: File too large; it needs 20\d,\d{3} bytes;"
    ):
        save_tensors(path, TENSORS)
    with pytest.raises(FGDOSError, match="it needs 200,000 bytes; [0-9,]+ bytes are free"):
        write_bytes(path, bytes(150_000), bytes(50_000))
    with pytest.raises(FGDOSError, match="it needs 100,006 bytes"):
        write_bytes(path, bytes(99_999), b"a word.")  # small parts are buffered
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_full_disk_and_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    for write in (lambda path: write_text(path, "text"), lambda path: save_tensors(path, TENSORS)):
        with pytest.raises(FGDOSError, match=r"/file/below: could not be written: .*\n?") as caught:
            write(tmp_path / "file" / "below")
        assert "\n" not in str(caught.value)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)  # where a disk tells it last
    with pytest.raises(FGDOSError, match=r"student.pt: could not be written: No space left on device; it needs 20"):
        save_tensors(tmp_path / "student.pt", TENSORS)
    monkeypatch.setattr(files.os, "open", full)
    with pytest.raises(FGDOSError, match="page.md: could not be written: No space left on device"):
        write_text(tmp_path / "page.md", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_saved_is_read(tmp_path):
    save_tensors(tmp_path / "a.pt", TENSORS)
    torch.save(TENSORS, tmp_path / "b.pt")
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True)["weight"], TENSORS["weight"])
    assert abs((tmp_path / "a.pt").stat().st_size - (tmp_path / "b.pt").stat().st_size) < 2000
    write_text(tmp_path / "page.md", "α\n")
    assert (tmp_path / "page.md").read_bytes() == b"\xce\xb1\n"


def test_errors_of_others_pass_through(tmp_path):
    with pytest.raises(FGDValueError, match="mine"), atomic_path(tmp_path / "a"):
        raise FGDValueError("mine")
    assert not list(tmp_path.iterdir())


WRITER = """
import sys, time
from fgd_distill.files import atomic_folder, atomic_path
with atomic_path(sys.argv[1] + "/target") as file, atomic_folder(sys.argv[1] + "/folder") as folder:
    file.write_text("half")
    (folder / "part").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(files.fcntl is None, reason="no locks of files on this system")
def test_partial_files_live_as_long_as_their_writer(tmp_path):
    (tmp_path / ".target.4711.partial").write_text("of an earlier version")
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        theirs = sorted(tmp_path.iterdir())
        assert len(theirs) == 2 and not (tmp_path / ".target.4711.partial").exists()
        write_text(tmp_path / "target", "ours")
        remove_stale(tmp_path)
        assert [path for path in sorted(tmp_path.iterdir()) if path.name != "target"] == theirs
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert len(list(tmp_path.iterdir())) == 3
    write_text(tmp_path / "target", "again")
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "whole").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "target", "whole"]
    assert (tmp_path / "target").read_text() == "again"


def test_a_file_that_was_taken_for_a_stale_one_is_begun_again(tmp_path, monkeypatch):
    lock, removed = files._lock, []

    def late(descriptor):
        if not removed:
            removed.extend(tmp_path.iterdir())
            Path(removed[0]).unlink()
        return lock(descriptor)

    monkeypatch.setattr(files, "_lock", late)
    write_text(tmp_path / "target", "text")
    assert removed and (tmp_path / "target").read_text() == "text"


def test_it_is_known_beforehand_whether_a_file_can_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "file")
    assert (tmp_path / "file").read_text() == "x" and list((tmp_path / "new").iterdir()) == []
    for path in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=f"^{path}: could not be written: "):
            check_writable(path)
