import dataclasses

import pytest
import torch
from torch import nn

import fgd_kernels as fgd
from fgd_distill import DetectionDistiller, Schedule

TERMS = fgd.LOSS_NAMES


@pytest.fixture
def distiller(pair):
    return DetectionDistiller(*pair, fgd.FGDLoss(64, 64, 3, temperature=4.0), schedule=Schedule(2, ramp=4, stop=8))


def count_teacher_runs(distiller):
    runs = []
    distiller.teacher.backbone.body.layer0.register_forward_hook(lambda *args: runs.append(1))
    return runs


def test_factor():
    assert [Schedule().factor(step) for step in (0, 1, 10**6)] == [1.0, 1.0, 1.0]
    assert [Schedule(2).factor(step) for step in (0, 1, 2, 3)] == [0.0, 0.0, 1.0, 1.0]
    ramp = Schedule(start=2, ramp=4, stop=8)
    assert [ramp.factor(step) for step in range(10)] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 0, 0]
    assert Schedule(ramp=10, stop=5).factor(4) == 0.4
    assert [Schedule(start=1, every=3).factor(step) for step in range(8)] == [0, 0, 0, 3, 0, 0, 3, 0]
    assert [Schedule(ramp=4, every=2).factor(step) for step in range(6)] == [0, 0.5, 0, 1.5, 0, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"start": -1}, ValueError, "start: expected a number of steps >= 0, got -1"),
        ({"ramp": 0.5}, TypeError, "ramp: expected a number of steps, an int, got 0.5"),
        ({"start": None}, TypeError, "start: .*got None"),
        ({"part": 0}, ValueError, "part: expected a share of each batch's images, 0 < part <= 1, got 0"),
        ({"part": 1.5}, ValueError, "part: .* got 1.5"),
        ({"part": True}, TypeError, "part: .* got True"),
        ({"every": 0}, ValueError, "every: expected a number of steps >= 1, got 0"),
        ({"start": 5, "stop": 5}, ValueError, "stop: expected a step after start=5, or None, got 5"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Schedule(**arguments)


def test_terms_follow_the_schedule(distiller, batch):
    distiller.set_step(6)
    full, levels = distiller(*batch), distiller.level_terms
    distiller.set_step(3)
    quarter = distiller(*batch)
    for name in full:
        expected = 0.25 * full[name] if name in TERMS else full[name]
        torch.testing.assert_close(quarter[name], expected)
    torch.testing.assert_close(distiller.level_terms, 0.25 * levels)
    torch.testing.assert_close(levels.sum(0), torch.stack([full[name].detach() for name in TERMS]))


@pytest.mark.parametrize("step", [0, 2, 8])
def test_at_zero_the_teacher_rests_and_the_keys_stay(distiller, batch, step):
    runs = count_teacher_runs(distiller)
    distiller.set_step(step)
    losses = distiller(*batch)
    assert not runs and distiller.level_terms is None
    assert list(losses)[-4:] == list(TERMS) and all(losses[name] == 0 for name in TERMS)
    # DistributedDataParallel waits for the gradient of every parameter, so each must get one.
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in distiller.criterion.parameters())
    assert all(p.grad is not None for p in distiller.student.parameters())
    distiller.set_step(4)
    assert distiller(*batch).keys() == losses.keys() and len(runs) == 1


def test_a_criterion_that_does_not_tell_its_keys_runs_once(pair, batch):
    class Distance(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, student, teacher, boxes, image_sizes):
            return {"loss_distance": self.weight * sum((s - t).abs().mean() for s, t in zip(student, teacher))}  # noqa: B905

    distiller = DetectionDistiller(*pair, Distance(), schedule=Schedule(start=10))
    runs = count_teacher_runs(distiller)
    for step in range(3):
        distiller.set_step(step)
        losses = distiller(*batch)
        assert losses["loss_distance"] == 0
        sum(losses.values()).backward()
        assert distiller.criterion.weight.grad == 0
    assert len(runs) == 1 and distiller.level_terms is None


