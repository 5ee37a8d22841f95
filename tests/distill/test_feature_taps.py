"""The loss in a loop of one's own: two tapped models, boxes in the batch's frame, and what is told once."""

import copy
import pickle

import pytest
import torch
from torch import nn

import fgd_kernels as fgd
from fgd_distill import FeatureTaps, LossInputs
from fgd_distill.feature_taps import boxes_in_batch


class Model(nn.Module):
    """Two maps of strides 4 and 8, and a loss; what comes behind the neck is counted."""

    def __init__(self, channels):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 4, 4), nn.BatchNorm2d(channels))
        self.neck = nn.Conv2d(channels, channels, 3, 2, 1)
        self.heads = 0

    def forward(self, batch):
        fine = self.stem(batch)
        coarse = self.neck(fine)
        self.heads += 1
        return fine.square().mean() + coarse.square().mean()


BOXES = [torch.tensor([[4.0, 8, 20, 24]]), torch.zeros(0, 4)]


@pytest.fixture
def models():
    torch.manual_seed(0)
    return Model(6), Model(8)


def test_the_loss_in_a_loop(models):
    """The numbers are those of features taken by hand; the teacher stops at its last layer and stays as it is."""
    student, teacher = models
    taps, images = FeatureTaps(student, teacher, ["stem", "neck"]), torch.rand(2, 3, 32, 48)
    before = copy.deepcopy(student.state_dict())
    criterion = taps.criterion(images, temperature=2.0)
    assert student.training and all(torch.equal(v, student.state_dict()[k]) for k, v in before.items())
    assert [level.align is not None for level in criterion.levels] == [True, True]
    with taps:
        own = student(images)
    inputs = taps.inputs(images, BOXES)
    assert isinstance(inputs, LossInputs) and inputs.image_sizes == [(32, 48)] * 2 and teacher.heads == 0
    losses = criterion(*inputs)
    with torch.no_grad():
        fine = teacher.eval().stem(images)
        expected = [fine, teacher.neck(fine)]
    torch.testing.assert_close(inputs.teacher, expected)
    (own + sum(losses.values())).backward()
    assert student.stem[0].weight.grad.abs().sum() > 0 and teacher.stem[0].weight.grad is None
    assert not student.stem._forward_hooks and not list(taps.parameters())


def test_wrapped_models_and_a_teacher_that_is_called_otherwise(models):
    student, teacher = models
    wrapped, images = nn.DataParallel(student), torch.rand(1, 3, 32, 32)
    called = []
    run = lambda model, batch: called.append(model) or model.stem(batch)  # noqa: E731
    taps = FeatureTaps(wrapped, nn.DataParallel(teacher), "stem", run_teacher=run)
    with taps:
        wrapped(images)
    assert taps.inputs(images, BOXES[:1]).student[0].shape == (1, 6, 8, 8) and called == [teacher]
    with pytest.raises(TypeError, match="student: expected"):
        FeatureTaps(torch.compile(student), teacher, "stem")


IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()


def step_of(taps, criterion, student):
    """The five lines of anybody's loop."""
    with taps:
        own = student(IMAGES)
    losses = criterion(*taps.inputs(IMAGES, BOXES))
    return own + sum(losses.values())


