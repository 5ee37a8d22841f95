"""A thin bridge from pip to CMakeLists.txt, which describes the native build. All metadata is in pyproject.toml.

What a machine lacks, or has in a version that does not fit, makes the install smaller, and fgd_kernels.backends() says
what and why: without a fit C++ compiler, CMake or torch it is pure Python; without a fit nvcc it has no CUDA kernels.
Sources that do not compile are an error. Environment:

    FGD_REQUIRE_NATIVE=1   what is missing or does not fit is an error (a machine without any nvcc needs none)
    CXX, CMAKE_ARGS        as CMake understands them
    FGD_FORCE_CUDA, FGD_NO_CUDA, TORCH_CUDA_ARCH_LIST   see csrc/cuda/build.cmake
"""

import functools
import importlib.util
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).parent.resolve()
STRICT = os.environ.get("FGD_REQUIRE_NATIVE") == "1"
PROBE = """
#if defined(__clang__) ? __clang_major__ < 14 : __GNUC__ < 10
#error "too old: the kernels need GCC 10 or Clang 14, or later"
#endif
#include <torch/csrc/stable/library.h>
int main() { return 0; }
"""
PROBE_FLAGS = ["-std=gnu++17", "-shared", "-fPIC", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
if platform.machine() in ("x86_64", "AMD64"):
    PROBE_FLAGS += ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
if sys.platform == "darwin":
    PROBE_FLAGS += ["-undefined", "dynamic_lookup"]


def torch_folder() -> str | None:
    spec = importlib.util.find_spec("torch")
    return str(pathlib.Path(spec.origin).parent) if spec and spec.origin else None


def tool(name: str) -> str | None:
    """A program beside this Python (pip installs cmake and ninja there), or on PATH."""
    return shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)


def first_error(output: str) -> str:
    """The first line of a compiler's or CMake's output that names an error, fit for a C string."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("-- ")]
    told = [line for line in lines if re.search(r"\b(error|fatal)\b", line, re.I)] or lines[-1:] or ["it says nothing"]
    return re.sub(r"[^ -~]|[\"\\;$]", "'", told[0].replace(f"{ROOT}/", ""))[:300]


def unfit(compiler: list[str]) -> str | None:
    """Why a compiler cannot build a library against torch's headers, or None."""
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "probe.cpp")
        source.write_text(PROBE)
        headers = ["-isystem", f"{torch_folder()}/include"]
        command = [*compiler, *PROBE_FLAGS, *headers, str(source), "-o", f"{folder}/probe.so"]
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return first_error(done.stdout.replace(str(source), "probe.cpp")) if done.returncode else None


@functools.cache
def cxx() -> tuple[str | None, str]:
    """The C++ compiler to build with, and why the ones that were found before it, or all, do not serve."""
    asked = os.environ.get("CXX", "").strip()
    candidates = [asked] if asked else ["c++", "g++", "clang++"]
    found = [name for name in candidates if shutil.which(shlex.split(name)[0])]
    if not found:
        return None, f"no C++ compiler was found (looked for {', '.join(shlex.split(name)[0] for name in candidates)})"
    reasons = []
    for name in found:
        reason = unfit(shlex.split(name))
        if reason is None:
            return name, "; ".join(reasons)
        reasons.append(f"{name} does not fit: {reason}")
    return None, "; ".join(reasons)


@functools.cache
def missing() -> str | None:
    """What the native build lacks, or None."""
    if sys.platform == "win32":
        return "the kernels are written for GCC and Clang, which Windows builds do not use"
    if not tool("cmake"):
        return "CMake was not found (pip install cmake)"
    if not torch_folder():
        return "torch was not found (needed for its headers)"
    compiler, reasons = cxx()
    return None if compiler else reasons


def run(*command: str) -> tuple[bool, str]:
    """Whether a command succeeds, and its output, which is shown as it comes."""
    lines = []
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode == 0, "".join(lines)


def cuda_may_be_left_out() -> bool:
    """Whether the CUDA kernels are built only because there is an nvcc."""
    asked = os.environ.get("FGD_FORCE_CUDA") == "1" or "FGD_CUDA=" in os.environ.get("CMAKE_ARGS", "")
    return not asked and not STRICT and os.environ.get("FGD_NO_CUDA") != "1"


class CMakeBuild(build_ext):
    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")) + ".so"  # no Python in it: no Python tag on it

    def build_extension(self, ext):
        target = pathlib.Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        note = target.with_suffix(".missing.txt")
        note.unlink(missing_ok=True)
        lacking = missing()
        if lacking:
            if STRICT:
                raise RuntimeError(f"FGD_REQUIRE_NATIVE=1, but {lacking}")
            print(f"fgd_kernels: pure-Python install, {lacking}", file=sys.stderr)
            target.unlink(missing_ok=True)
            note.write_text(lacking)
            return
        build = ROOT / "build" / "native"
        self.compile(build)
        fresh = target.with_suffix(".new")  # then renamed: a process that has the old library loaded keeps it
        shutil.copyfile(build / "_C.so", fresh)
        os.replace(fresh, target)

    def compile(self, build):
        """The library, with the CUDA kernels where that is possible."""
        cache = build / "CMakeCache.txt"
        if cache.exists() and not all(line in cache.read_text() for line in self.cache_lines()):
            shutil.rmtree(build)
        done, output = self.run_cmake(build, "-DFGD_CUDA=AUTO")
        told = ("FGD: CPU kernels alone", "TORCH_CUDA_ARCH_LIST: expected")  # there is no CUDA; a mistaken wish
        if not done and not any(line in output for line in told) and cuda_may_be_left_out():
            reason = f"its build failed: {first_error(output)}"
            print("fgd_kernels: the build failed; trying without CUDA (FGD_FORCE_CUDA=1 would insist)", file=sys.stderr)
            done, output = self.run_cmake(build, "-DFGD_CUDA=OFF", f"-DFGD_CUDA_REASON={reason}")
        if not done:
            raise RuntimeError(f"the native build failed: {first_error(output)}")

    def run_cmake(self, build, *options) -> tuple[bool, str]:
        ninja = tool("ninja")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        compiler, unfit_ones = cxx()
        chosen = [f"-DCMAKE_CXX_COMPILER={shutil.which(compiler)}"] if unfit_ones else []
        arguments = [f"-DFGD_TORCH_DIR={torch_folder()}", *generator, *chosen, *options]
        arguments += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        done, output = run(tool("cmake"), "-S", str(ROOT), "-B", str(build), *arguments)
        if not done:
            return False, output
        done, compiled = run(tool("cmake"), "--build", str(build), "--target", "_C", "--parallel")
        return done, output + compiled

    def cache_lines(self):
        """What a build folder's cache must say, or it is of another checkout, torch or CMake."""
        cmake = os.path.realpath(tool("cmake"))
        known = subprocess.run([cmake, "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
        major, minor, *_ = known.split(".")
        return (
            f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n",
            f"FGD_TORCH_DIR:PATH={torch_folder()}\n",
            f"CMAKE_CACHE_MAJOR_VERSION:INTERNAL={major}\n",
            f"CMAKE_CACHE_MINOR_VERSION:INTERNAL={minor}\n",
        )

    def get_outputs(self):
        return [path for path in super().get_outputs() if os.path.exists(path)] if missing() else super().get_outputs()


class PlatformWheel(bdist_wheel):
    """The library is for one platform, but for every Python."""

    def get_tag(self):
        _, _, platform_tag = super().get_tag()
        return ("py3", "none", "any" if missing() else platform_tag)


setup(
    ext_modules=[Extension("fgd_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
)
