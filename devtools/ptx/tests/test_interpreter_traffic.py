"""Counters against numbers worked out by hand; atomics, asynchronous copies, matrix moves. All hand-written PTX."""

import numpy as np
import pytest

from devtools.ptx import GPU, Deadlock, Misaligned, PtxError, UninitialisedShared, f32_to_bf16, parse
from devtools.ptx.tests.handwritten import ADDRESS, TILE, kernel, run

F32, U32, U64 = np.float32, np.uint32, np.uint64


def count(body, threads=32, words=8192, shared=TILE):
    return run(ADDRESS + body, threads, words, shared=shared)[1]


# ---- global traffic -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stride,width,sectors",
    [(4, 4, 4), (8, 4, 8), (32, 4, 32), (128, 4, 32), (0, 4, 1), (8, 8, 8), (16, 16, 16), (2, 2, 2)],
)
def test_global_sectors_of_a_warp(stride, width, sectors):
    """A warp reads ``width`` bytes at ``stride`` bytes' distance: distinct 32-byte sectors."""
    load = {
        2: "ld.global.b16 %h0, [%rd3];",
        4: "ld.global.b32 %r4, [%rd3];",
        8: "ld.global.v2.b32 {%r4, %r5}, [%rd3];",
        16: "ld.global.nc.L1::no_allocate.v4.b32 {%r4, %r5, %r6, %r7}, [%rd3];",
    }[width]
    counts = count(f"mul.wide.u32 %rd2, %r0, {stride}; add.u64 %rd3, %rd0, %rd2;" + load, threads=64)
    assert counts.global_read_sectors == 2 * sectors
    assert counts.global_read_requests == 2 and counts.global_write_sectors == 0
    assert dict(counts.global_read_bytes_by_width) == {width: 64 * width}


def test_sectors_do_not_depend_on_the_lanes_order():
    counts = count(
        "xor.b32 %r4, %r0, 21; mul.wide.u32 %rd2, %r4, 4; add.u64 %rd3, %rd0, %rd2; st.global.u32 [%rd3], %r4;"
    )
    assert (counts.global_write_sectors, counts.global_write_requests, counts.global_write_bytes) == (4, 1, 128)


def test_predicated_access_counts_what_happens():
    counts = count("setp.lt.u32 %p1, %r0, 9; @%p1 ld.global.u32 %r4, [%rd1];")
    assert counts.global_read_sectors == 2 and counts.global_read_bytes == 36
    assert counts.thread_instructions_by_opcode["ld.global"] == 32 and counts.predicated_off == 23


def test_address_across_an_unaligned_start():
    counts = count("ld.global.u32 %r4, [%rd1+4];")
    assert counts.global_read_sectors == 5


# ---- shared traffic -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stride,width,wavefronts",
    [
        (4, 4, 1),
        (8, 4, 2),
        (16, 4, 4),
        (128, 4, 32),
        (0, 4, 1),
        (132, 4, 1),
        (2, 2, 1),
        (8, 8, 2),
        (16, 8, 4),
        (16, 16, 4),
        (32, 16, 8),
        (0, 16, 4),
    ],
)
def test_bank_conflicts(stride, width, wavefronts):
    """Worst bank of a warp, of half warps for 8 bytes, of quarter warps for 16; same words are shared."""
    load = {
        2: "ld.shared.b16 %h0, [%r6];",
        4: "ld.shared.b32 %r4, [%r6];",
        8: "ld.shared.v2.b32 {%r4, %r5}, [%r6];",
        16: "ld.shared.v4.b32 {%r4, %r5, %r7, %r8}, [%r6];",
    }[width]
    fill = (
        "mov.u32 %r4, 0; mov.u32 %r5, tile; L: st.shared.u32 [%r5], 0; add.u32 %r5, %r5, 4; add.u32 %r4, %r4, 1;"
        "setp.lt.u32 %p1, %r4, 1048; @%p1 bra L;"
    )
    tile = ".shared .align 16 .b8 tile[4192];"
    counts = count(fill + f"mad.lo.u32 %r6, %r0, {stride}, %r1;" + load, shared=tile)
    assert counts.shared_read_wavefronts == wavefronts
    assert counts.shared_write_wavefronts == 1048
    assert dict(counts.shared_read_bytes_by_width) == {width: 32 * width}