def test_a_loop_that_forgets_to_tell_the_step(distiller, batch):
    with pytest.raises(RuntimeError, match="schedule: call set_step"):
        distiller(*batch)
    assert len(distiller.eval()(batch[0])) == 2  # predictions need no step


def test_resuming_is_telling_the_step(distiller, batch):
    distiller.set_step(5)
    expected = distiller(*batch)
    state = distiller.state_dict()
    resumed = DetectionDistiller(
        distiller.student, distiller.teacher, fgd.FGDLoss(64, 64, 3, temperature=4.0), schedule=distiller.schedule
    )
    resumed.load_state_dict(state, strict=True)
    resumed.set_step(5)
    torch.testing.assert_close(resumed(*batch), expected, rtol=0, atol=0)


def test_the_teacher_runs_in_every_third_step(pair, batch):
    distiller = DetectionDistiller(*pair, fgd.FGDLoss(64, 64, 3, temperature=4.0), schedule=Schedule(every=3)).train()
    runs = count_teacher_runs(distiller)
    terms = []
    for step in range(6):
        distiller.set_step(step)
        losses = distiller(*batch)
        terms.append([float(losses[name].detach()) for name in TERMS])
    assert len(runs) == 2
    distiller.schedule = None
    once = [float(value.detach()) for name, value in distiller(*batch).items() if name in TERMS]
    assert terms[0] == terms[1] == [0] * 4 and terms[2] == pytest.approx([3 * value for value in once], rel=1e-3)


def test_images_of_a_part_take_turns():
    assert [Schedule(part=0.5).images(step, 4) for step in range(3)] == [slice(0, 2), slice(2, 4), slice(0, 2)]
    # With every: of the steps that distil, one after the other; of 5 images in runs of 2, the last run overlaps.
    chosen = [Schedule(start=1, every=2, part=0.4).images(step, 5) for step in (2, 4, 6, 8)]
    assert chosen == [slice(0, 2), slice(2, 4), slice(3, 5), slice(0, 2)]
    assert Schedule(part=0.1).images(3, 4) == slice(3, 4)
    assert Schedule().images(7, 4) == slice(0, 4) and Schedule(part=0.5).images(0, 0) == slice(0, 0)


@pytest.mark.parametrize("foreground", [None, "maps", "callable"])
def test_a_part_is_distilled_as_a_batch_of_its_own(pair, batch, foreground):
    """The detector's losses are those of all images, the terms those of the part alone."""
    images, targets = batch
    images, targets = (*images, images[0].flip(1)), (*targets, targets[0])
    distiller = DetectionDistiller(*pair, fgd.FGDLoss(64, 64, 3, temperature=4.0)).train()
    take_step = distiller.adapter.student_step
    weights = [torch.rand(3, size, size) for size in (16, 8, 4)]
    shapes = {None: None, "maps": weights, "callable": lambda height, width: weights[[16, 8, 4].index(height)]}

    def with_foreground(*args):
        return dataclasses.replace(take_step(*args), foreground=shapes[foreground])

    distiller.adapter.student_step = with_foreground
    whole = distiller.features(images, targets)
    some = slice(1, 3)
    expected = distiller.criterion(
        [level[some] for level in whole.student],
        [level[some] for level in whole.teacher],
        **(
            {"boxes": whole.step.boxes[some], "image_sizes": whole.frames[some]}
            if foreground is None
            else {"foreground": [level[some] for level in weights]}
        ),
    )
    distiller.schedule = Schedule(part=0.6)
    seen = []
    distiller.teacher.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    distiller.set_step(1)
    losses = distiller(images, targets)
    assert seen == [2]
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name] if name in TERMS else whole.step.losses[name])


def test_a_cache_is_asked_for_the_part(pair, batch):
    class Cache:
        def features(self, images, targets, compute):
            self.asked = (len(images), targets)
            return compute(images)

    distiller = DetectionDistiller(*pair, fgd.FGDLoss(64, 64, 3), schedule=Schedule(part=0.5), teacher_cache=Cache())
    distiller.set_step(1)
    distiller(*batch)
    assert distiller.teacher_cache.asked == (1, batch[1][1:])
