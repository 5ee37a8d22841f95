"""A model of one multiprocessor: machine code in, cycles a turn of the tile loop and what it waited for out.

One block of eight warps, two on each of four schedulers. A scheduler issues one instruction a cycle, of the warp that
waited longest among those that may: the stall count of its last instruction is over, the scoreboards that it waits for
are empty, and the pipe is free. Pipes of a scheduler take a warp's instruction every so many cycles (PIPES), the port
to shared memory, shuffles and the first-level cache serves all four schedulers (port_cycles); results that have a
scoreboard come after a fixed latency (LATENCY), from global memory after MEMORY cycles. Nothing else exists: no
bandwidth of memory, no instruction cache, no register banks. That gives about 15% either way: enough to see what a
kernel waits for, and no measurement.

    modelled(kernel, ways)      ways: for each warp, the branches that it takes
"""

import re
from dataclasses import dataclass, field

from devtools.offline.sass import Instruction, Loop, tile_loop

SCHEDULERS, MEMORY = 4, 800
TURNS, WARM_UP = 8, 3

# Cycles for which a warp's instruction holds a pipe of its scheduler, by the beginnings of opcodes; else ALU's.
PIPES = {
    "fma": (1, ("FFMA", "FMUL", "FADD", "HFMA2", "HADD2", "HMUL2")),
    "imad": (2, ("IMAD",)),
    "special": (8, ("MUFU", "F2I", "I2F", "F2F", "POPC", "FLO", "BREV")),
    "double": (2, ("DADD", "DMUL", "DFMA", "DSETP", "F2F.F64", "I2F.F64")),
    "control": (
        1,
        ("BRA", "BSSY", "BSYNC", "NOP", "WARPSYNC", "EXIT", "CALL", "RET", "BAR", "YIELD", "R2UR", "U", "S2"),
    ),
    "memory": (1, ("LD", "ST", "SHFL", "ATOM", "RED", "MATCH", "VOTE")),
}
ALU = ("alu", 2)
# Cycles from issue to the result, where a scoreboard guards it.
LATENCY = (("LDS", 30), ("SHFL", 24), ("REDUX", 30), ("LDG", MEMORY), ("LDC", 30), ("MUFU", 20), ("S2", 24), ("D", 40))
OTHER_LATENCY, READ_LATENCY, BARRIER_LATENCY = 20, 12, 20


def pipe_of(opcode: str) -> tuple[str, int]:
    """The pipe and for how long an instruction holds it."""
    for name, (cycles, beginnings) in PIPES.items():
        if opcode.startswith(beginnings):
            return name, cycles
    return ALU


def port_cycles(opcode: str) -> int:
    """For how long the multiprocessor's one port is taken: 128 bytes of shared memory, or a line's tag, a cycle."""
    wide = 4 if ".128" in opcode else 2 if ".64" in opcode else 1
    if opcode.startswith(("LDS", "STS")):
        return wide
    if opcode.startswith(("LDG", "STG")):
        return 8 if wide == 4 else 4 * wide
    return 1 if opcode.startswith("SHFL") else 0


def latency_of(opcode: str) -> int:
    """From issue to the result that a scoreboard announces."""
    return next((cycles for beginning, cycles in LATENCY if opcode.startswith(beginning)), OTHER_LATENCY)


# ---- the way of a warp through a turn of the loop ------------------------------------------------------------------


# How a tile's features are read and written (csrc/cuda/nchw.cuh): bits of an access, and whether words are shifted.
ACCESS = {"packets": (128, False), "words": (32, False), "shifted words": (32, True), "elements": (16, False)}


def width_of(opcode: str) -> int:
    """Bits of an access to memory by each thread."""
    return next((bits for bits in (128, 64, 16, 8) if re.search(rf"\.[US]?{bits}\b", opcode)), 32)


