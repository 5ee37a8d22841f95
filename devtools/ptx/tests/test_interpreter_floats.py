"""Floating-point instructions, comparisons and conversions, as hand-written PTX, against numpy and exact rationals."""

from fractions import Fraction

import numpy as np
import pytest

from devtools.ptx import bf16_to_f32, f32_to_bf16
from devtools.ptx.tests.handwritten import check, names, random, run_elementwise

U32, S32, U64, S64, F16, F32, F64 = (np.uint32, np.int32, np.uint64, np.int64, np.float16, np.float32, np.float64)


def exact_fma(a, b, c):
    """Through rationals: one rounding, to float32."""
    out = []
    for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True):
        if not np.isfinite([x, y, z]).all():
            out.append(np.float32(np.float64(x) * y + z))
            continue
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        near = np.float64(float(exact))  # correctly rounded to float64 by Python
        if near and np.isfinite(near) and Fraction(float(near)) != exact and int(near.view(U64)) & 1 == 0:
            near = np.nextafter(near, np.inf if exact > Fraction(float(near)) else -np.inf)  # round to odd
        out.append(np.float32(near) if exact or x * y + z else np.float32(x * y + z))
    return np.array(out, F32)


def exact_fma_f64(a, b, c):
    """Python rounds a rational to float64 correctly."""
    return np.array(
        [
            float(Fraction(x) * Fraction(y) + Fraction(z)) if np.isfinite([x, y, z]).all() else x * y + z
            for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
        ]
    )


FLOAT = [
    ("add.f32 %d, %a, %b;", F32, [F32, F32], np.add),
    ("add.rz.f32 %d, %a, %b;", F32, [F32, F32], lambda a, b: toward_zero(a, b)),
    ("sub.f64 %d, %a, %b;", F64, [F64, F64], np.subtract),
    ("mul.f32 %d, %a, %b;", F32, [F32, F32], np.multiply),
    ("mul.ftz.f32 %d, %a, %b;", F32, [F32, F32], lambda a, b: ftz(ftz(a) * ftz(b))),
    ("add.sat.f32 %d, %a, %b;", F32, [F32, F32], lambda a, b: np.nan_to_num(np.clip(a + b, 0, 1), nan=0.0)),
    ("div.rn.f32 %d, %a, %b;", F32, [F32, F32], np.divide),
    ("div.full.f32 %d, %a, %b;", F32, [F32, F32], np.divide),
    ("rcp.rn.f32 %d, %a;", F32, [F32], lambda a: F32(1) / a),
    ("sqrt.rn.f32 %d, %a;", F32, [F32], np.sqrt),
    ("fma.rn.f32 %d, %a, %b, %c;", F32, [F32] * 3, exact_fma),
    ("neg.f32 %d, %a;", F32, [F32], np.negative),
    ("abs.f32 %d, %a;", F32, [F32], np.abs),
    ("min.f32 %d, %a, %b;", F32, [F32, F32], np.fmin),
    ("max.NaN.f32 %d, %a, %b;", F32, [F32, F32], np.maximum),
    ("max.f16x2 %d, %a, %b;", U32, [U32, U32], lambda a, b: np.fmax(a.view(F16), b.view(F16)).view(U32)),
    ("copysign.f32 %d, %a, %b;", F32, [F32, F32], lambda a, b: np.copysign(b, a)),
    ("add.f16 %d, %a, %b;", F16, [F16, F16], np.add),
    ("fma.rn.f16 %d, %a, %b, %c;", F16, [F16] * 3, lambda a, b, c: (a.astype(F64) * b + c).astype(F16)),
    ("mul.f16x2 %d, %a, %b;", U32, [U32, U32], lambda a, b: (a.view(F16) * b.view(F16)).view(U32)),
    ("fma.rn.f64 %d, %a, %b, %c;", F64, [F64] * 3, lambda a, b, c: exact_fma_f64(a, b, c)),
]
PACKED = [
    ("add.rn.f32x2 %d, %a, %b;", lambda a, b, c: a + b),
    ("mul.rn.f32x2 %d, %a, %b;", lambda a, b, c: a * b),
    ("fma.rn.f32x2 %d, %a, %b, %c;", exact_fma),
]
APPROXIMATE = [
    ("ex2.approx.f32 %d, %a;", lambda a: np.exp2(a)),
    ("lg2.approx.f32 %d, %a;", lambda a: np.log2(a)),
    ("rsqrt.approx.f32 %d, %a;", lambda a: 1 / np.sqrt(a)),
    ("tanh.approx.f32 %d, %a;", np.tanh),
    ("sin.approx.f32 %d, %a;", np.sin),
    ("cos.approx.f32 %d, %a;", np.cos),
    ("rcp.approx.f32 %d, %a;", lambda a: 1 / a),
]


