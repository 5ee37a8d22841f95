"""Device helpers: upstream gradients of the four terms, with the level's weights and 1/N."""

import triton
import triton.language as tl


@triton.jit
def upstream(grads, weights, level):
    """g_fg, g_bg, g_at, g_gl of a level, weights and 1/N included."""
    found = ()
    for term in tl.static_range(4):
        weight = weights[term]
        for i in tl.static_range(1, len(weights) // 4):
            weight = tl.where(level == i, weights[4 * i + term], weight)
        found = found + (tl.load(grads + term) * weight,)  # noqa: RUF005 - Triton knows no * in a tuple
    return found


@triton.jit
def global_grad(grads, weights, level):
    """g_gl: the upstream gradient of a level's global term, its weight and 1/N included."""
    weight = weights[3]
    for i in tl.static_range(1, len(weights) // 4):
        weight = tl.where(level == i, weights[4 * i + 3], weight)
    return tl.load(grads + 3) * weight
