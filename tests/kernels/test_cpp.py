"""The C++ tests (tests/kernels/cpp), built and run under AddressSanitizer and UndefinedBehaviorSanitizer.

The build lies in build/sanitize and is kept: only what changed is compiled again.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BUILD = ROOT / "build" / "sanitize"


def tool(name: str) -> str | None:
    """A program beside this Python, where pip puts CMake and ninja, or on PATH."""
    return shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)


def lacking() -> str:
    compilers = os.environ["CXX"].split()[:1] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(shutil.which(compiler) for compiler in compilers):
        return f"needs a C++ compiler (looked for {', '.join(compilers)})"
    absent = [name for name in ("cmake", "ctest") if not tool(name)]
    return f"needs {' and '.join(absent)} (pip install cmake)" if absent else ""


def run(*command) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout[-10000:]}", pytrace=False)


@pytest.fixture(scope="module")
def build() -> pathlib.Path:
    ninja = tool("ninja")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    # Not optimised: with sanitizers that takes the compiler four times as long, and the tests stay quick without.
    options = {"CMAKE_BUILD_TYPE": "Debug", "FGD_BUILD_OPERATOR": "OFF", "FGD_BUILD_TESTS": "ON", "FGD_SANITIZE": "ON"}
    cache = BUILD / "CMakeCache.txt"
    if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
        shutil.rmtree(BUILD)  # of a tree that was moved, which CMake refuses
    run(tool("cmake"), "-S", ROOT, "-B", BUILD, *generator, *(f"-D{name}={value}" for name, value in options.items()))
    run(tool("cmake"), "--build", BUILD, "--parallel")
    return BUILD


@pytest.mark.skipif(bool(lacking()), reason=lacking())
def test_cpp(build):
    """Every instruction set that this machine has; CTest counts the others as skipped."""
    run(
        tool("ctest"), "--test-dir", build, "--output-on-failure", "--no-tests=error", "--parallel", str(os.cpu_count())
    )
