"""What pip builds: a wheel for one platform and every Python, or, without a fit compiler, one without native code."""

import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import building
import pytest
import torch
from building import ROOT, lacking, names, only_wheel, pip_wheel


@pytest.fixture
def tree(tmp_path):
    return building.copy_of_tree(tmp_path / "tree")


def in_unpacked(wheel, folder, code) -> str:
    """The output of `code` in a process that imports from the unpacked wheel."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    code = f"import fgd_kernels as fgd; assert fgd.__file__.startswith({str(folder)!r}), fgd.__file__\n{code}"
    return building.python(sys.executable, folder, code, PYTHONPATH=str(folder))


# Forward and backward on the backend that is asked for, against the reference.
LOSS = """
import torch
def run(backend):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 8, 9, 11, requires_grad=True), torch.randn(2, 8, 9, 11)
    boxes = [torch.tensor([[5.0, 5.0, 40.0, 30.0]]), torch.zeros(0, 4)]
    loss = sum(fgd.fgd_loss(student, teacher, boxes, [(72, 88)] * 2, backend=backend).values())
    return loss.detach(), torch.autograd.grad(loss, student)[0]
torch.testing.assert_close(run(BACKEND), run("reference"), rtol=1e-5, atol=1e-8)
"""


@pytest.mark.skipif(bool(lacking()), reason=lacking())
def test_native_wheel(tree, tmp_path):
    wheel = only_wheel(tree, pip_wheel(tree, FGD_REQUIRE_NATIVE="1", **building.QUICK))
    assert re.fullmatch(r"fgd_kernels-[^-]+-py3-none-(linux|macosx)_\w+\.whl", wheel.name)
    content = names(wheel)
    assert "fgd_kernels/_C.so" in content and "fgd_kernels/_C.missing.txt" not in content
    assert_python_files(content)
    library = zipfile.ZipFile(wheel).read("fgd_kernels/_C.so")
    for folder in (tree, Path(torch.__file__).parent):
        assert str(folder).encode() not in library, "a folder of the machine that built it"
    code = 'assert fgd.backends()["cpu"].available, fgd.backends()["cpu"].reason' + LOSS.replace("BACKEND", '"cpu"')
    in_unpacked(wheel, tmp_path / "unpacked", code)


def assert_python_files(content):
    """Every module of both packages and the detector side's data, and nothing of the tests or the sources."""
    for package, source in (("fgd_kernels", ROOT / "fgd_kernels"), ("fgd_distill", ROOT / "python" / "fgd_distill")):
        wanted = {f"{package}/{path.relative_to(source)}" for path in source.rglob("*.py")}
        wanted |= {f"{package}/{path.relative_to(source)}" for path in source.rglob("*.yaml")}
        wanted |= {f"{package}/{path.relative_to(source)}" for path in source.rglob("*.pt")}
        wanted |= {f"{package}/{path.relative_to(source)}" for path in source.rglob("py.typed")}
        assert wanted <= content, sorted(wanted - content)
    assert any(name.startswith("fgd_distill/") and name.endswith(".yaml") for name in content)
    assert any(name.startswith("fgd_distill/") and name.endswith(".pt") for name in content)
    top = {name.split("/")[0] for name in content}
    assert {name for name in top if not name.endswith(".dist-info")} == {"fgd_kernels", "fgd_distill"}


@pytest.mark.parametrize("leftover", [False, True])
def test_wheel_without_a_compiler(tree, tmp_path, leftover):
    """Also where an earlier build has left a library in the tree: it must not end in a wheel for any platform."""
    if leftover:
        (tree / "fgd_kernels" / "_C.so").write_bytes(b"of an earlier build")
    done = pip_wheel(tree, CXX="/nonexistent-compiler")
    wheel = only_wheel(tree, done)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "fgd_kernels/_C.so" not in names(wheel)
    assert_python_files(names(wheel))
    reason = zipfile.ZipFile(wheel).read("fgd_kernels/_C.missing.txt").decode()
    assert reason == "no C++ compiler was found (looked for /nonexistent-compiler)"
    assert f"pure-Python install, {reason}" in done.stdout
    code = 'print(fgd.backends()["cpu"])' + LOSS.replace("BACKEND", '"auto"')
    assert reason in in_unpacked(wheel, tmp_path / "unpacked", code)


