"""Device helpers: a tile of C channels by PIXELS pixels, held so that sums over pixels stay inside a thread.

A tile has three axes: channels, and the pixels cut in two, GROUPS × PART, of which PART (the pixels that one thread
holds of a channel) is summed in registers. The order of the axes follows memory, `LAYOUT`:

    ROWS        [C, G, V]   NCHW, aligned: V neighbouring pixels are one 128-bit load
    ROWS_ODD    [V, C, G]   NCHW, rows that start anywhere (H·W odd, slices): neighbouring threads, neighbouring pixels
    CHANNELS    [V, G, C]   channels_last: neighbouring threads, neighbouring channels

The layout's number is the channel axis. Sums over V give [C, G] ([G, C] for CHANNELS), sums over C [G, V] ([V, G]).
"""

import triton
import triton.language as tl

ROWS: tl.constexpr = tl.constexpr(0)
ROWS_ODD: tl.constexpr = tl.constexpr(1)
CHANNELS: tl.constexpr = tl.constexpr(2)


@triton.jit
def pixel_index(first, LAYOUT: tl.constexpr, GROUPS: tl.constexpr, PART: tl.constexpr):
    """The pixels of a tile, [G, V] or [V, G]."""
    group, part = tl.arange(0, GROUPS), tl.arange(0, PART)
    if LAYOUT == 0:
        return first + group[:, None] * PART + part[None, :]
    else:
        return first + part[:, None] * GROUPS + group[None, :]


@triton.jit
def map_index(index, pixels, p, LAYOUT: tl.constexpr, ALIGN: tl.constexpr):
    """Where a tile's pixels lie in one of an image's maps. ROWS: V neighbours are read and written at once."""
    if LAYOUT == 0:
        return tl.multiple_of(index * pixels + p, (1, ALIGN))
    else:
        return index * pixels + p


@triton.jit
def over_pixels(x, LAYOUT: tl.constexpr):
    """A vector of channels, to be broadcast to a tile."""
    if LAYOUT == 0:
        return x[:, None, None]
    elif LAYOUT == 1:
        return x[None, :, None]
    else:
        return x[None, None, :]


@triton.jit
def over_channels(x, LAYOUT: tl.constexpr):
    """A matrix of pixels, to be broadcast to a tile."""
    return tl.expand_dims(x, LAYOUT)


@triton.jit
def sum_part(x, LAYOUT: tl.constexpr):
    """Sum of a tile over V: what one thread holds."""
    return tl.sum(x, axis=2 if LAYOUT == 0 else 0)


@triton.jit
def column_maximum(x, LAYOUT: tl.constexpr):
    """Maximum over V of a matrix of pixels: [G]."""
    return tl.max(x, axis=1 if LAYOUT == 0 else 0)


@triton.jit
def column_sum(x, LAYOUT: tl.constexpr):
    """Sum over V of a matrix of pixels: [G]."""
    return tl.sum(x, axis=1 if LAYOUT == 0 else 0)


@triton.jit
def per_group(x, LAYOUT: tl.constexpr):
    """[G], to be broadcast over V to a matrix of pixels."""
    return tl.expand_dims(x, 1 if LAYOUT == 0 else 0)


@triton.jit
def group_factor(x, LAYOUT: tl.constexpr):
    """[G], to be broadcast over channels to the sums over V.

    By way of a tile of one channel and a part of 1, summed over that part, which is free: so the compiler finds the
    factor in the layout of the sums, and does not move the sums to the layout of the factor.
    """
    return sum_part(over_channels(per_group(x, LAYOUT), LAYOUT), LAYOUT)


@triton.jit
def sum_groups(x, LAYOUT: tl.constexpr):
    """The sums over V, summed over the groups: [C]."""
    return tl.sum(x, axis=0 if LAYOUT == 2 else 1)


@triton.jit
def pixel_mask(first, pixels, LAYOUT: tl.constexpr, GROUPS: tl.constexpr, PART: tl.constexpr):
    """Which pixels of a tile exist. ROWS: H·W is a multiple of V, and the compiler sees that a load has one answer."""
    if LAYOUT == 0:
        return tl.broadcast_to((first + tl.arange(0, GROUPS) * PART < pixels)[:, None], (GROUPS, PART))
    else:
        return pixel_index(first, LAYOUT, GROUPS, PART) < pixels


@triton.jit
def tile_offset(row, c, p, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of a tile's elements.

    Rows (NCHW: channels, channels_last: pixels) lie `row` apart and start at multiples of ALIGN. WIDE: an image spans
    2^31 elements or more.
    """
    if WIDE:
        c, p, row = c.to(tl.int64), p.to(tl.int64), row.to(tl.int64)
    if LAYOUT == 2:
        return over_channels(tl.multiple_of(p * row, (1, ALIGN)), LAYOUT) + over_pixels(c, LAYOUT)
    else:
        return over_pixels(tl.multiple_of(c * row, ALIGN), LAYOUT) + over_channels(p, LAYOUT)


@triton.jit
def load_tile(
    base,
    offset,
    c,
    exists,
    channels,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    ALL_CHANNELS: tl.constexpr,
):
    """Features, as float32 whatever they are in memory, zeros outside."""
    mask = tile_mask(c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
    return tl.load(base + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def second_offset(
    offset,
    row,
    c,
    p,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    SAME_ROWS: tl.constexpr,
):
    """tile_offset of another tensor, which has the same rows as a first one or its own. Saves registers."""
    if SAME_ROWS:
        return offset
    else:
        return tile_offset(row, c, p, LAYOUT, ALIGN, WIDE)


@triton.jit
def tile_mask(c, exists, channels, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, ALL_CHANNELS: tl.constexpr):
    """Which elements of a tile exist. channels_last and aligned: C is a multiple of ALIGN, one answer for a load."""
    if ALL_CHANNELS:
        return over_channels(exists, LAYOUT)
    elif LAYOUT == 2:
        return over_channels(exists, LAYOUT) & over_pixels(c // ALIGN * ALIGN < channels, LAYOUT)
    else:
        return over_channels(exists, LAYOUT) & over_pixels(c < channels, LAYOUT)


@triton.jit
def zero_sums(BLOCK_C: tl.constexpr, GROUPS: tl.constexpr, LAYOUT: tl.constexpr):
    """Sums over V, none added yet."""
    if LAYOUT == 2:
        return tl.zeros((GROUPS, BLOCK_C), tl.float32)
    else:
        return tl.zeros((BLOCK_C, GROUPS), tl.float32)