@dataclass(frozen=True)
class Way:
    """Which branches a warp takes: those with one kind of access to the features, and through as much code as it can,
    or as little, in each part between barriers. Loops inside the turn are gone through once."""

    longest: bool | frozenset[int] = True  # in all parts, in none, or in these
    access: str = "packets"

    def cost(self, instruction: Instruction, part: int) -> int:
        """The way's cost is the sum; the cheapest way is taken."""
        opcode = instruction.opcode
        if instruction.name == "CALL":
            return 1_000_000
        bits, shifted = ACCESS[self.access]
        if instruction.name in ("LDG", "STG"):
            return -10_000 if width_of(opcode) == bits else 10_000 if bits < 128 or ".CONSTANT" in opcode else 0
        if bits == 32 and opcode.startswith("SHF.R.W"):
            return -5_000 if shifted else 5_000
        longest = self.longest if isinstance(self.longest, bool) else part in self.longest
        return -1 if longest else 1


def way_through(loop: Loop, way: Way) -> list[Instruction]:
    """The instructions of a turn."""
    body, parts, part = loop.body, [], 0
    for instruction in body:
        parts.append(part)
        part += instruction.name == "BAR"
    at = {instruction.address: i for i, instruction in enumerate(body)}
    last = len(body) - 1
    best: dict[int, tuple[float, int | None]] = {last: (0, None)}
    for i in range(last - 1, -1, -1):
        target = at.get(body[i].target or -1) if body[i].name == "BRA" else None
        nexts = [target] if target is not None and target > i else []
        if body[i].name not in ("BRA", "EXIT", "RET") or body[i].guard or "," in body[i].operands:
            nexts.append(i + 1)
        leaving = body[i].name == "CALL" and body[i].guard  # the end of the loop, on sm_80
        cost = 0 if leaving else way.cost(body[i], parts[i])
        options = [(best[n][0] + cost, n) for n in nexts if n in best]
        if options:
            best[i] = min(options)
    taken, step = [body[0]], best[0][1]
    while step is not None:
        taken.append(body[step])
        step = best[step][1]
    return taken


# ---- the machine ---------------------------------------------------------------------------------------------------


@dataclass
class Warp:
    """Where a warp stands."""

    trace: list[Instruction]
    at: int = 0
    turn: int = 0
    ready: int = 0  # the first cycle that the last stall count allows
    pending: list[list[tuple[int, str]]] = field(default_factory=lambda: [[] for _ in range(6)])
    at_barrier: bool = False
    turns: list[int] = field(default_factory=list)  # when each ended
    waited: dict[str, int] = field(default_factory=dict)

    def blocked(self, now: int) -> str | None:
        """Why the next instruction may not issue yet, pipes aside."""
        if self.at_barrier:
            return "barrier"
        if now < self.ready:
            return "stall count"
        for scoreboard in self.trace[self.at].waits:
            self.pending[scoreboard] = [(end, what) for end, what in self.pending[scoreboard] if end > now]
            if self.pending[scoreboard]:
                return max(self.pending[scoreboard])[1]
        return None


@dataclass(frozen=True)
class Modelled:
    """Cycles a turn, and of these what the average warp spent waiting for what."""

    cycles: float
    waited: dict[str, float]


