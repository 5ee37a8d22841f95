"""The CPU kernels against the float64 reference, for every instruction set that this machine has."""

import os
import subprocess
import sys

import pytest
import torch
from cases import BALANCED, PYRAMID, Case, assert_as_reference, evaluate, make_inputs, standard_cases

import fgd_kernels as fgd

pytestmark = pytest.mark.skipif(not fgd.backends()["cpu"].available, reason=fgd.backends()["cpu"].reason)

LARGE = [
    Case("several chunks and tiles", ((256, 61, 67),), (5, 0), loss=BALANCED),
    Case("several chunks, bfloat16", ((96, 90, 71),), (5,), torch.bfloat16, torch.bfloat16, loss=BALANCED),
    Case("several chunks, channels_last", ((64, 90, 71),), (5,), channels_last=True, loss=BALANCED),
    # Sums over channels run in blocks: as one chain of float32 roundings the first three miss the budget.
    Case("1536 channels", ((1536, 9, 11),), (2,), loss=BALANCED),
    Case("most channels", ((2048, 10, 10),), (2,), loss=BALANCED),
    Case("most channels, channels_last", ((2048, 7, 9),), (2,), channels_last=True, loss=BALANCED),
    Case("an odd number of many channels", ((2047, 3, 5),), (2,), loss=BALANCED),
    Case("a pixel with all the weight", ((256, 10, 7),), (2,), features="equal", scale=30.0, loss=BALANCED),
]


@pytest.mark.parametrize("case", standard_cases() + LARGE, ids=lambda case: case.name)
def test_equals_the_reference(case):
    assert_as_reference(case, "cpu")


@pytest.mark.parametrize("instruction_set", ["avx2", "baseline"])
def test_other_instruction_sets(instruction_set):
    """The choice is made once a process, so other sets than this machine's run in processes of their own."""
    code = """
import torch, cases
for case in cases.standard_cases():
    torch.manual_seed(0)
    cases.assert_as_reference(case, "cpu")
"""
    environment = os.environ | {"FGD_CPU_ISA": instruction_set, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("channels_last", [False, True])
def test_same_bits_for_any_number_of_threads(channels_last):
    case = Case("threads", ((32, 70, 65), (32, 9, 9)), (4, 3), channels_last=channels_last, loss=BALANCED)
    inputs = make_inputs(case)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 3, 8, 1):
            torch.set_num_threads(count)
            runs.append(evaluate(inputs, "cpu"))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for name, value in runs[0].items():
            assert torch.equal(run[name], value), name


def test_slices_are_read_where_they_lie():
    """Channel slices, batch slices and unaligned starts: no copy, the same numbers."""
    for layout in (torch.contiguous_format, torch.channels_last):
        base_s, base_t = (torch.randn(5, 12, 7, 9).contiguous(memory_format=layout) for _ in range(2))
        sliced = base_s[1:4, 3:10].detach().requires_grad_(), base_t[::2, 1:8]
        dense = sliced[0].detach().clone().contiguous().requires_grad_(), sliced[1].contiguous()
        boxes, sizes = [torch.tensor([[5.0, 5.0, 40.0, 30.0]])] * 3, [(60, 80)] * 3
        results = []
        for s, t in (sliced, dense):
            loss = sum(fgd.fgd_loss(s, t, boxes, sizes, backend="cpu").values())
            results.append((loss.detach(), torch.autograd.grad(loss, s)[0]))
        torch.testing.assert_close(results[0], results[1], rtol=2e-6, atol=1e-9)


def test_maps_expanded_from_fewer_numbers():
    """One pixel, channel or image expanded to many: no gradient has such strides."""
    teacher = torch.randn(2, 6, 5, 7)
    boxes, sizes = [torch.tensor([[5.0, 5.0, 40.0, 30.0]])] * 2, [(60, 80)] * 2
    for shape in ((2, 6, 1, 1), (2, 1, 5, 7), (1, 6, 5, 7), (2, 6, 1, 7)):
        expanded = torch.randn(shape).expand(2, 6, 5, 7).requires_grad_()
        results = []
        for s in (expanded, expanded.detach().contiguous().requires_grad_()):
            loss = sum(fgd.fgd_loss(s, teacher, boxes, sizes, gamma=0.0, backend="cpu").values())
            results.append((loss.detach(), torch.autograd.grad(loss, s)[0]))
        torch.testing.assert_close(*results)
    with pytest.raises(RuntimeError, match="contiguous or both channels_last"):
        packed = fgd.pack_boxes(boxes, sizes, "cpu")
        torch.ops.fgd_kernels.forward(
            [torch.randn(2, 6, 1, 1).expand(2, 6, 5, 7)], [teacher], *packed, [], [1.0] * 4, 1, 1
        )


def test_memory_stays_small():
    """Saved for backward: the inputs and at most 5% of a feature map; workspaces included in the forward's peak."""
    case = Case("memory", ((256, 64, 64),), (5, 5), loss=BALANCED)
    student, teacher, boxes, sizes, criterion = make_inputs(case)
    student[0].requires_grad_()
    saved = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = criterion(student, teacher, boxes, sizes)
    own = {t.data_ptr() for t in (*student, *teacher, *criterion.parameters())}
    extra = sum(size for pointer, size in saved.items() if pointer not in own)
    assert 0 < extra <= 0.05 * student[0].numel() * 4
    sum(loss.values()).backward()


def test_pyramid_in_one_call_equals_levels_one_by_one():
    inputs = make_inputs(Case("levels", PYRAMID, (3, 2), loss=BALANCED))
    student, teacher, boxes, sizes, criterion = inputs
    together = criterion(student, teacher, boxes, sizes)
    apart = [
        fgd.fgd_loss(s, t, boxes, sizes, gc_block=level.gc_block(), temperature=0.5, **BALANCED)
        for s, t, level in zip(student, teacher, criterion.levels, strict=True)
    ]
    for name, value in together.items():
        torch.testing.assert_close(value, sum(one[name] for one in apart))


@pytest.mark.parametrize("gc_block", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_output_is_written(gc_block, channels_last):
    """Fresh memory is NaN here: with or without GcBlocks, none of it is left in what the backward pass is given."""
    case = Case("fresh", ((6, 5, 7), (6, 2, 3)), (2, 0), channels_last=channels_last)
    student, teacher, boxes, sizes, criterion = make_inputs(case)
    packed = fgd.pack_boxes(boxes, sizes, "cpu")
    parameters = [p.detach() for level in criterion.levels for p in level.gc_block()] if gc_block else []
    weights = [1.0, 1.0, 1.0, float(gc_block)] * 2
    torch.use_deterministic_algorithms(True)
    try:
        outputs = torch.ops.fgd_kernels.forward(student, teacher, *packed, parameters, weights, 0.5, 0.5)
        saved = outputs[5:]
        gradients = torch.ops.fgd_kernels.backward(
            torch.ones(4), student, teacher, *packed, parameters, weights, 0.5, 0.5, *saved, True, gc_block
        )
    finally:
        torch.use_deterministic_algorithms(False)
    for value in (*outputs, *gradients[0], *gradients[1]):
        assert value.isfinite().all()
