"""Integer and bit instructions on random and awkward data, as hand-written PTX, against numpy and Python integers."""

import numpy as np
import pytest

from devtools.ptx.tests.handwritten import N, check, names, random, run_elementwise

U32, S32, U64, S64 = np.uint32, np.int32, np.uint64, np.int64


def trunc_div(a, b):
    """C's division, by way of Python's integers; where b is 0 the interpreter gives 0."""
    return np.array(
        [
            0 if y == 0 else (abs(int(x)) // abs(int(y))) * (1 if (x < 0) == (y < 0) else -1)
            for x, y in zip(a, b, strict=True)
        ]
    ).astype(a.dtype)


INTEGER = [
    ("add.s32 %d, %a, %b;", U32, [U32, U32], np.add),
    ("sub.u64 %d, %a, %b;", U64, [U64, U64], np.subtract),
    (
        "add.sat.s32 %d, %a, %b;",
        S32,
        [S32, S32],
        lambda a, b: np.clip(a.astype(S64) + b, -(2**31), 2**31 - 1).astype(S32),
    ),
    ("mul.lo.s32 %d, %a, %b;", S32, [S32, S32], np.multiply),
    ("mul.hi.s32 %d, %a, %b;", S32, [S32, S32], lambda a, b: (a.astype(S64) * b >> 32).astype(S32)),
    ("mul.hi.u32 %d, %a, %b;", U32, [U32, U32], lambda a, b: (a.astype(U64) * b >> U64(32)).astype(U32)),
    (
        "mul.hi.u64 %d, %a, %b;",
        U64,
        [U64, U64],
        lambda a, b: np.array([int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)], U64),
    ),
    (
        "mul.hi.s64 %d, %a, %b;",
        S64,
        [S64, S64],
        lambda a, b: np.array([int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)], S64),
    ),
    ("mul.wide.s32 %d, %a, %b;", S64, [S32, S32], lambda a, b: a.astype(S64) * b),
    ("mul.wide.u16 %d, %a, %b;", U32, [np.uint16, np.uint16], lambda a, b: a.astype(U32) * b),
    ("mad.wide.u32 %d, %a, %b, %c;", U64, [U32, U32, U64], lambda a, b, c: a.astype(U64) * b + c),
    ("mad.lo.s32 %d, %a, %b, %c;", U32, [U32, U32, U32], lambda a, b, c: a * b + c),
    (
        "mad.hi.u32 %d, %a, %b, %c;",
        U32,
        [U32, U32, U32],
        lambda a, b, c: (a.astype(U64) * b >> U64(32)).astype(U32) + c,
    ),
    ("mul24.lo.u32 %d, %a, %b;", U32, [U32, U32], lambda a, b: (a & U32(0xFFFFFF)) * (b & U32(0xFFFFFF))),
    ("div.s32 %d, %a, %b;", S32, [S32, S32], trunc_div),
    ("div.u64 %d, %a, %b;", U64, [U64, U64], trunc_div),
    ("rem.s32 %d, %a, %b;", S32, [S32, S32], lambda a, b: np.where(b == 0, 0, a - trunc_div(a, b) * b)),
    ("min.s32 %d, %a, %b;", S32, [S32, S32], np.minimum),
    ("max.u64 %d, %a, %b;", U64, [U64, U64], np.maximum),
    ("abs.s32 %d, %a;", S32, [S32], np.abs),
    ("neg.s64 %d, %a;", S64, [S64], np.negative),
    ("sad.u32 %d, %a, %b, %c;", U32, [U32] * 3, lambda a, b, c: np.maximum(a, b) - np.minimum(a, b) + c),
    (
        "add.cc.u32 %r10, %a, %b; addc.u32 %d, 0, 0;",
        U32,
        [U32, U32],
        lambda a, b: ((a.astype(U64) + b) >> U64(32)).astype(U32),
    ),
    (
        "sub.cc.u32 %r10, %a, %b; subc.u32 %d, 0, 0;",
        U32,
        [U32, U32],
        lambda a, b: np.where(a < b, U32(0xFFFFFFFF), U32(0)),
    ),
    (
        "dp4a.s32.s32 %d, %a, %b, %c;",
        S32,
        [U32, U32, S32],
        lambda a, b, c: (
            (a.view(np.int8).reshape(-1, 4).astype(S64) * b.view(np.int8).reshape(-1, 4)).sum(1) + c
        ).astype(S32),
    ),
    ("add.u16x2 %d, %a, %b;", U32, [U32, U32], lambda a, b: (a.view(np.uint16) + b.view(np.uint16)).view(U32)),
]


