"""Which GPUs the default build serves: csrc/cuda/build.cmake's list, for the CUDA versions that it tells apart."""

import pathlib
import re
import shutil
import subprocess

import pytest

from devtools.offline.cuda_build import CUDA

# What each version of CUDA's compiler knows, by `nvcc --list-gpu-arch`, and Thor, which CUDA 12 calls 101.
KNOWN = {
    "12.0": (75, 80, 86, 87, 89, 90),
    "12.8": (75, 80, 86, 87, 89, 90, 100, 101, 120),
    "13.0": (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121),
}
SERVED = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)

SCRIPT = """
set(CMAKE_CUDA_COMPILER_VERSION {version})
{chosen}
message(STATUS "chosen ${{fgd_architectures}}")
"""


def chosen(version: str, folder: pathlib.Path) -> list[str]:
    """The default list, as CMake works it out."""
    text = (CUDA / "build.cmake").read_text()
    (block,) = re.findall(r"\nelse\(\)\n(  # Code serves.*?)\nendif\(\)\n", text, re.DOTALL)
    script = folder / "chosen.cmake"
    script.write_text(SCRIPT.format(version=version, chosen=block))
    done = subprocess.run(["cmake", "-P", script], capture_output=True, text=True, check=True)
    return re.search(r"chosen (.*)", done.stdout + done.stderr)[1].split(";")


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs CMake")
@pytest.mark.parametrize("version", list(KNOWN))
def test_every_gpu_finds_code_or_ptx(version, tmp_path):
    entries = [(int(entry.split("-")[0]), entry.split("-")[1]) for entry in chosen(version, tmp_path)]
    assert {number for number, _ in entries} <= set(KNOWN[version])
    for gpu in SERVED:
        code = any(kind == "real" and n // 10 == gpu // 10 and n <= gpu for n, kind in entries)
        assert code or any(kind == "virtual" and n <= gpu for n, kind in entries), f"nothing runs on sm_{gpu}"