def ftz(a):
    return np.where(np.abs(a) < F32(2.0**-126), np.copysign(F32(0), a), a)


def toward_zero(a, b):
    """a + b truncated to float32, by way of rationals."""
    out = []
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        near = F32(F64(x) + y)
        if np.isfinite([x, y, near]).all() and abs(Fraction(float(near))) > abs(Fraction(x) + Fraction(y)):
            near = np.nextafter(near, F32(0))
        out.append(near)
    return np.array(out, F32)


@pytest.mark.parametrize("text,result,kinds,expected", FLOAT, ids=names(FLOAT))
def test_float(text, result, kinds, expected):
    """NaN payloads of packed results are compared as floats."""
    inputs = [random(kind, seed) for seed, kind in enumerate(kinds)]
    got = run_elementwise(text, result, *inputs)
    with np.errstate(all="ignore"):
        want = np.asarray(expected(*inputs)).astype(result)
    if "x2" in text:
        got, want = got.view(F16), want.view(F16)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("text,expected", PACKED, ids=names(PACKED))
def test_two_float32_in_a_64_bit_register(text, expected):
    inputs = [np.concatenate([random(F32, seed), random(F32, seed + 7)]) for seed in range(3)]
    got = run_elementwise(text, U64, *[x.view(U64) for x in inputs]).view(F32)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(got, expected(*inputs))


@pytest.mark.parametrize("text,expected", APPROXIMATE, ids=names(APPROXIMATE))
def test_approximate(text, expected):
    check(text, F32, [F32], lambda a: expected(a.astype(F64)).astype(F32), tolerance=1e-6)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "min", "max"])
@pytest.mark.parametrize("kind", ["bf16", "bf16x2"])
def test_bf16_arithmetic(name, kind):
    """One rounding to bfloat16 of the float32 result."""
    dtype = np.uint16 if kind == "bf16" else U32
    values = [f32_to_bf16(random(F32, seed)) for seed in (0, 1)]
    values = [v if kind == "bf16" else np.repeat(v, 2).view(U32) for v in values]
    got = run_elementwise(f"{name}.{kind} %d, %a, %b;", dtype, *values).view(np.uint16)
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.fmin, "max": np.fmax}[name]
    with np.errstate(all="ignore"):
        want = f32_to_bf16(function(*[bf16_to_f32(v.view(np.uint16)) for v in values]))
    np.testing.assert_array_equal(bf16_to_f32(got), bf16_to_f32(want))


def test_bf16_fma():
    """Neither neighbour of the result is nearer to the exact value."""
    a, b, c = [f32_to_bf16(random(F32, seed)) for seed in range(3)]
    got = run_elementwise("fma.rn.bf16 %d, %a, %b, %c;", np.uint16, a, b, c)
    with np.errstate(all="ignore"):
        exact = bf16_to_f32(a).astype(F64) * bf16_to_f32(b) + bf16_to_f32(c)
    fine = np.isfinite(exact) & (exact != 0) & np.isfinite(bf16_to_f32(got))
    assert fine.sum() > 400
    error = np.abs(bf16_to_f32(got[fine]) - exact[fine])
    for neighbour in (got[fine] + np.uint16(1), got[fine] - np.uint16(1)):
        other = np.abs(bf16_to_f32(neighbour) - exact[fine])
        assert (np.isnan(other) | (error <= other)).all()


def test_minus_zero_is_less_than_zero():
    zeros = np.tile(np.array([0.0, -0.0], F32), 64), np.repeat(np.array([0.0, -0.0], F32), 64)
    got = run_elementwise("min.f32 %d, %a, %b;", F32, *zeros)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(zeros[0]) | np.signbit(zeros[1]))
    got = run_elementwise("max.f32 %d, %a, %b;", F32, *zeros)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(zeros[0]) & np.signbit(zeros[1]))


