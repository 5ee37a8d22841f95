"""Numbers that several backends share: csrc/include/fgd states them, and Python's names for them are the same.

The CPU's and CUDA's kernels include these headers; tests/test_architecture.py sees that neither states one again. What
Triton's kernels call them, tests/kernels/triton_backend compares. Less than a second.
"""

import enum
import pathlib
import re

import pytest
import torch
from headers import cpp_constants

import fgd_kernels as fgd
from fgd_kernels import ops, shared
from fgd_kernels.layout import Layout
from fgd_kernels.modules import FGDLevel
from fgd_kernels.reference import GC_BLOCK_SIZE, GcBlockPair

INCLUDE = pathlib.Path(__file__).parents[2] / "csrc" / "include" / "fgd"
NUMBERS = cpp_constants((INCLUDE / "layout.h").read_text()) | cpp_constants((INCLUDE / "gc_block.h").read_text())


def camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.lower().split("_"))


@pytest.mark.parametrize(
    "names, prefix, count",
    [
        (shared.Map, "kMap", "kMaps"),
        (shared.Stat, "kStat", "kStats"),
        (shared.Term, "k", "kTerms"),
        (Layout, "k", "kLayouts"),
    ],
)
def test_rows_have_the_headers_names_and_numbers(names: type[enum.IntEnum], prefix, count):
    assert {f"{prefix}{camel(member.name)}": NUMBERS.get(f"{prefix}{camel(member.name)}") for member in names} == {
        f"{prefix}{camel(member.name)}": member.value for member in names
    }
    assert len(names) == NUMBERS[count]


def test_limits():
    assert shared.MAX_CHANNELS == ops.MAX_CHANNELS == NUMBERS["kMaxChannels"]


def test_gc_block_tensors_come_in_one_order():
    """In the header, in the reference, and as a module's parameters go to the operator."""
    order = {name: NUMBERS[f"kGc{camel(name)}"] for name in GcBlockPair._fields}
    assert list(order.values()) == list(range(NUMBERS["kGcTensors"])) and len(order) == GC_BLOCK_SIZE
    level = FGDLevel(6, 6)
    given = GcBlockPair(*level.gc_block())
    layers = {"key": "", "w1": ".0.weight", "b1": ".0.bias", "w2": ".3.weight", "b2": ".3.bias"}
    layers |= {"ln_weight": ".1.weight", "ln_bias": ".1.bias"}
    for net in "st":
        for kind, layer in layers.items():
            name = f"channel_add_conv_{net}{layer}" if layer else f"conv_mask_{net}.weight"
            assert getattr(given, f"{kind}_{net}") is level.get_parameter(name)
        assert getattr(given, f"key_bias_{net}") is level.get_parameter(f"conv_mask_{net}.bias")


def test_terms_are_the_losses():
    assert [name.removeprefix("loss_fgd_") for name in fgd.LOSS_NAMES] == [term.name.lower() for term in shared.Term]


def test_one_schema():
    """Of the compiled operators, Triton's and the reference's."""
    found = {"forward": set(), "backward": set()}
    for name in ("forward", "backward", "forward_triton", "backward_triton", "forward_reference"):
        operator = getattr(torch.ops.fgd_kernels, name, None)  # without the library there is no `backward`
        if operator is not None:
            found[name.partition("_")[0]].add(re.sub(r"^\S+?\(", "(", str(operator.default._schema)))
    assert {kind: len(schemas) for kind, schemas in found.items()} == {"forward": 1, "backward": 1}


@pytest.mark.skipif(not fgd.backends()["cpu"].available, reason="no compiled library")
def test_the_operator_knows_the_limit():
    wide = [torch.zeros(1, shared.MAX_CHANNELS + 1, 1, 1)]
    packed = fgd.pack_boxes([torch.zeros(0, 4)], [(8, 8)], "cpu")
    with pytest.raises(RuntimeError, match=f"1 to {shared.MAX_CHANNELS} channels"):
        torch.ops.fgd_kernels.forward(wide, wide, *packed, [], [1.0] * 4, 0.5, 0.5)
