"""What the host knows of a pyramid: shapes, strides, how the work is cut. Nothing here looks at a tensor's values."""

import ctypes
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import FGDValueError
from ...layout import Layout, layout_of, row_stride
from . import tile_sizes

PIXEL_BLOCK = 1024  # pixels of a program of the kernels that work on maps alone
CHANNEL_BLOCK = 32  # channels of a program of the kernels that work on sums over pixels
MAX_PIXELS = 2**29  # of a level: offsets within an image's four maps have 32 bits
HIDDEN_BLOCK = 16  # rows of a GcBlock's first matrix of a program


def before(sizes: Sequence[int], factor: int = 1) -> tuple[int, ...]:
    """Sums of the sizes before each entry, times a factor."""
    return tuple(factor * total for total in itertools.accumulate(sizes, initial=0))[:-1]


def cut(sizes: Sequence[int], block: int) -> tuple[int, ...]:
    """How many blocks each size makes."""
    return tuple(-(-size // block) for size in sizes)


def encoded(values: Sequence[int]) -> tuple[int, ...]:
    """Integers for a kernel's tuple, so that Triton compiles once for all shapes; levels.decoded is the inverse.

    Triton compiles anew for integers that are 1 or multiples of 16, and in tuples it cannot be told not to.
    """
    return tuple(2 * value + 3 for value in values)


def in_two(values: Iterable[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Numbers of float64 for a kernel, to which Triton passes float32: the nearest such, and what they lack;
    levels.pick_double is the inverse."""
    values = tuple(values)
    nearest = tuple(ctypes.c_float(value).value for value in values)
    return nearest, tuple(value - near for value, near in zip(values, nearest, strict=True))


def power_of_two(size: int) -> int:
    """The power of two that is not below a size."""
    return 1 << (size - 1).bit_length()


@dataclass(frozen=True)
class Grid:
    """Programs of a launch: `parts` of each image of a level, `first` before the level's, `total` in all."""

    first: tuple[int, ...]
    parts: tuple[int, ...]
    total: int

    @classmethod
    def of(cls, parts: Sequence[int], images: int) -> "Grid":
        return cls(before(parts, images), tuple(parts), images * sum(parts))


@dataclass(frozen=True)
class Strides:
    """A level's features in memory, in elements: from image to image, from row to row (see tile.py)."""

    image: int
    row: int


@dataclass(frozen=True)
class Pyramid:
    """Shapes of all levels, and how they are cut into programs."""

    images: int
    channels: tuple[int, ...]
    heights: tuple[int, ...]
    widths: tuple[int, ...]
    gc: bool
    tile: tile_sizes.Tile

    @functools.cached_property
    def pixels(self) -> tuple[int, ...]:
        return tuple(h * w for h, w in zip(self.heights, self.widths, strict=True))

    @functools.cached_property
    def pixels_before(self) -> tuple[int, ...]:
        return before(self.pixels, self.images)

    @functools.cached_property
    def mask_size(self) -> tuple[int, ...]:
        """Pixels of an image's mask in memory: rows of loads start where 128 bits can be loaded."""
        return tuple(8 * blocks for blocks in cut(self.pixels, 8))

    @functools.cached_property
    def mask_before(self) -> tuple[int, ...]:
        return before(self.mask_size, self.images)

    @functools.cached_property
    def channels_before(self) -> tuple[int, ...]:
        return before(self.channels, self.images)

    @functools.cached_property
    def chunks(self) -> Grid:
        return Grid.of(cut(self.pixels, self.tile.chunk), self.images)

    @functools.cached_property
    def blocks(self) -> Grid:
        return Grid.of(cut(self.pixels, PIXEL_BLOCK), self.images)

    @property
    def sum_size(self) -> int:
        """Entries of a chunk's partial sums in the forward pass."""
        return 8 * max(self.channels) + 10

    def pixel_scales(self, temperature: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """log2(e)/(C·T) of each level: exp2 of a spatial attention's logits, Σc |F|, wants it."""
        return in_two(math.log2(math.e) / (c * temperature) for c in self.channels)

    def channel_scales(self, temperature: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """log2(e)/(P·T) of each level: exp2 of a channel attention's logits, Σp |F|, wants it."""
        return in_two(math.log2(math.e) / (p * temperature) for p in self.pixels)

    @classmethod
    def of(cls, students: Sequence[Tensor], teachers: Sequence[Tensor], gc: bool) -> "Pyramid":
        for level, s in enumerate(students):
            if s.shape[2] * s.shape[3] >= MAX_PIXELS:
                raise FGDValueError(f"student[{level}]: expected fewer than 2^29 pixels, got shape {tuple(s.shape)}")
        size = max(students[0].element_size(), teachers[0].element_size())
        gpu = tile_sizes.gpu_of(students[0].device)
        if Layouts.of((students, teachers), 16 // size).wide:  # addresses take twice the registers
            gpu = gpu._replace(short_of_registers=True)
        channels = tuple(s.shape[1] for s in students)
        return cls(
            images=students[0].shape[0],
            channels=channels,
            heights=tuple(s.shape[2] for s in students),
            widths=tuple(s.shape[3] for s in students),
            gc=gc,
            tile=tile_sizes.tile_for(max(channels), size, gpu),
        )


@dataclass(frozen=True)
class Layouts:
    """Strides of all levels, which of the four kinds of layout (tile_sizes.py) each has, and how far offsets go."""

    strides: tuple[tuple[Strides, ...], ...]  # of student, teacher, and the gradient where there is one
    kinds: tuple[int, ...]
    wide: bool

    @property
    def present(self) -> int:
        """The set of kinds, as bits."""
        return sum(1 << kind for kind in set(self.kinds))

    @property
    def same_rows(self) -> bool:
        """Whether a tile of any of the tensors has the same offsets."""
        return all(len({tensor.row for tensor in level}) == 1 for level in zip(*self.strides, strict=True))

    def images(self, which: int) -> tuple[int, ...]:
        return tuple(s.image for s in self.strides[which])

    def rows(self, which: int) -> tuple[int, ...]:
        return tuple(s.row for s in self.strides[which])

    @classmethod
    def of(cls, groups: Sequence[Sequence[Tensor]], align: int) -> "Layouts":
        strides, kinds, wide = [], [], False
        for level in zip(*groups, strict=True):
            in_rows = layout_of(*level) == Layout.PIXELS_DENSE
            layout = Layout.PIXELS_DENSE if in_rows else Layout.CHANNELS_DENSE
            found = [Strides(x.stride(0), row_stride(x, layout)) for x in level]
            rows, length = level[0].shape[1], level[0].shape[2] * level[0].shape[3]
            rows, length = (rows, length) if in_rows else (length, rows)
            aligned = length % align == 0 and all(
                x.data_ptr() % 16 == 0 and s.row % align == 0 and s.image % align == 0
                for x, s in zip(level, found, strict=True)
            )
            kinds.append((0 if in_rows else tile_sizes.ROWS_KINDS) + (0 if aligned else 1))
            wide = wide or any((rows + 2048) * s.row + length + 2048 >= 2**31 for s in found)
            strides.append(found)
        return cls(tuple(zip(*strides, strict=True)), tuple(kinds), wide)


def scratch(like: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory that a later kernel fills; at least one element, so that there is an address."""
    return torch.empty(max(size, 1), dtype=dtype, device=like.device)
