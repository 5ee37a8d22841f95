"""The C++ tests (tests/kernels/cpp): under AddressSanitizer and UndefinedBehaviorSanitizer, and for aarch64.

The builds lie in build/sanitize and build/aarch64 and are kept: only what changed is compiled again. Where there is a
cross-compiler, the ones for aarch64 run optimised in an emulator, for about half a minute.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CROSS = ("aarch64-linux-gnu-g++", "qemu-aarch64")


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


def lacking_for_aarch64() -> str:
    absent = [name for name in CROSS if not shutil.which(name)] + [
        name for name in ("cmake", "ctest") if not tool(name)
    ]
    return f"needs {' and '.join(absent)}" if absent else ""


def built(name: str, **options: str) -> pathlib.Path:
    build = ROOT / "build" / name
    ninja = tool("ninja")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    options |= {"FGD_BUILD_OPERATOR": "OFF", "FGD_BUILD_TESTS": "ON"}
    cache = build / "CMakeCache.txt"
    if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
        shutil.rmtree(build)  # of a tree that was moved, which CMake refuses
    run(tool("cmake"), "-S", ROOT, "-B", build, *generator, *(f"-D{name}={value}" for name, value in options.items()))
    run(tool("cmake"), "--build", build, "--parallel")
    return build


def ctest(build: pathlib.Path) -> None:
    parallel = str(os.cpu_count())
    run(tool("ctest"), "--test-dir", build, "--output-on-failure", "--no-tests=error", "--parallel", parallel)


@pytest.mark.skipif(bool(lacking()), reason=lacking())
def test_cpp():
    """Every instruction set that this machine has; CTest counts the others as skipped."""
    # Not optimised: with sanitizers that takes the compiler four times as long, and the tests stay quick without.
    ctest(built("sanitize", CMAKE_BUILD_TYPE="Debug", FGD_SANITIZE="ON"))


@pytest.mark.skipif(bool(lacking_for_aarch64()), reason=lacking_for_aarch64())
def test_cpp_for_aarch64():
    """Cross-compiled and emulated: another order of operations, or vectors that do not fit, would show here."""
    ctest(built("aarch64", CMAKE_TOOLCHAIN_FILE=f"{ROOT / 'devtools' / 'aarch64.cmake'}"))