def test_instructions_by_class():
    counts = count(
        "add.f32 %f0, %f1, %f2; fma.rn.f32 %f0, %f1, %f2, %f0; ex2.approx.f32 %f0, %f0; cvt.rn.f16.f32 %h0, %f0;"
        "add.s32 %r4, %r0, 1; bar.sync 0; shfl.sync.bfly.b32 %r4, %r4, 1, 31, -1;",
        threads=64,
    )
    by_class = counts.warp_instructions_by_class
    assert [by_class[k] for k in ("float", "special", "convert", "barrier", "warp", "param")] == [4, 2, 2, 2, 2, 2]
    assert by_class["integer"] == 2 * 4 and by_class["move"] == 2 * 2 and by_class["control"] == 2
    assert sum(by_class.values()) == counts.warp_instructions == 2 * 14
    assert (counts + counts).warp_instructions == 56 and "line" in counts.hottest(3)


# ---- atomics --------------------------------------------------------------------------------------------------------


def test_atomics_act_one_after_another():
    """Old values of an add are a permutation of 0..63; the rest of the operations by their results."""
    body = (
        ADDRESS
        + """setp.eq.u32 %p1, %r0, 0; @!%p1 bra READY; st.shared.u32 [tile], 0; st.shared.u32 [tile+4], 0;
        READY: bar.sync 0; atom.shared.add.u32 %r4, [tile], 1; atom.shared.inc.u32 %r5, [tile+4], 9;
        st.global.u32 [%rd1], %r4; red.global.add.u32 [%rd0+256], 2; red.global.max.s32 [%rd0+260], %r0;
        atom.global.cas.b32 %r6, [%rd0+264], -1, %r0; atom.global.exch.b32 %r7, [%rd0+268], %r0;
        red.global.min.u32 [%rd0+272], %r0; red.global.or.b32 [%rd0+276], %r0;
        bar.sync 0; ld.shared.u32 %r8, [tile+4]; st.global.u32 [%rd0+280], %r8;"""
    )
    values, counts = run(body, 64, 72, shared=TILE)
    np.testing.assert_array_equal(np.sort(values[:64]), np.arange(64))
    assert values[64:71].tolist() == [(0xFFFFFFFF + 128) & 0xFFFFFFFF, 63, 0, 63, 0, 0xFFFFFFFF, 64 % 10]
    assert (counts.shared_atomics, counts.global_atomics, counts.atomics) == (128, 384, 512)
    assert counts.global_atomic_sectors == 12


@pytest.mark.parametrize("kind,dtype", [("f32", F32), ("f64", np.float64), ("u64", U64)])
def test_atomic_sums(kind, dtype):
    size = np.dtype(dtype).itemsize
    body = f"""mov.u32 %r0, %tid.x; ld.param.u64 %rd0, [out]; ld.param.u64 %rd1, [x];
        mad.wide.u32 %rd1, %r0, {size}, %rd1;
        ld.global.b{8 * size} %v, [%rd1]; and.b32 %r1, %r0, 3; mad.wide.u32 %rd2, %r1, {size}, %rd0;
        red.global.add.{kind} [%rd2], %v; atom.add.{kind} %old, [%rd0+{4 * size}], %v;"""
    x = np.random.default_rng(0).integers(-100, 100, 96).astype(np.int64).astype(dtype)
    gpu = GPU()
    out = gpu.put(np.zeros(5, dtype))
    text = kernel(body, ".param .u64 x, .param .u64 out", registers=f".reg .b{8 * size} %v, %old;")
    gpu.launch(parse(text)["k"], 1, 96, [gpu.put(x), out])
    np.testing.assert_array_equal(
        gpu.get(out, 5, dtype), [*(x[k::4].sum(dtype=dtype) for k in range(4)), x.sum(dtype=dtype)]
    )


def test_packed_and_vector_atomics():
    body = (
        ADDRESS
        + """mov.b32 %r4, 0x40003C00; red.global.add.noftz.f16x2 [%rd0], %r4;
        red.global.add.noftz.bf16x2 [%rd0+4], %r5; mov.f32 %f0, 0f3F800000; mov.f32 %f1, 0f40000000;
        red.global.add.v2.f32 [%rd0+8], {%f0, %f1};"""
    )
    body = body.replace("red.global.add.noftz.bf16x2", "mov.b32 %r5, 0x40003F80; red.global.add.noftz.bf16x2")
    gpu = GPU()
    out = gpu.put(np.zeros(64, F32))
    gpu.launch(parse(kernel(body, shared=TILE))["k"], 1, 32, [out])
    assert gpu.get(out, 2, np.float16).tolist() == [32, 64]
    assert gpu.get(out + 4, 2, "bf16").tolist() == [32, 64] and gpu.get(out + 8, 2, F32).tolist() == [32, 64]


