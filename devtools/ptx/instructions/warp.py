"""What the lanes of a warp do together: shuffles, votes, matches, reductions.

All lanes that a membermask names and that are alive must be at the instruction at once, and every lane that
executes it must be named; anything else is undefined in PTX and raises here. So does a shuffle that reads a lane
which is not there.
"""

import numpy as np

from .. import syntax
from ..errors import Fault, WarpSyncError
from ..ptx_types import last_type, type_of
from ..steps import read, write
from .registry import instruction

FULL = 0xFFFFFFFF


def lanes_of(m, act) -> np.ndarray:
    """Per warp of the batch the bits of the lanes in ``act`` (None: of all that are alive)."""
    ix = np.flatnonzero(m.alive) if act is None else act.ix
    weights = np.ldexp(1.0, m.lane[ix])
    return np.bincount(m.warp[ix], weights=weights, minlength=m.warps).astype(np.uint64)


def check_membership(m, mask: np.ndarray) -> None:
    """Raise Fault unless the masks of the active threads are legal (see the module's docstring)."""
    act = m.act
    constant = len(mask) and mask.strides == (0,) and int(mask[0]) == FULL
    if not constant:
        outside = ((mask >> act.pick(m.lane).astype(np.uint32)) & np.uint32(1)) == 0
        if outside.any():
            position = int(np.flatnonzero(outside)[0])
            raise Fault(WarpSyncError, f"the lane is not in its own membermask {int(mask[position]):#010x}", position)
    if act.open:
        return
    absent = (lanes_of(m, None) & ~lanes_of(m, act))[act.warp] & mask.astype(np.uint64)
    if absent.any():
        position = int(np.flatnonzero(absent)[0])
        raise Fault(
            WarpSyncError,
            f"lanes {int(absent[position]):#010x} are in the membermask but not at this "
            f"instruction (the warp has diverged)",
            position,
        )


def two_targets(program, operand, kind):
    if isinstance(operand, syntax.Pair):
        return program.target(operand.first, kind), program.target(operand.second, type_of("pred"))
    return program.target(operand, kind), None


# ---- shuffles -------------------------------------------------------------------------------------------------------


@instruction("shfl")
def build_shuffle(program, ins):
    """shfl.sync.{up,down,bfly,idx}.b32 d[|p], a, b, c, membermask."""
    if ins.parts[1] != "sync":
        raise NotImplementedError("shfl without .sync")
    mode, u32 = ins.parts[2], type_of("u32")
    target, valid = two_targets(program, ins.operands[0], u32)
    a, b, c, mask = (program.source(operand, u32) for operand in ins.operands[1:5])

    def step(m):
        act = m.act
        check_membership(m, read(m, mask))
        offset, clamp = read(m, b), read(m, c)
        if act.whole and (offset == offset[0]).all() and (clamp == clamp[0]).all():
            key = (mode, int(offset[0]), int(clamp[0]))  # the same for all, as it nearly always is: plan it once
            if key not in m.shuffle_plans:
                m.shuffle_plans[key] = _plan(m, mode, offset, clamp)
            source, inside = m.shuffle_plans[key]
        else:
            source, inside = _plan(m, mode, offset, clamp)
        write(m, target, m.r[a].take(source))
        if valid is not None:
            write(m, valid, inside)

    return step


def _plan(m, mode, b, c):
    """The thread each active thread reads, and whether that lane is inside the segment that c describes."""
    act = m.act
    lane = act.pick(m.lane)
    b = (b & np.uint32(31)).astype(np.int64)
    segment, clamp = (c >> np.uint32(8) & np.uint32(31)).astype(np.int64), (c & np.uint32(31)).astype(np.int64)
    last, first = (lane & segment) | (clamp & ~segment), lane & segment
    chosen = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": first | (b & ~segment)}[mode]
    inside = chosen >= last if mode == "up" else chosen <= last
    chosen = np.where(inside, chosen, lane)
    source = act.ix - lane + chosen
    missing = act.pick(m.thread) - lane + chosen >= m.block_threads
    if not act.whole:
        missing |= ~act.mask[np.minimum(source, m.size - 1)]
    if missing.any():
        position = int(np.flatnonzero(missing)[0])
        raise Fault(
            WarpSyncError,
            f"lane {int(lane[position])} reads lane {int(chosen[position])}, which does not take part",
            position,
        )
    return source, inside


# ---- votes, reductions, matches -------------------------------------------------------------------------------------


