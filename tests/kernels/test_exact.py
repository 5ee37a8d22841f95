"""The checks of exact.py for the CPU kernels: here with the best instruction set of this machine, and the same file in
a process of its own with each of the others."""

import copy
import os
import pathlib
import subprocess
import sys
from statistics import geometric_mean

import exact
import pytest
import torch
from cases import BALANCED, EPS, NARROW, Case, error, make_inputs

import fgd_kernels as fgd

pytestmark = pytest.mark.skipif(not fgd.backends()["cpu"].available, reason=fgd.backends()["cpu"].reason)

KERNELS = [(dtype, last) for dtype in (*NARROW, torch.float64) for last in (False, True)]
CHUNKS = {"several chunks": ((8, 61, 67),)}


@pytest.mark.skipif("FGD_CPU_ISA" in os.environ, reason="is run by the test of this name")
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_with_every_instruction_set(instruction_set):
    path = pathlib.Path(__file__).resolve()
    environment = os.environ | {"FGD_CPU_ISA": instruction_set, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.parametrize("equal_blocks", [False, True], ids=["new GcBlocks", "equal GcBlocks"])
@pytest.mark.parametrize("kind", list(exact.MAPS))
@pytest.mark.parametrize("dtype, last", KERNELS, ids=str)
def test_equal_maps_give_exactly_nothing(dtype, last, kind, equal_blocks):
    for levels in (exact.SHAPES | CHUNKS).values():
        exact.check_equal_maps("cpu", kind, dtype, last, levels, equal_blocks)


@pytest.mark.parametrize("dtype, last", KERNELS[:-2], ids=str)
def test_maps_that_are_equal_in_part(dtype, last):
    exact.check_an_equal_image_beside_others("cpu", dtype, last)
    exact.check_equal_magnitudes("cpu", dtype, last)
    exact.check_equal_magnitudes("cpu", dtype, last, (8, 61, 67))


@pytest.mark.parametrize("shape", [(24, 5, 9), (8, 61, 67)], ids=["one chunk", "several"])
@pytest.mark.parametrize("dtype, last", KERNELS, ids=str)
def test_a_map_that_is_constant_has_no_key_gradient(dtype, last, shape):
    exact.check_a_constant_map("cpu", dtype, last, shape)


@pytest.mark.parametrize("scale", [1, 10, 30, 100])
@pytest.mark.parametrize("dtype, last", KERNELS[:-2], ids=str)
def test_key_gradients_where_few_pixels_have_all_the_weight(dtype, last, scale):
    exact.check_key_gradients("cpu", dtype, last, ((64, 25, 42),), scale * (24 / 64) ** 0.5)


def test_key_weights_after_steps_of_adamw():
    """Its steps do not know how small a gradient is."""

    def trained(inputs, backend, dtype):
        student, teacher, boxes, sizes, criterion = inputs
        criterion = copy.deepcopy(criterion).to(dtype)
        criterion.backend = backend
        before = criterion.levels[0].conv_mask_s.weight.detach().clone()
        optimizer = torch.optim.AdamW(criterion.parameters(), lr=1e-3, eps=1e-30)
        for _ in range(3):
            optimizer.zero_grad()
            losses = criterion([s.to(dtype) for s in student], [t.to(dtype) for t in teacher], boxes, sizes)
            sum(losses.values()).backward()
            optimizer.step()
        return (criterion.levels[0].conv_mask_s.weight.detach() - before).double()

    errors = {"cpu": [], "reference": []}
    for seed in range(8):
        torch.manual_seed(seed)
        inputs = make_inputs(Case("", ((64, 25, 42),), (1, 0), scale=25.0, loss=BALANCED))
        truth = trained(inputs, "reference", torch.float64)
        for backend, found in errors.items():
            found.append(error(trained(inputs, backend, torch.float32), truth) / float(truth.norm()))
    ours, plain = (geometric_mean(found) for found in errors.values())
    assert ours <= 2 * plain + 16 * EPS[torch.float32], (ours, plain)


@pytest.mark.parametrize("dtype, last", KERNELS, ids=str)
@pytest.mark.parametrize("where, value", exact.NOT_FINITE)
def test_values_that_are_not_finite_reach_what_they_reach_in_the_reference(where, value, dtype, last):
    exact.check_not_finite("cpu", where, value, dtype, last, ((24, 5, 9), (24, 2, 3)))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("where, value", exact.NOT_FINITE)
def test_values_that_are_not_finite_without_gc_blocks(where, value, last):
    """Then attention alone carries them to a student's zeros: 0 times NaN is NaN."""
    maps = [exact.in_layout(torch.relu(torch.randn(2, 24, 5, 9)), last) for _ in range(2)]
    maps[where == "teacher"][1, 3, 2, 1] = value
    found = []
    for backend in ("cpu", "reference"):
        student = maps[0].clone(memory_format=torch.preserve_format).requires_grad_()
        boxes = [torch.tensor([[5.0, 5.0, 40.0, 60.0]])] * 2
        losses = fgd.fgd_loss(student, maps[1], boxes, [(100, 100)] * 2, backend=backend)
        sum(losses.values()).backward()
        found.append(student.grad.isfinite())
    assert torch.equal(*found) and not found[0][1].any() and found[0][0].all()
