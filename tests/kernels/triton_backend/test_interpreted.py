"""Runs interpreted*.py with TRITON_INTERPRET=1, in processes of their own: Triton decides at import, once a process."""

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.parametrize("name", ["interpreted.py", "interpreted_exact.py"])
def test_in_the_interpreter(name):
    path = pathlib.Path(__file__).with_name(name)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--durations=5", "-p", "no:cacheprovider", path],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-6000:], done.stderr[-2000:])
    assert done.returncode == 0, done.stdout[-6000:]
