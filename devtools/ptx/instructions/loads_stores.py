"""ld and st in every state space, with vectors, checks and traffic counters."""

import numpy as np

from .. import syntax
from ..errors import Fault, Misaligned, OutOfBounds
from ..memory import LOCAL_WINDOW, SHARED_WINDOW, WINDOW, gather, scatter
from ..ptx_types import last_type, type_of
from ..steps import read, write
from ..traffic import sectors, wavefronts
from .registry import instruction

SPACES = ("global", "shared", "local", "param", "const")
STRONG = {"volatile", "relaxed", "acquire", "release", "mmio"}


class Access:
    """What an ld or st does, as far as its opcode says."""

    def __init__(self, program, ins, width: int):
        names = [part.split("::")[0] for part in ins.parts]
        self.space = next((name for name in names if name in SPACES), "generic")
        if self.space == "const":
            self.space = "global"
        self.width, self.strong = width, bool(STRONG & set(ins.parts))
        self.key = id(ins)  # of the memo of bank conflicts
        if self.space in ("shared", "generic"):
            program.note_shared(width)
        if self.space in ("global", "generic"):
            program.note_global(width)


def address_reader(program, operand, space: str):
    """A function of the batch: the active threads' addresses, compact int64."""
    base, offset = operand.base, operand.offset
    if base is None or isinstance(base, syntax.Symbol):
        if base is None:
            return lambda m: np.full(m.act.n, offset, np.int64)
        slot = program.source(base, type_of("u64"))
        return lambda m: read(m, slot).astype(np.int64) + offset
    if program.register_type(base).bits == 64:
        slot = program.source(base, type_of("s64"))
        return (lambda m: read(m, slot) + offset) if offset else (lambda m: read(m, slot))
    slot = program.source(base, type_of("u32"))
    return lambda m: read(m, slot).astype(np.int64) + offset


# ---- each space -----------------------------------------------------------------------------------------------------


def load(m, access: Access, address: np.ndarray) -> np.ndarray:
    """The bytes at ``address`` for the active threads, as elements of ``access.width``."""
    if access.space == "global":
        return _load_global(m, access, address)
    if access.space == "shared":
        return _load_shared(m, access, address)
    if access.space == "local":
        return _local(m, access, address, None)
    return _generic(m, access, address, None)


def store(m, access: Access, address: np.ndarray, data: np.ndarray) -> None:
    """Write one row of ``data`` per active thread."""
    if access.space == "global":
        width, act, counts = access.width, m.act, m.counts
        m.gpu.memory.check(address, width, write=True)
        if m.launch.trace and not access.strong:
            m.launch.trace.write(address, width, m.blocks[act.pick(m.block)])
        counts.global_write_requests += act.warps
        counts.global_write_sectors += sectors(act.warp, address)
        counts.global_write_bytes_by_width[width] += width * act.n
        scatter(m.gpu.memory.views, address, width, data)
    elif access.space == "shared":
        width, act, counts = access.width, m.act, m.counts
        m.shared.bounds(address, width)
        counts.shared_requests += act.warps
        counts.shared_write_wavefronts += shared_wavefronts(m, access, address)
        counts.shared_write_bytes_by_width[width] += width * act.n
        m.shared.write(address + act.pick(m.shared_base), width, act.pick(m.warp_in_block), data, access.strong)
    elif access.space == "local":
        _local(m, access, address, data)
    else:
        _generic(m, access, address, data)


def _load_global(m, access, address):
    width, act, counts = access.width, m.act, m.counts
    m.gpu.memory.check(address, width)
    if m.launch.trace and not access.strong:
        m.launch.trace.read(address, width, m.blocks[act.pick(m.block)])
    counts.global_read_requests += act.warps
    counts.global_read_sectors += sectors(act.warp, address)
    counts.global_read_bytes_by_width[width] += width * act.n
    return gather(m.gpu.memory.views, address, width)


def _load_shared(m, access, address):
    width, act, counts = access.width, m.act, m.counts
    m.shared.bounds(address, width)
    counts.shared_requests += act.warps
    counts.shared_read_wavefronts += shared_wavefronts(m, access, address)
    counts.shared_read_bytes_by_width[width] += width * act.n
    place = address + act.pick(m.shared_base)
    return m.shared.read(place, width, act.pick(m.warp_in_block), strong=access.strong)


def shared_wavefronts(m, access, address) -> int:
    """Bank conflicts; in loops the pattern mostly repeats, so an instruction's last whole patterns are kept."""
    act = m.act
    if not act.whole:
        return wavefronts(act.warp, act.pick(m.lane), address, access.width)
    memo = m.wavefront_memo.setdefault(access.key, [])
    for pattern, cost in memo:
        if np.array_equal(pattern, address):
            return cost
    cost = wavefronts(act.warp, m.lane, address, access.width)
    memo.insert(0, (address.copy(), cost))
    del memo[3:]
    return cost


