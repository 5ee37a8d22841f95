"""Bits: logic, shifts, fields, permutations, counts."""

import numpy as np

from .. import syntax
from ..ptx_types import last_type, parse_literal, type_of
from ..steps import elementwise
from .registry import instruction

U32, U64 = np.uint32, np.uint64


def _same(program, ins, function, kinds=None, result=None):
    """A step whose sources have ``kinds`` (default: all the opcode's type)."""
    kind = last_type(ins.parts)
    kinds = kinds or [kind] * (len(ins.operands) - 1)
    sources = [program.source(operand, k) for operand, k in zip(ins.operands[1:], kinds, strict=True)]
    return elementwise(program.target(ins.operands[0], result or kind), sources, function)


@instruction("and", "or", "xor", "not", "cnot")
def build_logic(program, ins):
    kind = last_type(ins.parts)
    functions = {
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "not": np.invert,
        "cnot": lambda a: (a == 0).astype(kind.dtype),
    }
    if kind.kind == "p":
        return _predicate_logic(program, ins, functions[ins.parts[0]])
    return _same(program, ins, functions[ins.parts[0]])


def _predicate_logic(program, ins, function):
    """Predicates may come negated."""
    sources = [program.predicate(operand) for operand in ins.operands[1:]]
    flips = [negated for _, negated in sources]
    plain = (
        function
        if not any(flips)
        else lambda *v: function(*[~x if flip else x for x, flip in zip(v, flips, strict=True)])
    )
    return elementwise(program.target(ins.operands[0], type_of("pred")), [slot for slot, _ in sources], plain)


@instruction("shl", "shr")
def build_shift(program, ins):
    """Amounts beyond the width give 0, or the sign, as numpy's shifts do."""
    kind = last_type(ins.parts)
    function = np.left_shift if ins.parts[0] == "shl" else np.right_shift
    amount_kind = type_of("u32")
    if kind.bits == 32:
        amount_kind = kind  # an amount beyond 2^31 turns negative, which numpy treats as beyond the width too
        return _same(program, ins, function, [kind, amount_kind])
    limit = U32(kind.bits)
    return _same(program, ins, lambda a, n: function(a, np.minimum(n, limit).astype(a.dtype)), [kind, amount_kind])


@instruction("shf")
def build_funnel_shift(program, ins):
    """shf.l keeps the upper word of (b:a) << n, shf.r the lower word of (b:a) >> n."""
    left, wrap = "l" in ins.parts, "wrap" in ins.parts

    def funnel(a, b, n):
        n = (n & U32(31) if wrap else np.minimum(n, U32(32))).astype(U64)
        both = (b.astype(U64) << U64(32)) | a
        return ((both << n) >> U64(32) if left else both >> n).astype(U32)

    return _same(program, ins, funnel, [type_of("u32")] * 3, type_of("u32"))


@instruction("lop3")
def build_lop3(program, ins):
    """Any function of three bits, by its truth table; split on a, then a table of two bits each."""
    table = int(parse_literal(ins.operands[4].text, type_of("u32")))
    ones, zeros = _two_bit_logic(table >> 4), _two_bit_logic(table & 15)
    sources = [program.source(operand, type_of("u32")) for operand in ins.operands[1:4]]
    target = program.target(ins.operands[0], type_of("u32"))
    return elementwise(target, sources, lambda a, b, c: (a & ones(b, c)) | (~a & zeros(b, c)))


def _two_bit_logic(table: int):
    """f(b, c) whose value at bits (b, c) is bit 2b+c of ``table``."""
    terms = {1: lambda b, c: ~(b | c), 2: lambda b, c: ~b & c, 4: lambda b, c: b & ~c, 8: lambda b, c: b & c}
    short = {
        0: lambda b, c: U32(0),
        15: lambda b, c: U32(0xFFFFFFFF),
        12: lambda b, c: b,
        10: lambda b, c: c,
        3: lambda b, c: ~b,
        5: lambda b, c: ~c,
        6: lambda b, c: b ^ c,
        9: lambda b, c: ~(b ^ c),
        14: lambda b, c: b | c,
        7: lambda b, c: ~(b & c),
    }
    if table in short:
        return short[table]
    chosen = [term for bit, term in terms.items() if table & bit]
    return lambda b, c: np.bitwise_or.reduce([term(b, c) for term in chosen])


@instruction("bfe")
def build_extract(program, ins):
    kind = last_type(ins.parts)
    bits, u32 = kind.bits, type_of("u32")
    if not kind.signed:

        def extract(a, start, length):
            start, length = start & U32(255), length & U32(255)
            value = a >> np.minimum(start, U32(bits)).astype(a.dtype)
            return np.where(
                length >= bits, value, value & ((a.dtype.type(1) << length.astype(a.dtype)) - a.dtype.type(1))
            )
    else:

        def extract(a, start, length):
            start, length = (start & U32(255)).astype(np.int64), (length & U32(255)).astype(np.int64)
            end = np.minimum(start + length, bits)  # one past the field; bits beyond the word copy its sign
            value = a << np.clip(bits - end, 0, bits).astype(a.dtype)
            field = value >> np.clip(bits - (end - start), 0, bits - 1).astype(a.dtype)
            sign_only = np.where(a < 0, a.dtype.type(-1), a.dtype.type(0))
            return np.where(length == 0, a.dtype.type(0), np.where(start >= bits, sign_only, field))

    return _same(program, ins, extract, [kind, u32, u32])


