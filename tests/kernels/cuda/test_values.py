"""The CUDA kernels, compiled to PTX and executed, against the float64 reference and against the CPU kernels."""

import itertools

import pytest
import torch
from cases import (
    BALANCED,
    NARROW,
    Case,
    assert_as_reference,
    make_boxes,
    standard_cases,
)

import fgd_kernels as fgd
from devtools.offline.cuda_device import Loss
from devtools.offline.measures import operator_inputs
from fgd_kernels import boxes as packing
from fgd_kernels import reference

FIVE = ((24, 20, 28), (24, 10, 14), (24, 5, 7), (24, 3, 4), (24, 1, 1))
LARGE = [
    Case("several chunks", ((256, 33, 37),), (5, 0), loss=BALANCED),
    Case("several chunks, bfloat16", ((256, 40, 37),), (5,), torch.bfloat16, torch.bfloat16, loss=BALANCED),
    Case("several chunks, channels_last", ((256, 29, 37),), (5,), channels_last=True, loss=BALANCED),
    Case("several chunks, channels_last, float16", ((136, 40, 37),), (5,), *[torch.float16] * 2, True, loss=BALANCED),
    Case("several chunks, mixed", ((256, 33, 37),), (5,), torch.float16, torch.float32, loss=BALANCED),
    Case("several chunks, mixed, channels_last", ((256, 29, 37),), (5,), torch.float32, torch.bfloat16, True),
    Case("many channels", ((600, 3, 11),), (2,), loss=BALANCED),
    Case("many channels, odd rows, bfloat16", ((530, 3, 11),), (2,), *[torch.bfloat16] * 2, loss=BALANCED),
    Case("many channels, even rows, float16", ((400, 6, 14),), (2,), *[torch.float16] * 2, loss=BALANCED),
    Case("many channels, mixed", ((300, 3, 4),), (2,), torch.float32, torch.float16, loss=BALANCED),
    Case("many channels, channels_last, bfloat16", ((600, 3, 11),), (2,), *[torch.bfloat16] * 2, True, loss=BALANCED),
    Case("nine levels", ((8, 5, 4),) * 9, (2,), loss=BALANCED),
    Case("more images than lanes", ((8, 3, 4), (9, 2, 2)), (1,) * 35, loss=BALANCED),
]


@pytest.mark.parametrize("case", standard_cases() + LARGE, ids=lambda case: case.name)
def test_equals_the_reference(case, interpreted):
    assert_as_reference(case, "ptx")
    assert len(interpreted) == 1


def pyramid(dtype, levels=FIVE, images=2, layout=torch.contiguous_format, teacher_dtype=None, gc_block=True):
    """(student, teacher, boxes, GcBlock tensors) of an operator call."""

    def maps(dtype):
        return [torch.randn(images, *shape).to(dtype).contiguous(memory_format=layout) for shape in levels]

    boxes = make_boxes([5, 0, 1, 3][:images] + [2] * (images - 4))
    criterion = fgd.FGDLoss([c for c, _, _ in levels], [c for c, _, _ in levels], len(levels))
    tensors = [t.detach() for t in criterion.parameters()] if gc_block else []
    for tensor in tensors:
        torch.nn.init.normal_(tensor, std=0.2)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    packed = packing.pack_boxes(boxes, [(104, 136)] * images, "cpu")
    return maps(dtype), maps(teacher_dtype or dtype), packed, [t.to(wide) for t in tensors]


def run(inputs, grads=(1.0, 0.7, 1.3, 0.9), **options):
    """(terms, sums, maps, stats, students' gradients, GcBlocks' gradients), and the Loss."""
    loss = Loss(*inputs, **options)
    forward = loss.forward()
    return (*forward, *loss.backward(grads)), loss


def flatten(results):
    return [t for r in results for t in (r if isinstance(r, list) else [r])]


def assert_near(results, expected, tolerance):
    for got, want in zip(flatten(results), flatten(expected), strict=True):
        size = want.double().norm().clamp(min=1e-6)
        assert float((got.double() - want.double()).norm() / size) <= tolerance


