"""The Triton kernels in Triton's interpreter, through the operator: what only this backend has to show.

Run by test_interpreted.py in a process of its own.
"""

import dataclasses
import math

import pytest
import torch
import triton
import triton.language as tl
from cases import BALANCED, EPS, Case, assert_as_reference, evaluate, make_inputs

import devtools.offline.triton_interpreter  # noqa: F401 - prepares the interpreter
import fgd_kernels as fgd
from fgd_kernels import ops

SMALL = ((16, 13, 15), (16, 1, 1))
OWN = [
    Case("several chunks", ((24, 23, 41),), (4, 0), loss=BALANCED),
    Case("several chunks, channels_last", ((24, 23, 41),), (4,), channels_last=True, loss=BALANCED),
    Case("several chunks, bfloat16", ((20, 25, 43),), (4,), torch.bfloat16, torch.bfloat16, loss=BALANCED),
    Case("aligned rows", ((64, 12, 16), (64, 4, 8)), (2,), loss=BALANCED),
    Case("aligned rows, bfloat16", ((64, 8, 16), (128, 4, 4)), (2,), torch.bfloat16, torch.bfloat16, loss=BALANCED),
    Case("aligned and odd rows", ((20, 8, 8), (24, 7, 5)), (2, 0), torch.float16, torch.float32, loss=BALANCED),
    Case("five blocks of channels", ((300, 3, 9),), (2,), loss=BALANCED),
    Case("three blocks, bfloat16", ((384, 2, 8),), (2,), torch.bfloat16, torch.bfloat16, loss=BALANCED),
    Case("all channels, channels_last", ((600, 1, 5),), (2,), channels_last=True, loss=BALANCED),
    Case("blocks of channels, no GcBlock gradient", ((384, 4, 4),), (1,), frozen=True, loss=BALANCED),
    Case("maps, several chunks", ((16, 23, 41), (16, 3, 5)), (1, 1), loss=BALANCED, maps=True),
    Case("maps, bfloat16", SMALL, (1, 1), torch.bfloat16, torch.bfloat16, True, loss=BALANCED, maps=True),
]


@pytest.mark.parametrize("case", OWN, ids=lambda case: case.name)
def test_equals_the_reference(case):
    assert_as_reference(case, "triton")


def saved(backend: str, case: Case):
    student, teacher, boxes, sizes, criterion = make_inputs(case)
    gc_block = [p for level in criterion.levels for p in level.gc_block()]
    forward = getattr(torch.ops.fgd_kernels, ops._NAMES[backend]).default
    packed = fgd.pack_boxes(boxes, sizes, "cpu")
    with torch.no_grad():
        return forward(student, teacher, *packed, gc_block, [0.5] * 4 * len(case.levels), 0.5, 0.7)


def by_kind(flat: torch.Tensor, sizes: list[int], kinds: int, images: int):
    """(kind, all images' numbers of it), level after level; csrc/include/fgd/layout.h has the kinds."""
    for level in flat.split([images * kinds * size for size in sizes]):
        yield from enumerate(level.view(images, kinds, -1).unbind(1))


@pytest.mark.skipif(not fgd.backends()["cpu"].available, reason="no compiled library")
def test_saves_what_the_cpu_kernels_save():
    """Maps and channel attentions, products of exponentials, up to roundings of each number.

    Shifts and contexts, the last four vectors of channels, are sums that cancel: up to roundings of the largest.
    """
    case, eps = Case("saved", ((24, 9, 11), (32, 4, 6)), (2, 0)), EPS[torch.float32]
    torch.manual_seed(1)
    *expected, their_maps, their_stats = saved("cpu", case)
    torch.manual_seed(1)
    *found, our_maps, our_stats = saved("triton", case)
    torch.testing.assert_close(found, expected, rtol=16 * eps, atol=0)
    pixels, channels = [h * w for _, h, w in case.levels], [c for c, _, _ in case.levels]
    ours, theirs = (by_kind(maps, pixels, 4, case.images) for maps in (our_maps, their_maps))
    for (_, one), (_, other) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=32 * eps, atol=0)
    ours, theirs = (by_kind(stats, channels, 6, case.images) for stats in (our_stats, their_stats))
    for (kind, one), (_, other) in zip(ours, theirs, strict=True):
        relative, absolute = (32 * eps, 0) if kind < 2 else (0, 16 * eps * float(other.abs().max()))
        torch.testing.assert_close(one, other, rtol=relative, atol=absolute)


