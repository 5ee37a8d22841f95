"""The interpreter's machine: launches, memory, errors, races, barriers, warps, counters; all hand-written PTX."""

import numpy as np
import pytest

from devtools.ptx import (
    GPU,
    Deadlock,
    DeviceAssert,
    Misaligned,
    OutOfBounds,
    PtxError,
    PtxSyntaxError,
    RaceError,
    ReadOnly,
    TooManySteps,
    UninitialisedShared,
    WarpSyncError,
    parse,
)
from devtools.ptx.tests.handwritten import ADDRESS, HEADER, TILE, kernel, run

F32, U32 = np.float32, np.uint32


# ---- launches -------------------------------------------------------------------------------------------------------


def test_three_dimensional_grid_and_block():
    """Every thread writes its coordinates to its own place; x runs fastest."""
    coordinates = ["%tid.x", "%tid.y", "%tid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z"]
    sizes = ["%ntid.x", "%ntid.y", "%ntid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z"]
    body = "mov.u32 %r10, 0; mov.u32 %r11, 0;"
    for k in reversed(range(6)):
        body += f"mov.u32 %r0, {coordinates[k]}; mov.u32 %r1, {sizes[k]}; mad.lo.u32 %r10, %r10, %r1, %r0;"
        body += "shl.b32 %r11, %r11, 4; or.b32 %r11, %r11, %r0;"
    body += "ld.param.u64 %rd0, [out]; mad.wide.u32 %rd1, %r10, 4, %rd0; st.global.u32 [%rd1], %r11;"
    grid, block = (2, 3, 4), (5, 3, 2)
    gpu = GPU(threads_per_batch=100)
    out = gpu.empty(4 * 24 * 30)
    counts = gpu.launch(parse(kernel(body))["k"], grid, block, [out])
    x = np.indices((*grid[::-1], *block[::-1])).reshape(6, -1)[::-1]
    np.testing.assert_array_equal(gpu.get(out, 720, U32), sum(x[k] << (4 * k) for k in range(6)))
    assert (counts.blocks, counts.threads) == (24, 720)


def test_parameters_of_every_kind():
    params = ".param .u8 a, .param .s16 b, .param .f32 c, .param .f64 d, .param .align 8 .b8 box[16], .param .u64 out"
    body = """ld.param.u64 %rd0, [out]; ld.param.u8 %r0, [a]; ld.param.s16 %r1, [b]; ld.param.f32 %f0, [c];
              ld.param.f64 %fd0, [d]; ld.param.u32 %r2, [box]; ld.param.v2.f32 {%f1, %f2}, [box+8];
              mov.u64 %rd2, box; ld.param.u32 %r3, [%rd2+4]; cvt.rn.f32.f64 %f3, %fd0;
              st.global.u32 [%rd0], %r0; st.global.s32 [%rd0+4], %r1; st.global.f32 [%rd0+8], %f0;
              st.global.f32 [%rd0+12], %f3; st.global.u32 [%rd0+16], %r2; st.global.v2.f32 [%rd0+24], {%f1, %f2};
              st.global.u32 [%rd0+20], %r3;"""
    gpu = GPU()
    out = gpu.empty(32)
    box = np.array([(7, 9, 1.5, 2.5)], [("i", "u4"), ("j", "u4"), ("x", "f4"), ("y", "f4")])[0]
    module = parse(kernel(body, params))
    gpu.launch(module["k"], 1, 1, [200, -3, 0.25, 1e-3, box, out])
    raw = gpu.get(out, 8, U32)
    assert raw[[0, 4, 5]].tolist() == [200, 7, 9] and raw[1:2].view(np.int32)[0] == -3
    np.testing.assert_array_equal(raw[[2, 3, 6, 7]].view(F32), np.array([0.25, 1e-3, 1.5, 2.5], F32))
    with pytest.raises(TypeError, match="6 arguments"):
        gpu.launch(module["k"], 1, 1, [1, 2])
    with pytest.raises(TypeError, match="argument 4 has 3 bytes"):
        gpu.launch(module["k"], 1, 1, [200, -3, 0.25, 1e-3, b"abc", out])
    with pytest.raises(ValueError, match="block"):
        gpu.launch(module["k"], 1, 2048, [200, -3, 0.25, 1e-3, box, out])


