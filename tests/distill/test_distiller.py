import copy
import pickle

import pytest
import torch
from torch import nn

import fgd_kernels as fgd
from fgd_distill.adapters import adapter_for, probe_channels
from fgd_distill.distiller import DetectionDistiller
from fgd_distill.models import DetectorConfig, build_detector, digits_student, digits_teacher
from fgd_distill.taps import LayerTap, feature_list, find_layer
from fgd_distill.training import FGDConfig, build_criterion
from fgd_kernels import reference

TERMS = {"loss_fgd_fg", "loss_fgd_bg", "loss_fgd_attention", "loss_fgd_global"}


class Recorder(nn.Module):
    """A criterion that keeps what it was given."""

    def forward(self, student, teacher, boxes, image_sizes):
        self.seen = student, teacher, boxes, image_sizes
        return {"loss_recorded": sum((s - t).abs().mean() for s, t in zip(student, teacher, strict=True))}


@pytest.fixture
def distiller(pair):
    criterion = fgd.FGDLoss(64, 64, num_levels=3, temperature=4.0)
    return DetectionDistiller(*pair, criterion)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_losses_are_the_students_and_the_criterions(distiller, batch):
    losses = distiller.train()(*batch)
    assert set(losses) == TERMS | {"classification", "bbox_regression", "bbox_ctrness"}
    sum(losses.values()).backward()
    missing = [name for name, p in distiller.named_parameters() if p.grad is None]
    assert not missing
    assert all(p.grad is None for p in distiller.teacher.parameters())


def test_in_eval_mode_it_predicts(distiller, batch):
    predictions = distiller.eval()(batch[0])
    assert len(predictions) == 2 and set(predictions[0]) == {"boxes", "scores", "labels"}


def test_teacher_is_outside_of_the_module(distiller, batch):
    before = {name: value.clone() for name, value in distiller.teacher.state_dict().items()}
    names = [n for n, _ in distiller.named_parameters()] + list(distiller.state_dict())
    assert all(name.startswith(("student.", "criterion.")) for name in names)
    distiller.train()
    assert not any(module.training for module in distiller.teacher.modules())
    distiller.teacher.train()  # somebody else's hand
    distiller(*batch)
    assert not distiller.teacher.training
    # Not even the running statistics of its BatchNorm have moved.
    assert all(torch.equal(value, before[name]) for name, value in distiller.teacher.state_dict().items())
    distiller.load_state_dict(distiller.state_dict(), strict=True)


def test_teacher_moves_with_it(distiller):
    distiller.to(torch.float64)
    assert next(distiller.teacher.parameters()).dtype == torch.float64


def test_no_hook_outlives_a_call_and_copies_have_none(distiller, batch):
    distiller(*batch)
    average = copy.deepcopy(distiller)
    average.student.load_state_dict(distiller.student.state_dict())
    student = copy.deepcopy(distiller.student)
    assert not any(hooks(model) for model in (distiller, distiller.teacher, average, average.teacher, student))
    ours, theirs = distiller(*batch), average(*batch)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])
    assert set(pickle.loads(pickle.dumps(distiller)).state_dict()) == set(distiller.state_dict())


def test_hooks_go_when_the_student_fails(distiller, batch):
    with pytest.raises(Exception):  # noqa: B017 (whatever torchvision raises without targets)
        distiller(batch[0], [{}, {}])
    assert hooks(distiller) == 0


def test_teacher_gets_the_very_tensor_of_the_students_backbone(pair, batch):
    inputs = []
    for model in pair:
        model.backbone.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    DetectionDistiller(*pair, Recorder())(*batch)
    assert len(inputs) == 2 and inputs[0].data_ptr() == inputs[1].data_ptr()


def test_boxes_are_in_the_frame_of_the_padded_batch():
    """Images of two sizes, resized by 2 and padded to 256 x 320: one box, and the pixels that it must cover."""
    torch.manual_seed(0)
    options = {"min_size": 200, "max_size": 320}
    student, teacher = digits_student(**options), digits_teacher(**options)
    recorder = Recorder()
    distiller = DetectionDistiller(student, teacher, recorder)
    images = [torch.rand(3, 100, 160), torch.rand(3, 120, 100)]
    labels = torch.tensor([1])
    targets = [
        {"boxes": torch.tensor([[36.0, 20.0, 60.0, 44.0]]), "labels": labels},
        {"boxes": torch.zeros(0, 4), "labels": labels[:0]},
    ]
    distiller(images, targets)
    features, _, boxes, frames = recorder.seen
    assert frames == [(256, 320)] * 2
    assert boxes[0].tolist() == [[72.0, 40.0, 120.0, 88.0]] and boxes[1].shape == (0, 4)
    height, width = features[0].shape[-2:]
    assert (height, width) == (32, 40)
    packed = fgd.pack_boxes(boxes, frames, device="cpu")
    foreground = reference.foreground_mask(packed.values, packed.offsets, packed.sizes, height, width) > 0
    # Stride 8: columns 72/8 = 9 to 120/8 = 15, rows 40/8 = 5 to 88/8 = 11, both ends included.
    expected = torch.zeros(2, height, width, dtype=torch.bool)
    expected[0, 5:12, 9:16] = True
    assert torch.equal(foreground, expected)


