"""Shared memory of the blocks of a batch, and what it remembers about who touched what.

The rule for races. Each cell (as many bytes as the kernel's narrowest shared access) remembers the warp that wrote
it and the warp that read it, or that several did, since the last barrier of its block. Raised are

  - a read of what another warp wrote,
  - a write over what another warp wrote, if the value differs,
  - a write over what another warp read,
  - two different values written to one address by one instruction from two warps.

Two lanes of one warp that write different values to one address in one instruction are only counted
(``collisions``; the last lane wins): Triton does that where a contraction to fma makes the replicas of a sum differ
in their last bit. Accesses of one warp are ordered by the program (this interpreter reconverges warps; independent
thread scheduling inside a warp is not explored). Atomics do not race with each other but do with plain accesses.
Volatile, relaxed, acquire and release accesses are synchronisation themselves and never raise. A barrier of only
some warps (named barriers, mbarriers) forgets what those warps wrote, and all reads that cannot be told apart: that
may miss a race, never invent one. Warps that order themselves by flags in shared memory are not
understood: what they hand over raises.
"""

import numpy as np

from .errors import Fault, Misaligned, OutOfBounds, RaceError, UninitialisedShared
from .memory import gather, scatter

NOBODY, SEVERAL, ATOMIC = 255, 254, 253
NEVER, WRITTEN, IN_FLIGHT = 0, 1, 2


