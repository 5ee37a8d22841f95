"""Foreground beyond upright boxes: what rotated boxes, polygons and masks cover, and the loss of such maps."""

import math

import pytest
import torch
from cases import BALANCED, PYRAMID, Case, assert_as_reference, make_inputs
from hypothesis import given, settings
from hypothesis import strategies as st

import fgd_kernels as fgd
from fgd_kernels import foreground, reference

HERE = [name for name in ("cpu", "reference") if fgd.backends()[name].available]
each_backend = pytest.mark.parametrize("backend", HERE)
needs_cpu = pytest.mark.skipif("cpu" not in HERE, reason=fgd.backends()["cpu"].reason)


@st.composite
def upright_boxes(draw):
    """Boxes as centre and size in multiples of 1/4: exact as corners, too."""
    quarter = st.integers(0, 400).map(lambda i: i / 4)
    rows = [[draw(quarter) for _ in range(4)] for _ in range(draw(st.integers(0, 5)))]
    size = draw(st.integers(10, 90)), draw(st.integers(10, 90))
    return torch.tensor(rows).reshape(-1, 4), size, (draw(st.integers(1, 24)), draw(st.integers(1, 24)))


@settings(max_examples=150, deadline=None)
@given(upright_boxes())
def test_rotated_boxes_of_angle_0_are_the_boxes(sample):
    box, size, (height, width) = sample
    corners = torch.cat([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], 1)
    expected = reference.foreground_mask(*fgd.pack_boxes([corners], [size], "cpu"), height, width)
    turned = torch.cat([box, torch.zeros(len(box), 1)], 1)
    found = foreground.rotated_boxes([turned], [size])(height, width)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def touches(polygon, x, y):
    """Whether a dense sampling of a polygon's inside and outline comes within 1 of a point, and how safely."""
    edges = list(zip(polygon, polygon[1:] + polygon[:1], strict=True))
    crossed = [(y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1 for (x1, y1), (x2, y2) in edges]
    line = [(x1 + (x2 - x1) * t / 200, y1 + (y2 - y1) * t / 200) for (x1, y1), (x2, y2) in edges for t in range(201)]
    nearest = min(max(abs(px - x), abs(py - y)) for px, py in line)
    return (sum(crossed) % 2 == 1 or nearest < 1), abs(nearest - 1) > 0.05


def test_polygons_cover_what_comes_near():
    """A star and a rotated box on a 20 x 16 map, against sampled outlines; doubtful points are left out."""
    star = [
        (10 + r * math.cos(a), 8 + r * math.sin(a))
        for r, a in [((7, 2.5)[i % 2], 0.3 + i * math.pi / 5) for i in range(10)]
    ]
    box = torch.tensor([[9.0, 7.0, 12.0, 3.0, 0.6]])
    size, (height, width) = [(32, 40)], (16, 20)
    turned = foreground.rotated_boxes([box * torch.tensor([2.0, 2, 2, 2, 1])], size)(height, width)[0]
    starred = foreground.polygons([[torch.tensor(star) * 2]], size)(height, width)[0]
    cos, sin = math.cos(0.6), math.sin(0.6)
    corners = [
        (9 + a * 6 * cos - b * 1.5 * sin, 7 + a * 6 * sin + b * 1.5 * cos)
        for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    judged = 0
    for weights, polygon in ((turned, corners), (starred, star)):
        assert weights[weights > 0].unique().numel() == 1
        assert float(weights.sum()) == pytest.approx(1)  # 1 / area on each pixel; none reaches the border
        for y in range(height):
            for x in range(width):
                covered, certain = touches(polygon, x, y)
                if certain:
                    judged += 1
                    assert bool(weights[y, x] > 0) == covered, (x, y)
    assert judged > 500


def test_the_smallest_object_wins():
    large, small = torch.tensor([[0.0, 0], [80, 0], [80, 80], [0, 80]]), torch.tensor([[20.0, 20], [30, 20], [30, 30]])
    apart = [foreground.polygons([[shape]], [(80, 80)])(20, 20) for shape in (large, small)]
    together = foreground.polygons([[large, small]], [(80, 80)])(20, 20)
    assert torch.equal(together, torch.maximum(*apart)) and (together[apart[1] > 0] == apart[1].max()).all()
    masks = torch.zeros(2, 80, 80, dtype=torch.bool)
    masks[0, :60, :60], masks[1, 10:13, 10:70] = True, True
    weights = foreground.instance_masks([masks, masks[:0]])(20, 20)
    assert float(weights[0, 0, 0]) == pytest.approx(1 / 225) and float(weights[0, 2, 3]) == pytest.approx(1 / 32)
    assert weights[0, 3, 16] == weights[0, 2, 16] > 0 and weights[0, 19].sum() == 0 and weights[1].sum() == 0


def test_masks_in_pieces(monkeypatch):
    """Many large masks are weighed a few at a time, with the same result."""
    masks = foreground.instance_masks([torch.rand(5, 40, 60) < 0.02])
    whole = masks(10, 15)
    monkeypatch.setattr(foreground, "_MASK_PIXELS_AT_ONCE", 2 * 40 * 60)
    assert torch.equal(masks(10, 15), whole) and whole.sum() > 0


def test_what_covers_nothing():
    outside = [torch.tensor([[-9.0, 0], [-1, 0], [-1, 9]]), torch.tensor([[1.0, 2], [float("nan"), 3], [4, 4]])]
    assert foreground.polygons([outside, []], [(40, 40)] * 2)(5, 5).sum() == 0
    assert foreground.polygons([[], []], [(40, 40)] * 2)(5, 5).shape == (2, 5, 5)
    assert foreground.rotated_boxes([torch.zeros(0, 5)], [(40, 40)])(5, 5).sum() == 0
    point = foreground.polygons([[torch.tensor([[20.0, 20.0]])]], [(40, 40)])(5, 5)
    assert 0 < float(point.sum()) <= 1.001  # a single point is an object still


@each_backend
@pytest.mark.parametrize("made", ["rotated_boxes", "polygons", "instance_masks"])
def test_a_batch_without_images(backend, made):
    sizes = () if made == "instance_masks" else ([],)
    shapes = getattr(foreground, made)([], *sizes)
    assert shapes(4, 5).shape == (0, 4, 5)
    student = torch.zeros(0, 3, 4, 5, requires_grad=True)
    losses = fgd.fgd_loss(student, student.detach(), foreground=shapes, backend=backend)
    assert [loss.item() for loss in losses.values()] == [0.0] * 4


def of_boxes(inputs):
    """The same call with the boxes' masks as maps."""
    student, teacher, boxes, sizes, criterion = inputs
    packed = fgd.pack_boxes(boxes, sizes, "cpu")
    maps = [reference.foreground_mask(*packed, *s.shape[2:]) for s in student]
    return lambda s: criterion(s, teacher, foreground=maps)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_boxes_as_maps_give_the_same_bits(backend, dtype):
    inputs = make_inputs(Case("maps", (*PYRAMID[:3], (16, 90, 71)), (3, 0, 2), dtype, dtype, loss=BALANCED))
    student, teacher, boxes, sizes, criterion = inputs
    criterion = criterion.double() if dtype == torch.float64 else criterion
    criterion.backend = backend
    results = []
    for call in (lambda s: criterion(s, teacher, boxes, sizes), of_boxes(inputs)):
        leaves = [s.detach().clone().requires_grad_() for s in student]
        losses = call(leaves)
        grads = torch.autograd.grad(sum(losses.values()), [*leaves, *criterion.parameters()])
        results.append([*losses.values(), *grads])
    for from_boxes, from_maps in zip(*results, strict=True):
        assert torch.equal(from_boxes, from_maps)


MAPS = [
    Case(f"maps {dtype} {last}", PYRAMID, (3, 0, 2), dtype, dtype, last, loss=BALANCED, maps=True)
    for dtype in (torch.float32, torch.float16, torch.float64)
    for last in (False, True)
]
MAPS.append(Case("maps, several chunks", ((32, 90, 71),), (1, 1), loss=BALANCED, maps=True))
MAPS.append(Case("maps, one area", PYRAMID, loss=BALANCED | {"split": False}, maps=True))


@needs_cpu
@pytest.mark.parametrize("case", MAPS, ids=lambda case: case.name)
def test_maps_equal_the_reference(case):
    assert_as_reference(case, "cpu")


def arguments(levels=((6, 5, 7), (6, 2, 3))):
    student, teacher, maps, _, criterion = make_inputs(Case("maps", levels, (2, 0), maps=True, loss=BALANCED))
    return student, teacher, maps, criterion


@needs_cpu
def test_the_operator_takes_maps_and_checks_them():
    student, teacher, maps, criterion = arguments()
    student = [s.requires_grad_() for s in student]
    gc_block = [p for level in criterion.levels for p in level.gc_block()]
    flat = torch.cat([m.flatten() for m in maps])
    rest = (gc_block, [0.1, 0.2, 0.3, 0.4] * 2, 0.5, 0.7)
    boxes = fgd.pack_boxes([torch.zeros(0, 4)] * 2, [(8, 8)] * 2, "cpu")
    torch.library.opcheck(torch.ops.fgd_kernels.forward.default, (student, teacher, *boxes, *rest, flat))
    for wrong in (flat[:-1], flat.double(), flat[None]):
        with pytest.raises(RuntimeError, match="foreground: expected a contiguous float32 tensor"):
            torch.ops.fgd_kernels.forward(student, teacher, *boxes, *rest, wrong)


def test_compiles_as_one_graph():
    student, teacher, maps, criterion = arguments()

    def loss(student, maps):
        return sum(criterion(student, teacher, foreground=maps).values())

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student, maps), loss(student, maps))


