"""The day on a GPU machine, rehearsed: bench/gpu_all.py with the packages that there are, up to the device."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
# What such a machine lacks of what development has here; and no network.
ABSENT = ("pycocotools", "jsonargparse", "pytorch_lightning", "lightning_fabric", "torchvision", "docstring_parser")
BLOCK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())

import socket

def refuse(*args, **options):
    raise OSError("there is no network")

socket.socket.connect = socket.create_connection = refuse
"""


@pytest.fixture
def run(tmp_path):
    """Runs bench/gpu_all.py as on that machine."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: run bench/gpu_all.py itself")
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BLOCK)

    def call(*arguments):
        command = [sys.executable, str(ROOT / "bench" / "gpu_all.py"), *arguments]
        environment = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    return call


def test_it_goes_as_far_as_the_device(run, tmp_path):
    parts = ["build", "tests-cuda", "benchmark-ours"]  # of each kind one
    done = run(*parts, "--rehearse", "--output", str(tmp_path / "out"), "--archive", str(tmp_path / "gpu.tar.gz"))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (tmp_path / "out" / "summary.md").read_text()
    rows = {cells[1].strip(): cells for line in summary.splitlines()[2:] if (cells := line.split("|"))}
    assert list(rows) == parts and all(cells[2].strip() == "ok" for cells in rows.values())
    collected, total = rows["tests-cuda"][4].split()[0].split("/")
    assert 50 < int(collected) < int(total)
    assert "nothing measured" in rows["benchmark-ours"][4]
    with tarfile.open(tmp_path / "gpu.tar.gz") as packed:
        names = {Path(name).name for name in packed.getnames()}
    assert {"summary.md", "device.txt", *(f"{part}.txt" for part in parts)} <= names


def test_a_part_that_fails_or_takes_too_long_is_named(run, tmp_path):
    """The rest follows; what came before it is kept."""
    done = run("tests-cuda", "build", "--rehearse", "--minutes", "0.5", "--output", str(tmp_path / "out"))
    assert done.returncode == 1 and "no time was left for: build tests-cuda" in done.stdout
    without = run("build")
    assert without.returncode == 0 and "needs a GPU" in without.stdout
    assert "expected some of build, tests-cuda" in run("tests").stderr
