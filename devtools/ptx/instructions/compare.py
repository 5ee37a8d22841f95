"""Comparisons, selections and tests of a number's class."""

import numpy as np

from .. import floats, syntax
from ..ptx_types import TYPES, last_type, type_of
from ..steps import blend, elementwise
from . import float_math
from .registry import instruction

ORDERED = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
UNORDERED = {"ltu": np.greater_equal, "leu": np.greater, "gtu": np.less_equal, "geu": np.less}
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(name: str, kind):
    """The boolean function of a comparison; unordered ones are the negations of their ordered opposites."""
    if not float_math.is_float(kind):
        return ORDERED[name]
    if name in ("num", "nan"):
        wanted = name == "nan"
        return _on_floats(lambda a, b: (np.isnan(a) | np.isnan(b)) == wanted, kind)
    if name == "ne":  # numpy's != holds for NaN: that is PTX's neu
        return _on_floats(lambda a, b: (a < b) | (a > b), kind)
    if name == "equ":
        return _on_floats(lambda a, b: ~((a < b) | (a > b)), kind)
    if name == "neu":
        return _on_floats(np.not_equal, kind)
    if name in UNORDERED:
        return _on_floats(lambda a, b: ~UNORDERED[name](a, b), kind)
    return _on_floats(ORDERED[name], kind)


def _on_floats(function, kind):
    if kind.kind == "bf":
        return lambda a, b: function(floats.bf16_to_f32(a), floats.bf16_to_f32(b))
    return function


def _with_flush(function, parts):
    if "ftz" not in parts:
        return function
    return lambda a, b: function(floats.flush(a), floats.flush(b))


@instruction("setp")
def build_setp(program, ins):
    """setp.Cmp[.Bool].type p[|q], a, b[, [!]c]; packed types compare lane by lane into p and q."""
    kind = last_type(ins.parts)
    compare = _with_flush(comparison(ins.parts[1], kind), ins.parts)
    sources = [program.source(operand, kind) for operand in ins.operands[1:3]]
    combine = next((COMBINE[part] for part in ins.parts[2:-1] if part in COMBINE), None)
    first, second = _two_targets(program, ins.operands[0])
    if combine is None and second is None and kind.lanes == 1:
        return elementwise(first, sources, compare)
    third, negated = program.predicate(ins.operands[3]) if combine else (None, False)

    def step(m):
        result = compare(m.r[sources[0]], m.r[sources[1]])
        yes, no = (result[:, 0], result[:, 1]) if kind.lanes == 2 else (result, ~result)
        if combine is not None:
            other = ~m.r[third] if negated else m.r[third]
            yes, no = combine(yes, other), combine(no, other)
        for slot, value in ((first, yes), (second, no)):
            if slot is not None:
                blend(m.r[slot], value, m.act.mask)

    return step


def _two_targets(program, operand):
    pred = type_of("pred")
    if isinstance(operand, syntax.Pair):
        return program.target(operand.first, pred), program.target(operand.second, pred)
    return program.target(operand, pred), None


@instruction("set")
def build_set(program, ins):
    """set.Cmp[.Bool].dtype.stype: all ones or 0, or 1.0 and 0.0 for a float result."""
    result, kind = [TYPES[part] for part in ins.parts if part in TYPES][-2:]
    compare = _with_flush(comparison(ins.parts[1], kind), ins.parts)
    combine = next((COMBINE[part] for part in ins.parts[2:] if part in COMBINE), None)
    sources = [program.source(operand, kind) for operand in ins.operands[1:3]]
    negated = False
    if combine is not None:
        slot, negated = program.predicate(ins.operands[3])
        sources.append(slot)
    true = _true_value(result)

    def chosen(a, b, other=None):
        value = compare(a, b)
        if combine is not None:
            other = ~other if negated else other
            value = combine(value, other if value.ndim == 1 else other[:, None])
        return np.where(value, true, result.dtype.type(0))

    return elementwise(program.target(ins.operands[0], result), sources, chosen)


def _true_value(result):
    if result.kind == "bf":
        return np.uint16(0x3F80)
    return result.dtype.type(1) if result.kind == "f" else np.array(-1).astype(result.dtype)[()]


@instruction("selp")
def build_selp(program, ins):
    kind = last_type(ins.parts)
    if kind.lanes > 1:
        kind = type_of(f"b{kind.bits}")
    a, b = (program.source(operand, kind) for operand in ins.operands[1:3])
    slot, negated = program.predicate(ins.operands[3])
    choose = (lambda x, y, p: np.where(p, y, x)) if negated else (lambda x, y, p: np.where(p, x, y))
    return elementwise(program.target(ins.operands[0], kind), [a, b, slot], choose)


@instruction("slct")
def build_slct(program, ins):
    """a where c >= 0, else b."""
    kind, selector = type_of(ins.parts[-2]), type_of(ins.parts[-1])
    a, b = (program.source(operand, kind) for operand in ins.operands[1:3])
    c = program.source(ins.operands[3], selector)
    return elementwise(program.target(ins.operands[0], kind), [a, b, c], lambda x, y, z: np.where(z >= 0, x, y))


@instruction("testp")
def build_testp(program, ins):
    kind = last_type(ins.parts)
    smallest = np.finfo(kind.dtype).tiny
    tests = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= smallest),
        "subnormal": lambda a: (a != 0) & (np.abs(a) < smallest),
    }
    return elementwise(
        program.target(ins.operands[0], type_of("pred")), [program.source(ins.operands[1], kind)], tests[ins.parts[1]]
    )


@instruction("copysign")
def build_copysign(program, ins):
    """The magnitude of b with the sign of a (PTX's order)."""
    return float_math.build_float(program, ins, lambda a, b: np.copysign(b, a))