class Machine:
    """One multiprocessor and the warps of a block."""

    def __init__(self, traces: list[list[Instruction]]):
        self.warps = [Warp(trace) for trace in traces]
        self.free: dict[tuple[int, str], int] = {}  # (scheduler, pipe) -> cycle
        self.port = 0
        self.issued_last = [-1] * SCHEDULERS

    def issue(self, warp: Warp, scheduler: int, now: int) -> None:
        """Let the warp's next instruction go."""
        instruction = warp.trace[warp.at]
        opcode = instruction.opcode
        pipe, cycles = pipe_of(opcode)
        self.free[scheduler, pipe] = now + cycles
        begin = now
        if taken := port_cycles(opcode):
            begin = max(now, self.port)
            self.port = begin + taken
        kind = {"LDG": "global memory", "LDS": "shared memory", "SHFL": "shuffles"}.get(
            instruction.name, "other results"
        )
        if instruction.write is not None:
            warp.pending[instruction.write].append((begin + latency_of(opcode), kind))
        if instruction.read is not None:
            warp.pending[instruction.read].append((begin + READ_LATENCY, "operands read"))
        warp.ready = now + max(instruction.stall, 1)
        if instruction.name == "BAR":
            warp.at_barrier = True
        warp.at += 1
        if warp.at == len(warp.trace):
            warp.at, warp.turn = 0, warp.turn + 1
            warp.turns.append(now)

    def release_barrier(self, now: int) -> None:
        """All are there, or out of the loop: on they go."""
        waiting = [w for w in self.warps if w.at_barrier]
        if waiting and all(w.at_barrier or w.turn >= TURNS for w in self.warps):
            for warp in waiting:
                warp.at_barrier, warp.ready = False, now + BARRIER_LATENCY

    def cycle(self, now: int) -> None:
        """One cycle of all schedulers."""
        self.release_barrier(now)
        for turn in range(SCHEDULERS):
            scheduler = (now + turn) % SCHEDULERS  # the port's favour goes round
            mine = self.warps[scheduler::SCHEDULERS]
            candidates = []
            for i, warp in enumerate(mine):
                if warp.turn >= TURNS:
                    continue
                why = warp.blocked(now)
                if why is None:
                    opcode = warp.trace[warp.at].opcode
                    pipe, _ = pipe_of(opcode)
                    busy = self.free.get((scheduler, pipe), 0) > now
                    # The port's queue holds some instructions; behind them a warp waits.
                    crowded = port_cycles(opcode) > 0 and self.port > now + 32
                    why = f"{pipe} pipe" if busy else "port of shared memory" if crowded else None
                if why is None:
                    candidates.append((warp.ready, i, warp))
                elif warp.turn >= WARM_UP:
                    warp.waited[why] = warp.waited.get(why, 0) + 1
            if candidates:
                _, _, chosen = min(candidates)
                self.issue(chosen, scheduler, now)
                for *_, warp in candidates:
                    if warp is not chosen and warp.turn >= WARM_UP:
                        warp.waited["the other warp"] = warp.waited.get("the other warp", 0) + 1

    def run(self) -> Modelled:
        """Until every warp has made its turns."""
        now = 0
        while any(warp.turn < TURNS for warp in self.warps):
            self.cycle(now)
            now += 1
        turns = TURNS - WARM_UP
        ends = sorted(end for warp in self.warps for end in warp.turns)
        span = (ends[-1] - ends[len(self.warps) * WARM_UP - 1]) / turns
        waited: dict[str, float] = {}
        for warp in self.warps:
            for why, cycles in warp.waited.items():
                waited[why] = waited.get(why, 0) + cycles / turns / len(self.warps)
        return Modelled(span, dict(sorted(waited.items(), key=lambda item: -item[1])))


def modelled(kernel: list[Instruction], ways: list[Way]) -> Modelled:
    """Of a kernel's tile loop, one way a warp."""
    return of_loop(tile_loop(kernel), ways)


def of_loop(loop: Loop, ways: list[Way]) -> Modelled:
    """Of any loop."""
    traces = {way: way_through(loop, way) for way in set(ways)}
    return Machine([traces[way] for way in ways]).run()


# ---- the tile kernels of csrc/cuda ---------------------------------------------------------------------------------


def ways_of(kernel: str, access: str = "packets") -> list[Way]:
    """The ways of a block's warps through a turn of fgd_<pass>_<layout>_<type>: 32 KiB of the two maps.

    In channels_last all warps do the same. In NCHW those that finish the pixels go the longest way between the
    barriers, the others the shortest.
    """
    forward = kernel.startswith("fgd_forward")
    if "_nhwc_" in kernel:
        return [Way(True, access)] * 8
    finishers = (4 if forward else 2) // (2 if kernel.endswith("f32") else 1)
    finishing = Way(frozenset({1, 2} if forward else {0, 1}), access)
    return [finishing] * finishers + [Way(False, access)] * (8 - finishers)


def report(name: str, kernel: list[Instruction]) -> dict[str, float | str]:
    """Columns of bench/gpu_report.py."""
    kinds = ["packets", "words", "shifted words"] if "_nchw_" in name else ["packets"]
    if name.endswith("f32"):
        kinds = kinds[:2]  # a word is an element
    found = {"" if kind == "packets" else f", {kind}": modelled(kernel, ways_of(name, kind)) for kind in kinds}
    columns: dict[str, float | str] = {f"modelled: cycles a tile{what}": round(m.cycles) for what, m in found.items()}
    waits = (f"{why} {cycles:.0f}" for why, cycles in list(found[""].waited.items())[:4])
    return columns | {"modelled: an average warp waits for": ", ".join(waits)}