def _local(m, access, address, data):
    """A thread's own memory: its row of one array. Counted as requests and bytes, not as global traffic."""
    width, stride = access.width, m.local_stride
    if width > 1 and int(np.bitwise_or.reduce(address)) & (width - 1):
        position = int(np.flatnonzero(address & (width - 1))[0])
        raise Fault(Misaligned, f"local address {address[position]:#x} is no multiple of {width}", position)
    outside = (address < 0) | (address + width > m.program.local_bytes)
    if outside.any():
        position = int(np.flatnonzero(outside)[0])
        raise Fault(
            OutOfBounds, f"{width} bytes at local address {address[position]:#x} of {m.program.local_bytes}", position
        )
    place = address + m.act.ix * stride
    m.counts.local_requests += m.act.warps
    m.counts.local_bytes += width * m.act.n
    if data is None:
        return gather(m.local_views, place, width)
    scatter(m.local_views, place, width, data)
    return None


def _generic(m, access, address, data):
    """A generic address: each thread's window decides the space; mostly all agree."""
    outer, result = m.act, None
    for space, low, high in (
        ("global", -(1 << 63), SHARED_WINDOW),
        ("shared", SHARED_WINDOW, SHARED_WINDOW + WINDOW),
        ("local", LOCAL_WINDOW, LOCAL_WINDOW + WINDOW),
    ):
        chosen = (address >= low) & (address < high)
        if not chosen.any():
            continue
        inner = outer if chosen.all() else outer.subset(chosen)
        part = _InSpace(access, space)
        m.act = inner
        here = address[chosen] - (0 if space == "global" else low)
        if data is not None:
            store(m, part, here, np.asarray(data)[chosen])
        else:
            values = load(m, part, here)
            if result is None:
                result = np.zeros((outer.n, *values.shape[1:]), values.dtype)
            result[chosen] = values
        m.act = outer
    return result


class _InSpace:
    """A generic access, once its space is known."""

    def __init__(self, access, space):
        self.space, self.width, self.strong, self.key = space, access.width, access.strong, (access.key, space)


# ---- ld and st ------------------------------------------------------------------------------------------------------


def vector_items(operand) -> list:
    return list(operand.items) if isinstance(operand, syntax.Vector) else [operand]


def element_of(parts):
    """The element type; a packed or odd type moves as bits."""
    kind = last_type(parts)
    return type_of(f"b{kind.bits}") if kind.lanes > 1 and kind.bits <= 64 else kind


@instruction("ld", "ldu")
def build_load(program, ins):
    kind = element_of(ins.parts)
    items = vector_items(ins.operands[0])
    targets = [program.target(item, kind) for item in items]
    operand = ins.operands[1]
    if "param" in ins.parts or any(part.startswith("param::") for part in ins.parts):
        constant = _constant_parameter(program, operand, kind, targets)
        if constant is not None:
            return constant
    access = Access(program, ins, kind.bytes * len(items))
    if access.space == "param":
        access.space = "local" if _is_call_parameter(program, operand) else "global"
        if access.space == "global":
            return _parameter_by_address(program, operand, kind, targets)
    addresses = address_reader(program, operand, access.space)

    def step(m):
        raw = load(m, access, addresses(m))
        if len(targets) == 1:
            write(m, targets[0], raw.view(kind.dtype).reshape(-1, 2) if kind.lanes == 2 else raw.view(kind.dtype))
            return
        values = raw.view(kind.dtype).reshape(m.act.n, -1)
        for k, slot in enumerate(targets):
            write(m, slot, values[:, 2 * k : 2 * k + 2] if kind.lanes == 2 else values[:, k])

    return step


def _is_call_parameter(program, operand) -> bool:
    """Parameters of inlined calls live in local memory, not in the kernel's parameter buffer."""
    return isinstance(operand.base, syntax.Symbol) and operand.base.name in program.local_offsets


def _constant_parameter(program, operand, kind, targets):
    """ld.param of a kernel parameter at a fixed offset: the same value for every thread."""
    if not (isinstance(operand.base, syntax.Symbol) and operand.base.name in program.param_offsets):
        return None
    start = program.param_offsets[operand.base.name] + operand.offset

    def step(m):
        raw = m.launch.param_bytes[start : start + kind.bytes * len(targets)]
        for slot, value in zip(targets, raw.copy().view(kind.dtype).reshape(len(targets), -1), strict=True):
            write(m, slot, value if kind.lanes == 2 else value[0])

    return step


def _parameter_by_address(program, operand, kind, targets):
    """ld.param through a register (an indexed struct): reads the launch's copy, without counting global traffic."""
    addresses, width = address_reader(program, operand, "param"), kind.bytes * len(targets)

    def step(m):
        address = addresses(m)
        m.gpu.memory.check(address, width)
        values = gather(m.gpu.memory.views, address, width).view(kind.dtype).reshape(m.act.n, -1)
        for k, slot in enumerate(targets):
            write(m, slot, values[:, k])

    return step


@instruction("st")
def build_store(program, ins):
    kind = element_of(ins.parts)
    items = vector_items(ins.operands[1])
    sources = [program.source(item, kind) for item in items]
    access = Access(program, ins, kind.bytes * len(items))
    if access.space == "param":
        access.space = "local"
    addresses = address_reader(program, ins.operands[0], access.space)

    def step(m):
        values = [read(m, slot) for slot in sources]
        if len(values) == 1:
            data = values[0]
        else:
            data = np.concatenate(values, axis=1) if kind.lanes == 2 else np.stack(values, axis=1)
        store(m, access, addresses(m), data)

    return step
