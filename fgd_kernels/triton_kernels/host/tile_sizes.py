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
    """Constants of the passes over the features. Tuples have an entry for each kind of layout."""

    block_c: tuple[int, ...]  # channels of a block, a power of two
    blocks: tuple[int, ...]  # blocks of channels, which together are all of them
    groups: tuple[int, ...]  # groups of pixels in a slab
    parts: tuple[int, ...]  # V, the pixels of a group, one load of a thread
    slabs: tuple[int, ...]  # pieces of a block, one after another in pixels
    warps: int
    chunk: int  # pixels of a program, a multiple of a tile's
    align: int  # elements of a 128-bit load

    def covers(self, kind: int, channels: tuple[int, ...]) -> bool:
        """Whether every element of a tile is a channel that exists."""
        return all(c == self.block_c[kind] * self.blocks[kind] for c in channels)


#         channels up to: pixels, warps
_TABLE = {16: (64, 4), 32: (64, 4), 64: (32, 4), 128: (16, 4), 256: (16, 4)}
_WIDE = {512: 16, 1024: 8, 2048: 4}  # channels up to: pixels, of 256 threads
_ROW = 16  # pixels of a slab in NCHW: whole sectors of 16 bits, few sums; more where threads would be left without
_ODD_SLABS = 2  # single loads take an address each, and addresses take registers: half a tile
_CHUNK = {4: 384, 2: 512}  # by element size: partial sums are 8 numbers a chunk and channel, 2 or 3 % of a map


def tile_for(channels: int, element_size: int, gpu: "Gpu") -> Tile:
    """The tile for features of that many channels; `element_size`: of the wider of student and teacher, in bytes."""
    if channels > max(_TABLE):
        return _wide_tile(channels, element_size, gpu)
    block_c = next(block for block in _TABLE if block >= channels)
    pixels, warps = _TABLE[block_c]
    warps = 2 * warps if gpu.short_of_registers else warps
    align = 16 // element_size
    row = min(pixels, max(_ROW, gpu.warp_size * warps * align // block_c))
    return _tile((block_c, block_c), (1, 1), (pixels, pixels), row, align, gpu.warp_size, warps)


def _wide_tile(channels: int, element_size: int, gpu: "Gpu") -> Tile:
    """More than 256 channels: fewer pixels, and in NCHW blocks of channels, so that few threads are left without any.

    In channels_last a thread would have the sums of its channels of each block, so there is one.
    """
    whole = 1 << (channels - 1).bit_length()
    eighths = -(-channels // (whole // 8))
    blocks, block_c = {5: (5, whole // 8), 6: (3, whole // 4)}.get(eighths, (1, whole))
    pixels, threads = _WIDE[whole], 256
    if gpu.short_of_registers:
        pixels //= 2
    align, in_rows = 16 // element_size, pixels
    if blocks == 5:  # 5/8 of the elements: there is room for twice the pixels in 16 bits, or for half the threads
        in_rows *= 2 if element_size == 2 else 1
        if whole == 512:
            in_rows, threads = in_rows // 2, 128
    row = min(_ROW, in_rows)
    shape = (block_c, whole), (blocks, 1), (in_rows, pixels * threads // 256)
    return _tile(*shape, row, align, gpu.warp_size, max(1, threads // gpu.warp_size))


def _tile(
    block_c: tuple[int, int],
    blocks: tuple[int, int],
    pixels: tuple[int, int],
    row: int,
    align: int,
    warp_size: int,
    warps: int,
) -> Tile:
    """Block, blocks and pixels of NCHW and of channels_last become those of the kinds."""
    part = min(align, row)
    slabs = (pixels[0] // row, _ODD_SLABS, *_slabs_of_channels_last(block_c[1], pixels[1], warp_size * warps, align))
    odd = max(1, pixels[0] // 4), max(1, pixels[1] // 4 // slabs[3])
    groups = (row // part, odd[0], pixels[1] // slabs[2], odd[1])
    twice = tuple((a, a, b, b) for a, b in (block_c, blocks))
    return Tile(*twice, groups, (part, 1, 1, 1), slabs, warps, _CHUNK[16 // align], align)


def _slabs_of_channels_last(block_c: int, pixels: int, threads: int, align: int) -> tuple[int, int]:
    """Slabs of both kinds of channels_last, such that a thread has one group of pixels, and eight sums of that alone.

    Threads are dealt out along the channels first. Where each has a load of `align` of them, the rest of what it holds
    are pixels. Single loads take an address each, and addresses take registers: a tile has a quarter of the pixels.
    """
    held = block_c * pixels // threads
    return min(pixels, max(1, held // align)), max(1, held // 4 // max(1, block_c // threads))


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
