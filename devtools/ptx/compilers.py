"""PTX from CUDA C++ and from Triton, without a GPU; skips the calling test where a compiler is missing."""

import functools
import pathlib
import shutil
import subprocess
import tempfile

import pytest


@functools.cache
def nvcc_ptx(source: str, arch: str = "sm_80", options: tuple = ()) -> str:
    """The PTX of a CUDA C++ translation unit; ``options`` go to nvcc as they are."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH: no PTX from CUDA C++ to run")
    with tempfile.TemporaryDirectory() as folder:
        code, out = pathlib.Path(folder, "kernel.cu"), pathlib.Path(folder, "kernel.ptx")
        code.write_text(source)
        done = subprocess.run(
            [nvcc, "-ptx", f"-arch={arch}", "-std=c++17", *options, "-o", out, code],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return out.read_text()


def triton_ptx(function, signature: dict, constants: dict, arch: int = 80, aligned=(), **options) -> tuple[str, int]:
    """``(PTX, bytes of dynamic shared memory)`` of a Triton kernel for sm_``arch``.

    ``signature`` maps names to types such as "*bf16" and "i32", constants to "constexpr"; ``aligned`` names pointers
    and sizes divisible by 16; ``options`` are num_warps, num_stages and the like.
    """
    triton = pytest.importorskip("triton", reason="Triton is not installed: none of its PTX to run")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(signature)
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attrs)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return compiled.asm["ptx"], compiled.metadata.shared