@instruction("bfi")
def build_insert(program, ins):
    kind, u32 = last_type(ins.parts), type_of("u32")

    def insert(a, b, start, length):
        one = a.dtype.type(1)
        start, length = (start & U32(255)).astype(a.dtype), (length & U32(255)).astype(a.dtype)
        mask = np.where(length >= kind.bits, ~a.dtype.type(0), (one << length) - one) << start
        return (b & ~mask) | ((a << start) & mask)

    return _same(program, ins, insert, [kind, kind, u32, u32])


def bit_length(a: np.ndarray) -> np.ndarray:
    """Position of the highest set bit plus one; 0 for 0."""
    if a.dtype.itemsize == 8:
        high = (a >> U64(32)).astype(U32)
        return np.where(high > 0, bit_length(high) + U32(32), bit_length(a.astype(U32)))
    return np.frexp(a.astype(np.float64))[1].astype(U32)


@instruction("popc", "clz")
def build_count(program, ins):
    kind = last_type(ins.parts)
    if ins.parts[0] == "popc":
        return _same(program, ins, lambda a: np.bitwise_count(a).astype(U32), result=type_of("u32"))
    return _same(program, ins, lambda a: U32(kind.bits) - bit_length(a), result=type_of("u32"))


@instruction("bfind")
def build_find(program, ins):
    """The highest bit that differs from the sign; .shiftamt gives the left shift that brings it to the top."""
    kind = last_type(ins.parts)
    unsigned = np.dtype(f"u{kind.bytes}")

    def find(a):
        if kind.signed:
            a = np.where(a < 0, ~a, a).view(unsigned)
        found = bit_length(a) - U32(1)  # 0xFFFFFFFF where there is none
        return (
            np.where(found == U32(0xFFFFFFFF), found, U32(kind.bits - 1) - found) if "shiftamt" in ins.parts else found
        )

    return _same(program, ins, find, result=type_of("u32"))


@instruction("brev")
def build_reverse(program, ins):
    kind = last_type(ins.parts)

    def reverse(a):
        raw = np.ascontiguousarray(a).view(np.uint8).reshape(-1, kind.bytes)[:, ::-1]
        bits = np.unpackbits(raw, axis=1, bitorder="big").reshape(-1, kind.bytes, 8)[:, :, ::-1]
        return np.packbits(bits.reshape(-1, kind.bits), axis=1, bitorder="big").view(a.dtype)[:, 0]

    return _same(program, ins, reverse)


@instruction("prmt")
def build_permute(program, ins):
    """Four bytes picked from eight. Default mode: a selector nibble each, its top bit replicating the byte's sign."""
    modes = {"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"} & set(ins.parts)
    mode = modes.pop() if modes else None

    def permute(a, b, selector):
        both = (b.astype(U64) << U64(32)) | a
        result = U32(0)
        for k in range(4):
            nibble = (selector >> U32(4 * k)) & U32(15) if mode is None else _special_nibble(mode, k, selector & U32(3))
            byte = ((both >> ((nibble & U32(7)).astype(U64) << U64(3))) & U64(255)).astype(U32)
            sign = np.where(byte & U32(128), U32(255), U32(0))
            result = result | (np.where(nibble & U32(8), sign, byte) << U32(8 * k))
        return result

    constant = isinstance(ins.operands[3], syntax.Immediate) and mode is None
    if constant:
        quick = _constant_permute(int(parse_literal(ins.operands[3].text, type_of("u32"))))
        if quick:
            sources = [program.source(operand, type_of("u32")) for operand in ins.operands[1:3]]
            return elementwise(program.target(ins.operands[0], type_of("u32")), sources, quick)
    return _same(program, ins, permute, [type_of("u32")] * 3, type_of("u32"))


def _constant_permute(selector: int):
    """The everyday selectors, which join two halves of words, in three operations."""
    half = U32(16)
    return {
        0x5410: lambda a, b: (a & U32(0xFFFF)) | (b << half),
        0x7632: lambda a, b: (a >> half) | (b & U32(0xFFFF0000)),
        0x5432: lambda a, b: (a >> half) | (b << half),
        0x7610: lambda a, b: (a & U32(0xFFFF)) | (b & U32(0xFFFF0000)),
        0x1032: lambda a, b: (a >> half) | (a << half),
        0x1054: lambda a, b: (b & U32(0xFFFF)) | (a << half),
    }.get(selector & 0xFFFF)


def _special_nibble(mode: str, k: int, n):
    """Which byte goes to place ``k`` in prmt's named modes, as the manual's table has it."""
    if mode == "f4e":
        return n + U32(k)
    if mode == "b4e":
        return (n - U32(k)) & U32(7)
    if mode == "rc8":
        return n
    if mode == "ecl":
        return np.maximum(n, U32(k))
    if mode == "ecr":
        return np.minimum(n, U32(k))
    return (n & U32(1)) * U32(2) + U32(k & 1)  # rc16


@instruction("bmsk")
def build_mask(program, ins):
    """``length`` ones from bit ``start``."""
    wrap = "wrap" in ins.parts

    def mask(start, length):
        if wrap:
            start, length = start & U32(31), length & U32(31)
        start, length = np.minimum(start, U32(32)).astype(U64), np.minimum(length, U32(32)).astype(U64)
        return (((U64(1) << length) - U64(1)) << start).astype(U32)

    return _same(program, ins, mask, [type_of("u32")] * 2, type_of("u32"))


@instruction("szext")
def build_extend(program, ins):
    """Sign- or zero-extend from the lowest ``n`` bits."""
    kind, wrap = last_type(ins.parts), "wrap" in ins.parts

    def extend(a, n):
        n = n & U32(31) if wrap else np.minimum(n, U32(32))
        shift = (U32(32) - n).astype(a.dtype)
        return np.where(n == 0, a.dtype.type(0), (a << shift) >> shift)

    return _same(program, ins, extend, [kind, type_of("u32")])