def test_module_variables_keep_their_values_between_launches():
    outside = ".const .align 4 .b32 factor[2] = {3, 5};\n.global .align 4 .b32 total = 7;"
    body = """ld.const.u32 %r0, [factor+4]; mov.u64 %rd1, total; ld.global.u32 %r1, [%rd1]; add.u32 %r1, %r1, %r0;
              st.global.u32 [total], %r1; ld.param.u64 %rd0, [out]; st.global.u32 [%rd0], %r1;"""
    gpu, module = GPU(), parse(kernel(body, outside=outside))
    out = gpu.empty(4)
    for want in (12, 17):
        gpu.launch(module["k"], 1, 1, [out])
        assert gpu.get(out, 1, U32)[0] == want
    assert gpu.get(gpu.symbol(module, "total"), 1, U32)[0] == 17


def test_dynamic_shared_memory_follows_static():
    shared = ".shared .align 4 .b8 first[12];"
    outside = ".extern .shared .align 16 .b8 rest[];"
    body = """ld.param.u64 %rd0, [out]; mov.u32 %r0, rest; st.shared.u32 [first+8], 5; st.shared.u32 [%r0+28], 6;
              ld.shared.u32 %r1, [rest+28]; ld.shared.u32 %r2, [first+8]; add.u32 %r1, %r1, %r2;
              st.global.v2.u32 [%rd0], {%r0, %r1};"""
    gpu, module = GPU(), parse(kernel(body, shared=shared, outside=outside))
    out = gpu.empty(8)
    gpu.launch(module["k"], 1, 1, [out], shared_bytes=32)
    assert gpu.get(out, 2, U32).tolist() == [16, 11]
    with pytest.raises(OutOfBounds):
        gpu.launch(module["k"], 1, 1, [out], shared_bytes=28)


def test_device_function_is_inlined_with_its_own_names():
    outside = """.func (.param .b32 result) twice(.param .b32 x) { .reg .b32 %r<4>; .reg .pred %p<2>;
        ld.param.u32 %r1, [x]; setp.gt.u32 %p1, %r1, 5; @%p1 bra BIG; add.u32 %r1, %r1, %r1;
        st.param.b32 [result], %r1; ret;
        BIG: st.param.b32 [result], 99; ret; }"""
    body = """mov.u32 %r1, %tid.x; { .param .b32 p0; st.param.b32 [p0], %r1; .param .b32 r0;
              call.uni (r0), twice, (p0); ld.param.b32 %r2, [r0]; }
              ld.param.u64 %rd0, [out]; mad.wide.u32 %rd1, %r1, 4, %rd0; st.global.u32 [%rd1], %r2;"""
    values, _ = run(body, 32, outside=outside)
    np.testing.assert_array_equal(values, [2 * t if t <= 5 else 99 for t in range(32)])


def test_local_memory_is_each_threads_own():
    body = """mov.u32 %r0, %tid.x; mov.u64 %rd2, own; cvta.local.u64 %rd3, %rd2; and.b32 %r1, %r0, 3;
              mad.wide.u32 %rd4, %r1, 4, %rd2; st.local.u32 [%rd4], %r0; ld.u32 %r2, [%rd3+8];
              ld.param.u64 %rd0, [out]; mad.wide.u32 %rd1, %r0, 4, %rd0; st.global.u32 [%rd1], %r2;"""
    values, counts = run(body, 32, shared=".local .align 4 .b8 own[16];")
    assert [v for v in values if v != 0xFFFFFFFF] == list(range(2, 32, 4))
    assert counts.local_bytes == 2 * 4 * 32
    with pytest.raises(OutOfBounds, match="local"):
        run(body.replace("%rd3+8", "%rd3+16"), 32, shared=".local .align 4 .b8 own[16];")


def test_offsets_beyond_32_bits():
    """A buffer of 5 GiB costs only the pages that are touched."""
    gpu = GPU()
    out = gpu.reserve(5 << 30)
    body = "ld.param.u64 %rd0, [out]; add.u64 %rd1, %rd0, 5368709116; st.global.u32 [%rd1], 7;"
    gpu.launch(parse(kernel(body))["k"], 1, 1, [out])
    assert gpu.get(out + (5 << 30) - 8, 2, U32).tolist() == [0, 7]
    with pytest.raises(OutOfBounds):
        gpu.launch(parse(kernel(body.replace("5368709116", "5368709120")))["k"], 1, 1, [out])


# ---- control flow ---------------------------------------------------------------------------------------------------


