"""The examination of an installation: it tells what is there, and notices a backend that computes a wrong loss."""

import re
import subprocess
import sys

import pytest
import torch

from fgd_kernels import BackendStatus, backends, doctor, native


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "fgd_kernels"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"torch {torch.__version__}" in done.stdout and "What would make it faster:\n  - " in done.stdout
    for name, status in backends().items():
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"  {name} "))
        assert status.reason in line and ("right, error" in line) == status.available


@pytest.mark.skipif(native.load() is not None, reason=str(native.load()))
def test_the_library_tells_its_instruction_set():
    code = "from fgd_kernels import native; print(native.build_info().instruction_set)"
    environment = {"FGD_CPU_ISA": "baseline", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "baseline\n"
    assert native.build_info().instruction_set in doctor.summary()


def test_a_wrong_gradient_is_noticed(monkeypatch):
    right = doctor.fgd_loss

    def wrong(student, *rest, backend):
        student = [level * 1.001 if backend == "cpu" else level for level in student]
        return right(student, *rest, backend="reference")

    monkeypatch.setattr(doctor, "backends", lambda: dict.fromkeys(("cpu", "reference"), BackendStatus(True, "")))
    monkeypatch.setattr(doctor, "fgd_loss", wrong)
    text, passed = doctor.report()
    assert not passed and "cpu        WRONG, error" in text and "reference  right" in text


def test_a_backend_that_raises_is_told(monkeypatch):
    def broken(*_, backend, **__):
        raise OSError("no such kernel\nand more")

    right = doctor.fgd_loss
    monkeypatch.setattr(doctor, "backends", lambda: {"cpu": BackendStatus(True, "")})
    monkeypatch.setattr(
        doctor, "fgd_loss", lambda *a, backend: (broken if backend == "cpu" else right)(*a, backend=backend)
    )
    text, passed = doctor.report()
    assert not passed and "WRONG, raises OSError: no such kernel" in text and "and more" not in text


def test_hints(monkeypatch):
    status = {"cpu": BackendStatus(False, "no compiler"), "cuda": BackendStatus(False, "no nvcc")}
    monkeypatch.setattr(doctor, "backends", lambda: status | {"triton": BackendStatus(True, "")})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 0)
    for name, value in {"FGD_BACKEND": "reference", "TRITON_INTERPRET": "1", "FGD_CPU_ISA": "avx2"}.items():
        monkeypatch.setenv(name, value)
    told = "\n".join(doctor.hints())
    for part in ("slow reference runs: no compiler", "Triton's kernels run on it: no nvcc", "FGD_BACKEND=reference"):
        assert part in told
    assert "TRITON_INTERPRET=1" in told and "FGD_CPU_ISA=avx2" in told and "torch uses 0 of" in told


def test_a_library_that_does_not_load_says_why(tmp_path, monkeypatch):
    """The loader's own words, such as the library that is missing: torch's error has the path alone."""
    (tmp_path / "_C.so").write_bytes(b"no library")
    monkeypatch.setattr(native, "_path", lambda: tmp_path / "_C.so")
    assert re.fullmatch(r"_C.so failed to load: .*: (file too short|invalid ELF header).*", native.load.__wrapped__())
