"""How maps lie in memory, asked in Python and in csrc/arguments.h: one answer. About two seconds."""

import itertools

import pytest
import torch

import fgd_kernels as fgd
from fgd_kernels.layout import Layout, common_layout, layout_of, row_stride


def views() -> dict[str, torch.Tensor]:
    """(2, 4, 3, 5), or with dimensions of one element, as slices and permutations of random tensors leave them."""
    base = torch.randn(5, 9, 6, 7)
    last = base.contiguous(memory_format=torch.channels_last)
    return {
        "nchw": torch.randn(2, 4, 3, 5),
        "channels_last": torch.randn(2, 4, 3, 5).contiguous(memory_format=torch.channels_last),
        "channels and images of a larger nchw": torch.randn(5, 9, 3, 5)[1:4:2, 2:6],
        "channels and images of a larger channels_last": torch.randn(5, 3, 5, 9).permute(0, 3, 1, 2)[::3, 1:5],
        "every second channel": torch.randn(2, 8, 3, 5)[:, ::2],
        "every second channel, channels_last": torch.randn(2, 3, 5, 8).permute(0, 3, 1, 2)[:, ::2],
        "a window of nchw": base[:2, :4, 1:4, 2:7],
        "a window of channels_last": last[:2, :4, 1:4, 2:7],
        "transposed": torch.randn(2, 4, 5, 3).transpose(2, 3),
        "one pixel for all": torch.randn(2, 4, 1, 1).expand(2, 4, 3, 5),
        "one channel for all": torch.randn(2, 1, 3, 5).expand(2, 4, 3, 5),
        "one image for all": torch.randn(1, 4, 3, 5).expand(2, 4, 3, 5),
        "a column": base[:2, :4, :, 3:4],
        "a column of channels_last": last[:2, :4, :, 3:4],
        "a row": base[:2, :4, 2:3],
        "a row of channels_last": last[:2, :4, 2:3],
        "a pixel": last[:2, :4, 2:3, 3:4],
        "a channel": last[:2, 3:4],
    }


VIEWS = views()
KNOWN = {"nchw": Layout.PIXELS_DENSE, "channels_last": Layout.CHANNELS_DENSE, "transposed": None}
KNOWN |= {"one pixel for all": None, "every second channel": Layout.PIXELS_DENSE, "a window of nchw": None}
PAIRS = [(a, b) for a, b in itertools.product(VIEWS, VIEWS) if VIEWS[a].shape == VIEWS[b].shape]


def elements(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The map as a kernel reads it: by its first element and the strides of image and row."""
    n, c, h, w = x.shape
    row = row_stride(x, layout)
    if layout == Layout.PIXELS_DENSE:
        return x.as_strided((n, c, h * w), (x.stride(0), row, 1)).reshape(x.shape)
    return x.as_strided((n, h * w, c), (x.stride(0), row, 1)).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("name", VIEWS)
def test_a_layout_says_where_elements_lie(name):
    x = VIEWS[name]
    layout = layout_of(x)
    assert layout == KNOWN.get(name, layout)
    assert layout is None or torch.equal(elements(x, layout), x)


@pytest.mark.parametrize("pair", PAIRS, ids=" with ".join)
def test_a_pair_gets_one_layout(pair):
    given = tuple(VIEWS[name] for name in pair)
    found = common_layout(*given)
    layout = layout_of(*found)
    assert layout is not None
    for x, y in zip(given, found, strict=True):
        assert torch.equal(x, y) and torch.equal(elements(y, layout), x)
        if layout_of(*given) is not None:
            assert y is x  # no copy


@pytest.mark.skipif(not fgd.backends()["cpu"].available, reason="no compiled library")
@pytest.mark.parametrize("pair", PAIRS, ids=" with ".join)
def test_the_compiled_operator_takes_the_same_pairs(pair):
    student, teacher = (VIEWS[name] for name in pair)
    n, _, h, w = student.shape
    boxes = fgd.pack_boxes([torch.tensor([[0.0, 0.0, w, h]])] * n, [(h, w)] * n, "cpu")
    settings = [], [0.1, 0.2, 0.3, 0.0], 0.5, 0.5
    if layout_of(student, teacher) is None:
        with pytest.raises(RuntimeError, match="both contiguous or both channels_last"):
            torch.ops.fgd_kernels.forward([student], [teacher], *boxes, *settings)
        return
    found = torch.ops.fgd_kernels.forward([student], [teacher], *boxes, *settings)[4]
    dense = torch.ops.fgd_kernels.forward([student.contiguous()], [teacher.contiguous()], *boxes, *settings)[4]
    torch.testing.assert_close(found, dense)
