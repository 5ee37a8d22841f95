"""Floating-point arithmetic of all widths, scalar and packed, and the approximate functions.

Approximations (.approx, .full) are computed as exactly as numpy's functions are: a GPU's result may differ by the
few units in the last place that the PTX manual allows. A denormal-flushing .ftz is honoured on inputs and result.
"""

import numpy as np

from .. import floats
from ..ptx_types import PtxType, last_type, require_known
from ..steps import elementwise

MODIFIERS = "rn rz rm rp ftz sat relu approx full NaN xorsign abs"


def is_float(kind: PtxType) -> bool:
    return kind.kind in ("f", "bf")


def dress(function, kind: PtxType, parts):
    """``function`` on plain floats, made to work on ``kind``'s arrays with the opcode's .ftz, .sat and .relu."""
    modifiers = set(parts)
    if kind.kind == "f" and not modifiers & {"ftz", "sat", "relu"}:
        return function
    tiny = {16: np.float16(2.0**-14), 32: floats.F32_TINY, 64: None}[kind.dtype.itemsize * 8]
    narrow = kind.kind == "bf"
    ftz = "ftz" in modifiers and tiny is not None and not narrow

    def dressed(*values):
        if narrow:
            values = [floats.bf16_to_f32(value) for value in values]
        if ftz:
            values = [_flush(value, tiny) for value in values]
        result = function(*values)
        if ftz:
            result = _flush(result, tiny)
        if "sat" in modifiers:
            result = floats.saturate(result)
        if "relu" in modifiers:
            result = np.where(result < 0, result.dtype.type(0), result)
        return floats.f32_to_bf16(result) if narrow else result

    return dressed


def _flush(values, tiny):
    return np.where(np.abs(values) < tiny, np.copysign(values.dtype.type(0), values), values)


def _rounding(parts) -> str:
    return next((part for part in parts if part in ("rz", "rm", "rp")), "rn")


def _directed(exact, mode: str, kind: PtxType):
    """``exact`` gives a float64 value and its residual; the result is rounded by ``mode``."""
    if kind.name not in ("f32", "f32x2"):
        raise NotImplementedError(f".{mode} rounding of .{kind.name}")

    def rounded(*values):
        value, residual = exact(*[v.astype(np.float64) for v in values])
        return floats.directed(value, mode, np.float32, np.where(np.isfinite(value), residual, 0.0))

    return rounded


NEAREST = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "rcp": lambda a: np.reciprocal(a),
    "sqrt": np.sqrt,
}
EXACT = {
    "add": floats.two_sum,
    "sub": lambda a, b: floats.two_sum(a, -b),
    "mul": lambda a, b: (a * b, 0.0),
    "div": lambda a, b: (a / b, 0.0),
    "rcp": lambda a: (1.0 / a, 0.0),
    "sqrt": lambda a: (np.sqrt(a), 0.0),
}


def build_float(program, ins, function=None):
    """Steps for an instruction whose operands and result all have its one type."""
    kind, parts = last_type(ins.parts), ins.parts[1:]
    require_known(parts, MODIFIERS)
    if function is None:
        mode = _rounding(parts)
        function = NEAREST[ins.parts[0]] if mode == "rn" else _directed(EXACT[ins.parts[0]], mode, kind)
    sources = [program.source(operand, kind) for operand in ins.operands[1:]]
    return elementwise(program.target(ins.operands[0], kind), sources, dress(function, kind, parts))


def build_fma(program, ins):
    """fma and the floating mad, which is fused on every architecture since sm_20."""
    kind, mode = last_type(ins.parts), _rounding(ins.parts)
    require_known(ins.parts[1:], MODIFIERS)
    if kind.kind == "bf":  # rounds itself: dress would round twice
        sources = [program.source(operand, kind) for operand in ins.operands[1:]]
        relu = "relu" in ins.parts

        def fma(a, b, c):
            bits = floats.fma_bf16(a, b, c)
            return np.where((bits >> 15 == 1) & (bits & 0x7FFF <= 0x7F80), np.uint16(0), bits) if relu else bits

        return elementwise(program.target(ins.operands[0], kind), sources, fma)
    if mode != "rn" and kind.name != "f32":
        raise NotImplementedError(f".{mode} rounding of fma.{kind.name}")
    if mode != "rn":
        return build_float(program, ins, lambda a, b, c: floats.fma_f32_directed(a, b, c, mode))
    return build_float(
        program, ins, {16: floats.fma_f16, 32: floats.fma_f32, 64: floats.fma_f64}[kind.dtype.itemsize * 8]
    )


def _zeros_in_order(two, smaller: bool):
    """PTX holds -0 to be less than +0; numpy returns whichever comes second."""

    def ordered(a, b):
        result = two(a, b)
        zero = result == 0
        if zero.any():
            zero &= a == b
            negative = np.signbit(a) | np.signbit(b) if smaller else np.signbit(a) & np.signbit(b)
            result = np.where(zero, np.where(negative, -np.abs(result), np.abs(result)), result)
        return result

    return ordered


def build_min_max(program, ins):
    """min/max return the number when one operand is NaN; with .NaN they return NaN. Two or three operands."""
    parts, smaller = ins.parts, ins.parts[0] == "min"
    if "NaN" in parts:
        two = _zeros_in_order(np.minimum if smaller else np.maximum, smaller)
    else:
        two = _zeros_in_order(np.fmin if smaller else np.fmax, smaller)

    def picked(*values):
        if "xorsign" in parts:
            sign = np.signbit(values[0]) ^ np.signbit(values[1])
            result = two(np.abs(values[0]), np.abs(values[1]))
            return np.where(sign, -result, result)
        values = [np.abs(v) for v in values] if "abs" in parts else values
        result = two(values[0], values[1])
        return two(result, values[2]) if len(values) == 3 else result

    return build_float(program, ins, picked)


def _through_f64(function):
    """For accuracy beyond the type's: a float32 or float16 result that is rounded once from float64."""
    return lambda a: function(a.astype(np.float64)).astype(a.dtype)


def _through_f32(function):
    return lambda a: function(a.astype(np.float32)).astype(a.dtype) if a.dtype == np.float16 else function(a)


FUNCTIONS = {
    "ex2": _through_f32(np.exp2),
    "lg2": _through_f32(np.log2),
    "tanh": _through_f32(np.tanh),
    "sin": _through_f64(np.sin),
    "cos": _through_f64(np.cos),
    "rsqrt": _through_f64(lambda a: 1.0 / np.sqrt(a)),
}


def build_function(program, ins):
    return build_float(program, ins, FUNCTIONS.get(ins.parts[0]))