def test_required_native_code_without_a_compiler(tree):
    done = pip_wheel(tree, CXX="/nonexistent-compiler", FGD_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "FGD_REQUIRE_NATIVE=1, but no C++ compiler was found" in done.stdout
    assert not list(tree.glob("wheels/*.whl"))


@pytest.mark.skipif(bool(lacking()), reason=lacking())
def test_build_that_starts_and_fails_is_an_error(tree):
    """A broken source is no reason to fall back to pure Python."""
    (tree / "csrc" / "cpu" / "pyramid.cpp").write_text("#error broken\n")
    done = pip_wheel(tree, **building.QUICK)
    assert done.returncode != 0 and "broken" in done.stdout
    assert not list(tree.glob("wheels/*.whl"))


def script(path, text):
    """A program of that name, for what a machine might have on its PATH."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_compiler_that_does_not_fit(tree, tmp_path):
    """As clang++ without a C++ library, or one that is too old: found, but of no use."""
    compiler = script(tmp_path / "bin" / "old++", "echo \"error: 'optional' file not found\" >&2; exit 1")
    reason = f"{compiler} does not fit: error: 'optional' file not found"
    refused = pip_wheel(tree, CXX=str(compiler), FGD_REQUIRE_NATIVE="1")
    assert refused.returncode != 0 and f"FGD_REQUIRE_NATIVE=1, but {reason}" in refused.stdout
    wheel = only_wheel(tree, pip_wheel(tree, CXX=str(compiler)))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert zipfile.ZipFile(wheel).read("fgd_kernels/_C.missing.txt").decode() == reason


@pytest.mark.skipif(bool(lacking()), reason=lacking())
def test_the_next_compiler_is_taken(tree, tmp_path):
    script(tmp_path / "bin" / "c++", 'echo "error: 1972 called" >&2; exit 1')
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    if os.environ.get("CXX") or not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("needs g++ or clang++, and no CXX")
    wheel = only_wheel(tree, pip_wheel(tree, PATH=path, **building.QUICK))
    assert "fgd_kernels/_C.so" in names(wheel)


@pytest.mark.skipif(bool(lacking()), reason=lacking())
def test_nvcc_that_does_not_fit_leaves_cuda_out(tree, tmp_path):
    """An nvcc that refuses this machine's C++ compiler: the CPU part is built, and backends() says why it is alone."""
    nvcc = script(tmp_path / "bin" / "nvcc", 'echo "error: unsupported GNU version!" >&2; exit 1')
    path = f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"
    asked = {"FGD_NO_CUDA": "0", "CUDACXX": str(nvcc), "PATH": path, **building.QUICK}
    refused = pip_wheel(tree, FGD_FORCE_CUDA="1", **asked)
    assert refused.returncode != 0 and "the CUDA kernels were asked for, but" in refused.stdout
    wheel = only_wheel(tree, pip_wheel(tree, **asked))
    code = 'assert fgd.backends()["cpu"].available; print(fgd.backends()["cuda"].reason)'
    said = in_unpacked(wheel, tmp_path / "unpacked", code)
    assert f"built without CUDA: {nvcc} cannot compile with this C++ compiler" in said


@pytest.mark.skipif(bool(lacking() or not shutil.which("nvcc")), reason=lacking() or "needs nvcc")
def test_cuda_kernels_that_do_not_compile_are_left_out(tree, tmp_path):
    """As with torch's headers of a version that they do not know. By name, or with FGD_REQUIRE_NATIVE, an error."""
    for source in (tree / "csrc" / "cuda").glob("*.cu"):
        source.write_text("#error these headers do not fit\n")
    asked = {"FGD_NO_CUDA": "0", "TORCH_CUDA_ARCH_LIST": "9.0", **building.QUICK}
    for insisted in ("FGD_FORCE_CUDA", "FGD_REQUIRE_NATIVE"):
        refused = pip_wheel(tree, **asked, **{insisted: "1"})
        assert refused.returncode != 0 and "these headers do not fit" in refused.stdout
        assert not list(tree.glob("wheels/*.whl"))
    done = pip_wheel(tree, **asked)
    assert "trying without CUDA (FGD_FORCE_CUDA=1 would insist)" in done.stdout
    wheel = only_wheel(tree, done)
    said = in_unpacked(wheel, tmp_path / "unpacked", 'print(fgd.backends()["cuda"].reason)')
    assert "built without CUDA: its build failed: csrc/cuda/" in said and "these headers do not fit" in said
