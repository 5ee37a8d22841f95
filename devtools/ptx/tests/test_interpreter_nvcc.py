"""CUDA C++ through nvcc: the PTX that a compiler really writes, run unmodified for sm_80 and sm_90."""

import math
import pathlib
import shutil

import numpy as np
import pytest

from devtools.ptx import GPU, DeviceAssert, RaceError, bf16_to_f32, f32_to_bf16, parse
from devtools.ptx.compilers import nvcc_ptx

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH: no PTX from CUDA C++")

F32, F64, U32 = np.float32, np.float64, np.uint32

SOURCE = pathlib.Path(__file__).with_suffix(".cu").read_text()


@pytest.fixture(scope="module", params=["sm_80", "sm_90"])
def module(request):
    return parse(nvcc_ptx(SOURCE, request.param))


def random(*shape, scale=1.0):
    return (np.random.default_rng(sum(shape)).standard_normal(shape) * scale).astype(F32)


def test_half(module):
    n, gpu = 300, GPU()
    a, b = random(n).astype(np.float16), random(n + 1)[1:].astype(np.float16)
    a[0], b[1] = np.nan, np.inf
    out, packed = gpu.empty(16 * n), gpu.empty(4 * n)
    gpu.launch(module["half_math"], 3, 128, [gpu.put(a), gpu.put(b), out, packed, n])
    got = gpu.get(out, (n, 4), F32)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(got[:, 0], (a + b).astype(F32))
        np.testing.assert_array_equal(got[:, 1], (a * b).astype(F32))
        np.testing.assert_array_equal(got[:, 2], (a.astype(F64) * b + a).astype(np.float16).astype(F32))
        np.testing.assert_array_equal(got[:, 3], (a > b) + 2.0 * np.isnan(a) + 4.0 * (np.fmax(a, b) == a))
        pair = np.stack([a, b], 1).astype(F64)
        np.testing.assert_array_equal(
            gpu.get(packed, (n, 2), np.float16), (pair * pair + b[:, None]).astype(np.float16)
        )


def test_bf16(module):
    n, gpu = 300, GPU()
    a, b = f32_to_bf16(random(n)), f32_to_bf16(random(n + 1)[1:])
    out, wide = gpu.empty(4 * n), gpu.empty(8 * n)
    gpu.launch(module["bf16_math"], 3, 128, [gpu.put(a), gpu.put(b), out, wide, n])
    x, y = bf16_to_f32(a), bf16_to_f32(b)
    got = gpu.get(out, (n, 2), np.uint16)
    np.testing.assert_array_equal(got, np.stack([f32_to_bf16(x * y), f32_to_bf16(x + y)], 1))
    want = np.stack([bf16_to_f32(f32_to_bf16(x + y)), bf16_to_f32(f32_to_bf16(x - y))], 1)
    np.testing.assert_array_equal(gpu.get(wide, (n, 2), F32), want)


def test_scalar_functions(module):
    """Library functions, large-argument reduction with its local memory included, to the CUDA library's accuracy."""
    n, gpu = 256, GPU()
    a, d = random(n), random(n).astype(F64)
    k = np.random.default_rng(5).integers(-(2**31), 2**31, n).astype(np.int32)
    f, g, h = gpu.empty(32 * n), gpu.empty(32 * n), gpu.empty(48 * n)
    gpu.launch(module["scalar_functions"], 2, 128, [gpu.put(a), gpu.put(d), gpu.put(k), f, g, h])
    x, i = a.astype(F64), np.arange(n)
    erf = np.vectorize(math.erf)
    want = [
        np.exp(x),
        np.log(np.abs(x) + F64(F32(1e-3))),
        1 / np.sqrt(np.abs(x) + 1),
        np.tanh(x),
        np.sin((100 * a).astype(F64)),
        x / (k | 1),
        np.abs(x) ** 1.7,
        erf(x),
    ]
    np.testing.assert_allclose(gpu.get(f, (n, 8), F32), np.stack(want, 1), rtol=2e-6, atol=1e-6)
    want = [np.exp(d), np.log(np.abs(d)), np.sqrt(np.abs(d)) / (d + 10), np.cos(1e6 * d)]
    np.testing.assert_allclose(gpu.get(g, (n, 4), F64), np.stack(want, 1), rtol=1e-14, atol=1e-15)
    wide = k.astype(np.int64)
    want = [
        np.trunc(wide * 1000003 / (i + 1)),
        np.fmod(wide, i + 7),
        [int(v & 0xFFFFFFFF).bit_count() + 64 * (32 - int(v & 0xFFFFFFFF).bit_length()) for v in wide],
        wide * (wide + 3) >> 32,
        [int(v) % 2**64 % 12345 for v in wide],
        np.rint(a * F32(10)),
    ]
    np.testing.assert_allclose(gpu.get(h, (n, 6), np.int64), np.stack(want, 1).astype(F64), rtol=1e-15, atol=0)


