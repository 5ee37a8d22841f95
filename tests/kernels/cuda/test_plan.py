"""What a pass launches: how many kernels, how many blocks, how much memory. No kernel runs here."""

import ctypes
import heapq

import pytest
import torch

from devtools.offline.cuda_build import Features, Level, Pyramid, plan, plans

P3_TO_P7 = ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))  # of an 800×1344 batch
BYTES = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def describe(shapes=P3_TO_P7, images=8, channels=256, dtype=torch.bfloat16, gc_block=True, backward=False):
    levels = (Level * len(shapes))()
    for level, (height, width) in zip(levels, shapes, strict=True):
        level.channels, level.height, level.width, level.pixels_dense = channels, height, width, True
        pixels = height * width
        level.student = level.teacher = level.grad = Features(0x1000, channels * pixels, pixels, 1)
        level.gc_hidden[:] = [channels // 2] * 2
    pyramid = Pyramid(
        levels=ctypes.cast(levels, ctypes.POINTER(Level)),
        spatial_temperature=0.5,
        channel_temperature=0.5,
        level_count=len(shapes),
        images=images,
        student_type=TYPES[dtype],
        teacher_type=TYPES[dtype],
        has_gc_block=gc_block,
        need_student=backward,
        need_gc_block=backward and gc_block,
    )
    return pyramid, levels


def plan_of(multiprocessors=132, backward=False, **options):
    pyramid, keep = describe(backward=backward, **options)
    launches, scratch = plan(pyramid, backward, 0, multiprocessors)
    del keep
    return launches, scratch, pyramid


def test_launches_of_five_levels():
    """Forward and backward, GcBlocks and all their gradients included: the budget is 12."""
    forward, backward = plan_of()[0], plan_of(backward=True)[0]
    names = [launch.name.decode() for launch in forward + backward]
    assert names == [
        "fgd_forward_nchw_bf16",
        "fgd_merge_f32",
        "fgd_finish_f32",
        "fgd_gc_hidden_f32",
        "fgd_gc_added_f32",
        "fgd_terms_f32",
        "fgd_gc_backward_hidden_f32",
        "fgd_gc_backward_context_f32",
        "fgd_backward_nchw_bf16",
        "fgd_gc_parameter_grads_f32",
    ]
    assert len(plan_of(gc_block=False)[0] + plan_of(gc_block=False, backward=True)[0]) == 5


# Parts of a feature map of two-byte elements. A block's sums take 8 KiB whatever the batch, and a device wants about
# as many blocks as it has multiprocessors: a megabyte in all, which is much beside one to four images' features.
FORWARD_PEAK = {1: 0.122, 2: 0.082, 4: 0.06, 8: 0.05, 16: 0.05, 32: 0.05}


@pytest.mark.parametrize("images", list(FORWARD_PEAK))
@pytest.mark.parametrize("dtype", list(BYTES), ids=str)
def test_memory(images, dtype):
    """What a step holds above its inputs and its gradients, at its peak: at most 5% of a feature map.

    That peak is in the backward pass: while the forward pass has its scratch memory, the gradient, as large as a
    feature map, is not there yet. From eight images on the forward pass by itself keeps to 5%, too. The backward
    pass of a single image does not.
    """
    _, forward, pyramid = plan_of(images=images, dtype=dtype)
    _, backward, _ = plan_of(images=images, dtype=dtype, backward=True)
    saved = 4 * (plans().shim_maps_size(ctypes.byref(pyramid)) + plans().shim_stats_size(ctypes.byref(pyramid)))
    feature_map = images * 256 * sum(h * w for h, w in P3_TO_P7) * BYTES[dtype]
    assert saved + max(backward, forward - feature_map) <= (0.05 if images > 1 else 0.058) * feature_map
    assert saved + forward <= FORWARD_PEAK[images] * 2 / BYTES[dtype] * feature_map


def busy(images, multiprocessors):
    """The part of the device's time that blocks of the pass over features use, each started as soon as it may be."""
    pyramid, levels = describe(images=images)
    lengths, counts = (ctypes.c_int * 8)(), (ctypes.c_int * 8)()
    plans().shim_chunks(ctypes.byref(pyramid), multiprocessors, lengths, counts)
    free, pixels = [0] * multiprocessors, 0
    for level, length, count in zip(levels, lengths, counts, strict=False):
        for _ in range(images):
            left = level.height * level.width
            pixels += left
            for _ in range(count):
                heapq.heappush(free, heapq.heappop(free) + min(length, left))
                left -= length
            assert left <= 0
    return pixels / (multiprocessors * max(free))


@pytest.mark.parametrize("multiprocessors", [108, 128, 132])
@pytest.mark.parametrize("images", [1, 2, 4, 8, 16, 32])
def test_chunks_fill_the_device(images, multiprocessors):
    assert busy(images, multiprocessors) > (0.85 if images > 1 else 0.8)


def test_more_blocks_than_a_grid_s_y():
    """All blocks lie along x: 2^31 - 1 of them are allowed."""
    launches, _, _ = plan_of(images=10_000)
    assert launches[0].blocks > 65_535
    tiny, _, _ = plan_of(shapes=((1, 1),) * 8, images=100_000)
    assert tiny[0].blocks == 800_000


def test_longer_pyramids_take_more_launches():
    launches, _, _ = plan_of(shapes=((4, 4),) * 9)
    assert [launch.name for launch in launches].count(b"fgd_forward_nchw_bf16") == 2