def test_fma_rounds_once():
    """The float64 sum is a tie of float32 only because it lost the product's last bit; rounding again goes up."""
    a, b, c = F32(1 + 2.0**-15), F32(2.0**-24 - 2.0**-39), F32(1 + 2.0**-23)
    assert F32(F64(a) * F64(b) + F64(c)) == F32(1 + 2.0**-22)  # what two roundings give
    got = run_elementwise("fma.rn.f32 %d, %a, %b, %c;", F32, *[np.full(128, x) for x in (a, b, c)])
    assert (got == c).all()
    got = run_elementwise("fma.rn.f32 %d, %a, %b, %c;", F32, *[np.full(128, x) for x in (-a, b, -c)])
    assert (got == -c).all()


@pytest.mark.parametrize("name,function", [("ex2.approx.ftz", np.exp2), ("tanh.approx", np.tanh)])
@pytest.mark.parametrize("kind", ["bf16x2", "f16x2"])
def test_packed_functions(name, function, kind):
    """Two lanes at once, to one unit in the last place of the narrow type."""
    x = np.clip(random(F32, 3), -20, 15) if kind == "f16x2" else random(F32, 3)
    bits = f32_to_bf16(x) if kind == "bf16x2" else x.astype(F16).view(np.uint16)

    def widen(v):
        return bf16_to_f32(v) if kind == "bf16x2" else v.view(F16).astype(F32)

    got = widen(run_elementwise(f"{name}.{kind} %d, %a;", U32, bits.view(U32)).view(np.uint16))
    with np.errstate(all="ignore"):
        want = function(widen(bits).astype(F64))
        want = want.astype(F16 if kind == "f16x2" else F32).astype(F64)
    np.testing.assert_allclose(
        got, want, rtol=2**-8 if kind == "bf16x2" else 2**-10, atol=2e-38 if kind == "bf16x2" else 7e-5
    )


FLOAT_COMPARISONS = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "equ": lambda a, b: (a == b) | np.isnan(a) | np.isnan(b),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}


@pytest.mark.parametrize("name", FLOAT_COMPARISONS)
def test_setp_float(name):
    a, b = random(F32, 0), random(F32, 1)
    b[::5] = a[::5]
    got = run_elementwise(f"setp.{name}.f32 %d, %a, %b;", bool, a, b)
    np.testing.assert_array_equal(got, FLOAT_COMPARISONS[name](a, b))


def test_setp_combined():
    """p = cmp and/or c, q = not cmp and/or c; the third operand may be negated."""
    a, b = random(S32, 0), random(S32, 1)
    setup = "setp.gt.s32 %p1, %a, 0;"
    got = run_elementwise("setp.lt.and.s32 %p2|%d, %a, %b, %p1;", bool, a, b, setup=setup)
    np.testing.assert_array_equal(got, ~(a < b) & (a > 0))
    got = run_elementwise("setp.lt.or.s32 %d|%p3, %a, %b, !%p1;", bool, a, b, setup=setup)
    np.testing.assert_array_equal(got, (a < b) | ~(a > 0))
    got = run_elementwise("setp.lt.s32 %p2, %a, %b; xor.pred %d, %p2, %p1;", bool, a, b, setup=setup)
    np.testing.assert_array_equal(got, (a < b) ^ (a > 0))


def test_selections():
    check("slct.f32.s32 %d, %a, %b, %c;", F32, [F32, F32, S32], lambda a, b, c: np.where(c >= 0, a, b))
    check("setp.gt.s32 %p1, %a, %b; selp.b32 %d, %a, 7, %p1;", S32, [S32, S32], lambda a, b: np.where(a > b, a, 7))
    check("set.gt.u32.f32 %d, %a, %b;", U32, [F32, F32], lambda a, b: np.where(a > b, U32(0xFFFFFFFF), U32(0)))
    check("testp.finite.f32 %d, %a;", bool, [F32], np.isfinite)
    check("testp.subnormal.f32 %d, %a;", bool, [F32], lambda a: (a != 0) & (np.abs(a) < 2.0**-126))


def to_int(a, low, high, whole, nan=0):
    value = whole(a.astype(F64))
    return np.array([nan if np.isnan(v) else int(min(max(v, low), high)) for v in value])