def test_struct_parameter_and_3d_grid(module):
    gpu = GPU()
    shapes, scales = [(17, 40), (9, 33), (1, 1)], [1.0, 0.5, -2.0]
    data = [random(*shape) for shape in shapes]
    level = np.dtype([("data", "u8"), ("rows", "i4"), ("columns", "i4"), ("scale", "f4"), ("pad", "i4")])
    pyramid = np.zeros(1, np.dtype([("level", level, 3), ("count", "i4"), ("pad", "i4")]))
    for k in range(3):
        pyramid["level"][0, k] = (gpu.put(data[k]), *shapes[k], scales[k], 0)
    pyramid["count"] = 3
    sums = gpu.put(np.zeros(3, F32))
    counts = gpu.launch(module["levels"], (1, 2, 3), (32, 8), [pyramid[0], sums])
    np.testing.assert_allclose(
        gpu.get(sums, 3, F32), [s * d.sum() for s, d in zip(scales, data, strict=True)], rtol=1e-4
    )
    assert counts.global_atomics == 6 and counts.barriers == 6


def pipelined(source_module):
    gpu, tiles, threads = GPU(), 5, 128
    x = random(3, tiles, threads, 4)
    out = gpu.empty(4 * 3 * threads)
    counts = gpu.launch(source_module["pipelined"], 3, threads, [gpu.put(x), out, tiles], shared_bytes=2 * 16 * threads)
    want = (x[:, :, np.arange(threads) ^ 33] * np.array([1, 2, 3, 4])).sum((1, 3))
    np.testing.assert_allclose(gpu.get(out, (3, threads), F32), want, rtol=1e-4, atol=1e-4)
    return counts, x.nbytes


def test_async_pipeline(module):
    counts, nbytes = pipelined(module)
    assert counts.global_read_sectors * 32 == nbytes and dict(counts.global_read_bytes_by_width) == {16: nbytes}


def test_missing_barrier_in_the_pipeline_is_a_race():
    """Without the barrier behind the use of a buffer, the next copy into it races."""
    with pytest.raises(RaceError):
        pipelined(parse(nvcc_ptx(SOURCE, "sm_80", ("-DRACY",))))


def test_tiles_like_the_forward_kernel(module):
    channels, pixels, count, gpu = 64, 1024, 4, GPU()
    s = f32_to_bf16(random(channels, pixels))
    blocks = pixels // (32 * count)
    out, state = gpu.empty(4 * pixels), gpu.empty(8 * blocks)
    counts = gpu.launch(module["tiles"], blocks, 128, [gpu.put(s, read_only=True), out, state, pixels, count])
    want = np.abs(bf16_to_f32(s).astype(F64)).mean(0)
    np.testing.assert_allclose(gpu.get(out, pixels, F32), want, rtol=1e-6)
    top = want.reshape(blocks, -1).max(1)
    z = np.exp(want.reshape(blocks, -1) - top[:, None]).sum(1)
    np.testing.assert_allclose(gpu.get(state, (blocks, 2), F32), np.stack([top, z], 1), rtol=1e-5)
    assert counts.global_read_sectors * 32 == s.nbytes  # every byte once
    assert dict(counts.global_read_bytes_by_width) == {16: s.nbytes}
    assert counts.barriers == 2 * count * blocks


def test_odds_and_ends(module):
    """Local arrays, a switch, a device function that is not inlined."""
    n, gpu = 256, GPU()
    k = np.random.default_rng(2).integers(0, 1000, n).astype(np.int32)
    out = gpu.empty(4 * n)
    gpu.launch(module["odds_and_ends"], 2, 128, [gpu.put(k), out, n])

    def collatz(x, steps):
        while steps > 0 and x > 1:
            x, steps = x * 0.5, steps - 1
        return x

    def want(i):
        case = k[i] & 7
        simple = {0: 3, 1: k[(i + (i & 7)) % n], 2: k[(i + (i * 3 & 7)) % n] * 2, 3: collatz(i, 5), 5: -1, 6: 66}
        return simple.get(case, collatz(1000, k[i] & 15))

    got = gpu.get(out, n, F32)
    rows = (k & 7) != 4
    np.testing.assert_array_equal(got[rows], np.array([want(i) for i in range(n)], F32)[rows])


def test_assert_fails_with_its_text(module):
    with pytest.raises(DeviceAssert, match=r"k\[threadIdx.x\] < 5.*thread \(7, 0, 0\)"):
        gpu = GPU()
        gpu.launch(module["asserting"], 1, 32, [gpu.put((np.arange(32) == 7).astype(np.int32) * 9)])