def test_masks_are_bit_equal_to_the_reference():
    from fgd_kernels.triton_kernels.host import forward
    from fgd_kernels.triton_kernels.host.pyramid import Pyramid

    torch.manual_seed(2)
    boxes = [200 * torch.rand(9, 4) - 40 for _ in range(2)]
    for box in boxes:
        box[:7, 2:] += box[:7, :2]  # the others may be inverted
    boxes[0][0] = torch.tensor([0.0, 0.0, 136.0, 104.0])
    boxes[1][0, 1], boxes[1][1, 2], boxes[1][2, 0] = math.nan, math.inf, -math.inf
    levels, sizes = ((7, 13), (5, 9), (1, 1)), torch.tensor([[104.0, 136.0], [99.0, 131.0]])
    offsets = torch.tensor([0, 9, 18], dtype=torch.int32)
    features = [torch.zeros(2, 3, *size) for size in levels]
    pyramid = Pyramid.of(features, features, False)
    mask, outside = forward.rasterise(pyramid, torch.cat(boxes), offsets, sizes)
    expected = [fgd.reference.foreground_mask(torch.cat(boxes), offsets, sizes, *size) for size in levels]
    for fg, start, size in zip(expected, pyramid.mask_before, pyramid.mask_size, strict=True):
        found = mask[start : start + 2 * size].view(2, size)[:, : fg[0].numel()]
        assert torch.equal(found, fg.flatten(1))
    assert outside.tolist() == [int((image == 0).sum()) for fg in expected for image in fg]


@pytest.mark.parametrize("gc", [True, False])
def test_poisoned_memory_and_the_same_bits_again(gc):
    """Every number that is handed out was written, and a second run gives the same ones."""
    loss = BALANCED if gc else BALANCED | {"lambda_": 0.0}
    inputs = make_inputs(Case("poison", ((16, 20, 20), (24, 3, 5)), (3, 0), loss=loss))
    expected = evaluate(inputs, "triton")
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        found = evaluate(inputs, "triton")
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(
    "levels, teacher_dtype",
    [(SMALL, torch.float32), (((1280, 2, 4),), torch.float32), (((1536, 1, 12), (2048, 3, 3)), torch.bfloat16)],
    ids=str,
)
def test_no_global_term(levels, teacher_dtype):
    """Without GcBlocks, whose many rows take long here: no global term; the student's gradient is that of the rest."""
    student, teacher, boxes, sizes, _ = make_inputs(Case("no gc", levels, (2, 0), teacher_dtype=teacher_dtype))
    results = []
    for backend in ("reference", "triton"):
        leaves = [s.clone().requires_grad_() for s in student]
        losses = fgd.fgd_loss(leaves, teacher, boxes, sizes, backend=backend, **BALANCED)
        results.append((losses, torch.autograd.grad(sum(losses.values()), leaves)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)
    assert results[1][0]["loss_fgd_global"] == 0


def test_identical_features_have_no_loss_but_the_added_context():
    student, _, boxes, sizes, _ = make_inputs(Case("same", SMALL, (2, 0)))
    leaves = [s.clone().requires_grad_() for s in student]
    losses = fgd.fgd_loss(leaves, student, boxes, sizes, backend="triton", **BALANCED)
    assert all(value == 0 for value in losses.values())
    assert all((grad == 0).all() for grad in torch.autograd.grad(sum(losses.values()), leaves))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["student", "teacher"])
def test_nothing_hides_what_is_not_finite(where, value):
    inputs = make_inputs(Case("nan", ((8, 5, 7),), (2, 1), loss=BALANCED))
    inputs[0 if where == "student" else 1][0][0, 3, 2, 2] = value
    results = evaluate(inputs, "triton")
    terms = [name for name in fgd.LOSS_NAMES if name != "loss_fgd_fg" or where == "teacher"]
    assert not any(results[name].isfinite() for name in terms)
    assert not results["student[0]"][0].isfinite().all() and results["student[0]"][1].isfinite().all()


