"""Every trap that ports of this loss fell into, each with the test that would have caught it."""

import pytest
import torch

import fgd_kernels as fgd
from fgd_kernels import reference

BACKENDS = [name for name, status in fgd.backends().items() if status.available and name != "cuda"]
each_backend = pytest.mark.parametrize("backend", [b for b in BACKENDS if b in ("cpu", "reference")])


def test_gc_blocks_and_aligns_are_parameters():
    """They froze, silently, where they were not handed to the optimizer (or lay in plain lists)."""
    loss = fgd.FGDLoss([6, 8, 6], [8, 8, 8], lambda_=1.0)
    parameters = dict(loss.named_parameters())
    assert len(parameters) == 3 * 16 + 2 * 2
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-2)
    student = [torch.randn(1, c, 4, 4) for c in (6, 8, 6)]
    teacher = [torch.randn(1, 8, 4, 4) for _ in range(3)]
    before = {name: p.detach().clone() for name, p in parameters.items()}
    for _ in range(2):  # at first W2 = 0 lets nothing through to W1
        optimizer.zero_grad()
        sum(loss(student, teacher, [torch.zeros(0, 4)], [(32, 32)]).values()).backward()
        optimizer.step()
    still = [name for name, p in parameters.items() if torch.equal(p, before[name])]
    assert all(name.endswith(("conv_mask_s.bias", "conv_mask_t.bias")) for name in still), still


@each_backend
def test_image_without_boxes_has_a_normalised_background(backend):
    """Without the division by N_bg its background loss was 476 times too large."""
    s, t = torch.randn(2, 8, 17, 28), torch.randn(2, 8, 17, 28)
    settings = {"alpha": 1.0, "beta": 1.0, "gamma": 0.0, "attention": "none", "backend": backend}
    none = fgd.fgd_loss(s, t, [torch.zeros(0, 4)] * 2, [(136, 224)] * 2, **settings)
    assert float(none["loss_fgd_bg"]) == pytest.approx(float((s - t).square().sum(1).mean()), rel=1e-5)
    assert none["loss_fgd_fg"] == 0


@each_backend
def test_images_without_boxes_stay_in_the_batch(backend):
    s, t = torch.randn(2, 8, 6, 6, requires_grad=True), torch.randn(2, 8, 6, 6)
    boxes = [torch.tensor([[4.0, 4.0, 20.0, 20.0]]), torch.zeros(0, 4)]
    sum(fgd.fgd_loss(s, t, boxes, [(48, 48)] * 2, backend=backend).values()).backward()
    assert (s.grad[1] != 0).any()


def test_no_padding_row_marks_the_first_pixel():
    """Boxes padded with zeros to one length put weight 1.0 on pixel (0, 0)."""
    boxes = [torch.tensor([[60.0, 60.0, 90.0, 90.0]]).repeat(5, 1), torch.tensor([[40.0, 40.0, 50.0, 50.0]])]
    mask = reference.foreground_mask(*fgd.pack_boxes(boxes, [(104, 104)] * 2, "cpu"), 13, 13)
    assert (mask[:, 0, 0] == 0).all() and (mask.flatten(1).max(1).values < 1).all()


def test_masks_live_in_the_padded_frame():
    """An 80 x 100 image padded to 104 x 136: the map covers the padding too, so box pixels count in 104 x 136."""
    boxes = [torch.tensor([[50.0, 40.0, 99.0, 79.0]])]
    mask = reference.foreground_mask(*fgd.pack_boxes(boxes, [(104, 136)], "cpu"), 13, 17)[0]
    rows, columns = mask.nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 10, 6, 13)


def test_align_only_where_channels_differ():
    """An index into a list of aligns broke when one level needed none."""
    loss = fgd.FGDLoss([6, 8, 4], [8, 8, 8])
    assert [level.align is not None for level in loss.levels] == [True, False, True]
    student = [torch.randn(1, c, 4, 4) for c in (6, 8, 4)]
    losses = loss(student, [torch.randn(1, 8, 4, 4) for _ in range(3)], [torch.zeros(0, 4)], [(32, 32)])
    assert all(value.isfinite() for value in losses.values())


@each_backend
def test_boxes_that_start_left_of_the_image_do_not_wrap(backend):
    """A negative start was a slice from the end, which is empty or the wrong side."""
    s, t = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    losses = [
        fgd.fgd_loss(s, t, [torch.tensor([box])], [(64, 64)], backend=backend)["loss_fgd_fg"]
        for box in ([-20.0, -9.0, 30.0, 30.0], [0.0, 0.0, 30.0, 30.0])
    ]
    assert losses[0] == losses[1] > 0


@each_backend
def test_teacher_receives_no_gradient(backend):
    teacher = torch.randn(1, 4, 8, 8)
    student = torch.randn(1, 4, 8, 8, requires_grad=True)
    sum(fgd.fgd_loss(student, teacher, [torch.zeros(0, 4)], [(64, 64)], backend=backend).values()).backward()
    assert teacher.grad is None and student.grad is not None
