"""Optional: do blocks of one launch depend on each other's order through global memory?

Blocks run in any order on a GPU. A launch whose blocks plainly write what another block reads or writes can give
another result next time. With ``GPU(check_blocks=True)`` each cell of global memory (as many bytes as the kernel's
narrowest global access) remembers the block that wrote it and the block that read it, or that several did, through one
launch; raised are a read of what another block wrote, a write over what another block read, and a write over what
another block wrote. Atomics and volatile, relaxed, acquire and release accesses are exempt: they are how blocks may
talk to each other.
"""

import numpy as np

from .errors import Fault, RaceError

NOBODY, SEVERAL = 0, -1


class BlockTrace:
    """Who touched which cell of global memory in one launch; blocks are numbered from 1."""

    def __init__(self, size: int, cell: int):
        self.cell = cell
        self.writer = np.zeros(size // cell + 64, np.int32)
        self.reader = np.zeros(size // cell + 64, np.int32)

    def _cells(self, address, width):
        if int(address.max()) // self.cell + 32 >= len(self.writer):  # a variable that was placed since
            self.writer, self.reader = (np.concatenate([a, np.zeros_like(a)]) for a in (self.writer, self.reader))
        first = (address // self.cell)[:, None]
        count = max(width // self.cell, 1)
        return first if count == 1 else first + np.arange(count)

    def read(self, address, width, block) -> None:
        """Note that ``block`` (one number per thread) reads; raise Fault over another block's write."""
        cells, own = self._cells(address, width), (block + 1).astype(np.int32)[:, None]
        self._raise_if_foreign(self.writer[cells], own, "reads", "wrote", address)
        reader = self.reader[cells]
        self.reader[cells] = np.where((reader == NOBODY) | (reader == own), own, SEVERAL)
        lost = self.reader[cells] != own
        if lost.any():
            self.reader[cells[lost]] = SEVERAL

    def write(self, address, width, block) -> None:
        """Note that ``block`` writes; raise Fault over what another block read or wrote."""
        cells, own = self._cells(address, width), (block + 1).astype(np.int32)[:, None]
        self._raise_if_foreign(self.reader[cells], own, "overwrites", "read", address)
        self._raise_if_foreign(self.writer[cells], own, "overwrites", "wrote", address)
        self.writer[cells] = own
        self._raise_if_foreign(self.writer[cells], own, "overwrites", "wrote", address)  # in this very instruction

    def _raise_if_foreign(self, other, own, does, did, address) -> None:
        foreign = (other != NOBODY) & (other != own)
        if foreign.any():
            position, k = (int(i) for i in np.argwhere(foreign)[0])
            number = int(other[position, k])
            whom = "several blocks" if number == SEVERAL else f"block number {number - 1}"
            message = f"the block {does} global address {int(address[position]):#x}, which {whom} {did} in this launch"
            raise Fault(RaceError, message, position)
