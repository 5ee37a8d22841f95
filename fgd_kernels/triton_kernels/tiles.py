"""How large a tile is, from the number of channels and the features' type: a table, so that no user's first step tunes.

A thread holds 32 elements of the student and 32 of the teacher, and the eight sums of as many channels as those are:
more would spill from the 255 registers that a thread can have (docs/triton.md has the compiler's figures). With 4 warps
that is 4096 elements: 16 pixels of 256 channels, the case that matters, two blocks on a multiprocessor at a time.

Kinds of layout, as numbered in the kernels (tile.py has the axes):

    0 ROWS       NCHW, 128-bit loads      1 ROWS_ODD       NCHW, rows that start anywhere
    2 CHANNELS   channels_last, likewise  3 CHANNELS_ODD   channels_last, C not a multiple of a 128-bit load
"""

import functools
from typing import NamedTuple

import torch

ROWS_KINDS = 2  # kinds below are NCHW


class Tile(NamedTuple):
    """Constants of the passes over the features."""

    block_c: int  # channels of a tile, a power of two
    groups: tuple[int, ...]  # of each kind: groups of pixels in a tile
    parts: tuple[int, ...]  # of each kind: pixels of a group, which one thread holds
    warps: int
    slice: int  # pixels of a program, a multiple of a tile's
    align: int  # elements of a 128-bit load
    chunked: bool  # block_c is less than C: channels are gone through twice


#         channels up to: pixels, warps
_TABLE = {16: (64, 4), 32: (64, 4), 64: (64, 4), 128: (32, 4), 256: (16, 4), 512: (16, 8)}
_CHUNK = 256
_SLICE = {4: 384, 2: 512}  # by element size: partial sums are 8 numbers a slice and channel, 2 or 3 % of a map


def tile_for(channels: int, element_size: int, short_of_registers: bool) -> Tile:
    """The tile for features of that many channels; `element_size`: of the wider of student and teacher, in bytes."""
    fits = [block for block in _TABLE if block >= channels and not (short_of_registers and block > _CHUNK)]
    block_c = fits[0] if fits else _CHUNK
    pixels, warps = _TABLE[block_c]
    align = 16 // element_size
    parts = (align, 4, 4, 4)
    groups = (*(pixels // part for part in parts[:3]), pixels // 8)  # the last kind's addresses take more registers
    warps = 2 * warps if short_of_registers or not fits else warps
    return Tile(block_c, groups, parts, warps, _SLICE[element_size], align, not fits)


@functools.cache
def short_of_registers(device: torch.device) -> bool:
    """Whether the compiler spills with 32 elements a thread, and needs 16: sm_10x, and AMD's RDNA.

    sm_10x computes in pairs of registers. RDNA has 256 registers as all others, but scalars take more of them.
    """
    if device.type != "cuda":
        return False
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.startswith(("gfx10", "gfx11", "gfx12"))
    return torch.cuda.get_device_capability(device)[0] == 10