@pytest.mark.parametrize(
    "wrong, kind, words",
    [
        (lambda maps: maps[:1], ValueError, "foreground: expected 2 maps, one a level, got 1"),
        (lambda maps: 5, TypeError, "foreground: expected a list of tensors"),
        (
            lambda maps: [maps[0], maps[1] > 0],
            TypeError,
            r"foreground\[1\]: expected a floating-point .*instance_masks",
        ),
        (lambda maps: lambda size: maps[0], TypeError, "foreground: .* of .height, width., got .* too many positional"),
        (lambda maps: [maps[0], 5], TypeError, r"foreground\[1\]: expected a tensor"),
        (lambda maps: maps[::-1], ValueError, r"foreground\[0\]: expected shape \(2, 5, 7\), as the features"),
        (
            lambda maps: [maps[0], -1 - maps[1]],
            ValueError,
            r"foreground\[1\]: expected finite weights >= 0, got some from",
        ),
        (lambda maps: [maps[0] * math.nan, maps[1]], ValueError, r"foreground\[0\]: expected finite weights"),
        (lambda maps: [maps[0].double() * 1e300, maps[1]], ValueError, r"foreground\[0\]: expected finite weights"),
        (lambda maps: [maps[0].to_sparse(), maps[1]], TypeError, r"foreground\[0\]: expected a dense tensor"),
        (lambda maps: [maps[0].requires_grad_(), maps[1]], ValueError, r"foreground\[0\]: expected no gradient"),
        (lambda maps: [maps[0].to("meta"), maps[1]], ValueError, r"foreground\[0\]: expected device cpu"),
    ],
)
def test_bad_maps(wrong, kind, words):
    student, teacher, maps, criterion = arguments()
    with pytest.raises(kind, match=words):
        criterion(student, teacher, foreground=wrong(maps))