class SharedMemory:
    """``blocks`` windows of ``size`` bytes each, laid end to end so that one gather serves all blocks."""

    def __init__(self, blocks: int, size: int, cell: int, check: bool):
        self.size, self.cell, self.check = size, cell, check
        self.stride = -(-max(size, 1) // 128) * 128
        total = blocks * self.stride
        self.bytes = np.full(total, 0xFF, np.uint8)
        self.views = {
            width: self.bytes.view(dtype)
            for width, dtype in ((1, np.uint8), (2, np.uint16), (4, np.uint32), (8, np.uint64), (16, np.complex128))
        }
        self.views[32] = self.views[8].reshape(-1, 4)
        cells = total // cell
        self.state = np.full(cells, NEVER, np.uint8)
        self.writer = np.full(cells, NOBODY, np.uint8)
        self.reader = np.full(cells, NOBODY, np.uint8)
        self.blocks, self.collisions = blocks, 0

    def bounds(self, address: np.ndarray, width: int) -> None:
        """Raise Fault unless every address (inside its block's window) is aligned and in range."""
        if width > 1 and int(np.bitwise_or.reduce(address)) & (width - 1):
            position = int(np.flatnonzero(address & (width - 1))[0])
            raise Fault(Misaligned, f"shared address {address[position]:#x} is no multiple of {width}", position)
        if int(address.min()) < 0 or int(address.max()) + width > self.size:
            position = int(np.flatnonzero((address < 0) | (address + width > self.size))[0])
            raise Fault(OutOfBounds, f"{width} bytes at shared address {address[position]:#x} of {self.size}", position)

    def read(self, place, width, warp, strong=False) -> np.ndarray:
        """The data at byte offsets ``place`` of the batch, after the checks; ``warp`` is each thread's in its block."""
        self._require_written(place, width)
        if self.check:
            self._note_read(self._cells(place, width), warp, strong)
        return gather(self.views, place, width)

    def write(self, place, width, warp, data, strong=False) -> None:
        """Store, after the checks; also marks the bytes as written."""
        raw = np.ascontiguousarray(data).reshape(len(place), -1).view(np.uint8)
        cells = self._cells(place, width)
        if self.check and not strong:
            self._check_write(cells, place, width, warp, raw)
        scatter(self.views, place, width, raw)
        if self.check and not strong:
            self._check_collision(place, width, warp, raw)
        self.mark(cells, WRITTEN, warp)

    def mark(self, cells, state: int, warp) -> None:
        self.state[cells] = state
        if self.check:
            self.writer[cells] = warp[:, None] if isinstance(warp, np.ndarray) else warp

    def cells_of(self, place, width) -> np.ndarray:
        """(n, k) cell numbers that ``width`` bytes at ``place`` cover."""
        return self._cells(place, width)

    def _cells(self, place, width):
        first = (place // self.cell)[:, None]
        count = max(width // self.cell, 1)
        return first if count == 1 else first + np.arange(count)

    def _require_written(self, place, width) -> None:
        state = self.state[self._cells(place, width)]
        if (state == WRITTEN).all():
            return
        position = int(np.flatnonzero((state != WRITTEN).any(axis=1))[0])
        flying = (state[position] == IN_FLIGHT).any()
        why = "whose asynchronous copy was not waited for" if flying else "that was never written"
        raise Fault(UninitialisedShared, f"read of shared address {self._local(place[position])} {why}", position)

    def _local(self, place) -> str:
        return f"{int(place) % self.stride:#x}"

    def _note_read(self, cells, warp, strong) -> None:
        own = warp[:, None]
        writer = self.writer[cells]
        foreign = (writer != NOBODY) & (writer != own)
        if not strong and foreign.any():
            position, k = (int(i) for i in np.argwhere(foreign)[0])
            self._race(cells, position, k, warp, "reads what", writer[position, k], "wrote")
        reader = self.reader[cells]
        known = (reader == own) | (reader == SEVERAL)
        if known.all():
            return
        self.reader[cells] = np.where(known, reader, np.where(reader == NOBODY, own, SEVERAL))
        after = self.reader[cells]
        lost = (after != own) & (after != SEVERAL)  # two warps, one instruction, the same cell
        if lost.any():
            self.reader[cells[lost]] = SEVERAL

    def _check_write(self, cells, place, width, warp, raw) -> None:
        own = warp[:, None]
        reader = self.reader[cells]
        foreign = (reader != NOBODY) & (reader != own)
        if foreign.any():
            position, k = (int(i) for i in np.argwhere(foreign)[0])
            self._race(cells, position, k, warp, "overwrites what", reader[position, k], "read")
        writer = self.writer[cells]
        foreign = ((writer != NOBODY) & (writer != own)).any(axis=1)
        if foreign.any():
            there = gather(self.views, place[foreign], width).view(np.uint8).reshape(int(foreign.sum()), -1)
            differs = (there != raw[foreign]).any(axis=1)
            if differs.any():
                position = int(np.flatnonzero(foreign)[np.flatnonzero(differs)[0]])
                k = int(np.flatnonzero((writer[position] != NOBODY) & (writer[position] != warp[position]))[0])
                self._race(cells, position, k, warp, "overwrites with another value what", writer[position, k], "wrote")

    def _check_collision(self, place, width, warp, raw) -> None:
        """After a store: whoever does not find its own value was overwritten by another thread of the instruction."""
        there = gather(self.views, place, width).view(np.uint8).reshape(len(place), -1)
        if np.array_equal(there, raw):
            return
        lost = np.flatnonzero((there != raw).any(axis=1))
        _, first_from_end, inverse = np.unique(place[::-1], return_index=True, return_inverse=True)
        winner = (len(place) - 1 - first_from_end)[inverse][::-1]
        foreign = warp[winner[lost]] != warp[lost]
        if foreign.any():
            position = int(lost[np.flatnonzero(foreign)[0]])
            raise Fault(
                RaceError,
                f"warps {int(warp[position])} and {int(warp[winner[position]])} write different values "
                f"to shared address {self._local(place[position])} in one instruction",
                position,
            )
        self.collisions += len(lost)

    def _race(self, cells, position, k, warp, what, other, did) -> None:
        whom = {SEVERAL: "several warps", ATOMIC: "an atomic"}.get(int(other), f"warp {int(other)}")
        where = int(cells[position, k]) * self.cell % self.stride
        raise Fault(
            RaceError,
            f"race: warp {int(warp[position])} {what} {whom} {did} at shared address {where:#x}, "
            f"with no barrier in between",
            position,
        )

    def atomic(self, place, width, warp) -> None:
        """Checks and marks for an atomic access: it races with plain accesses of other warps only."""
        self._require_written(place, width)
        if not self.check:
            return
        cells = self._cells(place, width)
        own = warp[:, None]
        for table, did in ((self.writer, "wrote"), (self.reader, "read")):
            other = table[cells]
            foreign = (other != NOBODY) & (other != own) & (other != ATOMIC)
            if foreign.any():
                position, k = (int(i) for i in np.argwhere(foreign)[0])
                self._race(cells, position, k, warp, "updates atomically what", other[position, k], did)
        self.writer[cells] = ATOMIC

    def barrier(self, blocks=None) -> None:
        """All threads of these blocks (None: of all) have met: everything before is ordered with everything after."""
        if self.check:
            for table in (self.writer, self.reader):
                if blocks is None:
                    table.fill(NOBODY)
                else:
                    table.reshape(self.blocks, -1)[blocks] = NOBODY

    def partial_barrier(self, block: int, warps) -> None:
        """Only ``warps`` of ``block`` have met (see the rule above)."""
        if self.check:
            writer, reader = (t.reshape(self.blocks, -1)[block] for t in (self.writer, self.reader))
            known = np.append(np.asarray(list(warps), np.uint8), np.uint8(ATOMIC))
            writer[np.isin(writer, known)] = NOBODY
            reader[np.isin(reader, np.append(known, np.uint8(SEVERAL)))] = NOBODY
