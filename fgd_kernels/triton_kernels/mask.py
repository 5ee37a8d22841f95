"""Masks (2), (3): every pixel's largest box weight, 0 outside all boxes, and how many pixels are outside.

    x0 = floor(x1/w·W)   x1' = ceil(x2/w·W)   y0 = floor(y1/h·H)   y1' = ceil(y2/h·H)
    weight = 1 / ((y1' + 1 - y0)·(x1' + 1 - x0))

in float32 and in this order of operations, divisions rounded as IEEE says: bit-equal to csrc/include/fgd/mask.h.

A program has a few rows of the map. Boxes are looked at BOXES at a time, one a thread, whether they can reach these
rows at all; only those that can are gone through one by one. So an image may have thousands of boxes.

    boxes     (M, 4)     x1, y1, x2, y2 in pixels of the image
    offsets   (N + 1,)   image n owns the boxes offsets[n] .. offsets[n + 1]
    sizes     (N, 2)     height and width of the image
    given     [level][image][P]    in place of boxes (GIVEN): fg as the caller has it; it is then copied
    mask      [level][image][P]    out: fg; P rounded up to a multiple of 8
    outside   [program]            out: pixels of the program's block that no box covers, int32
"""

import triton
import triton.language as tl

from .device.levels import image_start, locate, number


@triton.jit
def to_map(x, length, cells):
    """Clamp a corner to the image and scale it to the map."""
    return tl.div_rn(tl.minimum(tl.maximum(x, 0.0), length), length) * cells


@triton.jit
def box_weight(boxes, box, h, w, height, width, x, y):
    """The weight of one box on the pixels (x, y): 0 outside, and for boxes not finite, inverted or off the image."""
    x1, y1 = tl.load(boxes + 4 * box), tl.load(boxes + 4 * box + 1)
    x2, y2 = tl.load(boxes + 4 * box + 2), tl.load(boxes + 4 * box + 3)
    infinity = float("inf")
    finite = (tl.abs(x1) < infinity) & (tl.abs(y1) < infinity) & (tl.abs(x2) < infinity) & (tl.abs(y2) < infinity)
    covers = finite & (x1 <= x2) & (y1 <= y2) & (x2 >= 0) & (y2 >= 0) & (x1 <= w) & (y1 <= h)
    left, right = tl.floor(to_map(x1, w, width)), tl.ceil(to_map(x2, w, width))
    top, bottom = tl.floor(to_map(y1, h, height)), tl.ceil(to_map(y2, h, height))
    weight = tl.div_rn(tl.div_rn(1.0, bottom + 1.0 - top), right + 1.0 - left)
    right = tl.where(covers, right, -1.0)
    return tl.where((x >= left) & (x <= right) & (y >= top) & (y <= bottom), weight, 0.0)


@triton.jit
def reaching(boxes, start, end, scale, margin, first_row, last_row, BOXES: tl.constexpr):
    """Which of the boxes from `start` on may cover a pixel of these rows, as bits of an integer. With a margin for what
    the rows are rounded to, and NaN may."""
    lane = tl.arange(0, BOXES)
    box = start + lane
    top = tl.load(boxes + 4 * box + 1, mask=box < end, other=0.0) * scale - margin
    bottom = tl.load(boxes + 4 * box + 3, mask=box < end, other=0.0) * scale + margin
    away = (top > last_row) | (bottom < first_row)
    return tl.sum(tl.where((box < end) & (away == 0), 1 << lane, 0), axis=0)


@triton.jit
def exponent(power):
    """log2 of a power of two below 2^31."""
    return (power.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


_LEVELS = ["first", "parts", "heights", "widths", "pixels", "pixels_before", "mask_size", "mask_before"]


@triton.jit(do_not_specialize=_LEVELS)
def rasterise(
    boxes,
    offsets,
    sizes,
    given,
    mask,
    outside,
    first,
    parts,
    heights,
    widths,
    pixels,
    pixels_before,
    mask_size,
    mask_before,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    BOXES: tl.constexpr,
):
    level, image, part = locate(first, parts)
    height, width, size = number(heights, level), number(widths, level), number(pixels, level)
    p = part * BLOCK + tl.arange(0, BLOCK)
    exists = p < size
    fg = tl.zeros((BLOCK,), tl.float32)
    if GIVEN:
        fg = tl.load(given + image_start(pixels_before, pixels, level, image) + p, mask=exists, other=0.0)
    else:
        x, y = (p % width).to(tl.float32), (p // width).to(tl.float32)
        h, w = tl.load(sizes + 2 * image), tl.load(sizes + 2 * image + 1)
        rows, columns = height.to(tl.float32), width.to(tl.float32)
        first_row = (part * BLOCK // width).to(tl.float32)
        last_row = ((tl.minimum(part * BLOCK + BLOCK, size) - 1) // width).to(tl.float32)
        end = tl.load(offsets + image + 1)
        for start in range(tl.load(offsets + image), end, BOXES):
            left = reaching(boxes, start, end, rows / h, 1.01 + 1e-6 * rows, first_row, last_row, BOXES)
            while left != 0:
                lowest = left & -left
                fg = tl.maximum(fg, box_weight(boxes, start + exponent(lowest), h, w, rows, columns, x, y))
                left = left ^ lowest
    tl.store(mask + image_start(mask_before, mask_size, level, image) + p, fg, mask=exists)
    tl.store(outside + tl.program_id(0), tl.sum((exists & (fg == 0)).to(tl.int32), axis=0))
