"""Triton's own PTX, compiled for sm_80, sm_90 and sm_100 without a GPU, run unmodified against numpy.

A compiled kernel has two more parameters than its source, pointers to scratch memory, for which 0 is passed.
"""

import numpy as np
import pytest

from devtools.ptx import GPU, bf16_to_f32, f32_to_bf16, parse
from devtools.ptx.compilers import triton_ptx

triton = pytest.importorskip("triton", reason="Triton is not installed: none of its PTX to run")
tl = pytest.importorskip("triton.language")

F32, F64 = np.float32, np.float64
ARCHITECTURES = (80, 90, 100)


@triton.jit
def softmax(x, y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    v = tl.load(x + row * columns + c, mask=c < columns, other=-float("inf"))
    e = tl.exp(v - tl.max(v, 0))
    tl.store(y + row * columns + c, e / tl.sum(e, 0), mask=c < columns)


@triton.jit
def blend_bf16(a, b, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    p = tl.load(a + i, mask=i < n).to(tl.float32)
    q = tl.load(b + i, mask=i < n).to(tl.float32)
    tl.store(y + i, (p * q + tl.sigmoid(p)).to(tl.bfloat16), mask=i < n)


@triton.jit
def both_sums(x, rows, columns, total, M: tl.constexpr, N: tl.constexpr):
    r, c = tl.arange(0, M), tl.arange(0, N)
    v = tl.load(x + r[:, None] * N + c[None, :])
    tl.store(rows + r, tl.sum(v, 1))
    tl.store(columns + c, tl.sum(v, 0))
    tl.atomic_add(total + tl.program_id(0), tl.sum(tl.sum(v * v, 1), 0))


@triton.jit
def masked_tiles(s, t, out, channels, pixels, BC: tl.constexpr, BP: tl.constexpr):
    """Sum over pixels of squared differences, and of |s|, per channel; tiles stick out on both sides."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    difference = tl.zeros((BC,), tl.float32)
    absolute = tl.zeros((BC,), tl.float32)
    for start in tl.range(0, pixels, BP, num_stages=3):
        p = start + tl.arange(0, BP)
        m = (c[:, None] < channels) & (p[None, :] < pixels)
        off = c[:, None] * pixels + p[None, :]
        a = tl.load(s + off, mask=m, other=0.0).to(tl.float32)
        b = tl.load(t + off, mask=m, other=0.0).to(tl.float32)
        difference += tl.sum((a - b) * (a - b), 1)
        absolute += tl.sum(tl.abs(a), 1)
    tl.store(out + c, difference, mask=c < channels)
    tl.store(out + channels + c, absolute, mask=c < channels)


@triton.jit
def transpose(x, y, M: tl.constexpr, N: tl.constexpr):
    """The layouts of load and store differ: goes through shared memory, with stmatrix where the target has it."""
    r, c = tl.arange(0, M), tl.arange(0, N)
    v = tl.load(x + r[:, None] * N + c[None, :])
    tl.store(y + c[:, None] * M + r[None, :], tl.trans(v))


@triton.jit
def scan(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.cumsum(tl.load(x + i), 0))


def compiled(function, arch, signature, constants, aligned=(), **options):
    full = signature | dict.fromkeys(constants, "constexpr")
    ptx, shared = triton_ptx(function, full, constants, arch, aligned, **options)
    module = parse(ptx)
    return next(iter(module.values())), shared


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(F32)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_softmax(arch):
    kernel, shared = compiled(
        softmax, arch, {"x": "*fp32", "y": "*fp32", "columns": "i32"}, {"BLOCK": 512}, num_warps=4
    )
    x, gpu = random(7, 400), GPU()
    y = gpu.empty(x.nbytes)
    counts = gpu.launch(kernel, 7, 128, [gpu.put(x), y, 400, 0, 0], shared_bytes=shared)
    e = np.exp(x.astype(F64) - x.max(1, keepdims=True))
    np.testing.assert_allclose(gpu.get(y, x.shape, F32), e / e.sum(1, keepdims=True), rtol=2e-6)
    assert counts.global_read_bytes == x.nbytes and counts.global_write_bytes == x.nbytes


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_bf16_elementwise(arch):
    signature = {"a": "*bf16", "b": "*bf16", "y": "*bf16", "n": "i32"}
    kernel, shared = compiled(blend_bf16, arch, signature, {"BLOCK": 1024}, aligned=("a", "b", "y", "n"), num_warps=4)
    n, gpu = 4000, GPU()
    a, b = f32_to_bf16(random(n)), f32_to_bf16(random(n + 1)[1:])
    y = gpu.empty(2 * n)
    counts = gpu.launch(kernel, 4, 128, [gpu.put(a), gpu.put(b), y, n, 0, 0], shared_bytes=shared)
    p, q = bf16_to_f32(a).astype(F64), bf16_to_f32(b)
    np.testing.assert_allclose(gpu.get(y, n, "bf16"), p * q + 1 / (1 + np.exp(-p)), rtol=2**-8, atol=1e-6)
    assert dict(counts.global_read_bytes_by_width) == {16: 4 * n}  # aligned: 128-bit loads throughout
    assert counts.global_read_sectors * 32 == 4 * n


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sums_over_both_axes(arch):
    signature = {"x": "*fp32", "rows": "*fp32", "columns": "*fp32", "total": "*fp32"}
    kernel, shared = compiled(both_sums, arch, signature, {"M": 64, "N": 32}, num_warps=4)
    x, gpu = random(64, 32), GPU()
    rows, columns, total = gpu.empty(256), gpu.empty(128), gpu.put(np.zeros(1, F32))
    gpu.launch(kernel, 1, 128, [gpu.put(x), rows, columns, total, 0, 0], shared_bytes=shared)
    np.testing.assert_allclose(gpu.get(rows, 64, F32), x.sum(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gpu.get(columns, 32, F32), x.sum(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gpu.get(total, 1, F32), (x * x).sum(), rtol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_masked_tiles_with_a_loop(arch, dtype):
    """Software-pipelined: the loads of later tiles become cp.async, with zero fill where masked."""
    signature = {"s": f"*{dtype}", "t": f"*{dtype}", "out": "*fp32", "channels": "i32", "pixels": "i32"}
    kernel, shared = compiled(
        masked_tiles, arch, signature, {"BC": 32, "BP": 64}, aligned=("s", "t", "pixels"), num_warps=4, num_stages=3
    )
    channels, pixels, gpu = 50, 208, GPU()
    encode = {"fp32": lambda x: x, "fp16": lambda x: x.astype(np.float16), "bf16": f32_to_bf16}[dtype]
    s, t = encode(random(channels, pixels)), encode(random(channels + 1, pixels)[1:])
    out = gpu.empty(8 * channels)
    gpu.launch(kernel, 2, 128, [gpu.put(s), gpu.put(t), out, channels, pixels, 0, 0], shared_bytes=shared)
    a, b = (bf16_to_f32(v) if dtype == "bf16" else v.astype(F32) for v in (s, t))
    want = np.stack([((a.astype(F64) - b) ** 2).sum(1), np.abs(a.astype(F64)).sum(1)])
    np.testing.assert_allclose(gpu.get(out, (2, channels), F32), want, rtol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype,size", [("fp16", 2), ("fp32", 4)])
def test_transpose(arch, dtype, size):
    kernel, shared = compiled(
        transpose, arch, {"x": f"*{dtype}", "y": f"*{dtype}"}, {"M": 64, "N": 32}, aligned=("x", "y"), num_warps=4
    )
    x, gpu = np.arange(64 * 32).reshape(64, 32).astype(f"f{size}"), GPU()
    y = gpu.empty(x.nbytes)
    gpu.launch(kernel, 1, 128, [gpu.put(x), y, 0, 0], shared_bytes=shared)
    np.testing.assert_array_equal(gpu.get(y, (32, 64), x.dtype), x.T)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scan(arch):
    kernel, shared = compiled(scan, arch, {"x": "*fp32", "y": "*fp32"}, {"N": 512}, num_warps=4)
    x, gpu = random(512), GPU()
    y = gpu.empty(2048)
    gpu.launch(kernel, 1, 128, [gpu.put(x), y, 0, 0], shared_bytes=shared)
    np.testing.assert_allclose(gpu.get(y, 512, F32), x.cumsum(dtype=F64), rtol=1e-4, atol=1e-4)
