"""A thin bridge from pip to CMakeLists.txt, which describes the native build. All metadata is in pyproject.toml.

Without a C++ compiler, CMake or torch the install is pure Python, and fgd_kernels.backends() tells what was missing.
A build that starts and fails is an error. Environment:

    FGD_REQUIRE_NATIVE=1   what is missing is an error, too
    CXX, CMAKE_ARGS        as CMake understands them
    FGD_FORCE_CUDA, FGD_NO_CUDA, TORCH_CUDA_ARCH_LIST   see CMakeLists.txt
"""

import importlib.util
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).parent.resolve()


def torch_folder() -> str | None:
    spec = importlib.util.find_spec("torch")
    return str(pathlib.Path(spec.origin).parent) if spec and spec.origin else None


def tool(name: str) -> str | None:
    """A program beside this Python (pip installs cmake and ninja there), or on PATH."""
    return shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)


def missing() -> str | None:
    """What the native build lacks, or None."""
    compilers = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if sys.platform == "win32":
        return "the kernels are written for GCC and Clang, which Windows builds do not use"
    if not any(shutil.which(compiler) for compiler in compilers):
        return f"no C++ compiler was found (looked for {', '.join(compilers)})"
    if not tool("cmake"):
        return "CMake was not found (pip install cmake)"
    if not torch_folder():
        return "torch was not found (needed for its headers)"
    return None


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
            if os.environ.get("FGD_REQUIRE_NATIVE") == "1":
                raise RuntimeError(f"FGD_REQUIRE_NATIVE=1, but {lacking}")
            print(f"fgd_kernels: pure-Python install, {lacking}", file=sys.stderr)
            target.unlink(missing_ok=True)
            note.write_text(lacking)
            return
        self.run_cmake(target)

    def run_cmake(self, target):
        build = ROOT / "build" / "native"
        ninja = tool("ninja")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        arguments = [f"-DFGD_TORCH_DIR={torch_folder()}", *generator, *shlex.split(os.environ.get("CMAKE_ARGS", ""))]
        cache = build / "CMakeCache.txt"
        if cache.exists() and not all(line in cache.read_text() for line in self.cache_lines()):
            shutil.rmtree(build)
        subprocess.run([tool("cmake"), "-S", ROOT, "-B", build, *arguments], check=True)
        subprocess.run([tool("cmake"), "--build", build, "--target", "_C", "--parallel"], check=True)
        fresh = target.with_suffix(".new")  # then renamed: a process that has the old library loaded keeps it
        shutil.copyfile(build / "_C.so", fresh)
        os.replace(fresh, target)

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
        _, _, platform = super().get_tag()
        return ("py3", "none", "any" if missing() else platform)


setup(
    ext_modules=[Extension("fgd_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
)
