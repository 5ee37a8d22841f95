"""The model of a multiprocessor on loops whose timing can be derived by hand, and the reading of machine code."""

import shutil

import pytest

from devtools.offline import sass
from devtools.offline.sass import Instruction, Loop
from devtools.offline.sass_model import BARRIER_LATENCY, MEMORY, Way, of_loop, port_cycles, way_through
from devtools.ptx.compilers import nvcc_ptx

WARPS = 8


def loop_of(*instructions: tuple) -> Loop:
    """A loop of (opcode, stall, scoreboard to set, scoreboards to wait for), closed by a branch."""
    body = []
    for opcode, stall, write, waits in (*instructions, ("BRA", 1, None, ())):
        target = "0x0" if opcode == "BRA" else ""
        body.append(Instruction(16 * len(body), "", opcode, target, stall, write, None, frozenset(waits)))
    return Loop(body)


def cycles(loop: Loop, warps: int = WARPS) -> float:
    return of_loop(loop, [Way()] * warps).cycles


def test_a_chain_of_dependent_sums_takes_its_stall_counts():
    assert cycles(loop_of(*[("FFMA", 4, None, ())] * 50), warps=1) == 4 * 50 + 1


def test_two_warps_share_a_scheduler():
    """Each of four schedulers issues one instruction a cycle: 2 warps of 100 and a branch."""
    assert cycles(loop_of(*[("FFMA", 1, None, ())] * 100)) == pytest.approx(2 * 101, rel=0.02)


def test_integers_go_at_half_the_rate():
    assert cycles(loop_of(*[("LOP3.LUT", 1, None, ())] * 100)) == pytest.approx(2 * 2 * 100, rel=0.02)


def test_shared_memory_gives_128_bytes_a_cycle_to_all():
    """512 bytes an instruction, eight warps."""
    assert cycles(loop_of(*[("LDS.128", 1, 0, ())] * 20, ("FADD", 1, None, (0,)))) == pytest.approx(4 * 8 * 20, rel=0.1)


def test_a_load_that_is_waited_for_at_once_costs_its_latency():
    loop = loop_of(("LDG.E.128.CONSTANT", 1, 5, ()), ("FADD", 4, None, (5,)))
    found = of_loop(loop, [Way()])
    assert found.cycles == pytest.approx(MEMORY, rel=0.02)
    assert next(iter(found.waited)) == "global memory"


def test_a_load_that_is_sent_off_early_costs_nothing():
    work = [("FFMA", 4, None, ())] * 300
    loop = loop_of(("LDG.E.128.CONSTANT", 1, 5, ()), *work, ("MOV", 1, None, (5,)))
    assert cycles(loop, warps=1) == pytest.approx(4 * 300, rel=0.01)


def test_what_shares_a_scoreboard_waits_for_both():
    """As the backward pass did: its maps' loads and the next tile's."""
    work, maps, tile = [("FFMA", 4, None, ())] * 300, ("LDG.E", 1, 5, ()), ("LDG.E.128.CONSTANT", 1, 5, ())
    mixed = loop_of(maps, *work, tile, ("FMUL", 4, None, (5,)), *work)
    ahead = loop_of(maps, tile, *work, *work, ("MOV", 1, None, (5,)))
    assert cycles(mixed, 1) - cycles(ahead, 1) == pytest.approx(MEMORY, rel=0.02)
    assert len(sass.waits_for_bulk_loads(mixed)) == 1 and not sass.waits_for_bulk_loads(ahead)


def skipping(barrier: bool) -> Loop:
    """A branch past 100 dependent sums, then perhaps a barrier."""
    work = [("FFMA", 4, None, ())] * 100
    loop = loop_of(("BRA", 1, None, ()), *work, *[("BAR.SYNC", 1, None, ())] * barrier, ("FADD", 4, None, ()))
    first = loop.body[0]
    loop.body[0] = Instruction(0, "@P0", "BRA", hex(16 * 101), first.stall, None, None, frozenset())
    return loop


def test_ways_through_branches():
    assert len(way_through(skipping(False), Way(longest=True))) == 103
    assert len(way_through(skipping(False), Way(longest=False))) == 3


def test_a_barrier_waits_for_the_slowest():
    found = of_loop(skipping(True), [Way(longest=True)] + [Way(longest=False)] * 7)
    assert found.cycles == pytest.approx(4 * 100 + BARRIER_LATENCY, rel=0.03)
    assert next(iter(found.waited)) == "barrier"


SOURCE = """extern "C" __global__ void chain(float* x, float a, int turns) {
  float y = x[threadIdx.x];
  for (int i = 0; i < turns; ++i) {
#pragma unroll
    for (int j = 0; j < 96; ++j) y = __fmaf_rn(y, a, 1.f);
    __syncthreads();
  }
  x[threadIdx.x] = y;
}"""


@pytest.mark.skipif(not shutil.which("nvcc") or not sass.tool("cuobjdump"), reason="needs nvcc and cuobjdump")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_compiled_code(architecture):
    """96 dependent sums of four cycles each, and a barrier: two warps a scheduler fit between one another's."""
    kernel = sass.disassembled(nvcc_ptx(SOURCE), architecture)["chain"]
    loop = max(sass.loops(kernel), key=lambda loop: sum(i.name == "FFMA" for i in loop.body))
    turns = sum(i.name == "FFMA" for i in loop.body) / 96  # the compiler may unroll
    assert of_loop(loop, [Way()] * WARPS).cycles / turns == pytest.approx(4 * 96 + BARRIER_LATENCY, rel=0.15)
    assert any(i.waits for i in kernel) and any(i.write is not None for i in kernel)


def test_widths():
    assert [port_cycles(op) for op in ("LDS", "LDS.64", "STS.128", "SHFL.BFLY", "FFMA")] == [1, 2, 4, 1, 0]