def test_boxes_or_maps():
    student, teacher, maps, criterion = arguments()
    with pytest.raises(TypeError, match="boxes, image_sizes: expected None, because foreground takes their place"):
        criterion(student, teacher, [torch.zeros(0, 4)] * 2, foreground=maps)
    with pytest.raises(TypeError, match="boxes: expected a list of tensors"):
        criterion(student, teacher)


@pytest.mark.parametrize(
    "call, kind, words",
    [
        (
            lambda: foreground.polygons([[torch.zeros(3, 3)]], [(9, 9)]),
            ValueError,
            r"polygons\[0\]\[0\]: expected shape",
        ),
        (lambda: foreground.polygons([[[1, 2]]], [(9, 9)]), TypeError, r"polygons\[0\]\[0\]: expected a floating"),
        (lambda: foreground.polygons([[]], [(9, 9)] * 2), ValueError, "image_sizes: expected one"),
        (lambda: foreground.rotated_boxes([torch.zeros(2, 4)], [(9, 9)]), ValueError, r"boxes\[0\]: expected shape"),
        (
            lambda: foreground.rotated_boxes([torch.zeros(2, 5).int()], [(9, 9)]),
            TypeError,
            r"boxes\[0\]: expected a fl",
        ),
        (lambda: foreground.rotated_boxes(torch.zeros(1, 2, 5), [(9, 9)]), TypeError, "boxes: expected a list"),
        (lambda: foreground.polygons(None, [(9, 9)]), TypeError, "polygons: expected a list"),
        (lambda: foreground.polygons([None], [(9, 9)]), TypeError, r"polygons\[0\]: expected a list"),
        (lambda: foreground.instance_masks(torch.zeros(2, 9, 9)), TypeError, "masks: expected a list"),
        (lambda: foreground.instance_masks([torch.zeros(9, 9)]), ValueError, r"masks\[0\]: expected shape"),
    ],
)
def test_bad_shapes(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
