"""ldmatrix and stmatrix: a warp moves 8x8 matrices of 16-bit elements between shared memory and registers.

Lane 8k+j gives the address of row j of matrix k; lane t then holds elements (t/4, 2(t%4)) and the next of each
matrix, or with .trans the elements at (2(t%4), t/4) and below. Triton uses them to change layouts.
"""

import numpy as np

from ..errors import Fault, WarpSyncError
from ..ptx_types import type_of
from ..steps import read, write
from ..traffic import wavefronts
from .loads_stores import Access, address_reader, vector_items
from .registry import instruction

LANE = np.arange(32)
ROW, COLUMN = LANE // 4, 2 * (LANE % 4)


def _shape(ins):
    if "m8n8" not in ins.parts or "b16" not in ins.parts:
        raise NotImplementedError("matrices other than m8n8 of b16")
    return int(next(part for part in ins.parts if part in ("x1", "x2", "x4"))[1:]), "trans" in ins.parts


def _rows(m, access, address, count, reading: bool):
    """Byte offsets in the batch of the matrices' rows, (warps, count, 8), after checks and counts."""
    act, counts = m.act, m.counts
    if act.n != act.warps * 32:
        raise Fault(WarpSyncError, f"{'ld' if reading else 'st'}matrix needs all 32 lanes of the warp")
    used = act.pick(m.lane) < 8 * count
    address, warp = address[used], act.warp[used]
    m.shared.bounds(address, 16)
    cost = wavefronts(warp, act.pick(m.lane)[used], address, 16)
    counts.shared_requests += act.warps
    nbytes = act.warps * count * 128
    if reading:
        counts.shared_read_wavefronts += cost
        counts.shared_read_bytes_by_width[16] += nbytes
    else:
        counts.shared_write_wavefronts += cost
        counts.shared_write_bytes_by_width[16] += nbytes
    return address + act.pick(m.shared_base)[used], act.pick(m.warp_in_block)[used]


@instruction("ldmatrix")
def build_load_matrix(program, ins):
    count, transposed = _shape(ins)
    access = Access(program, ins, 16)
    addresses, u32 = address_reader(program, ins.operands[1], "shared"), type_of("u32")
    targets = [program.target(item, u32) for item in vector_items(ins.operands[0])]

    def step(m):
        place, warp = _rows(m, access, addresses(m), count, True)
        raw = m.shared.read(place, 16, warp).view(np.uint16).reshape(-1, count, 8, 8)
        for k, slot in enumerate(targets):
            matrix = raw[:, k].transpose(0, 2, 1) if transposed else raw[:, k]
            low, high = matrix[:, ROW, COLUMN].astype(np.uint32), matrix[:, ROW, COLUMN + 1].astype(np.uint32)
            write(m, slot, (low | high << np.uint32(16)).reshape(-1))

    return step


@instruction("stmatrix")
def build_store_matrix(program, ins):
    count, transposed = _shape(ins)
    access = Access(program, ins, 16)
    addresses, u32 = address_reader(program, ins.operands[0], "shared"), type_of("u32")
    sources = [program.source(item, u32) for item in vector_items(ins.operands[1])]

    def step(m):
        place, warp = _rows(m, access, addresses(m), count, False)
        raw = np.empty((m.act.warps, count, 8, 8), np.uint16)
        for k, slot in enumerate(sources):
            values = read(m, slot).reshape(-1, 32)
            matrix = raw[:, k].transpose(0, 2, 1) if transposed else raw[:, k]
            matrix[:, ROW, COLUMN] = values & np.uint32(0xFFFF)
            matrix[:, ROW, COLUMN + 1] = values >> np.uint32(16)
        m.shared.write(place, 16, warp, raw.reshape(-1, 8))

    return step
