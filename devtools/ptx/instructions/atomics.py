"""atom and red, on global and shared memory.

Threads that hit one address act one after another in thread order, which makes sums of floats repeatable here; on a GPU
the order, and so the last bits, are not.
"""

from itertools import pairwise

import numpy as np

from .. import floats
from ..memory import SHARED_WINDOW
from ..ptx_types import last_type
from ..steps import read, write
from ..traffic import sectors
from .loads_stores import Access, address_reader, shared_wavefronts, vector_items
from .registry import instruction

OPERATIONS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
UFUNCS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _on_bf16(function):
    return lambda a, b: floats.f32_to_bf16(function(floats.bf16_to_f32(a), floats.bf16_to_f32(b)))


def combiner(operation: str, kind):
    """``f(old, value[, third]) -> new``."""
    one = kind.dtype.type(1)
    special = {
        "exch": lambda old, new: new,
        "cas": lambda old, compare, new: np.where(old == compare, new, old),
        "inc": lambda old, most: np.where(old >= most, kind.dtype.type(0), old + one),
        "dec": lambda old, most: np.where((old == 0) | (old > most), most, old - one),
    }
    if operation in special:
        return special[operation]
    if kind.kind in ("f", "bf") and operation in ("min", "max"):
        function = np.fmin if operation == "min" else np.fmax
    else:
        function = UFUNCS[operation]
    return _on_bf16(function) if kind.kind == "bf" else function


@instruction("atom", "red")
def build_atomic(program, ins):
    kind = last_type(ins.parts)
    operation = next(part for part in ins.parts if part in OPERATIONS)
    operands = list(ins.operands)
    returned = operands.pop(0) if ins.parts[0] == "atom" else None
    targets = [program.target(item, kind) for item in vector_items(returned)] if returned is not None else None
    place, values = operands[0], operands[1 : 3 if operation == "cas" else 2]
    if kind.bits == 128:
        raise NotImplementedError("128-bit atomics")
    sources = [[program.source(item, kind) for item in vector_items(value)] for value in values]
    count = len(sources[0])
    access = Access(program, ins, kind.bytes)
    addresses, combine = address_reader(program, place, access.space), combiner(operation, kind)

    def step(m):
        address = addresses(m)
        view, index = _locate(m, access, address, kind, count)
        for k in range(count):
            old = _apply(view, index + k, combine, [read(m, slots[k]) for slots in sources], targets is not None)
            if targets is not None:
                write(m, targets[k], old)

    return step


def _locate(m, access, address, kind, count):
    """``(array, indices)`` of the elements an atomic touches, after checks and counts."""
    act, space = m.act, access.space
    if space == "generic":
        shared = address >= SHARED_WINDOW
        if shared.any() and not shared.all():
            raise NotImplementedError("one atomic on both shared and global memory")
        space = "shared" if shared.all() else "global"
        address = address - SHARED_WINDOW if space == "shared" else address
    if space == "shared":
        m.shared.bounds(address, kind.bytes * count)
        m.counts.shared_atomics += act.n * count
        m.counts.shared_requests += act.warps
        m.counts.shared_atomic_wavefronts += shared_wavefronts(m, access, address)
        address, memory = address + act.pick(m.shared_base), m.shared.bytes
        m.shared.atomic(address, kind.bytes * count, act.pick(m.warp_in_block))
    else:
        m.gpu.memory.check(address, kind.bytes * count, write=True)
        m.counts.global_atomics += act.n * count
        m.counts.global_atomic_requests += act.warps
        m.counts.global_atomic_sectors += sectors(act.warp, address)
        memory = m.gpu.memory.bytes
    view = memory.view(kind.dtype)
    return view.reshape(-1, 2) if kind.lanes == 2 else view, address // kind.bytes


def _apply(view, index, combine, values, want_old):
    """Read, combine, write, one thread after another where addresses collide; the old values."""
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    first = np.concatenate([[True], np.diff(ordered) != 0])
    if first.all():
        old = view[index]
        view[index] = combine(old, *values)
        return old
    if isinstance(combine, np.ufunc) and not want_old:
        combine.at(view, index, values[0])
        return None
    return _in_rounds(view, index, order, first, combine, values)


def _in_rounds(view, index, order, first, combine, values):
    """The k-th thread of every address acts in round k."""
    starts = np.flatnonzero(first)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    old = np.empty((len(index), *view.shape[1:]), view.dtype)
    by_rank = order[np.argsort(rank, kind="stable")]
    edges = np.append(0, np.cumsum(np.bincount(rank)))
    for begin, end in pairwise(edges):
        who = by_rank[begin:end]
        where = index[who]
        old[who] = view[where]
        view[where] = combine(old[who], *[value[who] for value in values])
    return old
