"""What an access costs: 32-byte sectors of global memory, wavefronts of shared memory.

Sectors are counted per warp instruction, as a profiler counts requests to L1: the distinct 32-byte sectors that the
active lanes of one warp touch; what caches keep between instructions is not modelled.

Wavefronts: shared memory has 32 banks of 4 bytes and serves 128 bytes a wavefront. Accesses of up to 4 bytes are
served a warp at a time, of 8 bytes a half warp, of 16 bytes a quarter warp. Each such group takes as many
wavefronts as the most loaded bank (for wide accesses: pair or quad of banks) has distinct words; lanes that read
the same word share it.
"""

import numpy as np


def sectors(warp: np.ndarray, address: np.ndarray) -> int:
    """Distinct (warp, sector) pairs."""
    key = (warp << 44) | (address >> 5)
    step = np.diff(key)
    if len(step) and int(step.min()) < 0:
        key.sort()
        step = np.diff(key)
    return 1 + int(np.count_nonzero(step))


def wavefronts(warp: np.ndarray, lane: np.ndarray, address: np.ndarray, width: int) -> int:
    """Wavefronts of one instruction, over all active warps."""
    unit = max(width, 4)
    lanes = 128 // unit  # lanes served together; also the number of banks as wide as one access
    group = warp * (32 // lanes) + lane // lanes
    key = np.sort((group << 32) | (address // unit))
    distinct = np.concatenate([[True], np.diff(key) != 0])
    key = key[distinct]
    groups = int(key[-1] >> 32) + 1
    loads = np.bincount((key >> 32) * lanes + (key & 0xFFFFFFFF) % lanes, minlength=groups * lanes)
    return int(loads.reshape(groups, lanes).max(axis=1).sum())
