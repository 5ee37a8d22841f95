import copy
import warnings

import pytest
import torch
from torch import nn
from torchvision.ops import box_convert
from torchvision.tv_tensors import BoundingBoxes

import fgd_kernels as fgd
from fgd_distill import distil
from fgd_distill.adapters import adapter_for, probe_channels
from fgd_distill.digits.detectors import digits_student, digits_teacher
from fgd_distill.distiller import DetectionDistiller
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


def test_a_teacher_assigned_later_is_outside_of_the_module_too(distiller, batch):
    names = distiller.state_dict().keys()
    distiller.teacher = digits_teacher().train()
    assert distiller.state_dict().keys() == names
    distiller(*batch)
    assert not distiller.teacher.training


def test_hooks_go_when_the_student_fails(distiller, batch):
    with pytest.raises(Exception):  # noqa: B017 (whatever torchvision raises without targets)
        distiller(batch[0], [{}, {}])
    assert hooks(distiller) == 0


def test_teacher_gets_the_very_tensor_of_the_students_backbone(batch):
    """Even where its own transform would make images of another size; then the maps have equal sizes, too."""
    torch.manual_seed(0)
    student, teacher = digits_student(image_size=96), digits_teacher(image_size=256)
    inputs = []
    for model in (student, teacher):
        model.backbone.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    distiller = DetectionDistiller(student, teacher, Recorder())
    distiller(*batch)
    assert inputs[0].shape == (2, 3, 96, 96)
    assert len(inputs) == 2 and inputs[0].data_ptr() == inputs[1].data_ptr()
    ours, theirs, _, _ = distiller.criterion.seen
    assert [s.shape for s in ours] == [t.shape for t in theirs]


def test_teacher_runs_only_as_far_as_its_last_tapped_layer(pair, batch):
    layers = ["backbone.body.layer2"]
    distiller = DetectionDistiller(*pair, Recorder(), layers, layers)
    ran = []
    for name, module in distiller.teacher.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    with pytest.raises(RuntimeError, match="must match"):  # 32 channels against 64, and no align convolution
        distiller(*batch)
    assert "backbone.body.layer2" in ran
    assert not any(name.startswith(("backbone.body.layer3", "backbone.fpn", "head")) for name in ran)


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
    with pytest.raises(ValueError, match="no module 'neck'"):
        DetectionDistiller(*pair, Recorder(), teacher_layers=["backbone.fpn", "neck"])
    with pytest.raises(ValueError, match="teacher_layers: expected at least one"):
        DetectionDistiller(*pair, Recorder(), teacher_layers=[])


def test_layers_that_do_not_run_or_return_no_maps(pair, batch):
    with pytest.raises(RuntimeError, match="'head' did not run"):
        DetectionDistiller(*pair, Recorder(), teacher_layers="head")(*batch)
    with pytest.raises(TypeError, match="layer 'transform': expected a tensor"):
        DetectionDistiller(*pair, Recorder(), student_layers="transform")(*batch)
    assert hooks(pair[0]) == hooks(pair[1]) == 0


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


def test_a_criterion_must_return_a_dict(pair, batch):
    class Single(nn.Module):
        def forward(self, *args):
            return torch.zeros(())

    with pytest.raises(TypeError, match="criterion: expected it to return a dict of losses, got Tensor"):
        DetectionDistiller(*pair, Single())(*batch)


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


def test_models_that_cannot_be_distilled(pair):
    student, teacher = pair
    with pytest.raises(ValueError, match="teacher: shares .* parameters with the student"):
        DetectionDistiller(student, student, Recorder())
    with pytest.raises(TypeError, match="student: .*in DataParallel; wrap the distiller"):
        DetectionDistiller(nn.DataParallel(student), teacher, Recorder())
    with pytest.raises(TypeError, match=r"teacher: .*got torch.compile's; compile it by teacher.compile\(\)"):
        DetectionDistiller(student, torch.compile(teacher), Recorder())


def test_level_terms_sum_to_the_losses(distiller, batch):
    assert distiller.level_terms is None
    losses = distiller(*batch)
    assert distiller.level_terms.shape == (3, 4) and not distiller.level_terms.requires_grad
    torch.testing.assert_close(distiller.level_terms.sum(0), torch.stack([losses[n].detach() for n in fgd.LOSS_NAMES]))


