"""What the tests of this folder share: copies of the tree, builds in them, and environments to install into.

All of it happens in a copy of what a build reads, so that the tree's own fgd_kernels/_C.so stays as it is.
"""

import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable

import pytest
from packaging.requirements import Requirement  # comes with pytest

ROOT = pathlib.Path(__file__).parents[2]
READ_BY_A_BUILD = (
    "CMakeLists.txt",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "csrc",
    "fgd_kernels",
    "pyproject.toml",
    "python",
    "setup.py",
)
SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
OBJECTS = tempfile.TemporaryDirectory(prefix="fgd_objects_")
LAUNCHER = (sys.executable, str(pathlib.Path(__file__).with_name("compile_once.py")), OBJECTS.name)
# Not optimised, which compiles in a fifth of the time, and each object once; what is in a wheel does not depend on it.
QUICK = {"CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=Debug", "CMAKE_CXX_COMPILER_LAUNCHER": ";".join(LAUNCHER)}


def lacking() -> str:
    compilers = os.environ["CXX"].split()[:1] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(shutil.which(compiler) for compiler in compilers):
        return f"needs a C++ compiler (looked for {', '.join(compilers)})"
    if not (shutil.which("cmake", path=os.path.dirname(sys.executable)) or shutil.which("cmake")):
        return "needs CMake (pip install cmake)"
    return ""


def tracked() -> list[str]:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def copy_of_tree(folder: pathlib.Path) -> pathlib.Path:
    """A copy of what a build reads, without what an earlier build left."""
    folder.mkdir()
    for name in READ_BY_A_BUILD:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_C*", "*.egg-info"))
        elif source.exists():
            shutil.copy2(source, folder / name)
    return folder


def run(command, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )


def build_environment(**wanted) -> dict[str, str]:
    """What a developer's shell may have set must not change what is tested; CUDA kernels take minutes to compile."""
    unset = ("FGD_REQUIRE_NATIVE", "FGD_FORCE_CUDA", "CMAKE_ARGS", "PYTHONPATH", "TORCH_CUDA_ARCH_LIST")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    return inherited | {"FGD_NO_CUDA": "1"} | wanted


def pip_wheel(tree, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-build-isolation", "--no-deps"]
    command += ["--disable-pip-version-check", "--no-index", "--wheel-dir", tree / "wheels", tree]
    return run(command, env=build_environment(**environment))


def only_wheel(tree, done) -> pathlib.Path:
    assert done.returncode == 0, done.stdout[-5000:]
    (wheel,) = (tree / "wheels").glob("*.whl")
    return wheel


def names(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def requirements(name: str, extras: Iterable[str] = ("",), seen: dict[str, set[str]] | None = None) -> set[str]:
    """A distribution and what it requires here, by name, all the way down."""
    seen = {} if seen is None else seen
    name = re.sub(r"[-_.]+", "-", name).lower()
    fresh = {"", *extras} - seen.get(name, set())
    if fresh:
        seen.setdefault(name, set()).update(fresh)
        for requirement in map(Requirement, importlib.metadata.requires(name) or []):
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in fresh):
                requirements(requirement.name, requirement.extras, seen)
    return set(seen)


def environment_with(folder: pathlib.Path, *distributions: str) -> pathlib.Path:
    """A virtual environment's Python that sees these distributions, and what they require, and nothing else.

    torch is several GB: they are not installed again, but linked from here into a folder of their own that the new
    environment's path names. They lie outside of what pip may change there.
    """
    run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    links = folder / "linked"
    links.mkdir()
    site = pathlib.Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "linked.pth").write_text(f"{links}\n")
    for name in set().union(*map(requirements, distributions)):
        found = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (links / top).exists():
                (links / top).symlink_to(pathlib.Path(str(found.locate_file(top))))
    return folder / "bin" / "python"


def install(executable: pathlib.Path, wheel: pathlib.Path) -> subprocess.CompletedProcess:
    """This environment's pip unpacks a wheel into the other, and nothing else: no dependency is looked for."""
    command = [sys.executable, "-m", "pip", "--python", executable, "install", "--disable-pip-version-check"]
    return run([*command, "--no-index", "--no-deps", wheel], env=build_environment())


def python(executable: pathlib.Path, folder: pathlib.Path, code: str, **environment) -> str:
    """The output of `code`, run far from the source tree."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("FGD_BACKEND", "PYTHONPATH")}
    done = run([executable, "-c", code], cwd=folder, env=inherited | environment)
    assert done.returncode == 0, done.stdout
    return done.stdout
