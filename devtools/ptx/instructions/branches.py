"""Control flow: branches, branch tables, ends, and what stops a kernel."""

import numpy as np

from ..errors import DeviceAssert, Fault
from ..ptx_types import type_of
from .registry import control


def split(program, ins):
    """A function of the active threads: ``(those whose guard holds or None, the others or None)``."""
    if ins.guard is None:
        return lambda m, act: (act, None)
    slot, negated = program.source(ins.guard, type_of("pred")), ins.guard_negated

    def divide(m, act):
        chosen = act.narrow(m.r[slot], negated)
        if chosen is None or chosen is act:
            return (act, None) if chosen is act else (None, act)
        return chosen, act.narrow(m.r[slot], not negated)

    return divide


@control("bra", "goto")
def build_branch(program, ins, pc):
    label, divide, labels = ins.operands[0].name, split(program, ins), program.labels

    def branch(scheduler, act):
        taken, rest = divide(scheduler.batch, act)
        if taken is not None:
            scheduler.push(labels[label], taken)
        if rest is not None:
            scheduler.push(pc + 1, rest)
            if taken is not None:
                scheduler.batch.counts.divergent_branches += taken.warps + rest.warps - act.warps

    return branch


@control("brx")
def build_indexed_branch(program, ins, pc):
    """brx.idx: a jump through a table."""
    slot = program.source(ins.operands[0], type_of("u32"))
    table, divide, labels = program.tables[ins.operands[1].name], split(program, ins), program.labels

    def branch(scheduler, act):
        m = scheduler.batch
        taken, rest = divide(m, act)
        if rest is not None:
            scheduler.push(pc + 1, rest)
        if taken is not None:
            index = taken.pick(m.r[slot])
            for number in np.unique(index):
                scheduler.push(labels[table[number]], taken.subset(index == number))

    return branch


@control("ret", "exit")
def build_end(program, ins, pc):
    divide = split(program, ins)

    def end(scheduler, act):
        done, rest = divide(scheduler.batch, act)
        if rest is not None:
            scheduler.push(pc + 1, rest)
        if done is not None:
            scheduler.batch.retire(done)
            scheduler.retired()

    return end


@control("trap", "call")
def build_stop(program, ins, pc):
    """trap, and calls of functions outside the module, of which only the assertion failure means something here."""
    divide = split(program, ins)
    name = ins.operands[0].name if ins.operands else "trap"

    def stop(scheduler, act):
        m = scheduler.batch
        chosen, rest = divide(m, act)
        if rest is not None:
            scheduler.push(pc + 1, rest)
        if chosen is not None:
            m.act = chosen
            if name not in ("trap", "__assertfail"):
                raise NotImplementedError(f"call of {name}, which is not in the module")
            raise Fault(DeviceAssert, f"{name}: the program stopped itself{_assertion(m, program)}")

    return stop


def _assertion(m, program) -> str:
    """The text of a failed assert(): its first call parameter points to the expression."""
    pointers = [name for name in program.local_offsets if name.split("@")[0].endswith("param0")]
    for name in pointers:
        start = program.local_offsets[name] + int(m.act.ix[0]) * m.local_stride
        address = int(m.local_views[1][start : start + 8].view(np.uint64)[0])
        if 0 < address < m.gpu.memory.top:
            raw = m.gpu.memory.bytes[address : address + 200].tobytes().split(b"\0")[0]
            return f" ({raw.decode(errors='replace')})"
    return ""
