"""Where rounding alone must not make a gradient, and where it must not be lost: equal maps, softmaxes that one pixel
fills, values that are not finite. The CUDA kernels in the interpreter."""

import copy
from statistics import geometric_mean

import pytest
import torch
from cases import BALANCED, EPS, NARROW, Case, error, evaluate, make_inputs

import fgd_kernels as fgd

MAPS = {
    "relu": lambda shape: torch.relu(torch.randn(shape)) * 3,
    "tied": lambda shape: torch.randint(-2, 3, shape).float(),
    "constant": lambda shape: torch.full(shape, 1.7),
    "large": lambda shape: torch.randn(shape) * 300,
}
SHAPES = {"pyramid": ((24, 13, 17), (24, 3, 4)), "one channel": ((1, 9, 11),), "one pixel": ((40, 1, 1),)}
KERNELS = [(dtype, last, ()) for dtype in NARROW for last in (False, True)]
KERNELS += [(torch.float32, last, ((300, 5, 7),)) for last in (False, True)]  # the generic ones
KERNELS += [(torch.float64, False, ())]


def criterion_of(levels, equal_blocks: bool, **weights):
    """GcBlocks as a training begins with them, which add nothing; or the student's given to the teacher, too."""
    channels = [c for c, _, _ in levels]
    criterion = fgd.FGDLoss(channels, channels, len(levels), **weights)
    criterion.backend = "ptx"
    if equal_blocks:
        for name, parameter in criterion.named_parameters():
            torch.nn.init.normal_(parameter, std=0.2)
            twin = name.replace("_t.", "_s.")
            if twin != name:
                parameter.data.copy_(dict(criterion.named_parameters())[twin])
    return criterion


def gradients(student, teacher, criterion, counts):
    """(loss terms, the students' gradients, the parameters' gradients)."""
    leaves = [s.clone(memory_format=torch.preserve_format).requires_grad_() for s in student]
    boxes = [torch.tensor([[5.0, 5.0, 40.0, 60.0], [30.0, 9.0, 80.0, 90.0]])[:count] for count in counts]
    losses = criterion(leaves, teacher, boxes, [(100, 100)] * len(counts))
    sum(losses.values()).backward()
    return list(losses.values()), [x.grad for x in leaves], [p.grad for p in criterion.parameters()]


@pytest.mark.parametrize("equal_blocks", [False, True], ids=["new GcBlocks", "equal GcBlocks"])
@pytest.mark.parametrize("kind", list(MAPS))
@pytest.mark.parametrize("dtype, last, levels", KERNELS, ids=str)
def test_equal_maps_give_exactly_nothing(dtype, last, levels, kind, equal_blocks, interpreted):
    layout = torch.channels_last if last else torch.contiguous_format
    for shapes in (levels,) if levels else SHAPES.values():
        maps = [MAPS[kind]((2, *shape)).to(dtype).contiguous(memory_format=layout) for shape in shapes]
        criterion = criterion_of(shapes, equal_blocks, **BALANCED | {"temperature": 0.1})
        if dtype == torch.float64:
            criterion.double()
        for found in gradients(maps, [m.clone() for m in maps], criterion, (2, 0)):
            assert all((x == 0).all() for x in found)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_an_equal_image_beside_others(dtype, last, interpreted):
    """Its gradient is 0, whatever the images before and behind it have."""
    layout = torch.channels_last if last else torch.contiguous_format
    student, teacher = (
        torch.relu(torch.randn(3, 24, 13, 17)).to(dtype).contiguous(memory_format=layout) for _ in range(2)
    )
    student[1] = teacher[1]
    criterion = criterion_of(((24, 13, 17),), False, **BALANCED)
    _, (grad,), _ = gradients([student], [teacher], criterion, (2, 1, 0))
    assert (grad[1] == 0).all() and (grad[0] != 0).any() and (grad[2] != 0).any()


@pytest.mark.parametrize("scale", [1, 12, 25])
@pytest.mark.parametrize("dtype, last, levels", [k for k in KERNELS if k[0] != torch.float64], ids=str)
def test_key_gradients_where_few_pixels_have_all_the_weight(dtype, last, levels, scale, interpreted):
    """Relative to their size, however small that is, they are as exact as the reference's. A single error is luck: the
    softmax multiplies whatever rounding its logits had. So it is the mean of some, where one blunder shows."""
    levels = levels or ((64, 9, 13),)
    scale *= (24 / levels[0][0]) ** 0.5
    errors = {"ptx": [], "reference": []}
    for seed in range(5):
        torch.manual_seed(seed)
        inputs = make_inputs(Case("", levels, (1, 0), dtype, dtype, last, scale=scale, loss=BALANCED))
        truth = evaluate(inputs, "reference", torch.float64)
        for backend in errors:
            found = evaluate(inputs, backend)
            for name in (name for name in truth if "conv_mask" in name and name.endswith("weight")):
                errors[backend].append(error(found[name], truth[name]) / float(truth[name].norm()))
    ours, plain = (geometric_mean(errors[backend]) for backend in ("ptx", "reference"))
    assert ours <= 2 * plain + 16 * EPS[torch.float32]


NOT_FINITE = [
    ("student", float("nan")),
    ("teacher", float("nan")),
    ("student", float("inf")),
    ("teacher", -float("inf")),
]


@pytest.mark.parametrize("dtype, last, levels", [k for k in KERNELS if k[0] != torch.float64], ids=str)
@pytest.mark.parametrize("where, value", NOT_FINITE)
def test_values_that_are_not_finite_reach_what_they_reach_in_the_reference(
    where, value, dtype, last, levels, interpreted
):
    case = Case("", levels or ((24, 5, 9), (24, 2, 3)), (1, 2), dtype, dtype, last, loss=BALANCED)
    inputs = make_inputs(case)
    inputs[0 if where == "student" else 1][0][1, 3, 2, 1] = value
    ours, expected = evaluate(copy.deepcopy(inputs), "ptx"), evaluate(inputs, "reference")
    for name, want in expected.items():
        assert torch.equal(ours[name].isfinite(), want.isfinite()), name