def _groups(m, mask):
    """``(order, starts, group of each)``: the active threads sorted so that those of one warp and mask are together."""
    act = m.act
    key = (act.warp << 32) | mask.astype(np.int64)
    order = np.argsort(key, kind="stable")
    first = np.concatenate([[True], np.diff(key[order]) != 0])
    group = np.empty(act.n, np.int64)
    group[order] = np.cumsum(first) - 1
    return order, np.flatnonzero(first), group


def _reduce(m, mask, values, ufunc):
    """``ufunc`` over each group, given back to each of its threads."""
    order, starts, group = _groups(m, mask)
    return ufunc.reduceat(values[order], starts)[group]


@instruction("vote")
def build_vote(program, ins):
    """vote.sync.{all,any,uni}.pred and vote.sync.ballot.b32."""
    mode = ins.parts[2]
    if ins.parts[1] != "sync":
        raise NotImplementedError("vote without .sync")
    kind = type_of("u32" if mode == "ballot" else "pred")
    target = program.target(ins.operands[0], kind)
    slot, negated = program.predicate(ins.operands[1])
    mask_slot = program.source(ins.operands[2], type_of("u32"))

    def step(m):
        mask = read(m, mask_slot)
        check_membership(m, mask)
        votes = read(m, slot) != negated
        if mode == "ballot":
            bits = np.where(votes, np.uint32(1) << m.act.pick(m.lane).astype(np.uint32), np.uint32(0))
            write(m, target, _reduce(m, mask, bits, np.bitwise_or))
            return
        every, some = (_reduce(m, mask, votes, f) for f in (np.logical_and, np.logical_or))
        write(m, target, {"all": every, "any": some, "uni": every == some}[mode])

    return step


@instruction("activemask")
def build_active_mask(program, ins):
    target = program.target(ins.operands[0], type_of("u32"))
    return lambda m: write(m, target, lanes_of(m, m.act)[m.act.warp].astype(np.uint32))


@instruction("redux")
def build_redux(program, ins):
    kind, operation = last_type(ins.parts), ins.parts[2]
    ufuncs = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }
    ufunc = ufuncs[operation]
    if kind.kind == "f":
        ufunc = {"min": np.fmin, "max": np.fmax}[operation] if "NaN" not in ins.parts else ufunc
    target, source = program.target(ins.operands[0], kind), program.source(ins.operands[1], kind)
    mask_slot, absolute = program.source(ins.operands[2], type_of("u32")), "abs" in ins.parts

    def step(m):
        mask = read(m, mask_slot)
        check_membership(m, mask)
        values = read(m, source)
        write(m, target, _reduce(m, mask, np.abs(values) if absolute else values, ufunc))

    return step


@instruction("match")
def build_match(program, ins):
    """match.any: the lanes that hold the same value; match.all: the whole mask if all do, with a predicate."""
    kind, every = last_type(ins.parts), "all" in ins.parts
    target, same = two_targets(program, ins.operands[0], type_of("u32"))
    source, mask_slot = program.source(ins.operands[1], kind), program.source(ins.operands[2], type_of("u32"))

    def step(m):
        mask = read(m, mask_slot)
        check_membership(m, mask)
        values = np.ascontiguousarray(read(m, source)).view(f"u{kind.bytes}")
        if every:
            agree = _reduce(m, mask, values, np.minimum) == _reduce(m, mask, values, np.maximum)
            write(m, target, np.where(agree, mask, np.uint32(0)))
            if same is not None:
                write(m, same, agree)
            return
        lane, (_, _, group) = m.act.pick(m.lane), _groups(m, mask)
        order = np.lexsort((values, group))
        first = np.concatenate([[True], (np.diff(group[order]) != 0) | (values[order][1:] != values[order][:-1])])
        bits = np.bitwise_or.reduceat((np.uint32(1) << lane.astype(np.uint32))[order], np.flatnonzero(first))
        found = np.empty(m.act.n, np.uint32)
        found[order] = bits[np.cumsum(first) - 1]
        write(m, target, found)

    return step


@instruction("elect")
def build_elect(program, ins):
    """elect.sync d|p, membermask: the lowest lane of the mask is the one."""
    target, chosen = two_targets(program, ins.operands[0], type_of("u32"))
    mask_slot = program.source(ins.operands[1], type_of("u32"))

    def step(m):
        mask = read(m, mask_slot)
        check_membership(m, mask)
        lane = m.act.pick(m.lane)
        leader = _reduce(m, mask, lane, np.minimum)
        write(m, target, leader.astype(np.uint32))
        write(m, chosen, lane == leader)

    return step
