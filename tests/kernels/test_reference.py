"""The reference against the paper's equations written as loops, and against the published implementation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fgd_kernels as fgd
from devtools.published import published_loss, published_masks
from fgd_kernels import reference


def packed(boxes, sizes):
    return fgd.pack_boxes(boxes, sizes, "cpu")


@st.composite
def boxes_in_image(draw):
    """Boxes inside an image: corners on and off the grid of the map, zero areas, edges on the border."""
    height, width = draw(st.integers(1, 400)), draw(st.integers(1, 400))
    map_height, map_width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    fraction = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1, width=32))
    grid = st.integers(0, map_width).map(lambda i: i / map_width)
    corner = st.one_of(fraction, grid)
    rows = []
    for _ in range(draw(st.integers(0, 6))):
        x, y = sorted([draw(corner), draw(corner)]), sorted([draw(corner), draw(corner)])
        rows.append([x[0] * width, y[0] * height, x[1] * width, y[1] * height])
    box = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    box[:, 0::2].clamp_(0, width)
    box[:, 1::2].clamp_(0, height)
    return box, (height, width), (map_height, map_width)


@settings(max_examples=300, deadline=None)
@given(boxes_in_image())
def test_masks_are_the_published_ones_bit_for_bit(sample):
    box, size, (height, width) = sample
    foreground = reference.foreground_mask(*packed([box], [size]), height, width)
    expected_fg, expected_bg = published_masks([box], [size], height, width)
    assert torch.equal(foreground, expected_fg)
    torch.testing.assert_close(reference.background_mask(foreground), expected_bg)


@settings(max_examples=100, deadline=None)
@given(boxes_in_image())
def test_cpu_masks_are_the_references(sample):
    """The saved map says which pixels are foreground, and (times A^S) with which weight."""
    if not fgd.backends()["cpu"].available:
        pytest.skip(fgd.backends()["cpu"].reason)
    box, size, (height, width) = sample
    boxes = packed([box], [size])
    features = [torch.randn(1, 3, height, width)]
    arguments = (features, [torch.randn(1, 3, height, width)], *boxes, [], [1.0] * 4, math.inf, math.inf)
    maps = torch.ops.fgd_kernels.forward(*arguments)[5]
    focal = maps.view(4, height, width)[0]
    foreground = reference.foreground_mask(*boxes, height, width)[0]
    assert torch.equal(focal.clamp(min=0), foreground)  # A^S is exactly 1 at infinite temperature


def test_loss_equals_the_published_one():
    torch.manual_seed(3)
    for shape in ((2, 8, 9, 13), (1, 16, 5, 4), (3, 32, 20, 16)):
        n = shape[0]
        student, teacher = torch.randn(shape).double(), torch.randn(shape).double()
        boxes = [torch.rand(4, 4) * torch.tensor([60.0, 40, 40, 40]) for _ in range(n)]
        for box in boxes:
            box[:, 2:] = box[:, :2] + box[:, 2:].clamp(max=19)
        loss = fgd.FeatureLoss(shape[1], shape[1], "loss").double()
        for parameter in loss.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        weights = (1e-3, 5e-4, 1e-3, 5e-6)
        metas = [{"img_shape": (80, 104, 3)}] * n
        for backend in ("reference", "auto"):
            loss.backend = backend
            ours = loss(student, teacher, boxes, metas)
            theirs = published_loss(student, teacher, boxes, [(80, 104)] * n, loss.gc_block(), weights, 0.5)
            torch.testing.assert_close(ours, theirs)


def test_equations_as_loops():
    """(5) to (10) with one Python loop a sum."""
    student, teacher = torch.randn(1, 3, 2, 4).double(), torch.randn(1, 3, 2, 4).double()
    temperature, (channels, height, width) = 0.7, (3, 2, 4)
    pixels = [(y, x) for y in range(height) for x in range(width)]

    def attentions(features):
        spatial = {p: sum(abs(features[0, c][p]) for c in range(channels)) / channels / temperature for p in pixels}
        channel = [sum(abs(features[0, c][p]) for p in pixels) / len(pixels) / temperature for c in range(channels)]
        z_s, z_c = sum(math.exp(v) for v in spatial.values()), sum(math.exp(v) for v in channel)
        return (
            {p: len(pixels) * math.exp(v) / z_s for p, v in spatial.items()},
            [channels * math.exp(v) / z_c for v in channel],
        )

    (s_s, s_c), (t_s, t_c) = attentions(student), attentions(teacher)
    box = torch.tensor([[0.0, 0.0, 1.0, 0.5]])  # covers x 0..1, y 0..1 of the 4 x 2 map
    covered = [(y, x) for y, x in pixels if x <= 1 and y <= 1]
    fg = bg = 0.0
    for p in pixels:
        weight = 1 / 4 if p in covered else 1 / (len(pixels) - len(covered))
        term = sum(weight * t_s[p] * t_c[c] * float(student[0, c][p] - teacher[0, c][p]) ** 2 for c in range(channels))
        fg, bg = (fg + term, bg) if p in covered else (fg, bg + term)
    attention = sum(abs(s_s[p] - t_s[p]) for p in pixels) + sum(abs(a - b) for a, b in zip(s_c, t_c, strict=True))
    boxes = packed([box], [(2, 4)])
    found = reference.level_terms(student, teacher, *boxes, [], temperature, temperature)
    torch.testing.assert_close(found, torch.tensor([fg, bg, attention, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_ablations(backend):
    """The paper's tables 1, 4 and 5 are switches of one loss."""
    student, teacher = torch.randn(2, 6, 5, 7), torch.randn(2, 6, 5, 7)
    boxes, sizes = [torch.tensor([[3.0, 3.0, 20.0, 20.0]]), torch.zeros(0, 4)], [(40, 56)] * 2

    def terms(**settings):
        losses = fgd.fgd_loss(student, teacher, boxes, sizes, backend=backend, **settings)
        return [float(losses[name]) for name in fgd.LOSS_NAMES]

    weights = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0, "lambda_": 1.0}
    fg, bg, at, gl = terms(**weights)
    assert fg > 0 and bg > 0 and at > 0 and gl == 0  # no GcBlocks: focal alone
    assert terms(**weights | {"beta": 0.0}) == pytest.approx([fg, 0, at, 0])  # foreground alone
    assert terms(**weights | {"alpha": 0.0}) == pytest.approx([0, bg, at, 0])  # background alone
    assert terms(**weights, split=False)[0] == 0  # one area
    assert terms(**weights, attention="none")[2] == 0
    spatial, channel = (terms(**weights, attention=name)[2] for name in ("spatial", "channel"))
    assert spatial + channel == pytest.approx(at, rel=1e-5)
    error = (student - teacher).square()
    plain = terms(**weights, attention="none", split=False)[1]
    assert plain == pytest.approx(float(error.sum(1).mean((1, 2)).mean()), rel=1e-5)


def test_attentions_have_mean_one():
    features = torch.randn(3, 8, 6, 5)
    assert torch.allclose(reference.spatial_attention(features, 0.5).mean((1, 2)), torch.ones(3))
    assert torch.allclose(reference.channel_attention(features, 0.5).mean(1), torch.ones(3))
