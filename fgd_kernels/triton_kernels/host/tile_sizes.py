"""How large a tile is, from the number of channels and the features' type: a table, so that no user's first step tunes.

A thread of 128 holds 32 elements of the student and 32 of the teacher: more would spill from the 255 registers that it
can have (docs/triton.md has the compilers' figures). That is a tile of 4096 elements: 16 pixels of 256 channels, the
case that matters, two blocks on a multiprocessor at a time.

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
    parts: tuple[int, ...]  # of each kind: V, the pixels of a group, one load of a thread
    slabs: tuple[int, ...]  # of each kind: pieces of a tile
    warps: int
    chunk: int  # pixels of a program, a multiple of a tile's
    align: int  # elements of a 128-bit load
    in_blocks: bool  # block_c is less than C: channels are gone through twice


#         channels up to: pixels, warps
_TABLE = {16: (64, 4), 32: (64, 4), 64: (32, 4), 128: (16, 4), 256: (16, 4), 512: (16, 8)}
_CHANNEL_BLOCK = 256
_ROW = 16  # pixels of a slab in NCHW: whole sectors of 16 bits, few sums; more where threads would be left without
_ODD_SLABS = 2  # single loads take an address each, and addresses take registers: half a tile
_CHUNK = {4: 384, 2: 512}  # by element size: partial sums are 8 numbers a chunk and channel, 2 or 3 % of a map


def tile_for(channels: int, element_size: int, gpu: "Gpu") -> Tile:
    """The tile for features of that many channels; `element_size`: of the wider of student and teacher, in bytes."""
    fits = [block for block in _TABLE if block >= channels and not (gpu.short_of_registers and block > _CHANNEL_BLOCK)]
    block_c = fits[0] if fits else _CHANNEL_BLOCK
    pixels, warps = _TABLE[block_c]
    warps = 2 * warps if gpu.short_of_registers or not fits else warps
    align = 16 // element_size
    row = min(pixels, max(_ROW, gpu.warp_size * warps * align // block_c))
    slabs = (pixels // row, _ODD_SLABS, *_slabs_of_channels_last(block_c, pixels, gpu.warp_size * warps, align))
    groups = (row // align, pixels // 4, pixels // slabs[2], pixels // 4 // slabs[3])
    return Tile(block_c, groups, (align, 1, 1, 1), slabs, warps, _CHUNK[element_size], align, not fits)


def _slabs_of_channels_last(block_c: int, pixels: int, threads: int, align: int) -> tuple[int, int]:
    """Slabs of both kinds of channels_last, such that a thread has one group of pixels, and eight sums of that alone.

    Threads are dealt out along the channels first. Where each has a load of `align` of them, the rest of what it holds
    are pixels. Single loads take an address each, and addresses take registers: a tile has a quarter of the pixels.
    """
    held = block_c * pixels // threads
    return max(1, held // align), max(1, held // 4 // max(1, block_c // threads))


class Gpu(NamedTuple):
    """What the tile depends on besides the features."""

    warp_size: int
    short_of_registers: bool  # the compiler spills with 32 elements a thread, and needs 16


@functools.cache
def gpu_of(device: torch.device) -> Gpu:
    """sm_10x, which computes in pairs of registers, and AMD's RDNA, where scalars take more of them, are short.

    AMD's CDNA has warps of 64 threads, so a thread holds half as much there.
    """
    if device.type != "cuda":
        return Gpu(32, False)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Gpu(properties.warp_size, properties.gcnArchName.startswith(("gfx10", "gfx11", "gfx12")))
    return Gpu(properties.warp_size, properties.major == 10)
