"""Forward, the one pass over the features. With d = s - t, for every chunk of an image's pixels:

    zt[p] = Σc |t|   zs[p] = Σc |s|   ks[p] = Wk_s·s[:,p]   kt[p] = Wk_t·t[:,p]                          to `maps`
    Qf = Σp fg·et·d²   Qb = Σp [fg = 0]·et·d²   D1 = Σp d   D2 = Σp d²   Σp |s|   Σp |t|
    Cs = Σp eks·s      Ct = Σp ekt·t            and Σp of all four exponentials                          to `partials`

The exponentials are e = exp((z - m)·f), f = 1/(C·T) of zt and zs, 1 of ks and kt, with a running maximum m of each
group of pixels (tile.py), which goes to `partials` too. The factor comes last: so a large z loses no digit to it, and
what is done to student and teacher is the same, whatever the compiler fuses. The normalisers of the attentions are
formed when a chunk is done, of its logits in memory and in float64 (chunks.py).

    students, teachers   (N, C, H, W) a level, any of the layouts of tile.py
    keys_s, keys_t       (C,) a level: Wk of the student's and the teacher's GcBlock
    mask                 [level][image][P]      fg, from mask.py; P rounded up to a multiple of 8
    maps                 [level][image][4][P]   zt, zs, ks, kt, as sums: without 1/(C·T)
    partials             [program][8·C + 10]    the eight sums, four maxima, four normalisers, rests of the first two
"""

import triton
import triton.language as tl

from .device.chunks import store_attentions
from .device.forward_tile import (
    add_tile,
    load_keys,
    load_mask,
    logits,
    softmax_steps,
    store_contexts,
    store_logits,
    store_sums,
)
from .device.levels import LOWEST, image_start, locate, multiple, number, pick, pick_double
from .device.tile import block_channels, load_tile, tile_pixels, zero_sums
from .layout import MAPS, SUMS


@triton.jit
def forward_chunk(
    student,
    teacher,
    key_s,
    key_t,
    mask,
    maps,
    partial,
    channels,
    pixels,
    s_row,
    t_row,
    scale,
    begin,
    end,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    GC: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCKS: tl.constexpr,
    GROUPS: tl.constexpr,
    PART: tl.constexpr,
    SLABS: tl.constexpr,
    ALL_CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    SAME_ROWS: tl.constexpr,
):
    keys = load_keys(key_s, key_t, channels, BLOCK_C, BLOCKS, GC)
    zero = zero_sums(BLOCK_C, GROUPS, LAYOUT)
    none = tl.zeros((GROUPS,), tl.float32)
    sums, maxima, normalisers = ((zero,) * 6,) * BLOCKS, (none + LOWEST,), (none,) * 2
    if GC:
        sums, maxima = ((zero,) * 8,) * BLOCKS, (none + LOWEST,) * 3
    for first in range(begin, end, GROUPS * PART * SLABS):
        p, exists = tile_pixels(first, pixels, GROUPS, PART, SLABS)
        tile, _ = load_tile(
            student,
            teacher,
            s_row,
            t_row,
            p,
            exists,
            channels,
            LAYOUT,
            ALIGN,
            BLOCK_C,
            BLOCKS,
            ALL_CHANNELS,
            WIDE,
            SAME_ROWS,
        )
        z = logits(tile, keys, LAYOUT, GC)
        store_logits(maps, z, p, exists, pixels, LAYOUT, ALIGN)
        fg = load_mask(mask, p, exists, pixels, LAYOUT, ALIGN)
        e, shrink, maxima, normalisers = softmax_steps(z, scale, exists, maxima, normalisers, GC)
        sums = add_tile(tile, fg, e, shrink, sums, LAYOUT, GC)
    factors = store_contexts(partial + SUMS * channels, scale, maxima, normalisers)
    for block in tl.static_range(BLOCKS):
        store_sums(partial, sums[block], factors, block_channels(block, BLOCK_C), channels, LAYOUT, GC)


_LEVELS = [
    "students",
    "teachers",
    "keys_s",
    "keys_t",
    "first",
    "parts",
    "channels",
    "pixels",
    "pixels_before",
    "mask_size",
    "mask_before",
    "s_image",
    "s_row",
    "t_image",
    "t_row",
    "scales",
    "scale_rests",
    "kinds",
]


@triton.jit(do_not_specialize=[*_LEVELS, "partial_size"], do_not_specialize_on_alignment=_LEVELS)
def forward_pass(
    students,
    teachers,
    keys_s,
    keys_t,
    mask,
    maps,
    partials,
    first,
    parts,
    channels,
    pixels,
    pixels_before,
    mask_size,
    mask_before,
    s_image,
    s_row,
    t_image,
    t_row,
    scales,
    scale_rests,
    kinds,
    partial_size,
    KINDS: tl.constexpr,
    ALIGN: tl.constexpr,
    GC: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCKS: tl.constexpr,
    GROUPS: tl.constexpr,
    PARTS: tl.constexpr,
    SLABS: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNK_BLOCK: tl.constexpr,
    ALL_CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    SAME_ROWS: tl.constexpr,
):
    level, image, part = locate(first, parts)
    size, kind = number(pixels, level), number(kinds, level)
    mask_at = tl.multiple_of(mask + image_start(mask_before, mask_size, level, image), 16)
    maps_at = tl.multiple_of(maps + MAPS * image_start(pixels_before, pixels, level, image), 16)
    begin = part * CHUNK
    end = tl.minimum(begin + CHUNK, size)
    partial = partials + tl.program_id(0).to(tl.int64) * partial_size
    key_s, key_t = 0, 0
    if GC:
        key_s, key_t = pick(keys_s, level), pick(keys_t, level)
    # One body for every kind of layout that a level of this launch has.
    for k in tl.static_range(4):
        if (KINDS // 2**k) % 2:  # noqa: SIM102 - the outer one is decided by the compiler
            if kind == k:
                student = pick(students, level) + image.to(tl.int64) * multiple(number(s_image, level), k, ALIGN)
                teacher = pick(teachers, level) + image.to(tl.int64) * multiple(number(t_image, level), k, ALIGN)
                arguments = (
                    tl.multiple_of(student, 16) if k % 2 == 0 else student,
                    tl.multiple_of(teacher, 16) if k % 2 == 0 else teacher,
                    key_s,
                    key_t,
                    mask_at,
                    maps_at,
                    partial,
                    number(channels, level),
                    multiple(size, k, ALIGN) if k == 0 else size,
                    multiple(number(s_row, level), k, ALIGN),
                    multiple(number(t_row, level), k, ALIGN),
                    pick(scales, level),
                    begin,
                    end,
                )
                forward_chunk(
                    *arguments,
                    LAYOUT=k // 2,
                    ALIGN=ALIGN if k % 2 == 0 else 1,
                    GC=GC,
                    BLOCK_C=BLOCK_C[k],
                    BLOCKS=BLOCKS[k],
                    GROUPS=GROUPS[k],
                    PART=PARTS[k],
                    SLABS=SLABS[k],
                    ALL_CHANNELS=ALL_CHANNELS[k],
                    WIDE=WIDE,
                    SAME_ROWS=SAME_ROWS,
                )
    tl.debug_barrier()  # the chunk's logits, which other threads of this program have stored, are read back
    scale = pick_double(scales, scale_rests, level)
    store_attentions(maps_at, partial + SUMS * number(channels, level), begin, end, size, scale, CHUNK_BLOCK)
