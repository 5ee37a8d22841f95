"""cp.async: copies from global to shared memory that count as landed only when their thread has waited for them.

The bytes move when the copy is issued, but until a wait_group or wait_all covers it they are marked as in flight, and
reading them raises. The bulk forms complete on their mbarrier when issued, but stay in flight until somebody has waited
at that mbarrier.
"""

import numpy as np

from .. import syntax
from ..errors import Fault, Misaligned
from ..memory import gather
from ..ptx_types import parse_literal, type_of
from ..shared import IN_FLIGHT, WRITTEN
from ..steps import read
from ..traffic import sectors
from .loads_stores import Access, address_reader, shared_wavefronts
from .mbarrier import arrive, complete_bytes, find, keys_of
from .registry import instruction


@instruction("cp")
def build_copy(program, ins):
    parts = ins.parts
    if parts[1] != "async":
        raise NotImplementedError("cp without .async")
    if "bulk" in parts:
        return _build_bulk(program, ins)
    if "commit_group" in parts:
        return _commit
    if "wait_all" in parts:
        return lambda m: wait(m, 0)
    if "wait_group" in parts:
        pending = int(parse_literal(ins.operands[0].text, type_of("u32")))
        return lambda m: wait(m, pending)
    if "mbarrier" in parts:
        return _build_arrival(program, ins)
    return _build_element_copy(program, ins)


def _build_arrival(program, ins):
    """cp.async.mbarrier.arrive.noinc: the thread's copies so far complete, then it arrives."""
    addresses, noinc = address_reader(program, ins.operands[0], "shared"), "noinc" in ins.parts

    def step(m):
        wait(m, 0)
        if noinc:
            for position, key in enumerate(keys_of(m, addresses(m))):
                arrive(m, find(m, key, position), "arrive", 1, False, position)

    return step


class Flight:
    """One issued copy: where each thread's ``width`` bytes go, and in which of its groups."""

    def __init__(self, threads, place, warp, width, group):
        self.threads, self.place, self.warp, self.width, self.group = threads, place, warp, width, group


def _build_element_copy(program, ins):
    """cp.async.{ca,cg}.shared.global [dst], [src], size{, src-size or ignore-predicate}{, policy}; rest zeros."""
    operands = list(ins.operands)
    if any(part.endswith("cache_hint") for part in ins.parts):
        operands.pop()
    size = int(parse_literal(operands[2].text, type_of("u32")))
    extra = operands[3] if len(operands) > 3 else None
    keep = ignore = None
    if isinstance(extra, (syntax.Register, syntax.Negated)) and _is_predicate(program, extra):
        ignore = program.predicate(extra)
    elif extra is not None:
        keep = program.source(extra, type_of("u32"))
    access = Access(program, ins, size)
    access.space = "shared"
    program.note_shared(size)
    program.note_global(4)
    to_shared = address_reader(program, operands[0], "shared")
    from_global = address_reader(program, operands[1], "global")

    def step(m):
        n = m.act.n
        wanted = np.full(n, size) if keep is None else np.minimum(read(m, keep).astype(np.int64), size)
        if ignore is not None:
            wanted = np.where(read(m, ignore[0]) != ignore[1], 0, wanted)
        _issue(m, access, to_shared(m), _fetch(m, from_global(m), size, wanted))

    return step


def _is_predicate(program, operand) -> bool:
    register = operand.operand if isinstance(operand, syntax.Negated) else operand
    return program.register_type(register).kind == "p"


def _fetch(m, address, size, wanted) -> np.ndarray:
    """(n, size) bytes of which the first ``wanted`` come from global memory."""
    data, reads = np.zeros((len(address), size), np.uint8), wanted > 0
    if not reads.any():
        return data
    outer = m.act
    m.act = outer if reads.all() else outer.subset(reads)
    source, counts = address[reads], m.counts
    if (source % size).any():
        raise Fault(Misaligned, f"a cp.async source is no multiple of {size}", int(np.flatnonzero(source % size)[0]))
    counts.global_read_requests += m.act.warps
    counts.global_read_sectors += sectors(m.act.warp, source)
    counts.global_read_bytes_by_width[size] += int(wanted[reads].sum())
    if (wanted[reads] == size).all():
        m.gpu.memory.check(source, size)
        if m.launch.trace:
            m.launch.trace.read(source, size, m.blocks[m.act.pick(m.block)])
        data[reads] = gather(m.gpu.memory.views, source, size).view(np.uint8).reshape(-1, size)
    else:
        for k in range(size):  # partial copies: byte by byte, so that bytes that are not wanted may be out of bounds
            some = reads & (wanted > k)
            if some.any():
                m.gpu.memory.check(address[some] + k, 1)
                data[some, k] = m.gpu.memory.bytes[address[some] + k]
    m.act = outer
    return data


