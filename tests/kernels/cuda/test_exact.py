"""The checks of exact.py for the CUDA kernels in the interpreter."""

import exact
import pytest
import torch
from cases import NARROW

KERNELS = [(dtype, last, ()) for dtype in NARROW for last in (False, True)]
KERNELS += [(torch.float32, last, ((300, 5, 7),)) for last in (False, True)]  # the generic ones
NARROW_KERNELS = list(KERNELS)
KERNELS += [(torch.float64, False, ())]


@pytest.mark.parametrize("equal_blocks", [False, True], ids=["new GcBlocks", "equal GcBlocks"])
@pytest.mark.parametrize("kind", list(exact.MAPS))
@pytest.mark.parametrize("dtype, last, levels", KERNELS, ids=str)
def test_equal_maps_give_exactly_nothing(dtype, last, levels, kind, equal_blocks, interpreted):
    for shapes in (levels,) if levels else exact.SHAPES.values():
        exact.check_equal_maps("ptx", kind, dtype, last, shapes, equal_blocks)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_maps_that_are_equal_in_part(dtype, last, interpreted):
    exact.check_an_equal_image_beside_others("ptx", dtype, last)
    exact.check_equal_magnitudes("ptx", dtype, last)


@pytest.mark.parametrize("scale", [1, 12, 25])
@pytest.mark.parametrize("dtype, last, levels", NARROW_KERNELS, ids=str)
def test_key_gradients_where_few_pixels_have_all_the_weight(dtype, last, levels, scale, interpreted):
    levels = levels or ((64, 9, 13),)
    exact.check_key_gradients("ptx", dtype, last, levels, scale * (24 / levels[0][0]) ** 0.5)


@pytest.mark.parametrize("dtype, last, levels", NARROW_KERNELS, ids=str)
@pytest.mark.parametrize("where, value", exact.NOT_FINITE)
def test_values_that_are_not_finite_reach_what_they_reach_in_the_reference(
    where, value, dtype, last, levels, interpreted
):
    exact.check_not_finite("ptx", where, value, dtype, last, levels or ((24, 5, 9), (24, 2, 3)))


@pytest.mark.parametrize("dtype, last, levels", KERNELS, ids=str)
def test_a_map_that_is_constant_has_no_key_gradient(dtype, last, levels, interpreted):
    exact.check_a_constant_map("ptx", dtype, last, *(levels or ((24, 5, 9),)))
