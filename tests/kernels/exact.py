"""Where rounding alone must not make a gradient, and where it must not be lost: equal maps, softmaxes that few pixels
fill, values that are not finite. Every backend calls these checks with kernels of its own."""

from statistics import geometric_mean

import torch
from cases import BALANCED, EPS, Case, error, evaluate, make_inputs

import fgd_kernels as fgd

MAPS = {
    "relu": lambda shape: torch.relu(torch.randn(shape)) * 3,
    "tied": lambda shape: torch.randint(-2, 3, shape).float(),
    "constant": lambda shape: torch.full(shape, 1.7),
    "large": lambda shape: torch.randn(shape) * 300,
}
SHAPES = {"pyramid": ((24, 13, 17), (24, 3, 4)), "one channel": ((1, 9, 11),), "one pixel": ((40, 1, 1),)}
NOT_FINITE = [
    ("student", float("nan")),
    ("teacher", float("nan")),
    ("student", float("inf")),
    ("teacher", -float("inf")),
]


def in_layout(maps: torch.Tensor, channels_last: bool) -> torch.Tensor:
    return maps.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def criterion_of(levels, backend: str, equal_blocks: bool = False, **weights):
    """GcBlocks as a training begins with them, which add nothing; or the student's given to the teacher, too."""
    channels = [c for c, _, _ in levels]
    criterion = fgd.FGDLoss(channels, channels, len(levels), **weights)
    criterion.backend = backend  # unchecked: a test's own has a name that FGDLoss does not know
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


def check_equal_maps(backend, kind, dtype, channels_last, levels, equal_blocks) -> None:
    """Terms and gradients of equal maps are 0, exactly."""
    maps = [in_layout(MAPS[kind]((2, *shape)).to(dtype), channels_last) for shape in levels]
    criterion = criterion_of(levels, backend, equal_blocks, **BALANCED | {"temperature": 0.1})
    if dtype == torch.float64:
        criterion.double()
    for found in gradients(maps, [m.clone() for m in maps], criterion, (2, 0)):
        assert all((x == 0).all() for x in found)


def check_an_equal_image_beside_others(backend, dtype, channels_last) -> None:
    """Its gradient is 0, whatever the images before and behind it have."""
    student, teacher = (in_layout(torch.relu(torch.randn(3, 24, 13, 17)).to(dtype), channels_last) for _ in range(2))
    student[1] = teacher[1]
    _, (grad,), _ = gradients([student], [teacher], criterion_of(((24, 13, 17),), backend, **BALANCED), (2, 1, 0))
    assert (grad[1] == 0).all() and (grad[0] != 0).any() and (grad[2] != 0).any()


def check_equal_magnitudes(backend, dtype, channels_last, shape=(24, 13, 17)) -> None:
    """Maps that differ in sign alone, in one region, have equal attentions: the attention term gives nothing."""
    teacher = torch.randn(2, *shape).to(dtype)
    student = teacher.clone()
    student[:, :, shape[1] // 2 :] *= -1
    student, teacher = (in_layout(x, channels_last) for x in (student, teacher))
    criterion = criterion_of((shape,), backend, alpha=0.0, beta=0.0, gamma=1.0, lambda_=0.0, temperature=0.1)
    losses, (grad,), _ = gradients([student], [teacher], criterion, (2, 1))
    assert all(x == 0 for x in losses) and (grad == 0).all()


def check_ties(backend, dtype, channels_last, shape, temperature=0.1) -> None:
    """Maps with the same numbers in other places have attentions that are equal where the numbers are, sign 0.

    Features are small integers, of which every sum has all its digits. The attention term's gradient is then known:
    that of a student of which some pixels, or some channels, are the teacher's others.
    """
    c, h, w = shape
    for of_pixels in (True, False):
        teacher = torch.randint(-3, 4, (2, *shape)).to(dtype)
        order, moved = torch.arange(h * w if of_pixels else c), torch.arange(1, h * w if of_pixels else c, 2)
        order[moved] = moved[torch.randperm(len(moved))]
        flat = teacher.flatten(2)
        student = (flat[..., order] if of_pixels else flat[:, order]).view(teacher.shape)
        want = torch.zeros(2, c, h * w, dtype=torch.float64)
        for axis, size in ((1, c), (2, h * w)):  # the spatial attention, the channels'
            z_s, z_t = (x.double().flatten(2).abs().mean(axis, keepdim=True) / temperature for x in (student, teacher))
            attention, sign = (h * w * c // size) * torch.softmax(z_s, 3 - axis), torch.sign(z_s - z_t)
            signed = sign - (attention * sign).mean(3 - axis, keepdim=True)
            want += attention * signed * torch.sign(student.double().flatten(2)) / (size * temperature * 2)
        weights = {"alpha": 0.0, "beta": 0.0, "gamma": 1.0, "lambda_": 0.0, "temperature": temperature}
        student, teacher = (in_layout(x, channels_last) for x in (student, teacher))
        _, (grad,), _ = gradients([student], [teacher], criterion_of((shape,), backend, **weights), (2, 1))
        wrong = (grad.double().flatten(2) - want).abs().amax()
        assert wrong <= 8 * EPS[dtype] * want.abs().amax(), (of_pixels, float(wrong), float(want.abs().amax()))


def check_key_gradients(backend, dtype, channels_last, levels, scale, seeds=5) -> None:
    """Relative to their size, however small that is, they are as exact as the reference's. A single error is luck: the
    softmax multiplies whatever rounding its logits had. So it is the mean of some, where one blunder shows."""
    errors = {backend: [], "reference": []}
    for seed in range(seeds):
        torch.manual_seed(seed)
        inputs = make_inputs(Case("", levels, (1, 0), dtype, dtype, channels_last, scale=scale, loss=BALANCED))
        truth = evaluate(inputs, "reference", torch.float64)
        for name_of_backend, found in errors.items():
            values = evaluate(inputs, name_of_backend)
            for name in (name for name in truth if "conv_mask" in name and name.endswith("weight")):
                found.append(error(values[name], truth[name]) / float(truth[name].norm()))
    ours, plain = (geometric_mean(found) for found in errors.values())
    assert ours <= 2 * plain + 16 * EPS[torch.float32], (ours, plain)


def check_a_constant_map(backend, dtype, channels_last, shape) -> None:
    """Every pixel is ctx, then: Σ q·(u - ū)·(F - ctx) is 0, and no square of a rounding."""
    student, teacher = (
        in_layout(x.expand(2, *shape).to(dtype), channels_last)
        for x in (torch.randn(2, shape[0], 1, 1), torch.randn(shape))
    )
    criterion = criterion_of((shape,), backend, **BALANCED)
    for parameter in criterion.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    criterion.to(torch.promote_types(dtype, torch.float32))
    gradients([student], [teacher], criterion, (2, 1))
    block = criterion.levels[0]
    assert (block.conv_mask_s.weight.grad == 0).all() and (block.conv_mask_t.weight.grad != 0).any()


def check_not_finite(backend, where, value, dtype, channels_last, levels) -> None:
    """Such a value reaches what it reaches in the reference, and nothing else."""
    case = Case("", levels, (1, 2), dtype, dtype, channels_last, loss=BALANCED)
    student, teacher, *others = make_inputs(case)
    student, teacher = ([in_layout(torch.relu(x), channels_last) for x in maps] for maps in (student, teacher))
    (student if where == "student" else teacher)[0][1, 3, 2, 1] = value
    inputs = student, teacher, *others
    ours, expected = evaluate(inputs, backend), evaluate(inputs, "reference")
    for name, want in expected.items():
        assert torch.equal(ours[name].isfinite(), want.isfinite()), name
