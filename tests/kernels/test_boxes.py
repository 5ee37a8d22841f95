"""Packing boxes: values, offsets, and every complaint."""

import pytest
import torch

import fgd_kernels as fgd
from fgd_kernels import reference

BOX = torch.tensor([[1.0, 2.0, 3.0, 4.0]])


def test_packs_without_padding():
    boxes = [BOX, torch.zeros(0, 4), BOX.repeat(3, 1).double()]
    values, offsets, sizes = fgd.pack_boxes(boxes, [(10, 20)] * 3, "cpu")
    assert values.shape == (4, 4) and values.dtype == torch.float32
    assert offsets.tolist() == [0, 1, 1, 4] and offsets.dtype == torch.int32
    assert sizes.tolist() == [[10, 20]] * 3


def test_empty_batch_and_sizes_as_tensor():
    packed = fgd.pack_boxes([], [], "cpu")
    assert packed.values.shape == (0, 4) and packed.offsets.tolist() == [0] and packed.sizes.shape == (0, 2)
    assert fgd.pack_boxes([BOX], torch.tensor([[5, 6]]), "cpu").sizes.tolist() == [[5.0, 6.0]]


@pytest.mark.parametrize(
    "boxes, sizes, kind, words",
    [
        (BOX, [(9, 9)], TypeError, r"boxes: expected a list"),
        ([[1, 2, 3, 4]], [(9, 9)], TypeError, r"boxes\[0\]: expected a tensor"),
        ([BOX.int()], [(9, 9)], TypeError, r"boxes\[0\]: expected a floating-point tensor, got torch.int32"),
        ([BOX[0]], [(9, 9)], ValueError, r"boxes\[0\]: expected shape \(n, 4\), got \(4,\)"),
        ([BOX, BOX[:, :3]], [(9, 9)] * 2, ValueError, r"boxes\[1\]: expected shape \(n, 4\), got \(1, 3\)"),
        ([BOX.to("meta")], [(9, 9)], ValueError, r"boxes\[0\]: expected device cpu"),
        ([BOX], [(9, 9)] * 2, ValueError, r"image_sizes: expected one .* each of 1 images"),
        ([BOX], [(9, 9, 3)], ValueError, r"image_sizes: expected \(height, width\)"),
        ([BOX], [(0, 9)], ValueError, r"image_sizes\[0\]: expected a positive"),
        ([BOX], torch.tensor([[4.0, float("nan")]]), ValueError, r"image_sizes\[0\]: expected a positive"),
        ([BOX.flip(1)], [(9, 9)], ValueError, r"boxes\[0\]\[0\]: expected finite x1 <= x2"),
        ([torch.cat([BOX, BOX * float("nan")])], [(9, 9)], ValueError, r"boxes\[0\]\[1\]: expected finite"),
        ([BOX * float("inf")], [(9, 9)], ValueError, r"expected finite"),
        ([torch.tensor([[-float("inf"), 2.0, 3.0, 4.0]])], [(9, 9)], ValueError, r"expected finite"),
        ([BOX.bool()], [(9, 9)], TypeError, r"boxes\[0\]: expected a floating-point tensor, got torch.bool"),
        ([BOX.to_sparse()], [(9, 9)], TypeError, r"boxes\[0\]: expected a dense tensor"),
        ([BOX], [9, 9], TypeError, r"image_sizes: expected one \(height, width\) an image, got \[9, 9\]"),
        ([BOX], ["ab"], TypeError, r"image_sizes: expected one"),
        ([BOX], 9, TypeError, r"image_sizes: expected one"),
        ([BOX], torch.ones(1, 2, 1), ValueError, r"image_sizes: expected one .* got shape \(1, 2, 1\)"),
        ([BOX], torch.ones(1, 2, dtype=torch.bool), TypeError, r"image_sizes: expected a tensor of numbers"),
        ([BOX], torch.ones(1, 2, device="meta"), TypeError, r"image_sizes: expected a tensor of numbers.*meta"),
    ],
)
def test_bad_boxes(boxes, sizes, kind, words):
    with pytest.raises(kind, match=words):
        fgd.pack_boxes(boxes, sizes, "cpu")


def test_boxes_outside_cover_nothing_and_boxes_across_are_clamped():
    outside = torch.tensor([[-9.0, 0, -1, 5], [21.0, 0, 30, 5], [0, -8, 5, -1], [0.0, 11, 5, 12]])
    packed = fgd.pack_boxes([outside], [(10, 20)], "cpu")
    assert not reference.foreground_mask(*packed, 10, 20).any()
    across = fgd.pack_boxes([torch.tensor([[-100.0, -100, 4, 5]])], [(10, 20)], "cpu")
    inside = fgd.pack_boxes([torch.tensor([[0.0, 0, 4, 5]])], [(10, 20)], "cpu")
    assert torch.equal(reference.foreground_mask(*across, 10, 20), reference.foreground_mask(*inside, 10, 20))


