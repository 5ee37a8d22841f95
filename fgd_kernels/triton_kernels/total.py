"""Forward, the end:  terms[level] = weight/N · Σ_images L,  and the four sums over levels. One program.

terms     [level][image][4]        from finish.py
shifted   [level][image][block]    from gc_added.py
weighted  (L, 4)                   out
fg, bg, attention, global_         out, one number each
"""

import triton
import triton.language as tl

from .device.chunks import sum_blocks
from .device.levels import decoded

_LEVELS = ["weights", "first", "parts"]


@triton.jit(do_not_specialize=[*_LEVELS, "images"])
def total(
    terms,
    shifted,
    weighted,
    fg,
    bg,
    attention,
    global_,
    weights,
    first,
    parts,
    images,
    GC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sums = (0.0, 0.0, 0.0, 0.0)
    for level in tl.static_range(len(first)):
        new = ()
        for i in tl.static_range(4):
            value = sum_blocks(terms + 4 * level * images + i, 4, images, BLOCK)
            if i == 3:
                if GC:
                    value += sum_blocks(shifted + decoded(first[level]), 1, images * decoded(parts[level]), BLOCK)
                else:
                    value = 0.0
            value *= weights[4 * level + i]
            tl.store(weighted + 4 * level + i, value)
            new = new + (sums[i] + value,)  # noqa: RUF005 - Triton knows no * in a tuple
        sums = new
    for i in tl.static_range(4):
        tl.store((fg, bg, attention, global_)[i], sums[i])
