"""Device helpers: a tile of C channels by some pixels, held so that sums over pixels stay inside a thread.

A tile is a tuple of BLOCKS blocks of channels, each of them a tuple of SLABS pieces, one after another in pixels, so
that a thread has several loads in flight. A slab has three axes: channels, and its pixels cut in two, GROUPS × PART, of
which PART, V, is what one 128-bit load brings a thread. The order of the axes, `LAYOUT`, is the number of the channel
axis:

    ROWS      [C, G, V]   NCHW. Where rows start anywhere (H·W odd, slices) V is 1: neighbouring threads then have
                          neighbouring pixels
    CHANNELS  [G, C, 1]   channels_last: neighbouring threads have neighbouring channels

Threads are dealt out along the axis of neighbours first. Which of two other axes comes next differs between versions of
Triton, and some would deal out an axis of slabs, so that a sum over it would leave the thread: hence the tuple. Sums
over V and slabs give [C, G] or [G, C], sums over C [G, V].
"""

import triton
import triton.language as tl

ROWS: tl.constexpr = tl.constexpr(0)
CHANNELS: tl.constexpr = tl.constexpr(1)


@triton.jit
def block_channels(BLOCK: tl.constexpr, BLOCK_C: tl.constexpr):
    """The channels of a tile's block."""
    return BLOCK * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def tile_pixels(first, pixels, GROUPS: tl.constexpr, PART: tl.constexpr, SLABS: tl.constexpr):
    """The slabs' pixels, [G, V] each, and which of them exist.

    V is 1, or H·W is a multiple of V, and the compiler sees that a load has one answer.
    """
    group, part = tl.arange(0, GROUPS), tl.arange(0, PART)
    indices, exist = (), ()
    for slab in tl.static_range(SLABS):
        start = first + slab * GROUPS * PART + group * PART
        indices = indices + (start[:, None] + part[None, :],)  # noqa: RUF005 - Triton knows no * in a tuple
        exist = exist + (tl.broadcast_to((start < pixels)[:, None], (GROUPS, PART)),)  # noqa: RUF005
    return indices, exist


@triton.jit
def map_index(index, pixels, p):
    """Where a slab's pixels lie in one of an image's maps: V neighbours are read and written at once."""
    if p.shape[1] > 1:  # of a single number, the compiler loses the axes of a hint and fails
        return tl.multiple_of(index * pixels + p, (1, p.shape[1]))
    else:
        return index * pixels + p


@triton.jit
def over_pixels(x, LAYOUT: tl.constexpr):
    """A vector of channels, to be broadcast to a slab."""
    if LAYOUT == 0:
        return x[:, None, None]
    else:
        return x[None, :, None]


@triton.jit
def over_channels(x, LAYOUT: tl.constexpr):
    """A matrix of pixels, to be broadcast to a slab."""
    return tl.expand_dims(x, LAYOUT)


@triton.jit
def sum_part(x):
    """Sum of a slab over V: what one thread holds."""
    return tl.sum(x, axis=2)


@triton.jit
def group_factor(x, LAYOUT: tl.constexpr):
    """[G], to be broadcast over channels to the sums over V.

    By way of a slab of one channel and a V of 1, summed over that, which is free: so the compiler finds the factor in
    the layout of the sums, and does not move the sums to the layout of the factor.
    """
    return sum_part(over_channels(x[:, None], LAYOUT))


@triton.jit
def sum_groups(x, LAYOUT: tl.constexpr):
    """The sums over V, summed over the groups: [C]."""
    return tl.sum(x, axis=1 - LAYOUT)


@triton.jit
def tile_offsets(row, c, p, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of a tile's elements, slab by slab.

    Rows (NCHW: channels, channels_last: pixels) lie `row` apart and start at multiples of ALIGN. WIDE: an image spans
    2^31 elements or more.
    """
    if WIDE:
        c, row = c.to(tl.int64), row.to(tl.int64)
    found = ()
    for slab in tl.static_range(len(p)):
        pixel = p[slab].to(tl.int64) if WIDE else p[slab]
        if LAYOUT == 1:
            start = pixel * row
            if start.shape[0] > 1:  # of a single number, the compiler loses the axes of a hint and fails
                start = tl.multiple_of(start, (ALIGN, ALIGN))
            at = over_channels(start, LAYOUT) + over_pixels(c, LAYOUT)
        else:
            at = over_pixels(tl.multiple_of(c * row, ALIGN), LAYOUT) + over_channels(pixel, LAYOUT)
        found = found + (at,)  # noqa: RUF005
    return found


@triton.jit
def second_offsets(
    offsets,
    row,
    c,
    p,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    SAME_ROWS: tl.constexpr,
):
    """tile_offsets of another tensor, which has the same rows as a first one or its own. Saves registers."""
    if SAME_ROWS:
        return offsets
    else:
        return tile_offsets(row, c, p, LAYOUT, ALIGN, WIDE)


@triton.jit
def load_slabs(
    base,
    offsets,
    c,
    exists,
    channels,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    ALL_CHANNELS: tl.constexpr,
):
    """One network's features, as float32 whatever they are in memory, zeros outside."""
    found = ()
    for slab in tl.static_range(len(offsets)):
        mask = slab_mask(c, exists[slab], channels, LAYOUT, ALIGN, ALL_CHANNELS)
        found = found + (tl.load(base + offsets[slab], mask=mask, other=0.0).to(tl.float32),)  # noqa: RUF005
    return found


@triton.jit
def load_tile(
    student,
    teacher,
    s_row,
    t_row,
    p,
    exists,
    channels,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCKS: tl.constexpr,
    ALL_CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    SAME_ROWS: tl.constexpr,
):
    """Both networks' features, block by block and slab by slab, and the offsets of the student's."""
    found, offsets = (), ()
    for block in tl.static_range(BLOCKS):
        c = block_channels(block, BLOCK_C)
        at = tile_offsets(s_row, c, p, LAYOUT, ALIGN, WIDE)
        s = load_slabs(student, at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
        t_at = second_offsets(at, t_row, c, p, LAYOUT, ALIGN, WIDE, SAME_ROWS)
        t = load_slabs(teacher, t_at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
        found, offsets = found + ((s, t),), offsets + (at,)  # noqa: RUF005
    return found, offsets


@triton.jit
def slab_mask(c, exists, channels, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, ALL_CHANNELS: tl.constexpr):
    """Which elements of a slab exist. channels_last and aligned: C is a multiple of ALIGN, one answer for a load."""
    if ALL_CHANNELS:
        return over_channels(exists, LAYOUT)
    elif LAYOUT == 1:
        return over_channels(exists, LAYOUT) & over_pixels(c // ALIGN * ALIGN < channels, LAYOUT)
    else:
        return over_channels(exists, LAYOUT) & over_pixels(c < channels, LAYOUT)


@triton.jit
def zero_sums(BLOCK_C: tl.constexpr, GROUPS: tl.constexpr, LAYOUT: tl.constexpr):
    """Sums over V, none added yet."""
    if LAYOUT == 1:
        return tl.zeros((GROUPS, BLOCK_C), tl.float32)
    else:
        return tl.zeros((BLOCK_C, GROUPS), tl.float32)