def field(a, b, c, bits, signed):
    """bfe by bits, as the manual's pseudo-code."""
    out = []
    for value, start, length in zip(a, b, c, strict=True):
        raw, start, length = int(value) & ((1 << bits) - 1), int(start) & 255, int(length) & 255
        sign = 0 if not signed or not length else raw >> min(start + length - 1, bits - 1) & 1
        got = 0
        for i in range(bits):
            got |= ((raw >> (start + i) & 1) if i < length and start + i < bits else sign) << i
        out.append(got)
    return np.array(out, np.uint64).astype(f"u{bits // 8}").view(a.dtype)


def insert(a, b, start, length):
    mask = ((1 << int(length)) - 1 << int(start)) & 0xFFFFFFFF
    return (int(b) & ~mask) | ((int(a) << int(start)) & mask)


def lop3(table, a, b, c):
    out = np.zeros_like(a)
    for k in range(8):
        if table >> k & 1:
            out |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return out


def prmt(a, b, s):
    out = []
    for x, y, z in zip(a.tolist(), b.tolist(), s.tolist(), strict=True):
        data = (x | y << 32).to_bytes(8, "little")
        picks = [(z >> 4 * k) & 15 for k in range(4)]
        out.append(
            int.from_bytes(bytes(data[p & 7] if p < 8 else (255 if data[p & 7] & 128 else 0) for p in picks), "little")
        )
    return np.array(out, U32)


