"""mbarrier: the counting barriers in shared memory on which asynchronous copies complete.

A barrier object lives beside the memory, keyed by block and address; the 64-bit word itself is only marked as
written. A thread that waits for a phase which is not complete is parked until it is: try_wait and test_wait never
return false here, so a program that polls makes progress, and one that can never be released ends as a deadlock.
"""

import numpy as np

from ..errors import Fault, PtxError
from ..ptx_types import type_of
from ..shared import WRITTEN
from ..steps import read, write
from ..syntax import Address
from .branches import split
from .loads_stores import address_reader
from .registry import control, instruction


class MBarrier:
    """Phase, arrivals still needed, bytes still to come."""

    def __init__(self, count: int):
        self.count = self.pending = count
        self.bytes, self.phase = 0, 0
        self.warps: set[int] = set()
        self.in_flight: list = []


class Waiting:
    """Threads parked at an mbarrier until the phase of their parity is complete."""

    number = None  # not one of the block's named barriers

    def __init__(self, pc, act, keys, parity, target):
        self.pc, self.act, self.keys, self.parity, self.target = pc, act, keys, parity, target

    def release(self, scheduler) -> None:
        m = scheduler.batch
        done = np.array([_complete(m, key, parity) for key, parity in zip(self.keys, self.parity, strict=True)])
        if not done.any():
            return
        scheduler.waiting.remove(self)
        free = self.act if done.all() else self.act.subset(done)
        for key, thread in zip([k for k, d in zip(self.keys, done, strict=True) if d], free.ix, strict=True):
            _land(m, key, int(m.warp_in_block[thread]))
        if self.target is not None:
            m.r[self.target][free.ix] = True
        scheduler.push(self.pc + 1, free)
        if free is not self.act:
            keys = [k for k, d in zip(self.keys, done, strict=True) if not d]
            scheduler.waiting.append(Waiting(self.pc, self.act.subset(~done), keys, self.parity[~done], self.target))


def keys_of(m, address) -> list[tuple[int, int]]:
    return list(zip(m.act.pick(m.block).tolist(), address.tolist(), strict=True))


def find(m, key, position: int) -> MBarrier:
    if key not in m.mbarriers:
        raise Fault(PtxError, f"no mbarrier was initialised at shared address {key[1]:#x}", position)
    return m.mbarriers[key]


def _complete(m, key, parity) -> bool:
    """Whether the phase with this parity is over: the current one has the other parity."""
    return (find(m, key, 0).phase & 1) != int(parity)


def _land(m, key, warp: int) -> None:
    """Somebody saw the phase complete: what was copied is there, and what came before the arrivals is ordered."""
    barrier = m.mbarriers[key]
    for place, writer in barrier.in_flight:
        m.shared.mark(m.shared.cells_of(place, 16), WRITTEN, writer)
    if barrier.in_flight or barrier.warps:
        issuers = {int(w) for _, writer in barrier.in_flight for w in np.unique(writer)}
        m.shared.partial_barrier(key[0], barrier.warps | issuers | {warp})
    barrier.in_flight = []


def _advance(m, barrier: MBarrier) -> None:
    """Complete the phase if nothing is missing, and wake who waits."""
    if barrier.pending > 0 or barrier.bytes != 0:
        return
    barrier.phase += 1
    barrier.pending = barrier.count
    for waiting in list(m.scheduler.waiting):
        if isinstance(waiting, Waiting):
            waiting.release(m.scheduler)


def complete_bytes(m, block, address, nbytes, place, warp) -> None:
    """A bulk copy's bytes have arrived."""
    barrier = find(m, (block, address), 0)
    barrier.in_flight.append((place, warp))
    barrier.bytes -= nbytes
    _advance(m, barrier)


@instruction("mbarrier")
def build_mbarrier(program, ins):
    """mbarrier.init, .inval, .arrive (with .expect_tx, .noComplete), .arrive_drop, .expect_tx."""
    action = ins.parts[1]
    operands = list(ins.operands)
    program.note_shared(8)
    state = operands.pop(0) if action in ("arrive", "arrive_drop") and _returns_state(ins) else None
    addresses = address_reader(program, operands[0], "shared")
    number = program.source(operands[1], type_of("u32")) if len(operands) > 1 else None
    state_slot = program.target(state, type_of("b64")) if state is not None else None
    expects = "expect_tx" in ins.parts

    def step(m):
        address = addresses(m)
        m.shared.bounds(address, 8)
        values = read(m, number).tolist() if number is not None else [1] * m.act.n
        phases = []
        for position, (key, value) in enumerate(zip(keys_of(m, address), values, strict=True)):
            if action == "init":
                m.mbarriers[key] = MBarrier(value)
                place = np.array([key[1] + int(m.shared_base[m.act.ix[position]])])
                m.shared.state[m.shared.cells_of(place, 8)] = WRITTEN
            elif action == "inval":
                m.mbarriers.pop(key, None)
            else:
                phases.append(find(m, key, position).phase)
                arrive(m, find(m, key, position), action, value, expects, position)
        if state_slot is not None:
            write(m, state_slot, np.array(phases, np.uint64))

    return step


def _returns_state(ins) -> bool:
    return not isinstance(ins.operands[0], Address)


def arrive(m, barrier, action, value, expects, position) -> None:
    if action == "expect_tx":
        barrier.bytes += value
        return
    if expects:
        barrier.bytes += value
        value = 1
    barrier.pending -= value
    if action == "arrive_drop":
        barrier.count -= value
    barrier.warps.add(int(m.warp_in_block[m.act.ix[position]]))
    if barrier.pending < 0:
        raise Fault(PtxError, "more arrivals at an mbarrier than it expects", position)
    _advance(m, barrier)


@control("mbarrier_wait")
def build_wait(program, ins, pc):
    """mbarrier.{try,test}_wait[.parity]: parks until the phase is complete."""
    target = program.target(ins.operands[0], type_of("pred"))
    addresses = address_reader(program, ins.operands[1], "shared")
    by_parity, divide = "parity" in ins.parts, split(program, ins)
    operand = program.source(ins.operands[2], type_of("u32" if by_parity else "b64"))

    def wait(scheduler, act):
        m = scheduler.batch
        chosen, rest = divide(m, act)
        if rest is not None:
            scheduler.push(pc + 1, rest)
        if chosen is None:
            return
        m.act = chosen
        parity = (read(m, operand) & 1).astype(np.int64)
        waiting = Waiting(pc, chosen, keys_of(m, addresses(m)), parity, target)
        scheduler.waiting.append(waiting)
        waiting.release(scheduler)

    return wait