def test_other_criterions_have_no_level_terms(pair, batch):
    distiller = DetectionDistiller(*pair, Recorder())
    assert distiller(*batch)["loss_recorded"] > 0
    assert distiller.level_terms is None


def test_a_teacher_cache_stands_before_the_teacher(pair, batch):
    class Cache:
        """Keeps maps by the images' ids, and computes only what it lacks."""

        def __init__(self):
            self.kept, self.computed = {}, []

        def features(self, batch, targets, compute):
            missing = [i for i, target in enumerate(targets) if target["image_id"] not in self.kept]
            if missing:
                self.computed.append(len(missing))
                maps = compute(batch[missing])
                assert not any(m.requires_grad for m in maps)
                for row, i in enumerate(missing):
                    self.kept[targets[i]["image_id"]] = [m[row] for m in maps]
            rows = [self.kept[target["image_id"]] for target in targets]
            return [torch.stack(level) for level in zip(*rows, strict=True)]

    images, targets = batch
    targets = [{**target, "image_id": i} for i, target in enumerate(targets)]
    plain = DetectionDistiller(*pair, Recorder())(images, targets)
    distiller = DetectionDistiller(*pair, Recorder(), teacher_cache=Cache())
    distiller(images[:1], targets[:1])
    for _ in range(2):
        torch.testing.assert_close(distiller(images, targets), plain)
    assert distiller.teacher_cache.computed == [1, 1]


def test_autocast_gives_finite_float32_losses(distiller, batch):
    expected = distiller(*batch)
    for resize in (False, True):
        distiller.resize_teacher = resize
        with torch.autocast("cpu", torch.bfloat16):
            losses = distiller(*batch)
        assert distiller.features(*batch).student[0].dtype == torch.float32  # outside, again
        for name in fgd.LOSS_NAMES:
            assert losses[name].dtype == torch.float32
            torch.testing.assert_close(losses[name], expected[name], rtol=0.05, atol=1e-4)
        distiller.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in distiller.parameters())


def test_a_teacher_in_bfloat16(distiller, batch):
    expected = distiller(*batch)
    distiller.teacher.to(torch.bfloat16)
    losses = distiller(*batch)
    for name in fgd.LOSS_NAMES:
        torch.testing.assert_close(losses[name], expected[name], rtol=0.05, atol=1e-4)


def test_parts_compiled_in_place(pair, batch):
    """Hooks inside of a compiled region must give this step's maps, and their gradient, in every step."""

    def train(models):
        distiller = DetectionDistiller(*models, fgd.FGDLoss(64, 64, 3, temperature=4.0))
        optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-2)
        history = []
        for _ in range(3):
            losses = distiller(*batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            history.append({name: loss.detach() for name, loss in losses.items()})
        return history

    models = copy.deepcopy(pair)
    for model in models:
        model.backbone.compile(backend="aot_eager")
    torch.testing.assert_close(train(models), train(pair))


def test_a_criterion_that_no_optimizer_trains_is_noticed(distiller, batch):
    optimizer = torch.optim.SGD(distiller.student.parameters(), lr=1e-3)

    def step(update=True):
        sum(distiller(*batch).values()).backward()
        if update:
            optimizer.step()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for update in (False, True, True, True):  # the first accumulates
            step(update)
    with pytest.warns(UserWarning, match="the criterion's do not.*distiller.parameters()"):
        step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step()


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": {"start": 5}},
        {"schedule": {"every": 5}},
        {"lambda_": 0.0},
        {"normalise": "detector", "shares": [1.0, 0, 0, 0]},
    ],
    ids=str,
)
def test_a_criterion_that_has_nothing_to_learn_is_not_warned_of(pair, batch, settings):
    distiller = distil(*pair, verbose=False, **settings)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(7):
            distiller.set_step(step)
            optimizer.zero_grad()
            sum(distiller(*batch).values()).backward()
            optimizer.step()


