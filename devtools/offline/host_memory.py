"""The interpreter's global memory made of this process's own: an address in a kernel is one on the host."""

import numpy as np

from devtools.ptx import GPU
from devtools.ptx.errors import Fault, Misaligned
from devtools.ptx.memory import GlobalMemory

FIRST, LAST = 1 << 20, 1 << 47  # of user space


class Shifted:
    """An array that is indexed by addresses (in its own elements), and begins at FIRST."""

    def __init__(self, array: np.ndarray):
        self.array, self.dtype, self.shape = array, array.dtype, array.shape
        self.shift = FIRST // array.itemsize

    def view(self, dtype):
        return Shifted(self.array.view(dtype))

    def _index(self, index):
        if isinstance(index, slice):
            return slice(index.start - self.shift, index.stop - self.shift)
        return index - self.shift

    def take(self, index):
        return self.array.take(self._index(index))

    def __getitem__(self, index):
        return self.array[self._index(index)]

    def __setitem__(self, index, value):
        self.array[self._index(index)] = value


class _UserSpace:
    """All of it, as numpy wants it described; nothing is touched."""

    def __init__(self):
        self.__array_interface__ = {
            "data": (FIRST, False),
            "shape": (LAST - FIRST,),
            "typestr": "|u1",
            "version": 3,
        }


class HostMemory(GlobalMemory):
    """Bounds are not checked: a tensor's neighbours are this process's, too. Alignment is."""

    def __init__(self):
        everything = np.asarray(_UserSpace())
        kinds = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}
        self.bytes = Shifted(everything)
        self.views = {width: Shifted(everything.view(dtype)) for width, dtype in kinds.items()}
        self.top, self.locked, self._kept = 0, [], []

    def allocate(self, size: int, align: int = 256, read_only: bool = False) -> int:
        self._kept.append(np.zeros(size + align, np.uint8))
        self.locked.append(read_only)
        return -(-self._kept[-1].ctypes.data // align) * align

    def check(self, address: np.ndarray, width: int, write: bool = False) -> None:
        if width > 1 and int(np.bitwise_or.reduce(address)) & (width - 1):
            position = int(np.flatnonzero(address & (width - 1))[0])
            raise Fault(Misaligned, f"address {address[position]:#x} is no multiple of {width}", position)

    def require_buffer(self, address: int, size: int) -> None:
        pass


class HostGPU(GPU):
    """Runs kernels on tensors of the host, where they lie."""

    def __init__(self, **options):
        super().__init__(capacity=1 << 26, **options)
        self.memory = HostMemory()
