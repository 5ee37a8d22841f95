"""Device helpers: which level, image and part of an image a program works on.

Every kernel runs all levels and images in one launch. What differs between levels is passed in tuples with one entry
a level (pointers, strides, sizes: values that the host knows, so that nothing is copied to the device and a CUDA
graph can record the launch). A level's entry is selected once, at the top of a program.
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LOWEST: tl.constexpr = tl.constexpr(-3.0e38)  # below every logit; finite, so that LOWEST - LOWEST is 0


@triton.jit
def pick(values, level):
    """values[level] of a tuple, for a level that is known at run time."""
    found = values[0]
    for i in tl.static_range(1, len(values)):
        found = tl.where(level == i, values[i], found)
    return found


@triton.jit
def pick_double(values, rests, level):
    """values[level] of numbers of float64, which come as the nearest ones of float32 and what these lack."""
    return pick(values, level).to(tl.float64) + pick(rests, level)


@triton.jit
def decoded(value):
    """An integer as `pyramid.encoded` passes it."""
    return (value >> 1) - 1


@triton.jit
def number(values, level):
    """values[level] of a tuple of integers."""
    return decoded(pick(values, level))


@triton.jit
def locate(first, parts):
    """The level, image and part of this program: `first` programs before each level, `parts` of each of its images."""
    program = tl.program_id(0)
    level = program * 0
    for i in tl.static_range(1, len(first)):
        level += (program >= decoded(first[i])).to(tl.int32)
    local = program - number(first, level)
    count = number(parts, level)
    return level, local // count, local % count


@triton.jit
def multiple(value, KIND: tl.constexpr, ALIGN: tl.constexpr):
    """The same number, for those kinds of layout where it is a multiple of ALIGN, and so that the compiler knows.

    Arithmetic says it everywhere; hints are lost where AMD's compiler rewrites addresses of tensors up to 2 GB.
    """
    if KIND % 2 == 0:
        return value // ALIGN * ALIGN
    else:
        return value


@triton.jit
def image_start(before, size, level, image):
    """Where an image's entries start in a flat [level][image][size] buffer; `before`: entries of the levels before."""
    return number(before, level).to(tl.int64) + image.to(tl.int64) * number(size, level)
