"""The case list that every backend runs, and the comparison with the float64 reference that it has to pass.

The tolerance is not guessed: a backend may be wrong by twice what the float32 reference is wrong on the same inputs
(devtools/accuracy/budget.py), in every case and for every number.
"""

import itertools

import torch

import fgd_kernels as fgd
from devtools.accuracy.budget import Budget, error
from devtools.accuracy.case import EPS, Case, evaluate, make_boxes, make_inputs

__all__ = ["BALANCED", "EPS", "NARROW", "PYRAMID", "Case", "assert_as_reference", "error", "evaluate", "make_boxes"]
__all__ += ["make_inputs", "standard_cases"]


def assert_as_reference(case: Case, backend: str, device="cpu") -> None:
    """Loss terms and gradients of `backend` are as near to the float64 reference as the budget demands."""
    inputs = make_inputs(case, device)
    budget = Budget(case, inputs)
    found = evaluate(inputs, backend, None, case.fixed_student)
    assert found.keys() == budget.truth.keys()
    for name, value in found.items():
        if not (judged := budget.judge(name, value)).holds:
            raise AssertionError(f"{case.name}: {name} {judged}")


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
