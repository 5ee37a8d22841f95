"""The Triton kernels' rows are those of csrc/include/fgd/layout.h, name by name."""

import pathlib
import re

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from fgd_kernels.triton_kernels import layout

HEADER = pathlib.Path(__file__).parents[3] / "csrc/include/fgd/layout.h"
KINDS = ("Map", "Stat", "Softmax", "Sum", "Term")


def rows_of_the_header(kind: str) -> dict[str, int]:
    """kStatShiftGrad of enum Stat is STAT_SHIFT_GRAD; kStats, their number, is STATS."""
    body = re.search(rf"enum {kind} : int {{(.*?)}};", HEADER.read_text(), re.S)[1]
    names = re.findall(r"\bk(\w+)", re.sub(r"//.*", "", body))
    words = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper() for name in names]
    prefix = kind.upper()
    return {w if w.startswith(prefix) else f"{prefix}_{w}": index for index, w in enumerate(words)}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_the_header_s_numbers(kind):
    expected = rows_of_the_header(kind)
    assert len(expected) > 4 or kind in ("Map", "Softmax", "Term")
    ours = {name: value.value for name, value in vars(layout).items() if name.startswith(kind.upper())}
    assert ours == expected