BITS = [
    ("and.b32 %d, %a, %b;", U32, [U32, U32], np.bitwise_and),
    ("not.b64 %d, %a;", U64, [U64], np.invert),
    ("cnot.b32 %d, %a;", U32, [U32], lambda a: (a == 0).astype(U32)),
    ("shl.b32 %d, %a, %b;", U32, [U32, U32], lambda a, b: np.where(b > 31, 0, a << (b & U32(31))).astype(U32)),
    ("shr.u32 %d, %a, %b;", U32, [U32, U32], lambda a, b: np.where(b > 31, 0, a >> (b & U32(31))).astype(U32)),
    ("shr.s32 %d, %a, %b;", S32, [S32, U32], lambda a, b: a >> np.minimum(b, 31).astype(S32)),
    ("shr.s64 %d, %a, %b;", S64, [S64, U32], lambda a, b: a >> np.minimum(b, 63).astype(S64)),
    (
        "shl.b16 %d, %a, %b;",
        np.uint16,
        [np.uint16, U32],
        lambda a, b: np.where(b > 15, 0, a << (b & 15).astype(np.uint16)).astype(np.uint16),
    ),
    (
        "shf.l.wrap.b32 %d, %a, %b, %c;",
        U32,
        [U32] * 3,
        lambda a, b, c: ((((b.astype(U64) << U64(32)) | a) << (c & U32(31)).astype(U64)) >> U64(32)).astype(U32),
    ),
    (
        "shf.r.clamp.b32 %d, %a, %b, %c;",
        U32,
        [U32] * 3,
        lambda a, b, c: (((b.astype(U64) << U64(32)) | a) >> np.minimum(c, 32).astype(U64)).astype(U32),
    ),
    (
        "and.b32 %b, %b, 63; and.b32 %c, %c, 63; bfe.u32 %d, %a, %b, %c;",
        U32,
        [U32] * 3,
        lambda a, b, c: field(a, b & U32(63), c & U32(63), 32, False),
    ),
    (
        "and.b32 %b, %b, 63; and.b32 %c, %c, 63; bfe.s32 %d, %a, %b, %c;",
        S32,
        [S32, U32, U32],
        lambda a, b, c: field(a, b & U32(63), c & U32(63), 32, True),
    ),
    ("bfe.s64 %d, %a, %b, %c;", S64, [S64, U32, U32], lambda a, b, c: field(a, b, c, 64, True)),
    (
        "bfi.b32 %d, %a, %b, 5, 9;",
        U32,
        [U32, U32],
        lambda a, b: np.array([insert(x, y, 5, 9) for x, y in zip(a, b, strict=True)], U32),
    ),
    ("lop3.b32 %d, %a, %b, %c, 0x96;", U32, [U32] * 3, lambda a, b, c: a ^ b ^ c),
    ("lop3.b32 %d, %a, %b, %c, 0xE8;", U32, [U32] * 3, lambda a, b, c: lop3(0xE8, a, b, c)),
    ("lop3.b32 %d, %a, %b, %c, 0x2D;", U32, [U32] * 3, lambda a, b, c: lop3(0x2D, a, b, c)),
    ("prmt.b32 %d, %a, %b, %c;", U32, [U32] * 3, prmt),
    ("prmt.b32 %d, %a, %b, 0x5410;", U32, [U32] * 2, lambda a, b: prmt(a, b, np.full(N, 0x5410))),
    ("prmt.b32 %d, %a, %b, 0x7632;", U32, [U32] * 2, lambda a, b: prmt(a, b, np.full(N, 0x7632))),
    ("prmt.b32 %d, %a, %b, 0x1054;", U32, [U32] * 2, lambda a, b: prmt(a, b, np.full(N, 0x1054))),
    ("prmt.b32 %d, %a, %b, 0xB3F0;", U32, [U32] * 2, lambda a, b: prmt(a, b, np.full(N, 0xB3F0))),
    ("popc.b64 %d, %a;", U32, [U64], lambda a: np.array([int(x).bit_count() for x in a], U32)),
    ("clz.b32 %d, %a;", U32, [U32], lambda a: np.array([32 - int(x).bit_length() for x in a], U32)),
    ("clz.b64 %d, %a;", U32, [U64], lambda a: np.array([64 - int(x).bit_length() for x in a], U32)),
    ("brev.b32 %d, %a;", U32, [U32], lambda a: np.array([int(f"{x:032b}"[::-1], 2) for x in a], U32)),
    ("bfind.u32 %d, %a;", U32, [U32], lambda a: np.array([(int(x).bit_length() - 1) & 0xFFFFFFFF for x in a], U32)),
    (
        "bfind.s32 %d, %a;",
        U32,
        [S32],
        lambda a: np.array([((int(x) if x >= 0 else ~int(x)).bit_length() - 1) & 0xFFFFFFFF for x in a], U32),
    ),
    ("mov.b64 %rd10, {%a, %b}; mov.b64 {%r10, %d}, %rd10;", U32, [U32, U32], lambda a, b: b),
    ("mov.b32 {%h0, %h1}, %a; mov.b32 %d, {%h1, %h0};", U32, [U32], lambda a: (a >> U32(16)) | (a << U32(16))),
    ("szext.wrap.s32 %d, %a, 8;", S32, [S32], lambda a: a.view(np.uint32).astype(np.int8).astype(S32)),
    ("bmsk.clamp.b32 %d, 4, 8;", U32, [U32], lambda a: np.full(N, 0xFF0, U32)),
]


@pytest.mark.parametrize("text,result,kinds,expected", INTEGER, ids=names(INTEGER))
def test_integer(text, result, kinds, expected):
    check(text, result, kinds, expected)


@pytest.mark.parametrize("text,result,kinds,expected", BITS, ids=names(BITS))
def test_bits(text, result, kinds, expected):
    check(text, result, kinds, expected)


@pytest.mark.parametrize(
    "name,function",
    [
        ("lt.s32", np.less),
        ("lo.u32", np.less),
        ("hs.u32", np.greater_equal),
        ("ne.b32", np.not_equal),
        ("ge.s32", np.greater_equal),
    ],
)
def test_setp_integer(name, function):
    a, b = random(S32, 0), random(S32, 1)
    b[::5] = a[::5]
    x, y = (a, b) if ".s" in name else (a.view(U32), b.view(U32))
    np.testing.assert_array_equal(run_elementwise(f"setp.{name} %d, %a, %b;", bool, a, b), function(x, y))