def test_teacher_maps_of_another_size(pair, batch):
    student, teacher = pair
    wrong = DetectionDistiller(
        student, teacher, Recorder(), ["backbone.fpn.layer_blocks.0"], ["backbone.fpn.layer_blocks.1"]
    )
    with pytest.raises(ValueError, match="16x16.*8x8.*resize_teacher=True"):
        wrong(*batch)
    wrong.resize_teacher = True
    wrong(*batch)
    ours, theirs, _, _ = wrong.criterion.seen
    assert ours[0].shape == theirs[0].shape
    uneven = DetectionDistiller(student, teacher, Recorder(), "backbone.fpn", "backbone.fpn.layer_blocks.0")
    with pytest.raises(ValueError, match="give 3 feature maps.*give 1"):
        uneven(*batch)


def test_wrong_layer_names_list_close_ones(pair):
    with pytest.raises(ValueError, match="no module 'backbone.fnp'.*backbone.fpn"):
        DetectionDistiller(*pair, Recorder(), student_layers="backbone.fnp")
    with pytest.raises(ValueError, match="no module ''"):
        find_layer(pair[0], "")


def test_outputs_that_are_no_feature_maps():
    maps = [torch.zeros(1, 2, 3, 3)] * 2
    assert len(feature_list({"a": maps[0], "b": maps[1]}, "x")) == len(feature_list(tuple(maps), "x")) == 2
    assert len(feature_list(maps[0], "x")) == 1
    with pytest.raises(TypeError, match="layer 'x'.*NoneType"):
        feature_list(None, "x")
    with pytest.raises(ValueError, match=r"expected feature maps.*\(1, 2\)"):
        feature_list([torch.zeros(1, 2)], "x")


def test_a_layer_that_did_not_run(pair):
    with LayerTap(pair[0], ["head"]) as tap:
        pair[0].backbone(torch.zeros(1, 3, 128, 128))
    with pytest.raises(RuntimeError, match="'head' did not run"):
        tap.features()


def test_detectors_that_normalise_differently(pair):
    pair[1].transform.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="image_mean.*0.5"):
        DetectionDistiller(*pair, Recorder())


def test_unknown_detectors_are_told_what_is_needed():
    with pytest.raises(TypeError, match="no adapter for Linear.*adapter="):
        adapter_for(nn.Linear(1, 1))


def test_an_optimizer_without_the_criterion_is_an_error(distiller):
    with pytest.raises(RuntimeError, match="criterion.levels.0"):
        distiller.check_optimizer(torch.optim.SGD(distiller.student.parameters(), lr=0.1))
    distiller.check_optimizer(torch.optim.SGD(distiller.parameters(), lr=0.1))
    for parameter in distiller.criterion.parameters():
        parameter.requires_grad_(False)  # frozen on purpose
    distiller.check_optimizer(torch.optim.SGD(distiller.student.parameters(), lr=0.1))


def test_loss_names_must_not_clash(pair, batch):
    class Clash(nn.Module):
        def forward(self, *args):
            return {"classification": torch.zeros(())}

    with pytest.raises(ValueError, match="classification"):
        DetectionDistiller(*pair, Clash())(*batch)


def test_an_image_without_boxes_keeps_the_loss_in_bounds(distiller, batch):
    """The published mask of such an image was not normalised, which made its loss hundreds of times too large."""
    images, targets = batch
    empty = tuple({"boxes": t["boxes"][:0], "labels": t["labels"][:0]} for t in targets)
    full, none = distiller(images, targets), distiller(images, empty)
    assert none["loss_fgd_fg"] == 0
    assert 0 < none["loss_fgd_bg"] < 3 * full["loss_fgd_bg"]


def test_training_steps_lower_every_part_of_the_loss(distiller, batch):
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-3)
    history = []
    for _ in range(12):
        losses = distiller(*batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    first, last = history[0], history[-1]
    assert sum(last.values()) < 0.8 * sum(first.values())
    assert sum(last[name] for name in TERMS) < 0.8 * sum(first[name] for name in TERMS)


def test_other_channels_are_aligned(pair, batch):
    """A student layer of 32 channels against the teacher's 64; probing finds both numbers and disturbs nothing."""
    student, teacher = pair
    student.backbone.eval()
    adapter = adapter_for(student)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    layers = ["backbone.body.layer2"], ["backbone.fpn.layer_blocks.0"]
    channels = [probe_channels(model, names, adapter) for model, names in zip(pair, layers, strict=True)]
    assert channels == [[32], [64]]
    assert student.training and not student.backbone.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    criterion = fgd.FGDLoss(*channels, temperature=4.0)
    losses = DetectionDistiller(student, teacher, criterion, *layers)(*batch)
    sum(losses.values()).backward()
    assert criterion.levels[0].align.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_torchvisions_detectors_take_a_step(name, batch):
    options = {"min_size": 96, "max_size": 128}
    student, teacher = (build_detector(DetectorConfig(name, num_classes=11, options=options)) for _ in range(2))
    config = FGDConfig(temperature=4.0)
    criterion = build_criterion(student, teacher, "backbone.fpn", "backbone.fpn", config)
    distiller = DetectionDistiller(student, teacher, criterion)
    losses = distiller(*batch)
    assert losses.keys() > TERMS
    sum(losses.values()).backward()
    silent = [n for n, p in student.backbone.fpn.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not silent
