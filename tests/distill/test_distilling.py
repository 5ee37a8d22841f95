"""distil(): from two detectors to a distiller in one call."""

import pytest
import torch
from torch import nn

import fgd_kernels as fgd
from fgd_distill import DetectionDistiller, Schedule, TorchvisionAdapter, distil


def losses_of(distiller, batch):
    torch.manual_seed(3)
    return distiller(*batch)


def test_it_is_what_one_would_write(pair, batch):
    """The same losses as loss and distiller by hand."""
    torch.manual_seed(7)
    distiller = distil(*pair, verbose=False)
    torch.manual_seed(7)
    criterion = fgd.FGDLoss([64] * 3, [64] * 3, preset="one_stage_anchor_free")
    by_hand = DetectionDistiller(*pair, criterion)
    by_hand.load_state_dict(distiller.state_dict())
    found, expected = losses_of(distiller, batch), losses_of(by_hand.train(), batch)
    assert set(fgd.LOSS_NAMES) < found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert distiller.training and distiller.student_layers == distiller.teacher_layers == ["backbone.fpn"]


def test_a_line_a_decision(pair, capsys):
    distil(*pair)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "distil: adapter TorchvisionAdapter, for FCOS",
        "distil: layers backbone.fpn of the student, backbone.fpn of the teacher",
        "distil: 3 maps, channels 64 of the student, 64 of the teacher",
        "distil: 4 terms, one_stage_anchor_free (by the student's class): temperature 0.5, alpha 0.0016, beta 0.0008, "
        "gamma 0.008, lambda_ 8e-06",
    ]
    distil(*pair, verbose=False)
    assert not capsys.readouterr().out


def test_what_is_given_is_taken(pair, batch, capsys):
    body = [f"backbone.body.layer{index}" for index in (2, 3, 4)]
    distiller = distil(
        *pair,
        "two_stage",
        body,
        adapter=TorchvisionAdapter(),
        schedule=Schedule(stop=3),
        temperature=2.0,
        lambda_=0.0,
        attention="channel",
        backend="reference",
    )
    told = capsys.readouterr().out
    assert "TorchvisionAdapter, given" in told and "channels 32, 40, 48 of the student, 64, 96, 152 of the" in told
    assert "two_stage (given): temperature 2, alpha 5e-05" in told and told.endswith("lambda_ 0\n")
    criterion = distiller.criterion
    assert (criterion.temperature, criterion.lambda_, criterion.alpha) == (2.0, 0.0, fgd.PRESETS["two_stage"]["alpha"])
    assert (criterion.attention, criterion.backend) == ("channel", "reference")
    assert distiller.student_layers == distiller.teacher_layers == body
    assert [level.teacher_channels for level in criterion.levels] != [64] * 3
    distiller.set_step(5)
    assert all(losses_of(distiller, batch)[name] == 0 for name in fgd.LOSS_NAMES)


def test_layers_of_the_teacher_alone(pair):
    distiller = distil(*pair, layers="backbone.body", teacher_layers="backbone.fpn", verbose=False)
    assert (distiller.student_layers, distiller.teacher_layers) == (["backbone.body"], ["backbone.fpn"])


def test_the_loss_trains_where_the_student_is(pair, batch):
    distiller = distil(*pair, verbose=False)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01)
    distiller.check_optimizer(optimizer)
    sum(losses_of(distiller, batch).values()).backward()
    assert all(p.grad is not None for p in distiller.criterion.parameters())
    assert all(p.grad is None for p in pair[1].parameters())


def test_arguments_that_cannot_be(pair):
    student, teacher = pair
    with pytest.raises(TypeError, match=r"temprature: expected one of alpha, .* did you mean temperature\?"):
        distil(student, teacher, temprature=2.0)
    with pytest.raises(ValueError, match="preset: expected one of .*, got 'one_stage'"):
        distil(student, teacher, preset="one_stage", backend="reference", verbose=False)
    with pytest.raises(ValueError, match="backbone.fpm"):
        distil(student, teacher, layers="backbone.fpm", verbose=False)
    with pytest.raises(ValueError, match="expected as many feature maps"):
        distil(student, teacher, layers="backbone.fpn", teacher_layers="backbone.body.layer3", verbose=False)
    with pytest.raises(TypeError, match="no adapter for Linear"):
        distil(nn.Linear(2, 2), teacher, verbose=False)
    with pytest.raises(ValueError, match="alpha"):
        distil(student, teacher, alpha=-1.0, verbose=False)
    with pytest.raises(ValueError, match="shares"):
        distil(student, student, verbose=False)