def test_slices_are_read_where_they_lie():
    """Channel slices, batch slices and unaligned starts: the same numbers as of dense copies."""
    for layout in (torch.contiguous_format, torch.channels_last):
        base_s, base_t = (torch.randn(5, 12, 4, 6).contiguous(memory_format=layout) for _ in range(2))
        sliced = base_s[1:4, 3:10].detach().requires_grad_(), base_t[::2, 1:8]
        dense = sliced[0].detach().clone().contiguous().requires_grad_(), sliced[1].contiguous()
        boxes, sizes = [torch.tensor([[5.0, 5.0, 40.0, 30.0]])] * 3, [(60, 80)] * 3
        results = []
        for s, t in (sliced, dense):
            loss = sum(fgd.fgd_loss(s, t, boxes, sizes, backend="triton").values())
            results.append((loss.detach(), torch.autograd.grad(loss, s)[0]))
        torch.testing.assert_close(results[0], results[1], rtol=2e-6, atol=1e-9)


STRANGE = {
    "images and channels transposed": lambda: torch.randn(5, 3, 4, 6).transpose(0, 1),
    "one image for all": lambda: torch.randn(1, 5, 4, 6).expand(3, 5, 4, 6),
    "one channel of many": lambda: torch.randn(3, 8, 4, 6)[:, 3:4],
    "one channel of many, channels_last": lambda: torch.randn(3, 4, 6, 8).movedim(3, 1)[:, 3:4],
    "a column of many, channels_last": lambda: torch.randn(3, 7, 4, 8).movedim(3, 1)[:, 1:6, :, 2:3],
    "a row of many, channels_last": lambda: torch.randn(3, 4, 7, 8).movedim(3, 1)[:, 1:6, 2:3],
    "one column, channels_last": lambda: torch.randn(3, 7, 1, 8).movedim(3, 1)[:, 1:6],
    "one row, channels_last": lambda: torch.randn(3, 1, 7, 8).movedim(3, 1)[:, 1:6],
    "one pixel, channels_last": lambda: torch.randn(3, 1, 1, 8).movedim(3, 1)[:, 1:6],
}


@pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)
def test_strange_strides(make):
    """The same numbers as the reference gives, wherever an element lies."""
    student, teacher = make().requires_grad_(), make()
    boxes, sizes = [torch.tensor([[5.0, 5.0, 40.0, 30.0]])] * 3, [(60, 80)] * 3
    results = []
    for backend in ("triton", "reference"):
        loss = sum(fgd.fgd_loss(student, teacher, boxes, sizes, backend=backend, **BALANCED).values())
        results.append((loss.detach(), torch.autograd.grad(loss, student)[0]))
    torch.testing.assert_close(*results, rtol=2e-5, atol=1e-7)


