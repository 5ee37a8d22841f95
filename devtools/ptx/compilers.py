"""PTX from CUDA C++ and from Triton, on a machine without a GPU."""

import functools
import pathlib
import shutil
import subprocess
import tempfile


class CompilerError(RuntimeError):
    """nvcc is missing, or refused the source: its own words."""


@functools.cache
def nvcc_ptx(source: str, arch: str = "sm_80", options: tuple[str, ...] = ()) -> str:
    """The PTX of a CUDA C++ translation unit; ``options`` go to nvcc as they are.

    Raises CompilerError.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise CompilerError("nvcc is not on PATH: no PTX from CUDA C++ (it needs no GPU, only the CUDA toolkit)")
    with tempfile.TemporaryDirectory() as folder:
        code, out = pathlib.Path(folder, "kernel.cu"), pathlib.Path(folder, "kernel.ptx")
        code.write_text(source)
        command = [nvcc, "-ptx", f"-arch={arch}", "-std=c++17", *options, "-o", out, code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompilerError(done.stderr)
        return out.read_text()


def triton_ptx(function, signature: dict, constants: dict, arch: int = 80, aligned=(), **options) -> tuple[str, int]:
    """``(PTX, bytes of dynamic shared memory)`` of a Triton kernel for sm_``arch``.

    ``signature`` maps the parameters' names to types such as "*bf16" and "i32", constants to "constexpr", whose values
    ``constants`` has; ``aligned`` names pointers and sizes divisible by 16; ``options`` are num_warps, num_stages and
    the like. Needs the package triton.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(signature)
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attrs)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return compiled.asm["ptx"], compiled.metadata.shared