def test_divergent_loops_reconverge():
    """Each lane loops its own number of times; behind the loop all meet, or the shuffle would raise."""
    body = """mov.u32 %r0, %tid.x; mov.u32 %r1, 0; mov.u32 %r2, 0;
        LOOP: add.u32 %r1, %r1, %r0; add.u32 %r2, %r2, 1; setp.le.u32 %p1, %r2, %r0; @%p1 bra LOOP;
        shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1;
        ld.param.u64 %rd0, [out]; mad.wide.u32 %rd1, %r0, 4, %rd0; st.global.u32 [%rd1], %r3;"""
    values, counts = run(body, 32)
    np.testing.assert_array_equal(values, [(t ^ 1) * ((t ^ 1) + 1) for t in range(32)])
    assert counts.warp_instructions == 3 + 32 * 4 + 1 + 3 + 1
    assert counts.thread_instructions == 32 * 8 + 4 * sum(range(1, 33))
    assert counts.divergent_branches == 31


def test_cold_code_at_the_end_still_reconverges():
    """The else part stands behind the join, where compilers put it; the layout moves it before."""
    body = """mov.u32 %r0, %tid.x; setp.lt.u32 %p1, %r0, 3; @%p1 bra COLD; add.u32 %r1, %r0, 100;
        JOIN: shfl.sync.idx.b32 %r2, %r1, 1, 31, -1;
        ld.param.u64 %rd0, [out]; mad.wide.u32 %rd1, %r0, 4, %rd0; st.global.u32 [%rd1], %r2; ret;
        COLD: add.u32 %r1, %r0, 200; bra JOIN;"""
    values, counts = run(body, 32)
    assert (values == 201).all() and counts.warp_instructions_by_opcode["shfl"] == 1


def test_branch_table():
    body = """mov.u32 %r0, %tid.x; and.b32 %r1, %r0, 3;
        TABLE: .branchtargets A, B, A, C; brx.idx %r1, TABLE;
        A: mov.u32 %r2, 10; bra END; B: mov.u32 %r2, 20; bra END; C: mov.u32 %r2, 30;
        END: ld.param.u64 %rd0, [out]; mad.wide.u32 %rd1, %r0, 4, %rd0; st.global.u32 [%rd1], %r2;"""
    values, _ = run(body, 32)
    assert values[:4].tolist() == [10, 20, 10, 30] and (values.reshape(8, 4) == values[:4]).all()


def test_results_and_counters_do_not_depend_on_the_batch():
    body = (
        ADDRESS.replace("%tid.x;", "%ctaid.x; mov.u32 %r10, %tid.x; mad.lo.u32 %r0, %r0, 96, %r10;", 1).replace(
            "shl.b32 %r2, %r0", "shl.b32 %r2, %r10"
        )
        + """
        mov.u32 %r4, 0; LOOP: add.u32 %r4, %r4, 3; setp.lt.u32 %p1, %r4, %r0; @%p1 bra LOOP;
        st.shared.u32 [%r3], %r4; bar.sync 0; ld.shared.u32 %r5, [tile+8]; st.global.u32 [%rd1], %r5;"""
    )
    seen = []
    for size in (96, 300, 10000):
        gpu = GPU(threads_per_batch=size)
        out = gpu.empty(4 * 96 * 7)
        counts = gpu.launch(parse(kernel(body, shared=TILE))["k"], 7, 96, [out])
        seen.append((gpu.get(out, 96 * 7, U32).tolist(), counts))
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][1].barriers == 7


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_out_of_bounds_names_the_place():
    body = ADDRESS + "st.global.u32 [%rd1], %r0;"
    with pytest.raises(
        OutOfBounds,
        match=r"k: line \d+: `st.global.u32 \[%rd1\], %r0;`.*4 bytes past the end.*"
        r"block \(0, 0, 0\), thread \(50, 0, 0\)",
    ):
        run(body, 64, 50, shared=TILE)


def test_buffers_are_apart_and_null_is_nobody():
    gpu = GPU()
    first, _ = gpu.put(np.zeros(4, F32)), gpu.put(np.zeros(4, F32))
    with pytest.raises(OutOfBounds):
        gpu.get(first, 8, F32)
    with pytest.raises(OutOfBounds):
        gpu.launch(parse(kernel(ADDRESS + "st.global.u32 [%rd1], %r0;", shared=TILE))["k"], 1, 4, [0])