def test_unchecked_bad_values_cover_nothing():
    """As on a GPU, where values are not looked at: packed by hand."""
    bad = torch.tensor([[float("nan"), 0, 5, 5], [5.0, 0, 1, 5], [0, 0, float("inf"), 5]])
    packed = fgd.PackedBoxes(bad, torch.tensor([0, 3], dtype=torch.int32), torch.tensor([[10.0, 20.0]]))
    assert not reference.foreground_mask(*packed, 10, 20).any()
    s, t = torch.randn(1, 3, 10, 20), torch.randn(1, 3, 10, 20)
    for backend in ("reference", "auto"):
        assert fgd.fgd_loss(s, t, packed, None, backend=backend)["loss_fgd_fg"] == 0


def test_cuda_means_the_current_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    indexed = fgd.boxes._indexed
    assert indexed(torch.device("cuda")) == torch.device("cuda:3")
    assert indexed(torch.device("cuda:1")) == torch.device("cuda:1") and indexed(torch.device("cpu")).type == "cpu"


def _bounding_boxes(corners, form, canvas_size):
    ops = pytest.importorskip("torchvision.ops")
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    return tv_tensors.BoundingBoxes(
        ops.box_convert(corners, "xyxy", form.lower()), format=form, canvas_size=canvas_size
    )


@pytest.mark.parametrize("form", ["XYXY", "XYWH", "CXCYWH"])
def test_bounding_boxes_are_read_in_their_format(form):
    corners = torch.tensor([[2.0, 3, 8, 9], [5.0, 5, 12, 14]])
    boxes = [_bounding_boxes(corners, form, (32, 48)), _bounding_boxes(corners[:1], form, (20, 48))]
    packed = fgd.pack_boxes(boxes, [(32, 48)] * 2, "cpu")
    assert type(packed.values) is torch.Tensor
    torch.testing.assert_close(packed.values, torch.cat([corners, corners[:1]]))


def test_bounding_boxes_of_another_frame_are_refused():
    box = _bounding_boxes(BOX, "XYWH", (32, 48))
    with pytest.raises(ValueError, match=r"boxes\[0\]: expected a canvas within image_sizes\[0\] = \(16, 48\).*32, 48"):
        fgd.pack_boxes([box], [(16, 48)], "cpu")
    rotated = type(box)(torch.rand(2, 5), format="XYWHR", canvas_size=(32, 48))
    with pytest.raises(ValueError, match=r"boxes\[0\]: expected BoundingBoxes in one of the formats XYXY, .* XYWHR"):
        fgd.pack_boxes([rotated], [(32, 48)], "cpu")


def test_boxes_that_are_fractions_are_refused_when_asked():
    fractions = [torch.tensor([[0.1, 0.2, 0.6, 1.0]]), torch.zeros(0, 4)]
    fgd.pack_boxes(fractions, [(32, 48)] * 2, "cpu")
    with pytest.raises(ValueError, match=r"boxes: expected x1, y1, x2, y2 in pixels.* 0\.\.1"):
        fgd.pack_boxes(fractions, [(32, 48)] * 2, "cpu", validate=True)
    fgd.pack_boxes([fractions[0], BOX], [(32, 48)] * 2, "cpu", validate=True)
    fgd.pack_boxes([fractions[0]], [(1, 1)], "cpu", validate=True)  # a frame in fractions, too


@pytest.mark.parametrize("stride", [4, 8, 16, 32, 64, 128])
def test_frames_whose_shape_is_not_the_maps_are_refused_when_asked(stride):
    height, width = -(-800 // stride), -(-1344 // stride)
    s, t = torch.randn(1, 2, height, width), torch.randn(1, 2, height, width)
    fgd.fgd_loss(s, t, [BOX], [(800, 1344)], validate=True)
    fgd.fgd_loss(s, t, [BOX], [(1344, 800)])
    with pytest.raises(ValueError, match=r"image_sizes\[0\]: .*got \(1344, 800\).*swap the two"):
        fgd.fgd_loss(s, t, [BOX], [(1344, 800)], validate=True)
    if stride <= 32:
        with pytest.raises(ValueError, match=r"image_sizes\[0\]: .*got \(500, 1344\).*padded batch"):
            fgd.fgd_loss(s, t, [BOX], [(500, 1344)], validate=True)


def test_capacity_gives_one_shape():
    packed = fgd.pack_boxes([BOX, BOX[:0], BOX + 4], [(32, 48)] * 3, "cpu", capacity=7)
    assert packed.values.shape == (7, 4) and packed.offsets.tolist() == [0, 1, 1, 2]
    without = fgd.pack_boxes([BOX, BOX[:0], BOX + 4], [(32, 48)] * 3, "cpu")
    s, t = torch.randn(3, 3, 8, 12), torch.randn(3, 3, 8, 12)
    for backend in ("reference", "auto"):
        found = fgd.fgd_loss(s, t, packed, None, backend=backend)
        assert found == fgd.fgd_loss(s, t, without, None, backend=backend)
    with pytest.raises(ValueError, match="capacity: expected at least the number of boxes, 1, got 0"):
        fgd.pack_boxes([BOX], [(32, 48)], "cpu", capacity=0)
    with pytest.raises(TypeError, match=r"capacity: expected an integer or None, got 2\.5"):
        fgd.pack_boxes([BOX], [(32, 48)], "cpu", capacity=2.5)