# ---- asynchronous copies --------------------------------------------------------------------------------------------

COPY = """mov.u32 %r0, %tid.x; ld.param.u64 %rd0, [out]; ld.param.u64 %rd1, [x]; mad.wide.u32 %rd2, %r0, 16, %rd1;
    mad.wide.u32 %rd3, %r0, 16, %rd0; mov.u32 %r1, tile; mad.lo.u32 %r2, %r0, 16, %r1;
    cp.async.cg.shared.global.L2::128B [%r2], [%rd2], 16; cp.async.commit_group;
    cp.async.ca.shared.global [%r2+1024], [%rd2], 16, %r10; cp.async.commit_group;"""
TAKE = "ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r2+OFFSET]; st.global.v4.u32 [%rd3], {%r4, %r5, %r6, %r7};"


def copy(body):
    gpu, x = GPU(), np.arange(256, dtype=U32)
    out = gpu.empty(1024)
    text = kernel("mov.u32 %r10, 4;" + COPY + body, ".param .u64 x, .param .u64 out", TILE)
    counts = gpu.launch(parse(text)["k"], 1, 64, [gpu.put(x), out])
    return gpu.get(out, (64, 4), U32), counts


def test_async_copies_land_when_waited_for():
    values, counts = copy("cp.async.wait_group 1;" + TAKE.replace("OFFSET", "0"))
    np.testing.assert_array_equal(values.reshape(-1), np.arange(256))
    assert counts.global_read_sectors == 64 and counts.shared_write_wavefronts == 16
    values, _ = copy("cp.async.wait_all;" + TAKE.replace("OFFSET", "1024"))
    np.testing.assert_array_equal(values, np.arange(0, 256, 4)[:, None] * np.array([1, 0, 0, 0]))


def test_async_copy_that_was_not_waited_for_raises():
    for wait in ("", "cp.async.wait_group 1;"):
        with pytest.raises(UninitialisedShared, match="not waited for"):
            copy(wait + TAKE.replace("OFFSET", "1024"))


BULK = """mov.u32 %r0, %tid.x; ld.param.u64 %rd0, [out]; ld.param.u64 %rd1, [x]; mad.wide.u32 %rd3, %r0, 4, %rd0;
    mov.u32 %r1, tile; mad.lo.u32 %r2, %r0, 4, %r1; mov.u32 %r3, bar; setp.eq.u32 %p1, %r0, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r3], 1; fence.mbarrier_init.release.cluster; bar.sync 0; @!%p1 bra WAIT;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 256;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1], 256, [%r3];
    WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0; @!%p2 bra WAIT;
    ld.shared.u32 %r4, [%r2]; st.global.u32 [%rd3], %r4; bar.sync 0; @!%p1 bra END;
    fence.proxy.async.shared::cta; cp.async.bulk.global.shared::cta.bulk_group [%rd0], [%r1+128], 128;
    cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0; END:"""


def bulk(body):
    gpu, x = GPU(), np.arange(64, dtype=U32)
    out = gpu.empty(256)
    text = kernel(body, ".param .u64 x, .param .u64 out", TILE + " .shared .align 8 .b8 bar[8];")
    counts = gpu.launch(parse(text)["k"], 1, 64, [gpu.put(x), out])
    return gpu.get(out, 64, U32), counts


def test_bulk_copies_and_mbarrier():
    values, counts = bulk(BULK)
    np.testing.assert_array_equal(values, np.concatenate([np.arange(32, 64), np.arange(32, 64)]))
    assert counts.global_read_sectors == 8 and counts.global_write_sectors == 8 + 4
    with pytest.raises(UninitialisedShared, match="not waited"):
        bulk(
            BULK.replace(
                "WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0; @!%p2 bra WAIT;", "WAIT: bar.sync 0;"
            )
        )
    with pytest.raises(Deadlock):
        bulk(BULK.replace("_, [%r3], 256;", "_, [%r3], 512;"))
    with pytest.raises(PtxError, match="no mbarrier"):
        bulk(
            BULK.replace(
                "@%p1 mbarrier.init", "@!%p1 bra SKIP; mbarrier.inval.shared.b64 [%r3]; SKIP: @%p4 mbarrier.init"
            )
        )
    with pytest.raises(Misaligned, match="multiples of 16"):
        bulk(BULK.replace("[%r1], [%rd1], 256", "[%r1], [%rd1], 100"))


