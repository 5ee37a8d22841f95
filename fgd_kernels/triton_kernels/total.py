"""Forward, the end:  terms[level] = weight/N · Σ_images L,  and the four sums over levels. One program.

terms     [level][image][4]        from finish.py
shifted   [level][image][block]    from gc_added.py
weighted  (L, 4)                   out
fg, bg, attention, global_         out, one number each
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .levels import decoded
from .pyramid import Grid, Pyramid, encoded
from .slices import sum_blocks

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


def launch(p: Pyramid, weights: Sequence[float], terms: Tensor, shifted: Tensor, grid: Grid) -> tuple[Tensor, ...]:
    """fg, bg, attention, global, and the weighted terms of every level."""
    weighted = terms.new_empty((len(p.channels), 4))
    scalars = tuple(terms.new_empty(()) for _ in range(4))
    total[(1,)](
        terms,
        shifted,
        weighted,
        *scalars,
        tuple(weight / p.images for weight in weights),
        encoded(grid.first),
        encoded(grid.parts),
        p.images,
        GC=p.gc,
        BLOCK=32,
        num_warps=1,
        enable_fp_fusion=False,
    )
    return (*scalars, weighted)