CONVERSIONS = [
    ("cvt.rzi.s32.f32 %d, %a;", S32, [F32], lambda a: to_int(a, -(2**31), 2**31 - 1, np.trunc).astype(S32)),
    ("cvt.rni.s32.f32 %d, %a;", S32, [F32], lambda a: to_int(a, -(2**31), 2**31 - 1, np.rint).astype(S32)),
    ("cvt.rmi.u32.f32 %d, %a;", U32, [F32], lambda a: to_int(a, 0, 2**32 - 1, np.floor).astype(U32)),
    ("cvt.rpi.s64.f64 %d, %a;", S64, [F64], lambda a: to_int(a, -(2**63), 2**63 - 1, np.ceil, -(2**63)).astype(S64)),
    ("cvt.rn.f32.s32 %d, %a;", F32, [S32], lambda a: a.astype(F32)),
    ("cvt.rz.f32.u32 %d, %a;", F32, [U32], lambda a: np.array([down(int(x)) for x in a], F32)),
    ("cvt.rn.f32.s64 %d, %a;", F32, [S64], lambda a: a.astype(F32)),
    ("cvt.rn.f64.u64 %d, %a;", F64, [U64], lambda a: a.astype(F64)),
    ("cvt.rn.f16.f32 %d, %a;", F16, [F32], lambda a: a.astype(F16)),
    ("cvt.f32.f16 %d, %a;", F32, [F16], lambda a: a.astype(F32)),
    ("cvt.rn.f32.f64 %d, %a;", F32, [F64], lambda a: a.astype(F32)),
    ("cvt.f64.f32 %d, %a;", F64, [F32], lambda a: a.astype(F64)),
    ("cvt.rmi.f32.f32 %d, %a;", F32, [F32], np.floor),
    ("cvt.sat.f32.f32 %d, %a;", F32, [F32], lambda a: np.nan_to_num(np.clip(a, 0, 1), nan=0.0)),
    ("cvt.s64.s32 %d, %a;", S64, [S32], lambda a: a.astype(S64)),
    ("cvt.u16.u32 %d, %a;", np.uint16, [U32], lambda a: a.astype(np.uint16)),
    ("cvt.s32.s8 %d, %a;", S32, [S32], lambda a: a.astype(np.int8).astype(S32)),
    ("cvt.sat.s8.s32 %d, %a;", S32, [S32], lambda a: np.clip(a, -128, 127)),
    ("cvt.rn.bf16.f32 %d, %a;", np.uint16, [F32], f32_to_bf16),
    ("cvt.f32.bf16 %d, %a;", F32, [np.uint16], bf16_to_f32),
    (
        "cvt.rn.bf16x2.f32 %d, %a, %b;",
        U32,
        [F32, F32],
        lambda a, b: np.stack([f32_to_bf16(b), f32_to_bf16(a)], 1).view(U32)[:, 0],
    ),
    (
        "cvt.rn.f16x2.f32 %d, %a, %b;",
        U32,
        [F32, F32],
        lambda a, b: np.stack([b.astype(F16), a.astype(F16)], 1).view(U32)[:, 0],
    ),
    ("cvt.rn.relu.f16.f32 %d, %a;", F16, [F32], lambda a: np.where(a < 0, F16(0), a.astype(F16))),
]


def down(x: int) -> float:
    near = F32(x)
    return float(near) if int(near) <= x else float(np.nextafter(near, F32(0)))


@pytest.mark.parametrize("text,result,kinds,expected", CONVERSIONS, ids=names(CONVERSIONS))
def test_conversions(text, result, kinds, expected):
    check(text, result, kinds, expected)


def test_bf16_rounding_against_all_halves():
    """Every upper half with ties and neighbours of ties in the lower: to nearest even."""
    upper = np.arange(0, 0x7F80, 37, dtype=U32) << U32(16)
    bits = (upper[:, None] | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], U32)).reshape(-1)
    exact = bits.view(F32).astype(F64)
    low, high = (
        (bits & U32(0xFFFF0000)).view(F32).astype(F64),
        ((bits & U32(0xFFFF0000)) + U32(0x10000)).view(F32).astype(F64),
    )
    even = (bits >> U32(16)) & U32(1) == 0
    to_low = (exact - low < high - exact) | ((exact - low == high - exact) & even)
    keep = np.isfinite(high)
    got = bf16_to_f32(f32_to_bf16(bits.view(F32)))
    np.testing.assert_array_equal(got[keep], np.where(to_low, low, high)[keep].astype(F32))