# ---- matrices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix(trans):
    """Lane 8k+j names row j of matrix k; every lane gets two neighbours of each matrix."""
    body = (
        ADDRESS
        + f"""mad.lo.u32 %r4, %r0, 16, %r1; mul.lo.u32 %r5, %r0, 0x00080008; add.u32 %r5, %r5, 0x00010000;
        add.u32 %r6, %r5, 0x00020002; add.u32 %r7, %r5, 0x00040004; add.u32 %r8, %r5, 0x00060006;
        st.shared.v4.b32 [%r4], {{%r5, %r6, %r7, %r8}};
        ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r4];
        mad.wide.u32 %rd2, %r0, 16, %rd0; st.global.v4.b32 [%rd2], {{%r10, %r11, %r12, %r13}};"""
    )
    values, counts = run(body, 32, 128, shared=TILE)
    matrices = np.arange(256).reshape(4, 8, 8)
    if trans:
        matrices = matrices.transpose(0, 2, 1)
    lane = np.arange(32)
    want = [
        [matrices[k, t // 4, 2 * (t % 4)] | matrices[k, t // 4, 2 * (t % 4) + 1] << 16 for k in range(4)] for t in lane
    ]
    np.testing.assert_array_equal(values.reshape(32, 4), want)
    assert counts.shared_read_wavefronts == 4


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_stmatrix_undoes_ldmatrix(trans):
    body = (
        ADDRESS
        + f"""mad.lo.u32 %r4, %r0, 16, %r1; mul.lo.u32 %r5, %r0, 7; add.u32 %r6, %r5, 123456;
        stmatrix.sync.aligned.m8n8.x2{trans}.shared::cta.b16 [%r4], {{%r5, %r6}};
        ldmatrix.sync.aligned.m8n8.x2{trans}.shared::cta.b16 {{%r7, %r8}}, [%r4];
        mad.wide.u32 %rd2, %r0, 8, %rd0; st.global.v2.b32 [%rd2], {{%r7, %r8}};"""
    )
    values, _ = run(body, 32, 64, shared=TILE)
    np.testing.assert_array_equal(values.reshape(32, 2), np.arange(32)[:, None] * 7 + np.array([0, 123456]))


# ---- wide moves and generic addresses -------------------------------------------------------------------------------


def test_wide_moves_and_hints():
    body = (
        ADDRESS
        + """mov.b64 %rd4, 0x1122334455667788; mov.b64 %rd5, -2; mov.b128 %q, {%rd4, %rd5};
        createpolicy.fractional.L2::evict_first.b64 %rd9, 1.0;
        st.global.b128 [%rd0], %q; ld.global.b128 %s, [%rd0]; mov.b128 {%rd6, %rd7}, %s;
        st.global.L2::cache_hint.v2.b64 [%rd0+16], {%rd6, %rd7}, %rd9; prefetch.global.L2 [%rd0];
        ld.global.v4.b64 {%rd10, %rd11, %rd12, %rd13}, [%rd0];
        st.global.v4.b64 [%rd0+32], {%rd13, %rd12, %rd11, %rd10};"""
    )
    values, counts = run(body, 1, 16, shared=TILE, registers=".reg .b128 %q, %s;")
    low, high = 0x1122334455667788, 2**64 - 2
    assert values.view(U64).tolist() == [low, high, low, high, high, low, high, low]
    assert counts.global_read_bytes_by_width[32] == 32 and counts.global_write_bytes_by_width[16] == 32


def test_generic_addresses_reach_every_space():
    body = (
        ADDRESS
        + """cvt.u64.u32 %rd4, %r3; cvta.shared.u64 %rd5, %rd4; st.u32 [%rd5], %r0; ld.shared.u32 %r4, [%r3];
        and.b32 %r5, %r0, 1; setp.eq.u32 %p1, %r5, 0; selp.b64 %rd6, %rd5, %rd1, %p1; st.u32 [%rd1], 77;
        ld.u32 %r6, [%rd6];
        isspacep.shared %p2, %rd6; selp.u32 %r7, 1000, 0, %p2; add.u32 %r6, %r6, %r7; bar.sync 0; st.u32 [%rd1], %r6;"""
    )
    values, _ = run(body, shared=TILE)
    np.testing.assert_array_equal(values, [1000 + t if t % 2 == 0 else 77 for t in range(64)])


def test_bf16_buffers():
    gpu, x = GPU(), np.array([1.5, -2.25, 3e38, 1e-40], F32)
    assert gpu.get(gpu.put(f32_to_bf16(x)), 4, "bf16").tolist()[:2] == [1.5, -2.25]
