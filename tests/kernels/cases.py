"""Inputs for the loss, and the comparison with the float64 reference that every backend has to pass.

The tolerance is not guessed: a backend may be wrong by twice what the float32 reference is wrong on the same inputs,
plus a few roundings of the result's own size (a single number can be right by luck).
"""

import copy
import dataclasses
import itertools

import torch

import fgd_kernels as fgd

EPS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}


@dataclasses.dataclass
class Case:
    """One call of FGDLoss: `levels` are (channels, height, width), boxes one count an image."""

    name: str
    levels: tuple = ((24, 13, 17),)
    boxes: tuple = (3, 0)
    student_dtype: torch.dtype = torch.float32
    teacher_dtype: torch.dtype = torch.float32
    channels_last: bool = False
    scale: float = 1.0
    student_channels: int | None = None
    frozen: bool = False  # the GcBlocks take no gradient
    fixed_student: bool = False  # the student's features take none
    loss: dict = dataclasses.field(default_factory=dict)

    @property
    def images(self) -> int:
        return len(self.boxes)


def make_boxes(counts, frame=(104, 136)) -> list[torch.Tensor]:
    """Random boxes; some reach out of the image, every third image with boxes has one that covers everything."""
    out = []
    for index, count in enumerate(counts):
        box = torch.rand(count, 4) * torch.tensor([frame[1], frame[0], frame[1] / 2, frame[0] / 2])
        box[:, 2:] += box[:, :2]
        if count and index % 3 == 2:
            box[0] = torch.tensor([-9.0, -9.0, 999.0, 999.0])
        out.append(box)
    return out


def make_inputs(case: Case, device="cpu"):
    """(student levels, teacher levels, boxes, image sizes, criterion): all leaves, GcBlocks away from their zeros."""
    layout = torch.channels_last if case.channels_last else torch.contiguous_format

    def maps(dtype, channels=None):
        made = (torch.randn(case.images, channels or c, h, w, device=device) for c, h, w in case.levels)
        return [(case.scale * m).to(dtype).contiguous(memory_format=layout) for m in made]

    student = maps(case.student_dtype, case.student_channels)
    teacher = maps(case.teacher_dtype)
    channels = [c for c, _, _ in case.levels]
    criterion = fgd.FGDLoss(case.student_channels or channels, channels, len(channels), **case.loss).to(device)
    for name, parameter in criterion.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.1)
        if name.endswith("1.weight"):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
        parameter.requires_grad_(not case.frozen or "align" in name)
    boxes = [box.to(device) for box in make_boxes(case.boxes)]
    return student, teacher, boxes, [(104, 136)] * case.images, criterion


def evaluate(inputs, backend: str, dtype: torch.dtype | None = None, fixed_student: bool = False) -> dict:
    """Loss terms and every gradient, in float64, as `backend` computes them (in `dtype`, if one is given)."""
    student, teacher, boxes, sizes, criterion = inputs
    criterion = copy.deepcopy(criterion)
    if dtype is not None:
        student, teacher, criterion = (
            [s.to(dtype) for s in student],
            [t.to(dtype) for t in teacher],
            criterion.to(dtype),
        )
    criterion.backend = backend
    leaves = [s.detach().clone(memory_format=torch.preserve_format) for s in student]
    for leaf in leaves:
        leaf.requires_grad_(not fixed_student)
    losses = criterion(leaves, teacher, boxes, sizes)
    results = {name: value.detach().double().cpu() for name, value in losses.items()}
    # Unequal factors: each term's gradient counts, none can hide behind another.
    total = sum(factor * value for factor, value in zip((1.0, 0.7, 1.3, 0.9), losses.values(), strict=True))
    if total.requires_grad:
        total.backward()
    named = [(f"student[{i}]", leaf) for i, leaf in enumerate(leaves)] + list(criterion.named_parameters())
    results |= {name: leaf.grad.double().cpu() for name, leaf in named if leaf.grad is not None}
    return results


def error(result: torch.Tensor, truth: torch.Tensor) -> float:
    return float((result - truth).norm())


def assert_as_reference(case: Case, backend: str, device="cpu") -> None:
    """Loss terms and gradients of `backend` are as near to the float64 reference as the budget demands."""
    inputs = make_inputs(case, device)
    truth = evaluate(inputs, "reference", torch.float64, case.fixed_student)
    for name in truth:
        if "conv_mask" in name and name.endswith("bias"):
            truth[name].zero_()  # a softmax does not see a shift: what the reference has there is rounding
    plain = evaluate(inputs, "reference", None, case.fixed_student)
    ours = evaluate(inputs, backend, None, case.fixed_student)
    assert ours.keys() == truth.keys()
    size = {name: float(value.norm()) for name, value in truth.items()}
    for name, value in truth.items():
        eps = EPS[
            case.student_dtype if name.startswith("student") else torch.promote_types(case.student_dtype, torch.float32)
        ]
        slack = 0.0 if backend in ("cpu", "reference") else _cancelling(name, case, inputs[-1], truth)
        floor = 16 * eps * max(size[name], slack)
        allowed = 2 * error(plain[name], value) + floor
        wrong = error(ours[name], value)
        assert wrong <= allowed, (
            f"{case.name}: {name} is off by {wrong:.3g}, allowed {allowed:.3g}, size {size[name]:.3g}"
        )


