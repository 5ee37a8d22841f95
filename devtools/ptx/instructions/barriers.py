"""Barriers of a block: bar.sync, bar.arrive, bar.red, their barrier.* spellings, and bar.warp.sync.

Threads that have ended count as arrived. A barrier that a part of a warp reaches alone is an error for the .aligned
forms (bar.* is always aligned), as PTX leaves it undefined.
"""

import numpy as np

from .. import syntax
from ..errors import Fault, WarpSyncError
from ..ptx_types import type_of
from ..steps import read
from .branches import split
from .registry import control
from .warp import check_membership, lanes_of


class Waiting:
    """Threads parked at a barrier."""

    def __init__(self, pc, act, number, result=None, votes=None):
        self.pc, self.act, self.number, self.result, self.votes = pc, act, number, result, votes

    def release(self, scheduler) -> None:
        release(scheduler, self.number)


class BlockBarrier:
    """One of a block's sixteen named barriers, for all blocks of a batch at once."""

    def __init__(self, m):
        self.arrived = np.zeros(len(m.blocks), np.int64)
        self.expected = np.zeros(len(m.blocks), np.int64)  # 0: every living thread
        self.votes = np.zeros(len(m.blocks), np.int64)
        self.warps = np.zeros((len(m.blocks), m.warps_per_block), bool)


@control("bar", "barrier")
def build_barrier(program, ins, pc):
    parts = ins.parts
    if "warp" in parts:
        return _build_warp_barrier(program, ins, pc)
    if "cluster" in parts:  # a cluster of one block: its barrier is the block's own order
        return lambda scheduler, act: scheduler.push(pc + 1, act)
    divide = split(program, ins)
    operands = list(ins.operands)
    result = None
    if "red" in parts:
        kind = type_of("pred" if parts[-1] == "pred" else "u32")
        result = (program.target(operands.pop(0), kind), next(p for p in parts if p in ("popc", "and", "or")))
        vote = program.predicate(operands.pop())
    u32 = type_of("u32")
    number = program.source(operands[0] if operands else syntax.Immediate("0"), u32)
    count = program.source(operands[1], u32) if len(operands) > 1 else None
    aligned, waits = parts[0] == "bar" or "aligned" in parts, "arrive" not in parts

    def barrier(scheduler, act):
        m = scheduler.batch
        chosen, rest = divide(m, act)
        if rest is not None:
            scheduler.push(pc + 1, rest)
        if chosen is None:
            return
        m.act = chosen
        if aligned and not chosen.open:
            _check_aligned(m, chosen)
        votes = None
        if result is not None:
            votes = read(m, vote[0]) != vote[1]
        names = read(m, number)
        for name in names[:1] if chosen.open and (names == names[0]).all() else np.unique(names):
            same = names == name
            part = chosen if same.all() else chosen.subset(same)
            expected = 0
            if count is not None:
                expected = int(part.pick(m.r[count])[0])
                if expected % 32:
                    raise Fault(WarpSyncError, f"a barrier of {expected} threads, no multiple of 32")
            arrive(
                scheduler,
                part,
                int(name),
                expected,
                pc if waits else None,
                result,
                votes[same] if votes is not None else None,
            )
            if not waits:
                scheduler.push(pc + 1, part)

    return barrier


def _check_aligned(m, act) -> None:
    present, living = lanes_of(m, act), lanes_of(m, None)
    split_warps = np.flatnonzero((present != 0) & (present != living))
    if len(split_warps):
        position = int(np.flatnonzero(act.warp == split_warps[0])[0])
        raise Fault(WarpSyncError, "only a part of a warp reaches an aligned barrier", position)


def arrive(scheduler, act, number, expected, wait_pc, result, votes) -> None:
    """Count arrivals and let go whom the barrier now lets go; ``wait_pc`` None means arrive without waiting."""
    m = scheduler.batch
    state = scheduler.barriers.setdefault(number, BlockBarrier(m))
    block = act.pick(m.block)
    state.arrived += np.bincount(block, minlength=len(m.blocks))
    if votes is not None:
        state.votes += np.bincount(block, weights=votes, minlength=len(m.blocks)).astype(np.int64)
    state.warps[block, act.pick(m.warp_in_block)] = True
    state.expected[block] = 0 if expected >= m.block_threads else expected
    if wait_pc is not None:
        scheduler.waiting.append(Waiting(wait_pc, act, number, result, votes))
    release(scheduler, number)


def release(scheduler, number) -> None:
    """Let the threads of all blocks go whose barrier ``number`` is complete."""
    m, state = scheduler.batch, scheduler.barriers[number]
    living = m.live_per_block()
    needed = np.where(state.expected > 0, state.expected, living)
    complete = (state.arrived > 0) & (state.arrived >= needed)
    if not complete.any():
        return
    _order_memory(m, state, complete, living)
    m.counts.barriers += int(complete.sum())
    for waiting in [w for w in scheduler.waiting if w.number == number]:
        chosen = complete[waiting.act.pick(m.block)]
        if not chosen.any():
            continue
        scheduler.waiting.remove(waiting)
        free = waiting.act if chosen.all() else waiting.act.subset(chosen)
        if waiting.result is not None:
            _give_result(m, free, waiting.result, state)
        scheduler.push(waiting.pc + 1, free)
        if free is not waiting.act:
            rest = waiting.act.subset(~chosen)
            votes = waiting.votes[~chosen] if waiting.votes is not None else None
            scheduler.waiting.append(Waiting(waiting.pc, rest, number, waiting.result, votes))
    for array in (state.arrived, state.expected, state.votes, state.warps):
        array[complete] = 0


def _order_memory(m, state, complete, living) -> None:
    """What came before the barrier no longer races with what comes after."""
    full = complete & ((state.expected == 0) | (state.expected >= living))
    if full.all():
        m.shared.barrier()
    elif full.any():
        m.shared.barrier(full)
    for block in np.flatnonzero(complete & ~full):
        m.shared.partial_barrier(int(block), np.flatnonzero(state.warps[block]))


def _give_result(m, act, result, state) -> None:
    slot, operation = result
    votes, arrived = state.votes[act.pick(m.block)], state.arrived[act.pick(m.block)]
    m.r[slot][act.ix] = {"popc": votes, "and": votes == arrived, "or": votes > 0}[operation]


def _build_warp_barrier(program, ins, pc):
    """bar.warp.sync: the lanes in the mask must all be here; then there is nothing to do (see shared.py's rule)."""
    mask = program.source(ins.operands[0], type_of("u32"))
    divide = split(program, ins)

    def warp_barrier(scheduler, act):
        m = scheduler.batch
        chosen, _ = divide(m, act)
        if chosen is not None:
            m.act = chosen
            check_membership(m, read(m, mask))
        scheduler.push(pc + 1, act)

    return warp_barrier
