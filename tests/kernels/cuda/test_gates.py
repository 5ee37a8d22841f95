"""Gates on the compiled code: spills, instructions an element pair, sectors over the floor. See docs/cuda.md."""

import re

import pytest
import torch

from devtools.offline import sass, sass_model
from devtools.offline.cuda_build import UNITS, assembled, ptx_of
from devtools.offline.cuda_device import Loss
from devtools.offline.measures import instructions, operator_inputs, sectors_over_floor
from fgd_kernels import boxes as packing

# Thread instructions of PTX an element pair, moves between registers of one size not counted: forward, backward.
BUDGET = {torch.bfloat16: (34, 51), torch.float16: (38, 51), torch.float32: (68, 102)}
BUDGET_OF_A_BYTE = 34 / 4  # and 51 / 6, 68 / 8, 102 / 12
SECTORS = 1.05
CYCLES = 2531  # in which an H100's memory brings a multiprocessor 32 KiB
NEEDS_CUOBJDUMP = pytest.mark.skipif(
    sass.tool("cuobjdump") is None, reason="needs cuobjdump, of the CUDA toolkit or of Triton"
)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("unit", UNITS)
def test_no_spills(unit, architecture):
    said = assembled(unit, architecture)
    assert len(re.findall(r"Used (\d+) registers", said)) >= 2
    for stack, stores, loads in re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", said):
        assert stack == stores == loads == "0", said


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", list(BUDGET), ids=str)
def test_instructions_and_sectors(dtype, layout):
    loss = Loss(*operator_inputs(dtype, layout), multiprocessors=4, check_races=False)
    loss.forward()
    loss.backward((1.0, 1.0, 1.0, 1.0))
    pairs, size = loss.student[0].numel(), dtype.itemsize
    for direction, units, budget in zip(("forward", "backward"), (2, 3), BUDGET[dtype], strict=True):
        counts = next(c for name, c in loss.device.counts.items() if name.startswith(f"fgd_{direction}_n"))
        assert instructions(counts) / pairs <= budget
        assert sectors_over_floor(counts, pairs * size * units) <= SECTORS
        assert counts.local_requests == 0 and counts.global_atomics == 0


@pytest.mark.parametrize(
    "dtype, layout, channels, width",
    [
        (torch.bfloat16, torch.contiguous_format, 320, 64),
        (torch.bfloat16, torch.contiguous_format, 640, 64),
        (torch.bfloat16, torch.contiguous_format, 1280, 32),
        (torch.float32, torch.contiguous_format, 320, 32),
        (torch.bfloat16, torch.channels_last, 320, 64),
        (torch.bfloat16, torch.channels_last, 1280, 32),
    ],
    ids=str,
)
def test_instructions_and_sectors_of_wide_features(dtype, layout, channels, width):
    """More than 256 channels keep to the budget of 256.

    These are each kernel's worst of 320, 384, 512, 640, 768, 1024, 1280 and 2048 channels, which leave most threads
    without work; the others are counted by bench/gpu_report.py.
    """
    inputs = operator_inputs(dtype, layout, 8, width, channels=channels, hidden=8)
    loss = Loss(*inputs, multiprocessors=1, check_races=False)
    loss.forward()
    loss.backward((1.0, 1.0, 1.0, 1.0))
    pairs, size = loss.student[0].numel(), dtype.itemsize
    for direction, units, budget in zip(("forward", "backward"), (2, 3), BUDGET[dtype], strict=True):
        counts = next(c for name, c in loss.device.counts.items() if "_wide" in name and direction in name)
        assert instructions(counts) / pairs <= budget
        assert sectors_over_floor(counts, pairs * size * units) <= SECTORS
        assert counts.local_requests == 0 and counts.global_atomics == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("student_narrow", [True, False], ids=["narrow student", "narrow teacher"])
def test_instructions_and_sectors_of_mixed_types(student_narrow, narrow, layout):
    """32 bits beside 16: the floor of both maps in sectors, and as many instructions a byte as equal types may have."""
    student, teacher = (narrow, torch.float32) if student_narrow else (torch.float32, narrow)
    loss = Loss(*operator_inputs(student, layout, 16, 128, teacher=teacher), multiprocessors=2, check_races=False)
    loss.forward()
    loss.backward((1.0, 1.0, 1.0, 1.0))
    pairs = loss.student[0].numel()
    floors = student.itemsize + teacher.itemsize, 2 * student.itemsize + teacher.itemsize
    for direction, floor in zip(("forward", "backward"), floors, strict=True):
        counts = next(c for name, c in loss.device.counts.items() if name.startswith(f"fgd_{direction}_n"))
        assert instructions(counts) / pairs <= BUDGET_OF_A_BYTE * floor
        assert sectors_over_floor(counts, pairs * floor) <= SECTORS
        assert counts.local_requests == 0 and counts.global_atomics == 0


def test_instructions_with_many_boxes():
    """2,000 boxes of an image, of every size and place, leave the forward kernel within its budget."""
    student, teacher, _, gc_block = operator_inputs(torch.bfloat16, torch.contiguous_format)
    corners = 100 * torch.rand(2000, 2, 2, generator=torch.Generator().manual_seed(0)).sort(1).values
    boxes = packing.pack_boxes([corners.reshape(-1, 4)], [(100, 100)], "cpu")
    loss = Loss(student, teacher, boxes, gc_block, multiprocessors=4, check_races=False)
    loss.forward()
    counts = loss.device.counts["fgd_forward_nchw_bf16"]
    assert instructions(counts) / student[0].numel() <= BUDGET[torch.bfloat16][0]


@NEEDS_CUOBJDUMP
@pytest.mark.parametrize("unit", ["forward_nchw", "forward_nhwc"])
def test_cycles_of_a_forward_tile(unit):
    """Modelled: no more than memory takes. Boxes play no part in the loop over tiles."""
    for name, kernel in sass.disassembled(ptx_of(unit), "sm_90").items():
        assert sass_model.modelled(kernel, sass_model.ways_of(name)).cycles <= CYCLES, name


@NEEDS_CUOBJDUMP
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("unit", ["backward_nchw", "backward_nhwc"])
def test_no_tile_waits_for_the_next_one(unit, architecture):
    """Read from the machine code: between a tile's loads and the jump back, nothing waits for their scoreboard."""
    kernels = sass.disassembled(ptx_of(unit), architecture)
    assert len(kernels) == 3
    for name, kernel in kernels.items():
        waits = sass.waits_for_bulk_loads(sass.tile_loop(kernel))
        assert not waits, f"{name} on {architecture}:\n" + "\n".join(map(str, waits))
