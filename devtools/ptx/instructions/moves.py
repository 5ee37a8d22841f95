"""mov in all its forms: copies, constants, addresses, packing and unpacking."""

import numpy as np

from .. import syntax
from ..memory import LOCAL_WINDOW, SHARED_WINDOW, WINDOW
from ..ptx_types import last_type, type_of
from ..steps import elementwise, read, write
from .registry import instruction


@instruction("mov")
def build_mov(program, ins):
    kind = last_type(ins.parts)
    target, source = ins.operands
    if isinstance(target, syntax.Vector) and len(target.items) > 1:
        return _unpack(program, target, source, kind)
    if isinstance(source, syntax.Vector) and len(source.items) > 1:
        return _pack(program, target, source, kind)
    if kind.bits == 128:
        return _copy_128(program, target, source)
    if kind.kind == "p":
        return elementwise(program.target(target, kind), [program.source(source, kind)], lambda a: a)
    raw = type_of(f"b{kind.bits}") if not isinstance(source, syntax.Immediate) else kind
    return elementwise(program.target(target, raw), [program.source(source, raw)], lambda a: a)


def _parts(kind, count: int):
    return type_of(f"b{kind.bits // count}")


def _unpack(program, target, source, kind):
    """mov.b32 {lo, hi}, r: the lowest bits go to the first register."""
    count = len(target.items)
    part = _parts(kind, count)
    slots = [program.target(item, part) for item in target.items]
    from_slot = program.source(source, kind)

    def step(m):
        raw = np.ascontiguousarray(read(m, from_slot)).view(part.dtype).reshape(m.act.n, count)
        for k, slot in enumerate(slots):
            write(m, slot, raw[:, k])

    return step


def _pack(program, target, source, kind):
    """mov.b32 r, {lo, hi}."""
    count = len(source.items)
    part = _parts(kind, count)
    slots = [program.source(item, part) for item in source.items]
    to_slot = program.target(target, kind)
    halves = part.bits == 16 and kind.bits == 32

    def joined(a, b):  # the everyday case, without a detour over bytes
        return (b.astype(np.uint32) << np.uint32(16)) | a

    if halves:
        return elementwise(to_slot, slots, joined)

    def step(m):
        raw = np.stack([read(m, slot) for slot in slots], axis=1)
        packed = raw.view(np.uint64).reshape(m.act.n, 2) if kind.bits == 128 else raw.view(kind.dtype)[:, 0]
        write(m, to_slot, packed)

    return step


def _copy_128(program, target, source):
    kind = type_of("b128")
    to_slot, from_slot = program.target(target, kind), program.source(source, kind)
    return lambda m: write(m, to_slot, read(m, from_slot))


@instruction("isspacep")
def build_isspacep(program, ins):
    """Whether a generic address lies in a state space."""
    low = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(ins.parts[1].split("::")[0])

    def inside(a):
        if low is None:
            return a < np.uint64(SHARED_WINDOW)
        return (a >= np.uint64(low)) & (a < np.uint64(low + WINDOW))

    if ins.parts[1] in ("const", "param"):
        raise NotImplementedError("isspacep of constant memory and parameters")
    return elementwise(
        program.target(ins.operands[0], type_of("pred")), [program.source(ins.operands[1], type_of("u64"))], inside
    )


@instruction(
    "prefetch",
    "prefetchu",
    "applypriority",
    "discard",
    "membar",
    "fence",
    "griddepcontrol",
    "nanosleep",
    "setmaxnreg",
    "pmevent",
    "brkpt",
)
def build_nothing(program, ins):
    """Hints, and orderings that hold here anyway: memory operations happen one after another."""
    return lambda m: None


@instruction("createpolicy")
def build_policy(program, ins):
    """A cache eviction policy: any number will do, nothing reads it."""
    slot = program.target(ins.operands[0], type_of("b64"))
    return lambda m: write(m, slot, np.uint64(0))