def in_a_plain_loop(taps, criterion, student):
    optimizer = torch.optim.SGD([*student.parameters(), *criterion.parameters()], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        step_of(taps, criterion, student).backward()
        optimizer.step()


def in_accelerates(taps, criterion, student):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD([*student.parameters(), *criterion.parameters()], lr=0.1)
    student, criterion, optimizer = accelerator.prepare(student, criterion, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        accelerator.backward(step_of(taps, criterion, student))
        optimizer.step()


def in_lightnings(taps, criterion, student):
    import pytorch_lightning as pl

    class Training(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.student, self.criterion, self.taps = student, criterion, taps

        def training_step(self, batch, index):
            return step_of(self.taps, self.criterion, self.student)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_steps=2, enable_model_summary=False, **silent)
    trainer.fit(Training(), torch.utils.data.DataLoader(range(2)))


@pytest.mark.parametrize("loop", [in_accelerates, in_lightnings])
def test_other_loops_train_as_a_plain_one(models, loop):
    """What student and criterion end with, in float64, where orders of sums do not show; the teacher ends as it was."""
    if loop is in_accelerates:
        pytest.importorskip("accelerate", reason="pip install --no-deps -r requirements-adapters.txt")
    student, teacher = (model.double() for model in models)
    criterion = FeatureTaps(student, teacher, ["stem", "neck"]).criterion(IMAGES, temperature=2.0).double()
    before, ends = copy.deepcopy(teacher.state_dict()), []
    for run in (in_a_plain_loop, loop):
        own, loss = copy.deepcopy(student), copy.deepcopy(criterion)
        run(FeatureTaps(own, teacher, ["stem", "neck"]), loss, own)
        ends.append(own.state_dict() | {f"criterion.{name}": value for name, value in loss.state_dict().items()})
    torch.testing.assert_close(ends[0], ends[1])
    start = criterion.state_dict()
    assert any(not torch.equal(ends[1][f"criterion.{name}"], value) for name, value in start.items())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("fit", "expected"),
    [("stretch", [4, 8, 20, 24]), ("pad", [4, 4, 20, 12]), ("centre", [4, 12, 20, 20])],
)
def test_boxes_in_the_batch(fit, expected):
    """An image of 16 x 32 (height, width) in a batch of 32 x 32, by a factor of 1; stretched, its height doubles."""
    (placed,) = boxes_in_batch([torch.tensor([[4.0, 4, 20, 12]])], [(16, 32)], (32, 32), fit)
    assert placed.tolist() == [expected]


def test_integer_boxes_are_not_cut_off(models):
    boxes = [torch.tensor([[1, 2, 5, 7]]), torch.zeros(0, 4).long()]
    placed = boxes_in_batch(boxes, [(64, 64), (64, 64)], (32, 32))
    assert placed[0].tolist() == [[0.5, 1, 2.5, 3.5]] and all(box.is_floating_point() for box in placed)
    taps, images = FeatureTaps(*models, "stem"), torch.rand(2, 3, 32, 32)
    criterion = taps.criterion(images)
    with taps:
        models[0](images)
    inputs = taps.inputs(images, boxes)
    assert criterion(*inputs).keys() == set(fgd.LOSS_NAMES) and inputs.boxes[0].tolist() == [[1, 2, 5, 7]]


def test_a_frame_of_another_shape_and_levels_in_reverse_are_told_once(models, recwarn):
    student, teacher = models
    for layers, images, boxes, words in (
        (["neck", "stem"], torch.rand(2, 3, 32, 32), BOXES, "from fine to coarse, got ['neck', 'stem']"),
        (["stem", "neck"], torch.rand(2, 3, 32, 32), [BOXES[0] / 64, BOXES[1]], "boxes: expected x1, y1, x2, y2"),
    ):
        taps = FeatureTaps(student, teacher, layers)
        for _ in range(2):
            with taps:
                student(images)
            taps.inputs(images, boxes)
        told = [str(warning.message) for warning in recwarn]
        assert sum(words in text for text in told) == 1 and len(told) == 1
        recwarn.clear()
    taps = FeatureTaps(student, teacher, "stem")
    with taps:
        student(torch.rand(2, 3, 32, 64))
    with pytest.warns(UserWarning, match="whose shape is not that of level 0, 8 x 16"):
        # The batch that is told of is not the one that the student got.
        taps.run_teacher = lambda model, batch: model(torch.rand(2, 3, 32, 64))
        taps.inputs(torch.rand(2, 3, 64, 64), BOXES)


def test_the_teacher_goes_where_the_batch_is_and_keeps_its_type(models):
    student, teacher = models[0].bfloat16(), models[1]
    taps, images = FeatureTaps(student, teacher, "stem"), torch.rand(2, 3, 32, 32).bfloat16()
    with taps:
        student(images)
    inputs = taps.inputs(images, BOXES)
    assert (inputs.student[0].dtype, inputs.teacher[0].dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(inputs.teacher[0], teacher.stem(images.float()))
    taps.to("meta")  # stands for a GPU
    with pytest.raises(NotImplementedError, match="meta"):  # that has no numbers to come back with
        taps._teacher_maps(images)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda taps: pickle.loads(pickle.dumps(taps))])