def test_misaligned_and_read_only():
    with pytest.raises(Misaligned, match="no multiple of 8"):
        run(ADDRESS + "st.global.v2.u32 [%rd1+4], {%r0, %r0};", 1, 8, shared=TILE)
    with pytest.raises(Misaligned, match="shared"):
        run(ADDRESS + "st.shared.u32 [%r3+2], %r0;", shared=TILE)
    gpu = GPU()
    locked = gpu.put(np.zeros(64, F32), read_only=True)
    with pytest.raises(ReadOnly):
        gpu.launch(parse(kernel(ADDRESS + "st.global.u32 [%rd1], %r0;", shared=TILE))["k"], 1, 64, [locked])


def test_shared_out_of_bounds():
    with pytest.raises(OutOfBounds, match="0x1000 of 4096"):
        run(ADDRESS + "st.shared.u32 [%r3+4092], %r0;", shared=TILE)


def test_never_written_shared_memory():
    with pytest.raises(UninitialisedShared, match="never written.*thread \\(40, 0, 0\\)"):
        run(ADDRESS + "setp.lt.u32 %p1, %r0, 40; @%p1 st.shared.u32 [%r3], %r0; ld.shared.u32 %r4, [%r3];", shared=TILE)


def test_what_is_not_written_is_nan():
    values, _ = run(ADDRESS + "setp.lt.u32 %p1, %r0, 5; @%p1 st.global.u32 [%rd1], %r0;", shared=TILE)
    assert np.isnan(values.view(F32)[5:]).all() and values[:5].tolist() == [0, 1, 2, 3, 4]


def test_barrier_in_half_a_warp_and_deadlock():
    with pytest.raises(WarpSyncError, match="part of a warp"):
        run("mov.u32 %r0, %tid.x; setp.lt.u32 %p1, %r0, 5; @%p1 bar.sync 0;")
    waits = "mov.u32 %r0, %tid.x; setp.lt.u32 %p1, %r0, 32; @%p1 bra A; bar.sync 1; bra END; A: bar.sync 2; END:"
    with pytest.raises(Deadlock, match="32 threads wait"):
        run(waits)


def test_ended_threads_count_as_arrived():
    _, counts = run("mov.u32 %r0, %tid.x; setp.ge.u32 %p1, %r0, 32; @%p1 exit; bar.sync 0;")
    assert counts.barriers == 1


def test_endless_loop_unknown_instruction_trap_and_syntax():
    gpu = GPU()
    out = gpu.empty(4)
    with pytest.raises(TooManySteps):
        gpu.launch(parse(kernel("L: bra L;"))["k"], 1, 1, [out], budget=10000)
    with pytest.raises(NotImplementedError, match=r"line \d+: `frobnicate.u32 %r1, %r2;`"):
        gpu.launch(parse(kernel("frobnicate.u32 %r1, %r2;"))["k"], 1, 1, [out])
    for modified in (
        "cvt.rs.f16x2.f32 %r1, %f1, %f2, %r2;",
        "fma.rn.oob.f16 %h0, %h1, %h2, %h3;",
        "add.rz.f64 %fd0, %fd1, %fd2;",
    ):
        with pytest.raises(NotImplementedError, match="line"):
            gpu.launch(parse(kernel(modified))["k"], 1, 1, [out])
    with pytest.raises(DeviceAssert):
        run("trap;")
    with pytest.raises(PtxSyntaxError, match="line"):
        parse(HEADER + "int main() {}")
    assert issubclass(RaceError, PtxError)


# ---- warps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode,b,c,source",
    [
        ("bfly", 5, 31, lambda t: t ^ 5),
        ("up", 3, 0, lambda t: t - 3 if t >= 3 else t),
        ("down", 4, 31, lambda t: t + 4 if t + 4 < 32 else t),
        ("idx", 9, 31, lambda t: 9),
        ("down", 1, 0x181F, lambda t: t + 1 if t % 8 < 7 else t),  # segments of eight
        ("idx", 2, 0x181F, lambda t: t // 8 * 8 + 2),
    ],
)
def test_shuffles(mode, b, c, source):
    body = (
        ADDRESS
        + f"""mul.lo.u32 %r4, %r0, 3; shfl.sync.{mode}.b32 %r5|%p1, %r4, {b}, {c}, -1;
        selp.u32 %r6, 1000, 0, %p1; add.u32 %r5, %r5, %r6; st.global.u32 [%rd1], %r5;"""
    )
    values, _ = run(body, 32, shared=TILE)
    np.testing.assert_array_equal(values % 1000, [3 * source(t) for t in range(32)])
    moved = [source(t) != t or mode == "idx" for t in range(32)]
    np.testing.assert_array_equal(values >= 1000, moved)


