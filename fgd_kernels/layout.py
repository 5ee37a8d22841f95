"""How a pair of feature maps lies in memory: asked once, here, before any kernel sees it.

A kernel walks rows of dense memory: the pixels of a channel (NCHW) or the channels of a pixel (channels_last). Strides
between rows and between images are free, so that slices are taken as they are. csrc/arguments.h asks the same of what
comes to the compiled operators, by this way or straight through torch.ops.
"""

import enum

import torch
from torch import Tensor


class Layout(enum.IntEnum):
    """What lies side by side in memory, numbered as in csrc/include/fgd/layout.h."""

    PIXELS_DENSE = 0  # NCHW, or a slice of it
    CHANNELS_DENSE = 1  # channels_last, or a slice of it


def layout_of(*features: Tensor) -> Layout | None:
    """The layout that all of these have, tensors (N, C, H, W); None if there is none."""
    for layout, dense in _DENSE:
        if all(dense(x) for x in features):
            return layout
    return None


def common_layout(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The pair as kernels can walk it: what has one layout is taken as it is, the rest is copied."""
    if _pixels_dense(student) and _pixels_dense(teacher):  # the usual case, of every level of every step
        return student, teacher
    if layout_of(student, teacher) is not None:
        return student, teacher
    if layout_of(student) == Layout.CHANNELS_DENSE:
        return student, teacher.contiguous(memory_format=torch.channels_last)
    return student.contiguous(), teacher.contiguous()


def row_stride(x: Tensor, layout: Layout) -> int:
    """Elements from one dense row to the next: from channel to channel, or from pixel to pixel."""
    if layout == Layout.PIXELS_DENSE:
        return x.stride(1)
    return x.stride(3) if x.shape[3] > 1 else x.stride(2)


def _pixels_dense(x: Tensor) -> bool:
    """Each channel's pixels lie in one row. Of a dimension with one element any stride will do."""
    _, _, h, w = x.shape
    return (w == 1 or x.stride(3) == 1) and (h == 1 or x.stride(2) == w)


def _channels_dense(x: Tensor) -> bool:
    """Each pixel's channels lie in one row, and pixels at one distance from each other."""
    _, c, h, w = x.shape
    pixel = x.stride(3) if w > 1 else x.stride(2)
    if h * w > 1 and pixel < c:  # pixels that share memory, as after expand(): a gradient has no such layout
        return False
    return (c == 1 or x.stride(1) == 1) and (h == 1 or w == 1 or x.stride(2) == w * x.stride(3))


_DENSE = ((Layout.PIXELS_DENSE, _pixels_dense), (Layout.CHANNELS_DENSE, _channels_dense))
