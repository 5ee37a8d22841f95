"""Integer arithmetic, and the entry to arithmetic whose name integers and floats share."""

import numpy as np

from ..ptx_types import last_type, type_of
from ..steps import blend, elementwise
from . import float_math
from .registry import instruction


@instruction("add", "sub", "mul", "div", "rcp", "sqrt")
def build_arithmetic(program, ins):
    kind = last_type(ins.parts)
    if float_math.is_float(kind):
        if sum(part in ("f16", "bf16", "f32", "f64") for part in ins.parts) > 1:
            raise NotImplementedError("mixed precision")
        return float_math.build_float(program, ins)
    if "cc" in ins.parts:
        return _build_carry(program, ins)
    if ins.parts[0] == "mul":
        return _build_product(program, ins)
    function = {"add": np.add, "sub": np.subtract, "div": divide}[ins.parts[0]]
    if "sat" in ins.parts:
        function = _saturating(np.add if ins.parts[0] == "add" else np.subtract, kind)
    return _build(program, ins, function)


@instruction("fma", "mad", "mad24", "mul24")
def build_multiply_add(program, ins):
    if float_math.is_float(last_type(ins.parts)):
        return float_math.build_fma(program, ins)
    if "cc" in ins.parts:
        return _build_carry(program, ins)
    return _build_product(program, ins)


@instruction("ex2", "lg2", "tanh", "sin", "cos", "rsqrt")
def build_function(program, ins):
    return float_math.build_function(program, ins)


@instruction("min", "max")
def build_min_max(program, ins):
    kind = last_type(ins.parts)
    if float_math.is_float(kind):
        return float_math.build_min_max(program, ins)
    function = np.minimum if ins.parts[0] == "min" else np.maximum
    if "relu" in ins.parts:
        return _build(program, ins, lambda a, b: np.maximum(function(a, b), kind.dtype.type(0)))
    return _build(program, ins, function)


@instruction("abs", "neg")
def build_sign(program, ins):
    kind, function = last_type(ins.parts), np.absolute if ins.parts[0] == "abs" else np.negative
    if kind.kind == "bf":  # a sign bit is all that changes: NaN payloads survive
        bit = np.uint16(0x8000)
        return _build(program, ins, (lambda a: a & ~bit) if ins.parts[0] == "abs" else (lambda a: a ^ bit))
    return float_math.build_float(program, ins, function) if kind.kind == "f" else _build(program, ins, function)


@instruction("rem")
def build_rem(program, ins):
    return _build(program, ins, np.fmod)  # the sign of the dividend, as in C


@instruction("sad")
def build_sad(program, ins):
    return _build(program, ins, lambda a, b, c: np.where(a < b, b - a, a - b) + c)


def _build(program, ins, function):
    kind = last_type(ins.parts)
    sources = [program.source(operand, kind) for operand in ins.operands[1:]]
    return elementwise(program.target(ins.operands[0], kind), sources, function)


def divide(a, b):
    """Division towards zero. By zero: 0 here, undefined on a GPU."""
    return np.floor_divide(a - np.fmod(a, b), b)


def _saturating(function, kind):
    limits = np.iinfo(kind.dtype)
    return lambda a, b: np.clip(function(a.astype(np.int64), b.astype(np.int64)), limits.min, limits.max).astype(
        kind.dtype
    )


# ---- products -----------------------------------------------------------------------------------------------------


def _build_product(program, ins):
    """mul and mad with .lo (default), .hi, .wide; mul24 and mad24 on the low 24 bits."""
    kind, parts = last_type(ins.parts), ins.parts
    result = kind
    if "wide" in parts:
        result = type_of(f"{kind.kind}{2 * kind.bits}")
        product = _wide(result.dtype)
    elif parts[0] in ("mul24", "mad24"):
        product = _product_of_24_bits(kind, "hi" in parts)
    elif "hi" in parts:
        product = high_half(kind)
    else:
        product = np.multiply
    sources = [program.source(operand, kind) for operand in ins.operands[1:3]]
    target = program.target(ins.operands[0], result)
    if len(ins.operands) == 3:
        return elementwise(target, sources, product)
    sources.append(program.source(ins.operands[3], result))
    if "sat" in parts:
        raise NotImplementedError("saturating mad")
    return elementwise(target, sources, lambda a, b, c: np.add(product(a, b), c))