@pytest.mark.skipif(not fgd.backends()["cpu"].available, reason="compares with the CPU kernels, which are not built")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [*NARROW, torch.float64], ids=str)
def test_saves_what_the_cpu_saves(dtype, layout):
    """maps and stats mean the same on both devices: a backward pass could go on with the other one's."""
    inputs = student, teacher, boxes, gc_block = pyramid(dtype, FIVE, layout=layout)
    weights = [1.0] * 4 * len(FIVE)
    ours, _ = run(inputs)
    cpu = torch.ops.fgd_kernels.forward(student, teacher, *boxes, gc_block, weights, 0.5, 0.5)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert_near(ours[:4], [cpu[4], torch.stack(cpu[:4]), cpu[5], cpu[6]], tolerance)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_cut_into_chunks(dtype, layout):
    """One block an image, or as many as there can be: the merge of many blocks gives the same."""
    torch.manual_seed(1)
    inputs = pyramid(dtype, ((24, 70, 61), (24, 9, 9)), layout=layout)
    few, few_loss = run(inputs, multiprocessors=1)
    many, many_loss = run(inputs, multiprocessors=10_000)
    name = next(n for n in many_loss.device.blocks if n.startswith("fgd_forward"))
    assert many_loss.device.blocks[name] > 3 * few_loss.device.blocks[name] >= 4
    assert_near(many, few, 1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_merge_of_more_chunks_than_threads():
    """300 chunks of one image: the loops of the merge over chunks and over pixel blocks go round more than once."""
    inputs = pyramid(torch.float32, ((4, 160, 290),), images=1)
    ours, loss = run(inputs, multiprocessors=10_000, check_races=False)
    assert loss.device.blocks["fgd_forward_nchw_f32"] > 300
    wide = [[t.double() for t in x] for x in (inputs[0], inputs[1], inputs[3])]
    truth = reference.pyramid_terms(wide[0], wide[1], *inputs[2], wide[2], [1.0] * 4, 0.5, 0.5)
    torch.testing.assert_close(ours[0].double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_same_bits_again(layout):
    """The order of every sum is fixed; how many blocks run at once does not matter."""
    inputs = pyramid(torch.bfloat16, layout=layout)
    once, again = (run(inputs, threads_per_batch=threads)[0] for threads in (256, 4096))
    for a, b in zip(flatten(once), flatten(again), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_blocks_do_not_depend_on_each_other(dtype, layout):
    """No block of a launch reads or overwrites what another one of it wrote, the merge in place included."""
    inputs = pyramid(dtype, ((40, 33, 17), (40, 3, 5)), images=9, layout=layout)
    run(inputs, multiprocessors=64, check_blocks=True)


@pytest.mark.parametrize(
    "dtype, shape, layout",
    [
        (torch.float32, (2048, 3, 11), torch.contiguous_format),
        (torch.float32, (1025, 5, 4), torch.contiguous_format),  # whole packets, and a tile that has half of them
        (torch.bfloat16, (1100, 3, 11), torch.contiguous_format),
        (torch.bfloat16, (1290, 5, 8), torch.contiguous_format),
        (torch.float16, (1030, 2, 21), torch.contiguous_format),
        (torch.float32, (2048, 3, 11), torch.channels_last),
    ],
    ids=str,
)
def test_most_channels(dtype, shape, layout):
    inputs = operator_inputs(dtype, layout, *shape[1:], channels=shape[0], hidden=3)
    for key in (inputs[3][0], inputs[3][2]):  # logits of about 1: large ones have no room for the digits asked for here
        key /= shape[0] ** 0.5
    wide = [[t.double().requires_grad_(k != 1) for t in inputs[k]] for k in (0, 1, 3)]
    ours, _ = run(inputs)
    truth = reference.pyramid_terms(wide[0], wide[1], *inputs[2], wide[2], [1.0] * 4, 0.5, 0.5)
    truth.backward(torch.tensor([[1.0, 0.7, 1.3, 0.9]], dtype=torch.float64))
    expected = [t.grad for t in wide[2]]
    for bias in (1, 3):  # of the context logits, which it shifts alike
        expected[bias] = torch.zeros(1)
    assert_near([ours[0]], [truth.detach()], 1e-5)
    assert_near(ours[4], [wide[0][0].grad], {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}[dtype])
    assert_near(ours[5], expected, 1e-5)


@pytest.mark.parametrize("shift", [2, 4, 8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_unaligned_pointers(layout, shift):
    inputs = pyramid(torch.bfloat16, ((24, 8, 16), (24, 4, 4)), layout=layout)
    aligned, _ = run(inputs)
    shifted, _ = run(inputs, shift=shift)
    for a, b in zip(flatten(aligned), flatten(shifted), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_slices_are_read_where_they_lie(layout):
    base = [torch.randn(5, 40, 8, 8).contiguous(memory_format=layout) for _ in range(2)]
    student, teacher = base[0][1:4, 3:27], base[1][::2, 8:32]
    _, _, boxes, gc_block = pyramid(torch.float32, ((24, 8, 8),), images=3)
    sliced, _ = run(([student], [teacher], boxes, gc_block))
    dense = [t.contiguous(memory_format=layout) for t in (student, teacher)]
    whole, _ = run(([dense[0]], [dense[1]], boxes, gc_block))
    for a, b in zip(flatten(sliced), flatten(whole), strict=True):
        assert torch.equal(a, b)


def test_levels_of_different_kinds_in_one_call():
    """Layouts and widths that need different kernels: one launch each, still one result."""
    inputs = student, teacher, boxes, gc_block = pyramid(torch.float32, ((24, 9, 8), (24, 8, 6), (300, 3, 3)))
    mixed = [student[0], student[1].contiguous(memory_format=torch.channels_last), student[2]]
    others = [teacher[0], teacher[1].contiguous(memory_format=torch.channels_last), teacher[2]]
    ours, loss = run((mixed, others, boxes, gc_block))
    plain, _ = run(inputs)
    assert_near(ours, plain, 1e-6)
    kernels = [name for name in loss.device.launches if name.startswith("fgd_forward")]
    assert kernels == ["fgd_forward_nchw_f32", "fgd_forward_nhwc_f32", "fgd_forward_nchw_wide_512_f32"]


def test_boxes_that_cover_nothing():
    """Not finite, inverted, outside: as if they were not there; and offsets that lie are kept inside the boxes."""
    inf, nan = float("inf"), float("nan")
    student, teacher, boxes, gc_block = pyramid(torch.float32, ((8, 12, 9),), images=1)
    bad = torch.tensor(
        [[nan, 0, 5, 5], [0, 0, inf, 5], [-inf, 0, 5, 5], [9, 9, 5, 20], [500, 0, 600, 9], [-9, -9, -1, -1]]
    )
    values = torch.cat([bad[:3], boxes.values, bad[3:]])
    offsets = torch.tensor([0, len(values)], dtype=torch.int32)
    clean, _ = run((student, teacher, boxes, gc_block))
    for end in (len(values), 10**6):
        offsets[1] = end
        dirty, _ = run((student, teacher, packing.PackedBoxes(values, offsets, boxes.sizes), gc_block))
        for a, b in zip(flatten(clean), flatten(dirty), strict=True):
            assert torch.equal(a, b)


def test_masks_are_the_reference_s_bit_for_bit():
    """The focal map of constant features is the mask itself, times the attention, which is one."""
    counts = [1, 4, 40, 2000]
    boxes = packing.pack_boxes(make_boxes(counts), [(104, 136)] * 4, "cpu")
    shape = (4, 1, 23, 31)
    ours = Loss([torch.zeros(shape)], [torch.zeros(shape)], boxes).forward()[2].view(4, 4, 23, 31)[:, 0]
    mask = reference.foreground_mask(*boxes, 23, 31)
    assert torch.equal(ours.clamp(min=0), mask)
    assert torch.equal(ours < 0, mask == 0)


def test_given_weights_take_the_boxes_place():
    """The boxes' own weights, given as maps, change no bit, whatever boxes come beside them."""
    inputs = student, teacher, boxes, gc_block = pyramid(torch.bfloat16)
    masks = [reference.foreground_mask(*boxes, *s.shape[2:]) for s in student]
    others = packing.pack_boxes(make_boxes([3, 3]), [(104, 136)] * 2, "cpu")
    expected, _ = run(inputs)
    given, _ = run((student, teacher, others, gc_block), masks=masks)
    for a, b in zip(flatten(given), flatten(expected), strict=True):
        assert torch.equal(a, b)


def test_only_what_was_asked_for():
    inputs = pyramid(torch.bfloat16, ((24, 8, 16),))
    both, _ = run(inputs)
    for need_student, need_gc in itertools.product((False, True), repeat=2):
        loss = Loss(*inputs)
        loss.forward()
        students, parameters = loss.backward((1.0, 0.7, 1.3, 0.9), need_student, need_gc)
        assert torch.equal(students[0], both[4][0]) if need_student else students[0].isnan().all()
        for got, want in zip(parameters, both[5], strict=True):
            assert torch.equal(got, want) if need_gc else got.isnan().all()


def test_offsets_beyond_32_bits():
    """An image stride of 2^31 + 32 elements: the second image lies 4 GB behind the first."""
    inputs = pyramid(torch.bfloat16, ((8, 4, 8),))
    near, _ = run(inputs)
    loss, stride = Loss(*inputs), 2**31 + 32
    level, gpu = loss.levels[0], loss.device.gpu
    for features, tensor in ((level.student, inputs[0][0]), (level.teacher, inputs[1][0])):
        features.data, features.image = gpu.reserve(2 * (stride + tensor[0].numel())), stride
        for n in range(2):
            at = features.data + 2 * n * stride
            gpu.memory.bytes[at : at + 2 * tensor[n].numel()] = tensor[n].view(torch.uint8).numpy().reshape(-1)
    for a, b in zip(flatten(loss.forward()), flatten(near[:4]), strict=True):
        assert torch.equal(a, b)
