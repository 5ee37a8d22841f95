"""The checks of exact.py for the Triton kernels in Triton's interpreter.

Run by test_interpreted_exact.py in a process of its own. The interpreter is slow: every kind of map, scale and value
meets two kernels, not all of them. It found logits and key gradients that lost their digits.
"""

import exact
import pytest
import torch
from cases import NARROW

import devtools.offline.triton_interpreter  # noqa: F401 - prepares the interpreter

KERNELS = [(torch.float32, False), (torch.float32, True), (torch.float16, False), (torch.bfloat16, True)]
PYRAMID = ((24, 5, 9), (24, 2, 3))
WIDE = ((264, 3, 5),)  # more channels than a tile holds


def paired(values, kernels=KERNELS):
    """Each value with two kernels, each kernel with as many values as another."""
    return [(value, *kernels[(i + j) % len(kernels)]) for i, value in enumerate(values) for j in range(2)]


@pytest.mark.parametrize("kind, dtype, last", paired(exact.MAPS), ids=str)
def test_equal_maps_give_exactly_nothing(dtype, last, kind):
    exact.check_equal_maps("triton", kind, dtype, last, PYRAMID, equal_blocks=kind in ("relu", "large"))


@pytest.mark.parametrize("levels", [((1, 9, 11),), ((40, 1, 1),), ((8, 23, 41),), WIDE], ids=str)
@pytest.mark.parametrize("equal_blocks", [False, True], ids=["new GcBlocks", "equal GcBlocks"])
def test_equal_maps_of_other_shapes(levels, equal_blocks):
    exact.check_equal_maps("triton", "relu", torch.float32, equal_blocks, levels, equal_blocks)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_maps_that_are_equal_in_part(dtype):
    exact.check_an_equal_image_beside_others("triton", dtype, dtype == torch.float16)
    exact.check_equal_magnitudes("triton", dtype, dtype == torch.float16)


@pytest.mark.parametrize("levels", [(24, 5, 9), (3, 13, 41), (1, 9, 11)], ids=str)
@pytest.mark.parametrize("dtype, last", KERNELS[1:3], ids=str)
def test_the_same_numbers_in_other_places(dtype, last, levels):
    exact.check_ties("triton", dtype, last, levels)


@pytest.mark.parametrize(
    "scale, dtype, last", [(1, *KERNELS[0]), (10, *KERNELS[3]), (30, *KERNELS[0]), (100, *KERNELS[3])]
)
def test_key_gradients_where_few_pixels_have_all_the_weight(dtype, last, scale):
    exact.check_key_gradients("triton", dtype, last, ((64, 9, 13),), scale * (24 / 64) ** 0.5, seeds=4)


def test_key_gradients_of_channel_blocks():
    exact.check_key_gradients("triton", torch.float32, False, WIDE, 100 * (24 / 264) ** 0.5, seeds=4)


@pytest.mark.parametrize(
    "not_finite, levels, dtype, last",
    paired(exact.NOT_FINITE, [(PYRAMID, *KERNELS[0]), (PYRAMID, *KERNELS[3]), (WIDE, *KERNELS[1])]),
    ids=str,
)
def test_values_that_are_not_finite_reach_what_they_reach_in_the_reference(not_finite, levels, dtype, last):
    exact.check_not_finite("triton", *not_finite, dtype, last, levels)


@pytest.mark.parametrize("dtype, last", KERNELS, ids=str)
def test_a_map_that_is_constant_has_no_key_gradient(dtype, last):
    exact.check_a_constant_map("triton", dtype, last, (24, 5, 9))
