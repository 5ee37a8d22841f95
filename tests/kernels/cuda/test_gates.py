"""Gates on the compiled code: spills, instructions an element pair, sectors over the floor. See docs/cuda.md."""

import re

import pytest
import torch

from devtools.offline import sass
from devtools.offline.cuda_build import UNITS, assembled, ptx_of
from devtools.offline.cuda_device import Loss
from devtools.offline.measures import instructions, operator_inputs, sectors_over_floor

# Thread instructions of PTX an element pair, moves between registers of one size not counted: forward, backward.
BUDGET = {torch.bfloat16: (34, 51), torch.float16: (38, 51), torch.float32: (68, 102)}
SECTORS = 1.05


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "sm_120"])
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


@pytest.mark.skipif(sass.tool("cuobjdump") is None, reason="needs cuobjdump, of the CUDA toolkit or of Triton")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("unit", ["backward_nchw", "backward_nhwc"])
def test_no_tile_waits_for_the_next_one(unit, architecture):
    """Read from the machine code: between a tile's loads and the jump back, nothing waits for their scoreboard."""
    kernels = sass.disassembled(ptx_of(unit), architecture)
    assert len(kernels) == 3
    for name, kernel in kernels.items():
        waits = sass.waits_for_bulk_loads(sass.tile_loop(kernel))
        assert not waits, f"{name} on {architecture}:\n" + "\n".join(map(str, waits))
