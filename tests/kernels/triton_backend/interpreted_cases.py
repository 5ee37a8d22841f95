"""The case list that every backend runs, for the Triton kernels in Triton's interpreter.

Run by test_interpreted_cases.py in a process of its own.
"""

import dataclasses

import pytest
import torch
from cases import PYRAMID, Case, assert_as_reference, standard_cases

import devtools.offline.triton_interpreter  # noqa: F401 - prepares the interpreter

# In the place of larger levels: the interpreter is slow. Still several tiles of every layout.
SMALLER = {
    PYRAMID: ((16, 13, 15), (16, 1, 1)),
    ((65, 9, 31),): ((65, 5, 13),),
    ((256, 20, 13),): ((256, 5, 13),),
    ((300, 7, 5),): ((300, 3, 5),),
}


def cases() -> list[Case]:
    """The standard list, on smaller levels and without float64."""
    cases = [case for case in standard_cases() if case.student_dtype != torch.float64]
    cases = [dataclasses.replace(case, levels=SMALLER.get(case.levels, case.levels)) for case in cases]
    return [dataclasses.replace(case, boxes=(40, 1)) if case.boxes == (300, 1) else case for case in cases]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_equals_the_reference(case):
    assert_as_reference(case, "triton")
