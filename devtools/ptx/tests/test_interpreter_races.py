"""Races between the warps of a block through shared memory, and between blocks through global memory."""

import numpy as np
import pytest

from devtools.ptx import GPU, RaceError, parse
from devtools.ptx.tests.handwritten import ADDRESS, TILE, kernel, run

U32 = np.uint32


@pytest.mark.parametrize(
    "body,what",
    [
        ("st.shared.u32 [%r3], %r0; xor.b32 %r4, %r3, 128; ld.shared.u32 %r5, [%r4];", "reads what warp [01] wrote"),
        (
            "st.shared.u32 [%r3], %r0; bar.sync 0; ld.shared.u32 %r5, [tile]; st.shared.u32 [%r3], 7;",
            "overwrites what several warps read",
        ),
        (
            "shr.u32 %r4, %r0, 5; setp.eq.u32 %p1, %r4, 0;@%p1 st.shared.u32 [tile], 1; @!%p1 st.shared.u32 [tile], 2;",
            "overwrites with another value",
        ),
        ("shr.u32 %r4, %r0, 5; st.shared.u32 [tile], %r4;", "write different values"),
        (
            "st.shared.u32 [%r3], 0; bar.sync 0; st.shared.u32 [%r3], 5; atom.shared.add.u32 %r4, [tile+4], 1;",
            "updates atomically what",
        ),
    ],
    ids=["read after write", "write after read", "write after write", "one instruction", "atomic after write"],
)
def test_races_between_warps(body, what):
    with pytest.raises(RaceError, match=what):
        run(ADDRESS + body, shared=TILE)
    GPU(check_races=False).launch(parse(kernel(ADDRESS + body, shared=TILE))["k"], 1, 64, [GPU().empty(256)])


@pytest.mark.parametrize(
    "body",
    [
        """st.shared.u32 [%r3], %r0; bar.sync 0; xor.b32 %r4, %r3, 128; ld.shared.u32 %r5, [%r4]; bar.sync 0;
        st.shared.u32 [%r3], 1;""",
        "st.shared.u32 [%r3], %r0; xor.b32 %r4, %r3, 64; ld.shared.u32 %r5, [%r4];",  # inside one warp
        "st.shared.u32 [tile], 5;",  # the same value by all
        "st.shared.u32 [%r3], 0; bar.sync 0; red.shared.add.u32 [tile], 1; red.shared.add.u32 [tile], 1;",
    ],
    ids=["with barriers", "inside a warp", "same value", "atomics"],
)
def test_no_race(body):
    run(ADDRESS + body, shared=TILE)


BLOCKS = """mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.u32 %r3, %r1, %r2, %r0;
    ld.param.u64 %rd0, [out]; mad.wide.u32 %rd1, %r3, 4, %rd0; st.global.u32 [%rd1], %r3;
    mad.wide.u32 %rd2, %r0, 4, %rd0;"""


@pytest.mark.parametrize(
    "body,what",
    [
        ("ld.global.u32 %r4, [%rd2];", "reads .* which block number 0 wrote"),
        ("st.global.u32 [%rd2], 5;", "overwrites .* which block number [01] wrote"),
        (
            "ld.global.u32 %r4, [%rd0+512]; st.global.u32 [%rd1+512], %r4;",
            "which (several blocks read|block number 0 wrote)",
        ),
        ("ld.volatile.global.u32 %r4, [%rd2]; red.global.add.u32 [%rd2], 1; ld.global.u32 %r5, [%rd1];", None),
    ],
    ids=["read", "write", "write after read", "allowed"],
)
@pytest.mark.parametrize("threads_per_batch", [32, 8192])
def test_blocks_that_depend_on_each_other(body, what, threads_per_batch):
    """Found whether the blocks run together or one after another, and only when asked for."""
    module = parse(kernel(BLOCKS + body))
    for check in (False, True):
        gpu = GPU(check_blocks=check, threads_per_batch=threads_per_batch)
        arguments = [gpu.put(np.zeros(1024, U32))]
        if check and what:
            with pytest.raises(RaceError, match=what):
                gpu.launch(module["k"], 2, 32, arguments)
        else:
            gpu.launch(module["k"], 2, 32, arguments)
