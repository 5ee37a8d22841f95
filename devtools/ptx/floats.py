"""IEEE arithmetic that numpy lacks: bfloat16, directed rounding, fused multiply-add, flushing of subnormals."""

import numpy as np

F32_TINY = np.float32(2.0**-126)
ROUNDINGS = {"rz", "rm", "rp", "rzi", "rmi", "rpi"}


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 bits (uint16): exact."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(values: np.ndarray, mode: str = "rn") -> np.ndarray:
    """bfloat16 bits (uint16) of float32, to nearest even by default; NaN becomes the canonical 0x7FFF."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    if mode == "rn":
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    elif mode == "rna":
        rounded = bits + np.uint32(0x8000)
    else:
        up = {"rz": np.zeros(values.shape, bool), "rp": values > 0, "rm": values < 0}[mode]
        rounded = bits + np.where(up, np.uint32(0xFFFF), np.uint32(0))
    rounded = np.where(np.isinf(values), bits, rounded)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded >> np.uint32(16)).astype(np.uint16)


def f64_to_bf16(values: np.ndarray) -> np.ndarray:
    """bfloat16 bits of float64 with one rounding: float32 takes the sticky bit on the way (round to odd)."""
    values = np.asarray(values, np.float64)
    near = toward_zero(values)
    bits = near.view(np.uint32)
    inexact = (near != values) & np.isfinite(values)
    return f32_to_bf16(np.where(inexact, bits | np.uint32(1), bits).view(np.float32))


def toward_zero(values: np.ndarray) -> np.ndarray:
    """float64 to float32, truncating."""
    return directed(values, "rz", np.float32)


def directed(values: np.ndarray, mode: str, dtype, residual=0.0) -> np.ndarray:
    """``values + residual`` (float64, residual smaller than half a unit of values) rounded to ``dtype`` by mode."""
    values = np.asarray(values)
    near = np.asarray(values.astype(dtype))
    if mode in ("rn", "rni"):
        return near
    error = (near.astype(values.dtype) - values) - residual
    if mode == "rz":
        wrong, goal = np.where(values > 0, error > 0, error < 0), np.zeros((), dtype)
    elif mode == "rm":
        wrong, goal = error > 0, np.array(-np.inf, dtype)
    else:
        wrong, goal = error < 0, np.array(np.inf, dtype)
    return np.where(wrong & ~np.isnan(near), np.nextafter(near, goal), near)


def flush(values: np.ndarray) -> np.ndarray:
    """.ftz: subnormal float32 become zeros of their sign."""
    return np.where(np.abs(values) < F32_TINY, np.copysign(np.float32(0), values), values)


def saturate(values: np.ndarray) -> np.ndarray:
    """.sat: clamp to [0, 1], NaN to +0."""
    zero, one = values.dtype.type(0), values.dtype.type(1)
    return np.where(values > zero, np.minimum(values, one), zero)


def two_sum(a, b):
    """The rounded sum and its exact error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def fma_f32(a, b, c) -> np.ndarray:
    """float32 fused multiply-add with one rounding.

    The product of two float32 is exact in float64; rounding the float64 sum to float32 differs from one rounding only
    if that sum lies on a tie of float32 and was itself inexact, so ties alone take the slow path. Exception: subnormal
    results (below 2^-126), where ties lie elsewhere and a last bit may be off.
    """
    product = a.astype(np.float64)
    product *= b
    total = product + c
    low_words = np.ascontiguousarray(total).view(np.uint32)[..., ::2]
    tie = (low_words << np.uint32(3)) == np.uint32(0x80000000)
    if tie.any():
        total[tie] = _to_odd(*two_sum(product[tie], np.broadcast_to(c, total.shape)[tie].astype(np.float64)))
    return total.astype(np.float32)


def _to_odd(total, error):
    """A float64 that later roundings treat like ``total + error``."""
    step = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & np.isfinite(total), step, total)


def fma_f32_directed(a, b, c, mode) -> np.ndarray:
    total, error = two_sum(a.astype(np.float64) * b, c.astype(np.float64))
    return directed(total, mode, np.float32, np.where(np.isfinite(total), error, 0.0))


def fma_f16(a, b, c) -> np.ndarray:
    """float16: product and sum are exact in float64 (products have 22 bits, exponents span 80), so one rounding."""
    return (a.astype(np.float64) * b + c).astype(np.float16)


def fma_bf16(a, b, c) -> np.ndarray:
    """bfloat16 (as bits): exact product, float64 sum; double rounding only if exponents lie 2^37 apart."""
    return f64_to_bf16(bf16_to_f32(a).astype(np.float64) * bf16_to_f32(b) + bf16_to_f32(c))


def fma_f64(a, b, c) -> np.ndarray:
    """float64: error-free product and sum, added at the end; exact but for rare last-bit ties and extreme exponents."""
    product = a * b
    total, error = two_sum(product, np.asarray(c))
    result = total + (error + _product_error(a, b, product))
    return np.where(np.isfinite(result), result, product + c)


def _split(x):
    """Veltkamp's halves: two numbers of 26 bits whose sum is x."""
    big = x * 134217729.0
    high = big - (big - x)
    return high, x - high


def _product_error(a, b, product):
    (ah, al), (bh, bl) = _split(a), _split(b)
    return ((ah * bh - product) + ah * bl + al * bh) + al * bl