def _cancelling(name: str, case: Case, criterion, truth: dict) -> float:
    """The size of what cancels in ∂L/∂Wk = Σp q·(u - ū)·F (and in ∂L/∂bk, where all of it does).

    A softmax does not see a shift, so u and ū nearly cancel where few pixels have all the weight, and what is left is
    as small as their roundings: |u|·|F| <= ‖W1‖·‖∂L/∂W1‖·|F|.
    """
    if "conv_mask" not in name:
        return 0.0
    level, net = name.split(".")[1], name.split(".")[2][-1]
    w1 = f"levels.{level}.channel_add_conv_{net}.0.weight"
    weight = dict(criterion.named_parameters())[w1].detach().double().flatten(1)
    return float(torch.linalg.matrix_norm(weight, 2)) * float(truth[w1].norm()) * case.scale


NARROW = (torch.float32, torch.bfloat16, torch.float16)
PYRAMID = ((16, 24, 33), (16, 12, 17), (16, 6, 9), (16, 3, 5), (16, 1, 1))
BALANCED = {"alpha": 0.01, "beta": 1.0, "gamma": 0.3, "lambda_": 0.01}  # every term matters


def standard_cases() -> list[Case]:
    """The case list that every backend runs: shapes, dtypes, layouts, boxes, temperatures, magnitudes, switches."""
    cases = []
    shapes = [(1, 1, 1), (2, 1, 7), (3, 5, 1), (24, 13, 17), (40, 5, 4), (65, 9, 31), (256, 20, 13), (300, 7, 5)]
    for (c, h, w), last in itertools.product(shapes, (False, True)):
        layout = "channels_last" if last else "contiguous"
        cases.append(Case(f"shape {c}x{h}x{w} {layout}", ((c, h, w),), channels_last=last, loss=BALANCED))
    for s, t in itertools.product(NARROW, NARROW):
        for last in (False, True):
            name = f"dtypes {s} {t} {'channels_last' if last else 'contiguous'}"
            cases.append(Case(name, PYRAMID, (3, 0, 2), s, t, last, loss=BALANCED))
    for last in (False, True):
        cases.append(Case(f"float64 {last}", PYRAMID, (3, 0), torch.float64, torch.float64, last, loss=BALANCED))
    for temperature in (0.1, 0.5, 2.0, 10.0):
        cases.append(Case(f"T {temperature}", PYRAMID, loss=BALANCED | {"temperature": temperature}))
    # At 1e-4 and T = 0.5 all attentions are 1 but for their last digits, and the sign of A_s - A_t is anyone's guess.
    for scale, temperature in ((1e-4, 1e-3), (1e4, 0.5)):
        loss = BALANCED | {"temperature": temperature}
        cases.append(Case(f"scale {scale}", PYRAMID, scale=scale, loss=loss))
    for boxes in ((0, 0), (0,), (1, 2, 3, 4), (300, 1)):
        cases.append(Case(f"boxes {boxes}", PYRAMID, boxes, loss=BALANCED))
    for attention in fgd.functional.ATTENTIONS:
        cases.append(Case(f"attention {attention}", PYRAMID, loss=BALANCED | {"attention": attention}))
    cases += [
        Case("one area", PYRAMID, loss=BALANCED | {"split": False}),
        Case("inverse area", PYRAMID, loss=BALANCED | {"level_weights": "inverse_area"}),
        Case("align", PYRAMID, student_channels=11, loss=BALANCED),
        Case("align, frozen GcBlocks", PYRAMID, student_channels=11, frozen=True, loss=BALANCED),
        Case("frozen GcBlocks", PYRAMID, frozen=True, loss=BALANCED),
        Case("fixed student", PYRAMID, fixed_student=True, loss=BALANCED),
        Case("fixed student, channels_last", PYRAMID, fixed_student=True, channels_last=True, loss=BALANCED),
        Case("several channel counts", ((8, 9, 9), (33, 5, 5), (70, 2, 3)), loss=BALANCED),
        Case("paper's weights", PYRAMID, loss={"preset": "one_stage_anchor_free"}),
    ]
    return cases
