"""The Triton kernels compiled for any target, on a machine without a GPU: registers, spills, shared memory, loads.

The launchers run as they are, on CPU tensors, with Triton's launch replaced by one that keeps what it was called with;
the kernels are then compiled for the target from exactly those arguments. Nothing here measures time.
bench/gpu_report_triton.py prints what `report` finds.
"""

import contextlib
import dataclasses
import inspect
import itertools
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
from triton._C.libtriton import native_specialize_impl
from triton.backends.amd.compiler import HIPBackend
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fgd_kernels import triton_kernels
from fgd_kernels.triton_kernels.host import pyramid, tile_sizes

TARGETS = {
    **{str(arch): GPUTarget("cuda", arch, 32) for arch in (75, 80, 90, 100, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
_SHORT_OF_REGISTERS = ("100", "gfx1100")  # what tile_sizes.gpu_of says of these
_TOOLS = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin"
_BACKENDS = {"cuda": CUDABackend, "hip": HIPBackend}
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Launch(NamedTuple):
    """One call of a kernel, as the launcher made it."""

    kernel: JITFunction
    arguments: dict
    options: dict
    programs: int


@contextlib.contextmanager
def instead_of_launching(run: Callable[[Launch], None]):
    """Within, whatever would launch a Triton kernel calls `run` instead."""

    def replaced(kernel, *args, grid, warmup, **kwargs):
        options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
        bound = inspect.signature(kernel.fn).bind(*args, **kwargs)
        run(Launch(kernel, dict(bound.arguments), options, grid[0]))

    original = JITFunction.run
    JITFunction.run = replaced
    try:
        yield
    finally:
        JITFunction.run = original


def source_of(launch: Launch, target: GPUTarget, aligned: bool = True) -> ASTSource:
    """What Triton would compile for these arguments on that target; not aligned: if nothing were known of them."""
    signature, constants, attributes = {}, {}, {}
    for index, (parameter, value) in enumerate(zip(launch.kernel.params, launch.arguments.values(), strict=True)):
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
        else:
            special = not parameter.do_not_specialize, not parameter.do_not_specialize_on_alignment
            kind, keys = native_specialize_impl(_BACKENDS[target.backend], value, False, *special)
            signature[parameter.name] = kind
            _collect(_BACKENDS[target.backend], (index,), kind, keys, constants, attributes)
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes if aligned else {})


def _collect(backend, path: tuple[int, ...], kind, key, constants: dict, attributes: dict) -> None:
    """What Triton's specialisation found out about an argument: constants, divisibility by 16, on AMD at most 2 GB."""
    if isinstance(kind, tuple):
        for index, (one, its_key) in enumerate(zip(kind, key, strict=True)):
            _collect(backend, (*path, index), one, its_key, constants, attributes)
    elif kind == "constexpr":
        constants[path] = key
    elif key:
        attributes[path] = backend.parse_attr(key)


def compile_for(launch: Launch, target: GPUTarget, aligned: bool = True):
    """The compiled kernel: `.asm`, `.metadata`."""
    return triton.compile(source_of(launch, target, aligned), target=target, options=launch.options)


def resources(compiled, target: GPUTarget, disassemble: bool = True) -> dict:
    """Registers, spills (bytes of stack, or of vector registers spilled), shared memory, global loads by width.

    `disassemble`: also what takes reading NVIDIA's machine code, half a second: loads and the instructions that spill.
    """
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]
        found = {name: int(re.search(rf"\.{name}:\s+(\d+)", text)[1]) for name in ("vgpr_count", "vgpr_spill_count")}
        loads = re.findall(r"\b(?:global|buffer)_load_(\w+)", text)
        return _row(found["vgpr_count"], found["vgpr_spill_count"], compiled, loads, text.count("scratch_"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name) if disassemble else ""
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return _row(registers, stack, compiled, re.findall(r"\bLDG\.E([.\w]*)", code), spills)


def _row(registers: int, stack: int, compiled, loads: list[str], spills: int) -> dict:
    widths = {width or "32": loads.count(width) for width in sorted(set(loads))}
    return {
        "registers": registers,
        "spilled": stack,
        "spill_instructions": spills,
        "shared": compiled.metadata.shared,
        "loads": widths,
    }


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def launches(
    student_dtype: torch.dtype,
    teacher_dtype: torch.dtype | None = None,
    channels_last: bool = False,
    channels: int = 256,
    sizes=((32, 32), (16, 16), (8, 8), (5, 5), (3, 3)),
    gc: bool = True,
    target: str = "90",
    sliced: bool = False,
    wide: bool = False,
) -> list[Launch]:
    """Every launch of a forward and a backward pass over a pyramid of that kind, two images, on that target.

    `sliced`: the teacher's features are the first channels of larger tensors, so its rows are not the student's.
    `wide`: as if an image spanned 2^31 elements.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def maps(dtype, more=0):
        made = (torch.zeros(2, channels + more, h, w, dtype=dtype) for h, w in sizes)
        return [x.contiguous(memory_format=layout)[:, :channels] for x in made]

    student, teacher = maps(student_dtype), maps(teacher_dtype or student_dtype, 8 if sliced else 0)
    boxes, offsets = torch.zeros(1, 4), torch.tensor([0, 1, 1], dtype=torch.int32)
    shared = (student, teacher, boxes, offsets, torch.ones(2, 2), _gc_block(channels, len(sizes)) if gc else [])
    settings = ([1.0] * 4 * len(sizes), 0.5, 0.5)
    made: list[Launch] = []
    with instead_of_launching(made.append), _device(target), _offsets(wide):
        *_, saved_maps, stats = triton_kernels.forward(*shared, *settings)
        triton_kernels.backward(torch.ones(4), *shared, *settings, saved_maps, stats, True, gc)
    return made


@contextlib.contextmanager
def _device(target: str):
    """Within, CPU tensors are taken to be on that GPU."""
    original = tile_sizes.gpu_of
    tile_sizes.gpu_of = lambda device: tile_sizes.Gpu(TARGETS[target].warp_size, target in _SHORT_OF_REGISTERS)
    try:
        yield
    finally:
        tile_sizes.gpu_of = original


@contextlib.contextmanager
def _offsets(wide: bool):
    """Within, offsets are taken to be too large for 32 bits, where `wide`."""
    original = pyramid.Layouts.of
    if wide:
        pyramid.Layouts.of = lambda *args: dataclasses.replace(original(*args), wide=True)
    try:
        yield
    finally:
        pyramid.Layouts.of = original


def _gc_block(channels: int, levels: int) -> list[torch.Tensor]:
    hidden = max(channels // 2, 1)
    keys = [torch.zeros(1, channels, 1, 1), torch.zeros(1)] * 2
    net = [torch.zeros(*shape) for shape in ((hidden, channels), (hidden,), (hidden,), (hidden,), (channels, hidden))]
    return (keys + [*net, torch.zeros(channels)] * 2) * levels


def passes(made: list[Launch], target: str, aligned: bool = True) -> list[dict]:
    """What the compiler makes of the two passes over the features."""
    found = [launch for launch in made if launch.kernel.fn.__name__.endswith("_pass")]
    return [_compiled(launch, target, aligned) for launch in found]


def _compiled(launch: Launch, target: str, aligned: bool = True) -> dict:
    found = resources(compile_for(launch, TARGETS[target], aligned), TARGETS[target])
    return {"kernel": launch.kernel.fn.__name__, "target": target, "warps": launch.options["num_warps"]} | found


def report(
    targets: list[str], features: list[str], layouts: list[str], channels: int, every_kernel: bool
) -> list[dict]:
    """One row a kernel, target, type of features and layout; the passes over the features, or every kernel."""
    rows = []
    for feature, layout, target in itertools.product(features, layouts, targets):
        kind = {"features": feature, "layout": layout, "channels": channels}
        last = layout == "channels_last"
        made = launches(getattr(torch, feature), channels_last=last, channels=channels, target=target)
        found = [_compiled(launch, target) for launch in made] if every_kernel else passes(made, target)
        rows.extend({name: row.pop(name) for name in ("kernel", "target")} | kind | row for row in found)
    return rows
