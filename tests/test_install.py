"""What pip builds: a wheel for one platform and every Python, or, without a compiler, one without native code.

All of it happens in a copy of what a build reads, so that the tree's own fgd_kernels/_C.so stays as it is.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
READ_BY_A_BUILD = (
    "CMakeLists.txt",
    "LICENSE",
    "README.md",
    "csrc",
    "fgd_kernels",
    "pyproject.toml",
    "python",
    "setup.py",
)


def lacking() -> str:
    compilers = os.environ["CXX"].split()[:1] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(shutil.which(compiler) for compiler in compilers):
        return f"needs a C++ compiler (looked for {', '.join(compilers)})"
    if not (shutil.which("cmake", path=os.path.dirname(sys.executable)) or shutil.which("cmake")):
        return "needs CMake (pip install cmake)"
    return ""


@pytest.fixture
def tree(tmp_path) -> pathlib.Path:
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in READ_BY_A_BUILD:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "_C*", "*.egg-info"))
        elif source.exists():
            shutil.copy2(source, copy / name)
    return copy


def pip_wheel(tree, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-build-isolation", "--no-deps"]
    command += ["--disable-pip-version-check", "--no-index", "--wheel-dir", str(tree / "wheels"), str(tree)]
    # What a developer's shell may have set must not change what is tested; CUDA kernels take minutes to compile.
    unset = ("FGD_REQUIRE_NATIVE", "FGD_FORCE_CUDA", "CMAKE_ARGS", "PYTHONPATH")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    environment = inherited | {"FGD_NO_CUDA": "1"} | environment
    return subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def only_wheel(tree, done) -> pathlib.Path:
    assert done.returncode == 0, done.stdout[-5000:]
    (wheel,) = (tree / "wheels").glob("*.whl")
    return wheel


def names(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def in_unpacked(wheel, folder, code) -> str:
    """The output of `code` in a process that imports from the unpacked wheel, far from the source tree."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    code = f"import fgd_kernels as fgd; assert fgd.__file__.startswith({str(folder)!r}), fgd.__file__\n{code}"
    environment = {name: value for name, value in os.environ.items() if name != "FGD_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(folder)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


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
    # Not optimised, which compiles in a fifth of the time; what is in the wheel does not depend on it.
    wheel = only_wheel(tree, pip_wheel(tree, CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Debug", FGD_REQUIRE_NATIVE="1"))
    assert re.fullmatch(r"fgd_kernels-[^-]+-py3-none-(linux|macosx)_\w+\.whl", wheel.name)
    content = names(wheel)
    assert "fgd_kernels/_C.so" in content and "fgd_kernels/_C.missing.txt" not in content
    assert_python_files(content)
    code = 'assert fgd.backends()["cpu"].available, fgd.backends()["cpu"].reason' + LOSS.replace("BACKEND", '"cpu"')
    in_unpacked(wheel, tmp_path / "unpacked", code)


def assert_python_files(content):
    """Every module of both packages and the detector side's data, and nothing of the tests or the sources."""
    for package, source in (("fgd_kernels", ROOT / "fgd_kernels"), ("fgd_distill", ROOT / "python" / "fgd_distill")):
        wanted = {f"{package}/{path.relative_to(source)}" for path in source.rglob("*.py")}
        wanted |= {f"{package}/{path.relative_to(source)}" for path in source.glob("configs/*.yaml")}
        wanted |= {f"{package}/{path.relative_to(source)}" for path in source.glob("weights/*")}
        assert wanted <= content, sorted(wanted - content)
    assert any(name.startswith("fgd_distill/configs/") for name in content)
    assert any(name.startswith("fgd_distill/weights/") for name in content)
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
    done = pip_wheel(tree, CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Debug")
    assert done.returncode != 0 and "broken" in done.stdout
    assert not list(tree.glob("wheels/*.whl"))
