"""The machine a test talks to: buffers, and launches of kernels."""

from collections import defaultdict

import numpy as np

from .batch import Batch
from .block_races import BlockTrace
from .counters import Counts
from .floats import bf16_to_f32
from .memory import GlobalMemory
from .program import Kernel
from .ptx_types import type_of
from .scheduler import Scheduler
from .syntax import Module, Symbol

POISON = 0xFF  # as float16, bfloat16, float32 or float64 these bytes are NaN


class GPU:
    """Memory that outlives launches. Buffers are never freed: make a new GPU for a new test."""

    def __init__(
        self,
        capacity: int = 1 << 36,
        check_races: bool = True,
        check_blocks: bool = False,
        threads_per_batch: int = 8192,
    ):
        """``check_races`` inside blocks (shared.py), ``check_blocks`` between them (block_races.py)."""
        self.memory, self.check_blocks = GlobalMemory(capacity), check_blocks
        self.check_races, self.threads_per_batch = check_races, threads_per_batch
        self._symbols: dict = defaultdict(dict)

    def put(self, array, read_only: bool = False) -> int:
        """Copy a numpy array (C order) into a buffer of its own; the address."""
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        address = self.memory.allocate(raw.nbytes, read_only=read_only)
        self.memory.bytes[address : address + raw.nbytes] = raw
        return address

    def empty(self, nbytes: int) -> int:
        """A buffer of ``nbytes`` that holds NaN, so that what a kernel forgets to write shows."""
        address = self.memory.allocate(nbytes)
        self.memory.bytes[address : address + nbytes] = POISON
        return address

    def reserve(self, nbytes: int) -> int:
        """A buffer of zeros that takes memory only where it is touched: gigabytes, to try 64-bit offsets."""
        return self.memory.allocate(nbytes)

    def get(self, address: int, shape, dtype) -> np.ndarray:
        """A copy of a buffer; ``dtype="bf16"`` widens bfloat16 to float32."""
        widen = isinstance(dtype, str) and dtype in ("bf16", "bfloat16")
        dtype = np.dtype(np.uint16 if widen else dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if nbytes:
            self.memory.require_buffer(address, nbytes)
        values = self.memory.bytes[address : address + nbytes].copy().view(dtype).reshape(shape)
        return bf16_to_f32(values) if widen else values

    def launch(self, kernel: Kernel, grid, block, args, shared_bytes: int = 0, budget: int = 10**9) -> Counts:
        """Run ``kernel`` on ``grid`` blocks of ``block`` threads (ints or up to three) and count.

        args          one per parameter: int (also addresses), float, numpy scalar; bytes or a numpy array or structured
                      scalar for a struct passed by value
        shared_bytes  dynamic shared memory
        budget        instructions a batch may issue before the launch counts as endless
        Raises what errors.py names; NotImplementedError for an instruction that is not supported.
        """
        return Launch(self, kernel, _three(grid), _three(block), args, shared_bytes, budget).run()

    def symbol(self, module: Module, name: str) -> int:
        """The address of a module's .global or .const variable (cudaGetSymbolAddress); placed at first use."""
        places = self._symbols[id(module), name]
        if "address" not in places:
            variable = module.variables[name]
            places["module"] = module  # keeps id(module) from being reused
            places["address"] = self.memory.allocate(variable.size, max(variable.align, 256))
            raw = b"".join(self._initial(module, item) for item in variable.initial or ())
            self.memory.bytes[places["address"] : places["address"] + len(raw)] = np.frombuffer(raw, np.uint8)
            self.memory.locked[-1] = variable.space == "const"
        return places["address"]

    def _initial(self, module, item) -> bytes:
        if isinstance(item, Symbol):
            return np.uint64(self.symbol(module, item.name) + item.offset).tobytes()
        return item


def _three(size) -> tuple[int, int, int]:
    sizes = (size,) if isinstance(size, (int, np.integer)) else tuple(size)
    return tuple(int(s) for s in sizes + (1,) * (3 - len(sizes)))


class Launch:
    """One launch: its arguments as bytes, its sizes, its counters."""

    def __init__(self, gpu: GPU, kernel: Kernel, grid, block, args, shared_bytes, budget):
        self.gpu, self.program, self.grid, self.block, self.budget = gpu, kernel.program, grid, block, budget
        self.block_threads = int(np.prod(block))
        self._check_sizes(kernel)
        self.check_races, self.shared_dynamic = gpu.check_races, shared_bytes
        program = self.program
        self.shared_size = program.dynamic_start + shared_bytes if shared_bytes else program.shared_static
        self.param_bytes = self._pack(args)
        self.param_address = gpu.memory.allocate(len(self.param_bytes), read_only=True)
        gpu.memory.bytes[self.param_address : self.param_address + len(self.param_bytes)] = self.param_bytes
        self.trace = BlockTrace(gpu.memory.top, program.narrowest_global) if gpu.check_blocks else None
        self.register_files: dict[int, dict[str, np.ndarray]] = {}
        self.counts = Counts()

    def _check_sizes(self, kernel) -> None:
        limits = ((2**31 - 1, 65535, 65535), (1024, 1024, 64))
        for what, sizes, limit in (("grid", self.grid, limits[0]), ("block", self.block, limits[1])):
            if any(size < 1 or size > most for size, most in zip(sizes, limit, strict=True)):
                raise ValueError(f"{what} {sizes} is outside 1 to {limit}")
        most = min(kernel.function.max_threads or 1024, 1024)
        if self.block_threads > most:
            raise ValueError(f"{self.block_threads} threads a block, but {kernel.name} allows {most}")

    def _pack(self, args) -> np.ndarray:
        program = self.program
        if len(args) != len(program.params):
            kinds = [f"{p.size} bytes" if p.is_array else p.type for p in program.params]
            raise TypeError(f"{program.name} takes {len(kinds)} arguments {kinds}, not {len(args)}")
        buffer = np.zeros(program.param_bytes, np.uint8)
        for number, (param, value) in enumerate(zip(program.params, args, strict=True)):
            raw = _argument_bytes(param, value, number)
            start = program.param_offsets[param.name]
            buffer[start : start + param.size] = np.frombuffer(raw, np.uint8)
        return buffer

    def run(self) -> Counts:
        total = int(np.prod(self.grid, dtype=np.int64))
        at_once = max(1, self.gpu.threads_per_batch // self.block_threads)
        length = len(self.program.body) + 1
        threads, warps = np.zeros(length, np.int64), np.zeros(length, np.int64)
        with np.errstate(all="ignore"):
            for first in range(0, total, at_once):
                batch = Batch(self, np.arange(first, min(first + at_once, total)))
                scheduler = Scheduler(batch, self.budget)
                scheduler.run()
                threads += scheduler.threads  # numpy adds the list elementwise
                warps += scheduler.warps
                self.counts.shared_collisions += batch.shared.collisions
        self.counts.tally(self.program.body, np.cumsum(threads).tolist(), np.cumsum(warps).tolist())
        self.counts.blocks, self.counts.threads = total, total * self.block_threads
        return self.counts


def _argument_bytes(param, value, number: int) -> bytes:
    if param.is_array:
        raw = value if isinstance(value, bytes) else np.asarray(value).tobytes()
    elif isinstance(value, (np.generic, np.ndarray)) and value.dtype.names:
        raw = value.tobytes()
    else:
        kind = type_of(param.type)
        if isinstance(value, (float, np.floating)) and kind.kind in "us" and kind.bits > 16 and param.type[0] != "b":
            raise TypeError(f"argument {number} is a float, the parameter {param.name} .{param.type}")
        raw = _scalar_bytes(kind, value)
    if len(raw) != param.size:
        raise TypeError(f"argument {number} has {len(raw)} bytes, the parameter {param.name} {param.size}")
    return raw


def _scalar_bytes(kind, value) -> bytes:
    if kind.kind == "f" or isinstance(value, (float, np.floating)):
        dtype = kind.dtype if kind.kind == "f" else np.dtype(f"f{kind.bytes}")
        return np.asarray(value).astype(dtype).tobytes()
    return (int(value) & ((1 << kind.bits) - 1)).to_bytes(kind.bytes, "little")
