"""cvt: between all integer and floating types, with rounding, saturation, and packing of two into one register."""

import numpy as np

from .. import floats
from ..memory import LOCAL_WINDOW, SHARED_WINDOW
from ..ptx_types import TYPES, PtxType, require_known, type_of
from ..steps import elementwise
from . import float_math
from .registry import instruction

TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
MODES = ("rn", "rz", "rm", "rp", "rna")


@instruction("cvt")
def build_cvt(program, ins):
    kinds = [part for part in ins.parts[1:] if part in TYPES]
    require_known(ins.parts[1:], "rn rz rm rp rna rni rzi rmi rpi ftz sat relu")
    if len(kinds) != 2:
        raise NotImplementedError("conversion between types this interpreter does not know")
    result, source = TYPES[kinds[0]], TYPES[kinds[1]]
    function = converter(result, source, ins.parts)
    sources = [program.source(operand, source) for operand in ins.operands[1:]]
    if len(sources) == 2:  # cvt.rn.bf16x2.f32 d, a, b: a becomes the upper half
        return elementwise(
            program.target(ins.operands[0], result), sources, lambda a, b: np.stack([function(b), function(a)], axis=-1)
        )
    if result.lanes != source.lanes:
        raise NotImplementedError("conversion of packed values")
    return elementwise(program.target(ins.operands[0], result), sources, function)


def converter(result: PtxType, source: PtxType, parts):
    """A function from arrays of ``source`` to arrays of ``result``."""
    if result.name == "tf32":
        return lambda a: _to_tf32(a, parts)
    from_float, to_float = float_math.is_float(source), float_math.is_float(result)
    if from_float and to_float:
        return _float_to_float(result, source, parts)
    if from_float:
        return _float_to_integer(result, source, parts)
    if to_float:
        return _integer_to_float(result, source, parts)
    return _integer_to_integer(result, source, "sat" in parts)


def _to_tf32(values, parts):
    """Ten bits of mantissa: .rna rounds ties away from zero, .rn to even, .rz truncates."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    drop = np.uint32(0x1FFF)
    if "rna" in parts:
        add = np.uint32(0x1000)
    elif "rz" in parts:
        add = np.uint32(0)
    else:
        add = np.uint32(0x0FFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    finite = np.isfinite(values)
    return np.where(finite, (bits + add) & ~drop, np.where(np.isnan(values), np.uint32(0x7FFFFFFF), bits))


def _float_to_float(result, source, parts):
    mode = next((part for part in parts if part in MODES), "rn")
    whole = next((TO_INTEGER[part] for part in parts if part in TO_INTEGER), None)
    widen = floats.bf16_to_f32 if source.kind == "bf" else (lambda a: a)
    flush_in = "ftz" in parts and source.name == "f32"
    flush_out = "ftz" in parts and result.name == "f32"

    def convert(a):
        a = widen(a)
        if flush_in:
            a = floats.flush(a)
        if whole is not None:
            a = whole(a)
        if "sat" in parts:
            a = floats.saturate(a)
        if "relu" in parts:
            a = np.where(a < 0, a.dtype.type(0), a)  # keeps NaN, which .relu makes canonical and keeps too
        if result.kind == "bf":
            return floats.f64_to_bf16(a) if a.dtype == np.float64 and mode == "rn" else floats.f32_to_bf16(a, mode)
        a = floats.directed(a, mode, result.dtype)
        return floats.flush(a) if flush_out else a

    return convert


def _float_to_integer(result, source, parts):
    """Rounds, then clamps to the result's range; NaN gives 0 (for .f64 and 64-bit results only the top bit)."""
    whole = next((TO_INTEGER[part] for part in parts if part in TO_INTEGER), np.trunc)
    widen = floats.bf16_to_f32 if source.kind == "bf" else (lambda a: a)
    limits = np.iinfo(result.dtype)
    top_bit = source.bits == 64 or result.bits == 64
    nan = (
        np.array(1 << (result.bits - 1), np.uint64).astype(f"u{result.bytes}").view(result.dtype)[()] if top_bit else 0
    )
    flush = "ftz" in parts and source.name == "f32"

    def convert(a):
        a = floats.flush(widen(a)) if flush else widen(a)
        value = whole(a.astype(np.float64))
        above, below = value >= float(limits.max), value <= float(limits.min)
        inside = np.where(above | below | np.isnan(value), 0.0, value).astype(result.dtype)
        clamped = np.where(above, result.dtype.type(limits.max), np.where(below, result.dtype.type(limits.min), inside))
        return np.where(np.isnan(value), result.dtype.type(nan), clamped)

    return convert


def _integer_to_float(result, source, parts):
    """One rounding: 64-bit integers go through long double, which holds them exactly, when they must be directed."""
    mode = next((part for part in parts if part in MODES), "rn")

    def convert(a):
        if source.bits == 64 and (result.kind == "bf" or mode != "rn"):
            if result.kind == "bf":
                return floats.f64_to_bf16(_odd_f64(a))
            return floats.directed(a.astype(np.longdouble), mode, result.dtype)
        if result.kind == "bf":
            return (
                floats.f64_to_bf16(a.astype(np.float64))
                if mode == "rn"
                else floats.f32_to_bf16(floats.toward_zero(a.astype(np.float64)), mode)
            )
        if source.bits == 64:
            return a.astype(result.dtype)
        value = floats.directed(a.astype(np.float64), mode, result.dtype)
        return floats.saturate(value) if "sat" in parts else value

    return convert


def _odd_f64(a):
    """float64 of 64-bit integers, to be rounded again: an inexact one gets an odd last bit."""
    near = floats.directed(a.astype(np.longdouble), "rz", np.float64)
    inexact = near.astype(np.longdouble) != a.astype(np.longdouble)
    return (near.view(np.uint64) | inexact.astype(np.uint64)).view(np.float64)


def _integer_to_integer(result, source, saturate):
    if not saturate:
        return lambda a: a.astype(result.dtype)
    low, high = np.iinfo(result.dtype).min, np.iinfo(result.dtype).max
    own = np.iinfo(source.dtype)
    low, high = source.dtype.type(max(low, own.min)), source.dtype.type(min(high, own.max))
    return lambda a: np.clip(a, low, high).astype(result.dtype)


@instruction("cvta")
def build_cvta(program, ins):
    """Between a state space's own addresses and generic ones."""
    kind = type_of(ins.parts[-1])
    space = next(
        part.split("::")[0]
        for part in ins.parts
        if part.split("::")[0] in ("global", "shared", "local", "const", "param")
    )
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(space, 0)
    if window and kind.bits != 64:
        raise NotImplementedError("32-bit generic addresses")
    shift = np.uint64(window)
    source, target = program.source(ins.operands[1], kind), program.target(ins.operands[0], kind)
    if not window:
        return elementwise(target, [source], lambda a: a)
    if "to" in ins.parts:
        return elementwise(target, [source], lambda a: a - shift)
    return elementwise(target, [source], lambda a: a + shift)
