"""The state of the blocks that run together: registers, shared and local memory, coordinates."""

import numpy as np

from .active import Active
from .ptx_types import type_of
from .shared import SharedMemory

STORAGE = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


class Batch:
    """``blocks`` (linear block numbers) of one launch as one vector of threads, block after block."""

    def __init__(self, launch, blocks: np.ndarray):
        self.launch, self.program, self.gpu, self.counts = launch, launch.program, launch.gpu, launch.counts
        self.blocks, self.block_threads = blocks, launch.block_threads
        self.size = len(blocks) * launch.block_threads
        self.live = self.size
        self.everyone = np.arange(self.size)
        self.block = np.repeat(np.arange(len(blocks)), launch.block_threads)
        self.thread = np.tile(np.arange(launch.block_threads), len(blocks))
        self.warps_per_block = -(-launch.block_threads // 32)
        self.warps = self.warps_per_block * len(blocks)
        self.lane = self.thread & 31
        self.warp_in_block = (self.thread >> 5).astype(np.uint8)
        self.warp = self.block * self.warps_per_block + (self.thread >> 5)
        self.lane_slot = self.warp * 32 + self.lane
        self.alive = np.ones(self.size, bool)
        self.pc, self.act = 0, Active(self, self.size)
        self._make_memory()
        self.carry = np.zeros(self.size, np.uint64)  # CC.CF
        self.shuffle_plans: dict = {}
        self.wavefront_memo: dict = {}
        self.async_copies: list = []
        self.async_group = np.zeros(self.size, np.int64)
        self.mbarriers: dict = {}
        self.r = self._make_registers()

    def _make_memory(self) -> None:
        program, launch = self.program, self.launch
        self.shared = SharedMemory(
            len(self.blocks), launch.shared_size, min(program.narrowest_shared, 16), launch.check_races
        )
        self.shared_base = self.block * self.shared.stride
        self.local_stride = -(-max(program.local_bytes, 1) // 16) * 16
        local = np.full(self.size * self.local_stride, 0xFF, np.uint8)
        self.local_views = {
            width: local.view(dtype)
            for width, dtype in ((1, np.uint8), (2, np.uint16), (4, np.uint32), (8, np.uint64), (16, np.complex128))
        }

    # ---- registers --------------------------------------------------------------------------------------------

    def _make_registers(self) -> list[np.ndarray]:
        # batches of one size share their register arrays: fresh pages cost more than many an instruction
        storage = self.launch.register_files.setdefault(self.size, {})
        return [self._slot(slot, storage) for slot in self.program.slots]

    def _slot(self, slot, storage) -> np.ndarray:
        if slot[0] == "register":
            return self._register(slot[1], type_of(slot[2]), storage)
        if slot[0] == "constant":
            kind = type_of(slot[1])
            value = np.frombuffer(slot[2], kind.dtype)
            return np.broadcast_to(value, (self.size, 2)) if kind.lanes == 2 else np.broadcast_to(value[0], self.size)
        if slot[0] == "symbol":
            kind = type_of(slot[3])
            return np.broadcast_to(np.array(self._address_of(slot[1]) + slot[2]).astype(kind.dtype), self.size)
        return self._special(slot[1]).astype(type_of(slot[2]).dtype)

    def _register(self, name, kind, storage) -> np.ndarray:
        own = type_of(self.program.registers[name])
        if name not in storage:
            shape = (self.size, 2) if own.bits == 128 else self.size
            storage[name] = np.zeros(shape, bool if own.kind == "p" else STORAGE[min(own.bits, 64)])
        array = storage[name]
        if own.kind == "p" or own.bits == 128:
            return array
        if kind.bits > own.bits:
            raise NotImplementedError(f"{name} (.{own.name}) is used as .{kind.name}")
        if kind.lanes == 2:
            return array.view(kind.dtype).reshape(self.size, -1)[:, :2]
        seen = array.view(kind.dtype)
        return seen if kind.bits == own.bits else seen.reshape(self.size, -1)[:, 0]

    def _address_of(self, name: str) -> int:
        program = self.program
        if name in program.shared_offsets:
            return program.shared_offsets[name]
        if name in program.local_offsets:
            return program.local_offsets[name]
        if name in program.param_offsets:
            return self.launch.param_address + program.param_offsets[name]
        if name in program.global_names:
            return self.gpu.symbol(program.module, name)
        raise NotImplementedError(f"the address of {name}")

    def _special(self, name: str) -> np.ndarray:
        launch, base, _, axis = self.launch, *name.partition(".")
        place = "xyz".index(axis) if axis in tuple("xyz") else 0
        if base == "%tid":
            return self._along(self.thread, launch.block, place)
        if base == "%ctaid":
            return self._along(self.blocks, launch.grid, place)[self.block]
        sizes = {"%ntid": launch.block, "%nctaid": launch.grid}
        if base in sizes:
            return np.broadcast_to(np.uint32(sizes[base][place]), self.size)
        arrays = {"%laneid": self.lane, "%warpid": self.thread >> 5}
        if base in arrays:
            return arrays[base]
        if base.startswith("%lanemask_"):
            return self._lane_mask(base.removeprefix("%lanemask_"))
        fixed = {
            "%nwarpid": self.warps_per_block,
            "%dynamic_smem_size": launch.shared_dynamic,
            "%total_smem_size": launch.shared_size,
            "%smid": 0,
            "%nsmid": 1,
            "%gridid": 0,
            "%clock": 0,
            "%clock64": 0,
            "%clock_hi": 0,
            "%globaltimer": 0,
            "%globaltimer_lo": 0,
            "%globaltimer_hi": 0,
            "%cluster_ctaid": 0,
            "%cluster_ctarank": 0,
            "%is_explicit_cluster": 0,
            "%aggr_smem_size": 0,
        }
        if base == "%clusterid":
            return self._along(self.blocks, launch.grid, place)[self.block]
        if base == "%nclusterid":
            return np.broadcast_to(np.uint32(launch.grid[place]), self.size)
        if base in ("%cluster_nctaid", "%cluster_nctarank"):
            return np.ones(self.size, np.uint32)
        if base not in fixed:
            raise NotImplementedError(f"special register {name}")
        return np.broadcast_to(np.uint64(fixed[base]), self.size)

    def _along(self, linear, sizes, place) -> np.ndarray:
        return linear // int(np.prod(sizes[:place], dtype=np.int64)) % sizes[place]

    def _lane_mask(self, which: str) -> np.ndarray:
        bit = np.uint64(1) << self.lane.astype(np.uint64)
        below, full = bit - np.uint64(1), np.uint64(0xFFFFFFFF)
        return {"eq": bit, "lt": below, "le": below | bit, "gt": full & ~(below | bit), "ge": full & ~below}[which]

    # ---- threads ----------------------------------------------------------------------------------------------

    def retire(self, act: Active) -> None:
        """These threads are done for good."""
        self.alive[act.ix] = False
        self.live -= act.n

    def live_per_block(self) -> np.ndarray:
        if self.live == self.size:
            return np.full(len(self.blocks), self.block_threads)
        return np.bincount(self.block[self.alive], minlength=len(self.blocks))

    def where(self, position: int) -> str:
        """Words for the thread at ``position`` of the active threads."""
        thread = int(self.act.ix[min(position, self.act.n - 1)])
        block = [int(self._along(self.blocks, self.launch.grid, k)[self.block[thread]]) for k in range(3)]
        local = [int(self._along(self.thread, self.launch.block, k)[thread]) for k in range(3)]
        return f"block ({block[0]}, {block[1]}, {block[2]}), thread ({local[0]}, {local[1]}, {local[2]})"
