"""Checkpoints and files of weights: written whole, read only as they were written, and without code. 20 seconds."""

import ast
import errno
import os
import pickle
import random
from functools import partial
from logging import FileHandler
from pathlib import Path

import pytest
import torch

from fgd_distill.commands import main as cli
from fgd_distill.detectors.checkpoint import read_checkpoint
from fgd_distill.detectors.weights import read_state
from fgd_distill.errors import FGDOSError, FGDValueError
from fgd_distill.tensor_files import read_tensors, save_tensors
from fgd_distill.training.checkpoint_io import WholeCheckpoints
from fgd_distill.training.run import run

ROOT = Path(__file__).parents[2]


class Code:
    """What runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    """300 bits of a file of weights: it is read as it was, or refused in one line."""
    state = {"weight": torch.randn(60, 40), "bias": torch.randn(40).half(), "count": torch.tensor(7)}
    path, numbers, refused = tmp_path / "student.pt", random.Random(0), 0
    save_tensors(path, state)
    whole = path.read_bytes()
    for _ in range(300):
        content, place = bytearray(whole), numbers.randrange(8 * len(whole))
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            found = read_state(path)
        except ValueError as error:
            refused += 1
            assert isinstance(error, FGDValueError) and "\n" not in str(error) and str(path) in str(error), place
        else:
            assert found.keys() == state.keys(), place
            assert all(torch.equal(value, found[name]) for name, value in state.items()), place
    assert refused > 200


@pytest.mark.parametrize("content", [b"", b"a text", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x00" * 5000])
def test_other_files_are_refused_in_one_line(tmp_path, content, capsys):
    path = tmp_path / "file"
    path.write_bytes(content)
    for read in (read_state, read_checkpoint, WholeCheckpoints().load_checkpoint):
        if read is read_state and content.startswith(b"\x80"):
            continue  # an empty dict: a state dict without entries
        with pytest.raises(FGDValueError) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(SystemExit, match="^fgd-distill export-student: .*expected a checkpoint of fgd-distill fit"):
        cli.main(["export-student", str(path), str(tmp_path / "student.pt")])
    with pytest.raises(FGDOSError, match="could not be read: Is a directory"):
        read_tensors(tmp_path, "a file")


@pytest.mark.parametrize(
    "content",
    [[1], {"detector": 1}, {"detector": {"name": 1, "more": 2}}, {"detector": {"name": "x"}, "labels": 3}],
)
def test_checkpoints_of_another_structure(tmp_path, content):
    torch.save(content, tmp_path / "file")
    for read in (read_checkpoint, WholeCheckpoints().load_checkpoint):
        with pytest.raises(FGDValueError, match="expected a checkpoint of fgd-distill fit") as caught:
            read(tmp_path / "file")
        assert "\n" not in str(caught.value)


def test_no_code_of_a_file_is_run(tmp_path, fit_args):
    torch.save({"state_dict": Code(tmp_path / "ran"), "pytorch-lightning_version": "2.6.0"}, tmp_path / "evil.ckpt")
    for read in (
        read_state,
        read_checkpoint,
        partial(WholeCheckpoints().load_checkpoint, weights_only=False),
    ):
        with pytest.raises(FGDValueError, match="UnpicklingError"):
            read(tmp_path / "evil.ckpt")
    for more in ((), ("--weights_only=false",)):
        with pytest.raises(SystemExit, match="^fgd-distill fit: .*evil.ckpt: expected a checkpoint"):
            cli.main([*fit_args(tmp_path / "run"), f"--ckpt_path={tmp_path / 'evil.ckpt'}", *more])
    assert not (tmp_path / "ran").exists()


class Record(Code):
    """The same, by a function of a module that torch does not refuse outright."""

    def __reduce__(self):
        return FileHandler, (str(self.mark),)


def test_export_reads_other_objects_as_blanks_and_runs_none(tmp_path):
    """A runner's checkpoint has its records beside the weights."""
    pickle.loads(pickle.dumps(Record(tmp_path / "seen"))).close()
    assert (tmp_path / "seen").exists()
    state = {"neck.weight": torch.rand(3), "criterion.weight": torch.rand(2)}
    meta = {"epoch": 1, "seen": [1, Record(tmp_path / "ran")], "when": Record(tmp_path / "ran")}
    content = {"meta": meta, "state_dict": state, "message_hub": {"loss": Record(tmp_path / "ran")}}
    torch.save(content, tmp_path / "epoch_1.pth")
    cli.main(["export-student", str(tmp_path / "epoch_1.pth"), str(tmp_path / "student.pth")])
    found = torch.load(tmp_path / "student.pth", weights_only=True)
    assert found["meta"] == {"epoch": 1, "seen": [1]} and list(found["state_dict"]) == ["neck.weight"]
    assert torch.equal(found["state_dict"]["neck.weight"], state["neck.weight"])
    torch.save({"meta": {}, "state_dict": {"neck.weight": torch.rand(3)}}, tmp_path / "plain.pth")
    with pytest.raises(SystemExit, match="^fgd-distill export-student: checkpoint: expected entries of a student"):
        cli.main(["export-student", str(tmp_path / "plain.pth"), str(tmp_path / "student.pth")])
    torch.save(content | {"optimizer": Code(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(SystemExit, match="could not read it: UnpicklingError"):
        cli.main(["export-student", str(tmp_path / "evil.pth"), str(tmp_path / "student.pth")])
    assert not (tmp_path / "ran").exists()


def calls(tree):
    """Every call of a syntax tree as the dotted name and its keywords' sources."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_files_of_others_are_nowhere_read_with_their_code():
    found = 0
    for folder in ("fgd_kernels", "python", "bench", "devtools", "docs"):
        for path in (ROOT / folder).rglob("*.py"):
            for name, keywords in calls(ast.parse(path.read_text())):
                assert name.split(".")[-1] not in ("load_from_checkpoint", "Unpickler"), path
                assert name not in ("pickle.load", "pickle.loads"), path
                if name == "torch.load":
                    found += 1
                    assert keywords.get("weights_only") == "True", path
                if name in ("np.load", "numpy.load"):
                    assert keywords.get("allow_pickle", "False") == "False", path
    assert found


def test_a_disk_that_fills_up_in_a_training(fit_args, tmp_path, monkeypatch):
    """The second checkpoint does not fit: the training ends with one line, and the first is whole and resumes it."""
    checkpoint = {"every_n_train_steps": 1, "filename": "last", "enable_version_counter": False}
    callback = {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": checkpoint}
    args = [*fit_args(tmp_path, steps=2), f"--trainer.callbacks={[callback]}", "--trainer.limit_val_batches=0"]
    saved, fsync = [], os.fsync

    def full(descriptor):
        fsync(descriptor)
        saved.append(descriptor)
        if len(saved) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(SystemExit) as ended:
            cli.main(args)
    told = str(ended.value)
    assert "\n" not in told and told.startswith(f"fgd-distill fit: {tmp_path}")
    assert "last.ckpt: could not be written: No space left on device; it needs " in told
    folder = next(tmp_path.rglob("checkpoints"))
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 1
    (folder / ".last.ckpt.0123abcd.partial").write_bytes(b"of a killed run")
    assert run([*args, f"--ckpt_path={folder / 'last.ckpt'}"]).trainer.global_step == 2
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]


def test_a_file_of_the_log_that_cannot_be_written_is_told_in_a_line(fit_args, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SystemExit, match="^fgd-distill fit: .*file") as ended:
        cli.main(fit_args(tmp_path / "file"))
    assert "\n" not in str(ended.value)
