"""Forward, GcBlock (12), first half:  h = W1·ctx + b1, for both nets of every level and every image.

One program takes a block of rows of W1. A net is 2·level for the student's GcBlock, 2·level + 1 for the teacher's; what
differs between nets is passed in tuples with one entry a net.

    w1      (K, C) a net      b1   (K,) a net
    stats   [level][image][6][C]    from finish.py: the contexts
    hidden  [net][image][K]         out
"""

import triton
import triton.language as tl

from .device.gc import matrix_row_dot
from .device.levels import image_start, locate, number, pick
from .layout import STAT_CONTEXT_S, STATS

_NETS = ["w1", "b1", "first", "parts", "hidden_size", "hidden_before", "channels", "channels_before"]


@triton.jit(do_not_specialize=_NETS, do_not_specialize_on_alignment=_NETS)
def gc_hidden(
    w1,
    b1,
    stats,
    hidden,
    first,
    parts,
    hidden_size,
    hidden_before,
    channels,
    channels_before,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    net, image, block = locate(first, parts)
    size, width = number(hidden_size, net), number(channels, net // 2)
    k = block * BLOCK_K + tl.arange(0, BLOCK_K)
    context = (
        stats + STATS * image_start(channels_before, channels, net // 2, image) + (STAT_CONTEXT_S + net % 2) * width
    )
    h = matrix_row_dot(pick(w1, net), context, k, size, width, BLOCK_K, BLOCK_C)
    h += tl.load(pick(b1, net) + k, mask=k < size, other=0.0)
    tl.store(hidden + image_start(hidden_before, hidden_size, net, image) + k, h, mask=k < size)