def _issue(m, access, address, data) -> None:
    act, counts = m.act, m.counts
    m.shared.bounds(address, access.width)
    counts.shared_requests += act.warps
    counts.shared_write_wavefronts += shared_wavefronts(m, access, address)
    counts.shared_write_bytes_by_width[access.width] += access.width * act.n
    place, warp = address + act.pick(m.shared_base), act.pick(m.warp_in_block)
    m.shared.write(place, access.width, warp, data)
    m.shared.mark(m.shared.cells_of(place, access.width), IN_FLIGHT, warp)
    m.async_copies.append(Flight(act.ix.copy(), place, warp, access.width, act.pick(m.async_group).copy()))


def _commit(m) -> None:
    m.async_group[m.act.ix] += 1


def wait(m, pending: int) -> None:
    """Land the active threads' copies, but for their last ``pending`` groups."""
    act, left = m.act, []
    for flight in m.async_copies:
        landed = act.mask[flight.threads] & (flight.group < m.async_group[flight.threads] - pending)
        if pending == 0:
            landed = act.mask[flight.threads]
        if landed.any():
            place = flight.place[landed]
            m.shared.mark(m.shared.cells_of(place, flight.width), WRITTEN, flight.warp[landed])
        if not landed.all():
            keep = ~landed
            left.append(
                Flight(flight.threads[keep], flight.place[keep], flight.warp[keep], flight.width, flight.group[keep])
            )
    m.async_copies = left


# ---- bulk copies ----------------------------------------------------------------------------------------------------


def _build_bulk(program, ins):
    """One thread moves a run of bytes: to shared memory, completing on an mbarrier, or from it, in a bulk group."""
    parts = ins.parts
    if "commit_group" in parts or "wait_group" in parts:
        return lambda m: None  # stores from shared memory are complete when issued
    if "prefetch" in parts:
        return lambda m: None
    if "tensor" in parts or "reduce" in parts:
        raise NotImplementedError("tensor maps and bulk reductions")
    to_shared = parts[3].startswith("shared")
    spaces = ("shared", "global") if to_shared else ("global", "shared")
    target, source = (address_reader(program, ins.operands[k], spaces[k]) for k in (0, 1))
    size = program.source(ins.operands[2], type_of("u32"))
    barrier = address_reader(program, ins.operands[3], "shared") if to_shared else None
    program.note_shared(16)

    def step(m):
        columns = [target(m), source(m), read(m, size).astype(np.int64)]
        columns.append(barrier(m) if barrier else np.zeros(m.act.n, np.int64))
        for position, (to, at, nbytes, mbarrier) in enumerate(np.stack(columns, axis=1).tolist()):
            _bulk(m, position, to_shared, to, at, nbytes, mbarrier)

    return step


def _bulk(m, position, to_shared, to, at, nbytes, mbarrier) -> None:
    if nbytes % 16 or to % 16 or at % 16:
        raise Fault(Misaligned, "a bulk copy's addresses and size must be multiples of 16", position)
    thread = int(m.act.ix[position])
    block, warp = int(m.block[thread]), np.full(nbytes // 16, m.warp_in_block[thread])
    steps = np.arange(0, nbytes, 16)
    shared, outside = (to, at) if to_shared else (at, to)
    if not len(steps):
        return
    m.gpu.memory.check(outside + steps, 16, write=not to_shared)
    m.shared.bounds(shared + steps, 16)
    if m.launch.trace:
        (m.launch.trace.read if to_shared else m.launch.trace.write)(
            outside + steps, 16, np.full(len(steps), m.blocks[block])
        )
    place, counts = shared + steps + int(m.shared_base[thread]), m.counts
    touched = (outside + nbytes - 1) // 32 - outside // 32 + 1
    if to_shared:
        counts.global_read_sectors += touched
        counts.global_read_requests += 1
        counts.global_read_bytes_by_width[16] += nbytes
        m.shared.write(place, 16, warp, m.gpu.memory.bytes[outside : outside + nbytes].reshape(-1, 16))
        m.shared.mark(m.shared.cells_of(place, 16), IN_FLIGHT, warp)
        complete_bytes(m, block, mbarrier, nbytes, place, warp)
    else:
        counts.global_write_sectors += touched
        counts.global_write_requests += 1
        counts.global_write_bytes_by_width[16] += nbytes
        m.gpu.memory.bytes[outside : outside + nbytes] = m.shared.read(place, 16, warp).view(np.uint8)
