"""Numbers from the interpreter's counters, shared by the gates and by bench/gpu_report.py."""

import re

import torch

from fgd_kernels import boxes as packing

# `mov.b32 %f1, %r1` gives a register another type, `mov.b32 {%rs1, %rs2}, %r1` two halves names of their own: PTX needs
# them, machine code has no such thing.
_RENAMING = re.compile(r"mov\.b32 (%f\d+, %r\d+|%r\d+, %f\d+|\{%rs\d+, ?%rs\d+\}, %r\d+|\{%h\d+, ?%h\d+\}, %r\d+)")


def instructions(counts) -> int:
    """Thread instructions of PTX that machine code has, too."""
    renaming = sum(n for (_, text), n in counts.thread_instructions_by_line.items() if _RENAMING.match(text))
    return counts.thread_instructions - renaming


def sectors_over_floor(counts, feature_bytes: int) -> float:
    """All global sectors of a kernel over those of the features alone, each read or written once."""
    return counts.global_sectors * 32 / feature_bytes


def operator_inputs(
    dtype: torch.dtype,
    layout: torch.memory_format,
    height: int = 32,
    width: int = 128,
    channels: int = 256,
    teacher: torch.dtype | None = None,
    hidden: int | None = None,
) -> tuple:
    """One image with two boxes and GcBlocks: arguments of device.Loss.

    teacher: its type, where it is another. hidden: channels of the GcBlocks between their two matrices, half of all if
    not said.
    """
    torch.manual_seed(0)
    shape, hidden = (1, channels, height, width), hidden or channels // 2
    dtypes = dtype, teacher or dtype
    features = [torch.randn(shape).to(dtype).contiguous(memory_format=layout) for dtype in dtypes]
    boxes = packing.pack_boxes([torch.tensor([[5.0, 5.0, 60.0, 70.0], [30.0, 9.0, 80.0, 90.0]])], [(100, 100)], "cpu")
    key, vector = ((channels,), (1,)), (hidden,)
    transform = ((hidden, channels), vector, vector, vector, (channels, hidden), (channels,))
    gc_block = [torch.randn(size) for size in key * 2 + transform * 2]
    return features[:1], features[1:], boxes, gc_block