def _wide(dtype):
    return lambda a, b: a.astype(dtype) * b


def _product_of_24_bits(kind, high):
    shift = kind.dtype.type(8)
    narrow = (lambda a: (a << shift) >> shift) if kind.signed else (lambda a: a & np.uint32(0xFFFFFF))
    if high:
        return lambda a, b: ((narrow(a).astype(np.int64) * narrow(b)) >> 16).astype(kind.dtype)
    return lambda a, b: narrow(a) * narrow(b)


def high_half(kind):
    """The upper half of the double-width product."""
    if kind.bits <= 32:
        wide = np.dtype(f"{kind.dtype.kind}{kind.bytes * 2}")
        return lambda a, b: ((a.astype(wide) * b) >> wide.type(kind.bits)).astype(kind.dtype)

    def signed(a, b):
        high = _high_64(a.view(np.uint64), np.ascontiguousarray(b).view(np.uint64)).view(np.int64)
        return high - np.where(a < 0, b, 0) - np.where(b < 0, a, 0)

    return signed if kind.signed else _high_64


def _high_64(a, b):
    """Upper 64 bits of a product of two uint64, by schoolbook multiplication of their 32-bit halves."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    al, ah, bl, bh = a & low, a >> half, b & low, b >> half
    middle = ((al * bl) >> half) + (ah * bl & low) + (al * bh & low)
    return ah * bh + (ah * bl >> half) + (al * bh >> half) + (middle >> half)


# ---- carries ------------------------------------------------------------------------------------------------------


@instruction("addc", "subc", "madc")
def build_with_carry(program, ins):
    return _build_carry(program, ins)


def _build_carry(program, ins):
    """add.cc, addc, sub.cc, subc, mad.cc, madc: multi-word integers, the carry in one register CC.CF."""
    root, parts = ins.parts[0], ins.parts
    bits = last_type(parts).bits
    kind = type_of(f"u{bits}")
    sources = [program.source(operand, kind) for operand in ins.operands[1:]]
    target = program.target(ins.operands[0], kind)
    reads, sets, subtract = root.endswith("c"), "cc" in parts, root.startswith("sub")
    product = None
    if root.startswith("mad"):
        product = high_half(last_type(parts)) if "hi" in parts else np.multiply
        product = _as_unsigned(product, last_type(parts).dtype, kind.dtype)

    def step(m):
        values = [m.r[s] for s in sources]
        a, b = (product(*values[:2]), values[2]) if product else values
        carry = (m.carry if reads else np.zeros(m.size, np.uint64)).astype(kind.dtype)
        result = a - b - carry if subtract else a + b + carry
        if sets:
            out = (a < b) | ((a == b) & (carry > 0)) if subtract else (result < a) | ((result == a) & (carry > 0))
            blend(m.carry, out, m.act.mask)
        blend(m.r[target], result, m.act.mask)

    return step


def _as_unsigned(product, inner, outer):
    return lambda a, b: product(np.ascontiguousarray(a).view(inner), np.ascontiguousarray(b).view(inner)).view(outer)


@instruction("dp4a")
def build_dot_product(program, ins):
    """Four 8-bit products added to a 32-bit sum; both operands' signedness is in the opcode."""
    kinds = ins.parts[1:3]
    result = type_of("s32" if "s32" in kinds else "u32")
    sources = [program.source(operand, type_of("u32")) for operand in ins.operands[1:3]]
    sources.append(program.source(ins.operands[3], result))

    def split(a, kind):
        return np.ascontiguousarray(a).view(np.int8 if kind == "s32" else np.uint8).reshape(-1, 4).astype(np.int64)

    def dot(a, b, c):
        return ((split(a, kinds[0]) * split(b, kinds[1])).sum(axis=1) + c).astype(result.dtype)

    return elementwise(program.target(ins.operands[0], result), sources, dot)
