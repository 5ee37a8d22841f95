"""Device helpers of the GcBlocks' kernels: matrices times vectors, the norm of a hidden vector, relu.

In float64: the global term multiplies an error of what is added with the number of pixels.
"""

import triton
import triton.language as tl


@triton.jit
def matrix_row_dot(w, x, rows, row_count, columns, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):
    """w[rows, :]·x for a matrix of row_count rows: [BLOCK_K]."""
    total = tl.zeros((BLOCK_K, BLOCK_C), tl.float64)
    for start in range(0, columns, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        mask = (rows < row_count)[:, None] & (c < columns)[None, :]
        matrix = tl.load(w + rows[:, None] * columns + c[None, :], mask=mask, other=0.0)
        total += matrix.to(tl.float64) * tl.load(x + c, mask=c < columns, other=0.0)[None, :]
    return tl.sum(total, axis=1)


@triton.jit
def matrix_column_dot(w, x, columns, column_count, rows, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):
    """x·w[:, columns] for a matrix of `rows` rows: [BLOCK_K]."""
    total = tl.zeros((BLOCK_C, BLOCK_K), tl.float32)
    for start in range(0, rows, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        mask = (c < rows)[:, None] & (columns < column_count)[None, :]
        matrix = tl.load(w + c[:, None] * column_count + columns[None, :], mask=mask, other=0.0)
        total += matrix * tl.load(x + c, mask=c < rows, other=0.0)[:, None]
    return tl.sum(total, axis=0)


@triton.jit
def moments(hidden, size, BLOCK: tl.constexpr):
    """Mean and 1 / sqrt(variance + 1e-5) of a hidden vector."""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, size, BLOCK):
        k = start + tl.arange(0, BLOCK)
        total += tl.load(hidden + k, mask=k < size, other=0.0)
    mean = tl.sum(total, axis=0) / size
    squares = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, size, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x = tl.where(k < size, tl.load(hidden + k, mask=k < size, other=0.0) - mean, 0.0)
        squares += x * x
    return mean, 1.0 / tl.sqrt(tl.sum(squares, axis=0) / size + 1e-5)


@triton.jit
def normalised(hidden, k, size, mean, scale):
    """(h - mean)·scale on the indices k."""
    return tl.where(k < size, (tl.load(hidden + k, mask=k < size, other=0.0) - mean) * scale, 0.0)


@triton.jit
def relu(x):
    """max(x, 0); a NaN stays one."""
    return tl.where(x < 0, 0.0, x)