def test_layouts_may_differ_between_levels():
    case = Case("layouts", ((8, 6, 8), (8, 3, 4), (7, 2, 2)), loss=BALANCED)
    student, teacher, boxes, sizes, criterion = make_inputs(case)
    results = []
    for mixed in (False, True):
        leaves = [s.clone().requires_grad_() for s in student]
        given = [x.to(memory_format=torch.channels_last) if mixed and i else x for i, x in enumerate(leaves)]
        other = [x.to(memory_format=torch.channels_last) if mixed and i else x for i, x in enumerate(teacher)]
        criterion.backend = "triton"
        loss = sum(criterion(given, other, boxes, sizes).values())
        results.append((loss.detach(), torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


def test_offsets_of_64_bits(monkeypatch):
    """Offsets within an image that spans 2^31 elements, and from image to image: the same numbers as with 32 bits."""
    from fgd_kernels.triton_kernels.host import pyramid

    def wide(*args):
        found = of(*args)
        far = [[dataclasses.replace(level, image=2**33) for level in tensor] for tensor in found.strides]
        return dataclasses.replace(found, strides=far, wide=True)

    inputs = make_inputs(Case("wide", ((8, 3, 5), (8, 2, 4)), (2,), loss=BALANCED))  # one image: it starts at 0
    expected = evaluate(inputs, "triton")
    of = pyramid.Layouts.of
    monkeypatch.setattr(pyramid.Layouts, "of", wide)
    found = evaluate(inputs, "triton")
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_an_image_that_spans_2_to_the_31_elements():
    """Four gigabytes of addresses, of which a few pages are touched: the same numbers as of a dense copy."""
    memory = torch.empty(2**31 + 128, dtype=torch.bfloat16)
    far = [memory.as_strided((2, 5, 4, 6), (24, 2**29, 6, 1), start) for start in (0, 64)]
    for features in far:
        features.copy_(torch.randn(2, 5, 4, 6))
    boxes, sizes = [torch.tensor([[5.0, 5.0, 40.0, 30.0]])] * 2, [(60, 80)] * 2
    results = []
    for student, teacher in (far, [x.contiguous() for x in far]):
        leaf = student.detach().requires_grad_()
        loss = sum(fgd.fgd_loss(leaf, teacher, boxes, sizes, backend="triton", **BALANCED).values())
        results.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    torch.testing.assert_close(*results, rtol=2e-6, atol=1e-9)


def test_empty_batch():
    results = evaluate(make_inputs(Case("empty batch", SMALL, (), loss=BALANCED)), "triton")
    assert len(results) > 4 and all((value == 0).all() for value in results.values())


def test_maps_too_large_for_32_bits_are_refused():
    from fgd_kernels.triton_kernels.host.pyramid import Pyramid

    features = [torch.empty(1, 1, 2**15, side, dtype=torch.bfloat16, device="meta") for side in (2**14 - 1, 2**14)]
    assert Pyramid.of(features[:1], features[:1], False).pixels == (2**29 - 2**15,)
    with pytest.raises(ValueError, match=r"student\[1\]: expected fewer than 2\^29 pixels"):
        Pyramid.of(features, features, False)


def test_float64_is_refused_by_name():
    s = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    with pytest.raises(TypeError, match="triton.*float64"):
        fgd.fgd_loss(s, s, [torch.zeros(0, 4)], [(8, 8)], backend="triton")


def test_opcheck():
    student, teacher, boxes, sizes, criterion = make_inputs(Case("op", ((6, 3, 4),), (1,)))
    gc_block = [p.detach() for level in criterion.levels for p in level.gc_block()]
    arguments = (student, teacher, *fgd.pack_boxes(boxes, sizes, "cpu"), gc_block, [0.1, 0.2, 0.3, 0.4], 0.5, 0.7)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.fgd_kernels.forward_triton.default, arguments, test_utils=checks)
    maps, stats = torch.ops.fgd_kernels.forward_triton(*arguments)[5:]
    backward = (torch.rand(4), *arguments, maps, stats, True, True)
    torch.library.opcheck(torch.ops.fgd_kernels.backward_triton.default, backward, test_utils=checks)


def test_compile_without_graph_breaks():
    loss = BALANCED | {"backend": "triton"}
    student, teacher, boxes, sizes, criterion = make_inputs(Case("compile", ((6, 3, 4),), (1,), loss=loss))
    results = []
    for call in (criterion, torch.compile(criterion, fullgraph=True, backend="aot_eager")):
        leaves = [s.detach().requires_grad_() for s in student]
        losses = call(leaves, teacher, boxes, sizes)
        results.append((losses, torch.autograd.grad(sum(losses.values()), leaves)))
    torch.testing.assert_close(results[0], results[1])


@triton.jit
def add_kernel(x, y, out, CONVERT: tl.constexpr):
    a, b = tl.load(x + tl.arange(0, 16)), tl.load(y + tl.arange(0, 16))
    if CONVERT:
        a, b = a.to(tl.float32), b.to(tl.float32)
    tl.store(out + tl.arange(0, 16), (a + b).to(tl.float32))


def test_the_interpreter_shows_bfloat16_that_is_not_converted():
    """The interpreter holds bfloat16 as integers: a kernel that forgot to convert is far off in the cases above."""
    x, y, out = torch.randn(16).bfloat16(), torch.randn(16).bfloat16(), torch.empty(16)
    add_kernel[(1,)](x, y, out, CONVERT=True)
    torch.testing.assert_close(out, x.float() + y.float())
    add_kernel[(1,)](x, y, out, CONVERT=False)
    assert not torch.allclose(out, x.float() + y.float(), rtol=0.1)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_the_cases_fail_where_bfloat16_is_not_converted(side, monkeypatch):
    """Take the conversion out of the one place where features are read: the comparison with the reference notices."""
    original = tl.core.tensor.to

    def unconverted(self, dtype, *args, **kwargs):
        if self.dtype == tl.bfloat16 and dtype == tl.float32:
            return tl.core.tensor(self.handle, self.type)
        return original(self, dtype, *args, **kwargs)

    monkeypatch.setattr(tl.core.tensor, "to", unconverted)
    kinds = (torch.bfloat16, torch.float32) if side == "student" else (torch.float32, torch.bfloat16)
    case = Case("unconverted", ((8, 4, 4),), (1,), *kinds, loss=BALANCED)
    with pytest.raises(Exception):  # noqa: B017 - a wrong number, or an error of the interpreter
        assert_as_reference(case, "triton")