def test_copies_tap_the_copied_student(models, duplicate):
    taps, images = duplicate(FeatureTaps(*models, "stem")), torch.rand(2, 3, 32, 32)
    assert taps.student is not models[0]
    with taps:
        taps.student(images)
    torch.testing.assert_close(taps.inputs(images, BOXES).teacher[0], models[1].eval().stem(images))


def test_what_is_wrong_is_told(models):
    student, teacher = models
    with pytest.raises(ValueError, match="teacher: shares 6 parameters with the student"):
        FeatureTaps(student, student, "stem")
    with pytest.raises(TypeError, match=r"normalise: expected a setting of FGDLoss.*by fgd_distill.DetectorShares"):
        FeatureTaps(student, teacher, "stem").criterion(torch.rand(1, 3, 32, 32), normalise="detector")
    taps, images = FeatureTaps(student, teacher, "stem"), torch.rand(2, 3, 32, 32)
    with pytest.raises(RuntimeError, match="inputs: expected the student to have run in `with taps:`"):
        taps.inputs(images, BOXES)
    with taps:
        student(images)
    for given, error, told in (
        (
            ({"img": images}, BOXES),
            TypeError,
            r"batch: expected the tensor \(N, 3, H, W\) that the student got, got dict",
        ),
        ((images[0], BOXES), TypeError, r"batch: expected the tensor .*, got \(3, 32, 32\)"),
        ((images, BOXES[:1]), ValueError, "boxes: expected one tensor for each of 2 images, got 1"),
        ((images, [[[4.0, 8, 20, 24]], []]), TypeError, r"boxes\[0\]: expected a tensor \(n, 4\), got list"),
        ((images, BOXES, 64), ValueError, "sizes: expected one .* for each of 2 images, got 64"),
        ((images, BOXES, [64, 64]), ValueError, r"sizes\[0\]: expected \(height, width\), both > 0, got 64"),
    ):
        with taps:
            student(images)
        with pytest.raises(error, match=told):
            taps.inputs(*given)
    with taps, torch.no_grad():
        student(images)
    with pytest.raises(ValueError, match=r"layers: the student's outputs of \['stem'\] carry no gradient"):
        taps.inputs(images, BOXES)
    with taps, torch.no_grad():
        student(images)
        assert taps.inputs(images, BOXES).boxes is not None  # to measure
    with taps:
        student(images)
    with pytest.raises(ValueError, match="fit: expected one of stretch, pad, centre, got 'crop'"):
        taps.inputs(images, BOXES, [(32, 32)] * 2, "crop")
    with pytest.raises(ValueError, match="sizes: expected one .* for each of 2 images, got 1"):
        boxes_in_batch(BOXES, [(32, 32)], (32, 32))
    with pytest.raises(ValueError, match=r"sizes\[1\]: expected \(height, width\), both > 0, got \(0, 32\)"):
        boxes_in_batch(BOXES, [(32, 32), (0, 32)], (32, 32))
    with pytest.raises(ValueError, match="no module 'nek'; close names are"):
        FeatureTaps(student, teacher, "nek")
    taps = FeatureTaps(student, teacher, "stem", "neck")
    with taps:
        student(images)
    with pytest.raises(ValueError, match=r"maps: expected the teacher's of the student's sizes, \[\(8, 8\)\]"):
        taps.inputs(images, BOXES)
    assert (
        tuple(taps.criterion(images)([torch.rand(2, 6, 4, 4)], [torch.rand(2, 8, 4, 4)], BOXES, [(32, 32)] * 2))
        == fgd.LOSS_NAMES
    )