def test_votes_matches_reductions():
    body = (
        ADDRESS
        + """setp.lt.u32 %p1, %r0, 5; vote.sync.ballot.b32 %r4, %p1, -1; vote.sync.any.pred %p2, %p1, -1;
        vote.sync.all.pred %p3, !%p1, -1; selp.u32 %r5, 1, 0, %p2; selp.u32 %r6, 1, 0, %p3;
        redux.sync.add.s32 %r7, %r0, -1; and.b32 %r8, %r0, 3; match.any.sync.b32 %r9, %r8, -1;
        activemask.b32 %r10; elect.sync %r11|%p4, -1; selp.u32 %r12, 1, 0, %p4; redux.sync.max.u32 %r13, %r0, -1;
        mul.wide.u32 %rd2, %r0, 32; add.u64 %rd3, %rd0, %rd2; st.global.v4.u32 [%rd3], {%r4, %r5, %r6, %r7};
        st.global.v4.u32 [%rd3+16], {%r9, %r10, %r12, %r13};"""
    )
    values, _ = run(body, 64, 512, shared=TILE)
    rows = values.reshape(2, 32, 8)
    assert (rows[0, :, 0] == 31).all() and (rows[1, :, 0] == 0).all()
    assert (rows[0, :, 1] == 1).all() and (rows[1, :, 1] == 0).all() and (rows[1, :, 2] == 1).all()
    assert (rows[0, :, 3] == 496).all() and (rows[1, :, 3] == 496 + 1024).all()
    np.testing.assert_array_equal(rows[0, :, 4], [0x11111111 << (t & 3) for t in range(32)])
    assert (rows[:, :, 5] == 0xFFFFFFFF).all() and (rows[1, :, 7] == 63).all()
    np.testing.assert_array_equal(rows[:, :, 6], np.arange(32)[None] == np.zeros((2, 1)))


def test_shuffle_of_a_diverged_warp_raises():
    with pytest.raises(WarpSyncError, match="in the membermask but not at this"):
        run(ADDRESS + "setp.lt.u32 %p1, %r0, 5; @%p1 shfl.sync.bfly.b32 %r4, %r0, 1, 31, -1;", shared=TILE)
    with pytest.raises(WarpSyncError, match="not in its own membermask"):
        run(ADDRESS + "shfl.sync.bfly.b32 %r4, %r0, 1, 31, 0x0f;", shared=TILE)
    with pytest.raises(WarpSyncError, match="does not take part"):
        run(ADDRESS + "setp.lt.u32 %p1, %r0, 5; @%p1 shfl.sync.down.b32 %r4, %r0, 1, 31, 0x1f;", 32, shared=TILE)


def test_block_wide_votes():
    body = (
        ADDRESS
        + """setp.lt.u32 %p1, %r0, 40; bar.red.popc.u32 %r4, 0, %p1; bar.red.and.pred %p2, 0, %p1;
        bar.red.or.pred %p3, 0, %p1; selp.u32 %r5, 100, 0, %p2; selp.u32 %r6, 1000, 0, %p3; add.u32 %r4, %r4, %r5;
        add.u32 %r4, %r4, %r6; st.global.u32 [%rd1], %r4;"""
    )
    values, _ = run(body, shared=TILE)
    assert (values == 1040).all()


def test_named_barriers_order_the_warps_that_meet():
    """Producer and consumer warps: bar.arrive and bar.sync of 64 threads on barrier 1."""
    body = (
        ADDRESS
        + """setp.lt.u32 %p1, %r0, 32; @!%p1 bra CONSUMER; st.shared.u32 [%r3], %r0; bar.arrive 1, 64; bra END;
        CONSUMER: bar.sync 1, 64; ld.shared.u32 %r4, [%r3+-128]; st.global.u32 [%rd1], %r4; END:"""
    )
    values, _ = run(body, shared=TILE)
    np.testing.assert_array_equal(values[32:], np.arange(32))
    with pytest.raises(RaceError):
        run(body.replace("bar.arrive 1, 64;", "").replace("bar.sync 1, 64;", ""), shared=TILE)
