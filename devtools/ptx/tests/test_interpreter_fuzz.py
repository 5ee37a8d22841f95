"""Random programs: what the interpreter makes of nvcc's PTX is what a CPU makes of the same source, bit for bit."""

import ctypes
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

from devtools.ptx import GPU, parse
from devtools.ptx.compilers import nvcc_ptx
from devtools.ptx.tests.fuzz import VARIABLES, program

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH: no PTX from CUDA C++")

N = 97
TYPES = {"i": "int", "u": "uint", "f": "float"}


def inputs(seed: int) -> list[np.ndarray]:
    """An array a variable: random bits, and the numbers at which arithmetic turns."""
    random, out = np.random.default_rng(seed), []
    for kind in VARIABLES:
        dtype = np.dtype(TYPES[kind[0]] + kind[1:])
        array = np.frombuffer(random.bytes(N * dtype.itemsize), dtype).copy()
        if dtype.kind == "f":
            array[::2] = random.standard_normal(N)[::2] * 1000
            special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, 2.0**31, -(2.0**31), 2.0**63, 0.5, 1.5, -2.5]
        else:
            array[::2] = random.integers(0, 8, N)[::2]
            limits = np.iinfo(dtype)
            special = [0, 1, limits.max, limits.min, limits.max // 2]
        with np.errstate(all="ignore"):
            array[1 : 2 * len(special) : 2] = np.array(special, dtype)
        out.append(array)
    return out


def on_the_cpu(library: ctypes.CDLL, seed: int, arrays: list[np.ndarray]) -> np.ndarray:
    out = np.zeros((N, len(arrays)), np.uint64)
    pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
    getattr(library, f"fuzz_{seed}")(pointers, out.ctypes.data_as(ctypes.c_void_p), N)
    return out


def in_the_interpreter(module, seed: int, arrays: list[np.ndarray]) -> np.ndarray:
    gpu = GPU()
    out = gpu.empty(8 * N * len(arrays))
    pointers = np.array([gpu.put(a, read_only=True) for a in arrays], np.uint64)
    gpu.launch(module[f"fuzz_{seed}"], 2, 64, [pointers.tobytes(), out, N])
    return gpu.get(out, (N, len(arrays)), np.uint64)


def compile_for_the_cpu(source: str, folder: pathlib.Path) -> ctypes.CDLL:
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not on PATH: nothing to compare with")
    code, library = folder / "fuzz.cpp", folder / "fuzz.so"
    code.write_text(source)
    flags = ["-shared", "-fPIC", "-O1", "-std=c++17", "-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing", "-w"]
    subprocess.run([compiler, *flags, "-o", library, code], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("first", [0, 8])
def test_random_programs(first, tmp_path):
    seeds = range(first, first + 8)
    source = program(seeds)
    module = parse(nvcc_ptx(source, "sm_90", ("-fmad=false", "-w")))
    library = compile_for_the_cpu(source, tmp_path)
    for seed in seeds:
        arrays = inputs(seed)
        np.testing.assert_array_equal(
            in_the_interpreter(module, seed, arrays), on_the_cpu(library, seed, arrays), err_msg=f"seed {seed}"
        )
