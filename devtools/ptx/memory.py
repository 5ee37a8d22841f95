"""Global memory: one address space, every buffer its own allocation with an unmapped gap around it."""

import bisect
import mmap
import sys

import numpy as np

from .errors import Fault, Misaligned, OutOfBounds, ReadOnly

FIRST_ADDRESS = 1 << 20  # below: the null page, so that a null or truncated pointer is out of bounds
GAP = 1 << 12  # bytes between buffers: a stray index lands in no man's land, not in a neighbour
SHARED_WINDOW, LOCAL_WINDOW, WINDOW = 1 << 44, 1 << 45, 1 << 32  # where generic addresses show the other spaces
# Without it neighbouring arenas count as one against the memory, and fork() is refused. Python 3.13 names it.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def _reserve(capacity: int) -> mmap.mmap:
    """Address space without memory behind it yet; half as much, and again, where the system refuses."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    while True:
        try:
            return mmap.mmap(-1, capacity, flags=flags)
        except OSError:
            if capacity <= 1 << 26:
                raise
            capacity //= 2


class GlobalMemory:
    """A lazily committed arena; an address is an offset into it."""

    def __init__(self, capacity: int):
        self.bytes = np.frombuffer(_reserve(capacity), np.uint8)
        self.views = {
            width: self.bytes.view(dtype)
            for width, dtype in ((1, np.uint8), (2, np.uint16), (4, np.uint32), (8, np.uint64), (16, np.complex128))
        }
        self.views[32] = self.views[8].reshape(-1, 4)
        self.top = FIRST_ADDRESS
        self.starts, self.ends, self.locked = [], [], []

    def allocate(self, size: int, align: int = 256, read_only: bool = False) -> int:
        """Reserve ``size`` bytes at a multiple of ``align`` bytes, zeroed."""
        start = -(-(self.top + GAP) // align) * align
        if start + size + GAP > len(self.bytes):
            raise MemoryError(f"{size} bytes do not fit the arena of {len(self.bytes)}: GPU(capacity=...)")
        self.top = start + size
        self.starts.append(start)
        self.ends.append(start + size)
        self.locked.append(read_only)
        return start

    def check(self, address: np.ndarray, width: int, write: bool = False) -> None:
        """Raise Fault unless every address is aligned and inside one buffer (a writable one for a write)."""
        if width > 1 and int(np.bitwise_or.reduce(address)) & (width - 1):
            position = int(np.flatnonzero(address & (width - 1))[0])
            raise Fault(Misaligned, f"address {address[position]:#x} is no multiple of {width}", position)
        low, high = int(address.min()), int(address.max())
        number = bisect.bisect_right(self.starts, low) - 1
        if number < 0 or high + width > self.ends[number]:
            self._check_each(address, width, write)
        elif write and self.locked[number]:
            raise Fault(ReadOnly, f"write to {address[0]:#x}, in a read-only buffer")

    def require_buffer(self, address: int, size: int) -> None:
        """Raise OutOfBounds unless ``size`` bytes at ``address`` lie in one buffer."""
        number = bisect.bisect_right(self.starts, address) - 1
        if number < 0 or address + size > self.ends[number]:
            raise OutOfBounds(self._describe(address, size) if self.starts else "there is no buffer")

    def _check_each(self, address, width, write) -> None:
        """The slow path: the threads reach into several buffers, or someone is outside of all."""
        if not self.starts:
            raise Fault(OutOfBounds, f"global address {address[0]:#x}, and there is no buffer at all")
        number = np.searchsorted(self.starts, address, side="right") - 1
        outside = (number < 0) | (address + width > np.array(self.ends)[number])
        if outside.any():
            position = int(np.flatnonzero(outside)[0])
            raise Fault(OutOfBounds, self._describe(int(address[position]), width), position)
        if write and np.array(self.locked)[number].any():
            position = int(np.flatnonzero(np.array(self.locked)[number])[0])
            raise Fault(ReadOnly, f"write to {address[position]:#x}, in a read-only buffer", position)

    def _describe(self, address: int, width: int) -> str:
        number = max(bisect.bisect_right(self.starts, address) - 1, 0)
        start, end = self.starts[number], self.ends[number]
        beyond = f"{address + width - end} bytes past the end of" if address >= start else f"{start - address} before"
        return f"{width} bytes at global address {address:#x}, {beyond} the buffer [{start:#x}, {end:#x})"


def gather(views: dict, address: np.ndarray, width: int) -> np.ndarray:
    """``width`` bytes from each address, as one element (a row of four for 32 bytes) of the view of that width."""
    if width == 32:
        return views[32][address >> 5]
    return views[width].take(address >> (width.bit_length() - 1))


def scatter(views: dict, address: np.ndarray, width: int, data: np.ndarray) -> None:
    """The counterpart of ``gather``. Of several writers to one address the last thread wins."""
    raw = np.ascontiguousarray(data).reshape(len(address), -1)
    if width == 32:
        views[32][address >> 5] = raw.view(np.uint64)
    else:
        views[width][address >> (width.bit_length() - 1)] = raw.view(views[width].dtype)[:, 0]