def test_a_student_that_is_lost_tells_nothing_of_the_criterion(pair, batch):
    distiller = distil(*pair, verbose=False)
    watch = distiller._watch
    with torch.no_grad():
        next(distiller.student.parameters()).fill_(torch.nan)
    assert not any(watch.look(distiller.student, distiller.criterion) for _ in range(6))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_criterion_that_is_trained_is_not_warned_of(distiller, batch, optimizer):
    optimizer = optimizer(distiller.parameters(), lr=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            sum(distiller(*batch).values()).backward()
            optimizer.step()


def test_an_optimizer_that_leaves_no_trace_is_seen(distiller, batch):
    """Fused optimizers do not raise the version counters."""
    optimizer = torch.optim.AdamW(distiller.student.parameters(), lr=1e-3, fused=True)
    with pytest.warns(UserWarning, match="the criterion's do not"):
        for _ in range(5):
            sum(distiller(*batch).values()).backward()
            optimizer.step()


def test_features_without_gradient_are_an_error(distiller, batch):
    distiller.student.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match="student_layers: .*carry no gradient"):
        distiller(*batch)
    with torch.no_grad():
        assert distiller(*batch).keys() >= TERMS


def test_boxes_that_are_fractions_are_reported_once(pair, batch):
    student, teacher = pair
    images, targets = batch
    distiller = DetectionDistiller(student, teacher, fgd.FGDLoss(64, 64, num_levels=3))
    fractions = tuple({**target, "boxes": target["boxes"] / 128} for target in targets)
    with pytest.warns(UserWarning, match=r"boxes: expected x1, y1, x2, y2 in pixels of image_sizes.* 0\.\.1") as told:
        distiller(images, fractions)
        distiller(images, fractions)
    assert sum("0..1" in str(warning.message) for warning in told) == 1


def test_levels_from_coarse_to_fine_are_reported_once(pair, batch, recwarn):
    student, teacher = pair
    layers = [f"backbone.fpn.layer_blocks.{level}" for level in (1, 0)]
    for order, expected in ((layers, 1), (layers[::-1], 0)):
        recwarn.clear()
        distiller = DetectionDistiller(student, teacher, fgd.FGDLoss(64, 64, num_levels=2), order, order)
        distiller(*batch)
        distiller(*batch)
        assert sum("from fine to coarse" in str(warning.message) for warning in recwarn) == expected


def test_adapters_are_for_plain_detectors(pair):
    with pytest.raises(TypeError, match=r"model: expected the plain detector, got torch.compile's; compile it by"):
        adapter_for(torch.compile(pair[0]))


@pytest.mark.parametrize(("form", "convert"), [("XYWH", "xywh"), ("CXCYWH", "cxcywh"), ("XYXY", "xyxy")])
def test_boxes_are_read_by_their_format(pair, batch, form, convert):
    """Detectors take BoundingBoxes for plain tensors: their own losses, too, would read XYWH as XYXY."""
    images, targets = batch
    distiller = distil(*pair, verbose=False)
    expected = distiller(images, targets)
    stated = [
        {
            **target,
            "boxes": BoundingBoxes(box_convert(target["boxes"], "xyxy", convert), format=form, canvas_size=(128, 128)),
        }
        for target in targets
    ]
    found = distiller(images, stated)
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss)


@pytest.mark.parametrize(
    ("columns", "form", "canvas", "message"),
    [
        (
            4,
            "XYXY",
            (64, 64),
            r"\[0\]\['boxes'\]: expected the canvas of images\[0\], \(128, 128\), got \(64",
        ),
        (5, "XYWHR", (128, 128), "expected the format XYXY, XYWH or CXCYWH, got XYWHR"),
        (8, "XYXYXYXY", (128, 128), "expected the format XYXY, XYWH or CXCYWH, got XYXYXYXY"),
    ],
)
def test_boxes_that_do_not_fit_their_image(pair, batch, columns, form, canvas, message):
    images, targets = batch
    boxes = BoundingBoxes(torch.rand(2, columns), format=form, canvas_size=canvas)
    with pytest.raises(ValueError, match=message):
        distil(*pair, verbose=False)(images, [{**targets[0], "boxes": boxes}, targets[1]])
