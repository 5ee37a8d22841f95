import copy
import csv
import inspect
import json
import math
from typing import Union

import pytest
import torch
from pytorch_lightning import Trainer
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

from fgd_distill.adapters import TorchvisionAdapter
from fgd_distill.commands.main import main
from fgd_distill.criterion import FGDConfig, build_criterion
from fgd_distill.data.labels import CategoryLabels
from fgd_distill.detectors.by_name import DetectorConfig
from fgd_distill.digits.detectors import digits_student
from fgd_distill.distiller import DetectionDistiller
from fgd_distill.schedule import Schedule
from fgd_distill.training import module as training
from fgd_distill.training.learning_rate import LrMilestones
from fgd_distill.training.module import DetectionModule
from fgd_distill.training.run import DistillCLI, run
from fgd_distill.training.teacher_cache import CacheConfig

TERMS = ("loss_fgd_fg", "loss_fgd_bg", "loss_fgd_attention", "loss_fgd_global")


def logged(folder):
    """The lines of a training's metrics.csv that have a loss."""
    with next(folder.rglob("metrics.csv")).open() as file:
        lines = [{key: float(value) for key, value in line.items() if value} for line in csv.DictReader(file)]
    return [line for line in lines if "loss" in line]


def fgd(teacher_file, *more):
    return ["--config=digits_fgd.yaml", f"--model.teacher.weights={teacher_file}", *more]


def test_every_term_is_logged_and_levels_sum_to_it(fit_args, teacher_file, tmp_path):
    run(fit_args(tmp_path, *fgd(teacher_file), "--trainer.limit_val_batches=0", steps=2))
    for line in logged(tmp_path):
        parts = [value for name, value in line.items() if name.startswith("train/")]
        assert sum(parts) == pytest.approx(line["loss"], rel=1e-5)
        for term in TERMS:
            levels = [line[f"level{level}/{term}"] for level in range(3)]
            assert sum(levels) == pytest.approx(line[f"train/{term}"], rel=1e-4)


def test_terms_are_logged_in_the_steps_that_loggers_record(fit_args, tmp_path):
    run(fit_args(tmp_path, "--trainer.log_every_n_steps=2", "--trainer.limit_val_batches=0", steps=5))
    lines = logged(tmp_path)
    assert [line["step"] for line in lines] == [1, 3]
    assert all("train/bbox_regression" in line for line in lines)


def test_warm_up_and_milestones_give_the_learning_rate(fit_args, tmp_path):
    """Six batches an epoch, two a step: three steps an epoch."""
    milestones = {"milestones": [1, 2], "gamma": 0.5, "warmup_steps": 2, "warmup_start": 0.1}
    monitor = {"class_path": "pytorch_lightning.callbacks.LearningRateMonitor"}
    ran = run(
        fit_args(
            tmp_path,
            "--model.lr_scheduler=null",
            f"--model.lr_milestones={json.dumps(milestones)}",
            "--model.optimizer=torch.optim.SGD",
            "--model.optimizer.lr=0.08",
            f"--trainer.callbacks={json.dumps([monitor])}",
            "--trainer.accumulate_grad_batches=2",
            "--trainer.limit_val_batches=0",
            steps=8,
        )
    )
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        rates = [float(line["lr-SGD"]) for line in csv.DictReader(file) if line.get("lr-SGD")]
    assert ran.trainer.global_step == 8
    assert rates[::2] == rates[1::2] == pytest.approx([0.008, 0.044, 0.08, 0.04, 0.04, 0.04, 0.02, 0.02])


def test_the_factor_of_the_learning_rate():
    rate = LrMilestones([2, 3], gamma=0.1, warmup_steps=10, warmup_start=0.1)
    factors = [rate.factor(step, 20) for step in (0, 5, 10, 39, 40, 59, 60)]
    assert factors == pytest.approx([0.1, 0.55, 1, 1, 0.1, 0.1, 0.01])
    assert LrMilestones([1], warmup_steps=0).factor(0, math.inf) == 1
    for bad, message in (
        ({"milestones": [3, 2]}, "milestones: expected rising"),
        ({"milestones": [0]}, "milestones: expected rising"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"gamma": 0.0}, "gamma"),
        ({"warmup_start": 1.5}, "warmup_start"),
    ):
        with pytest.raises(ValueError, match=message):
            LrMilestones(**bad)


def test_the_schedule_counts_optimizer_steps(fit_args, teacher_file, tmp_path):
    """Two batches a step: distillation begins with the second step, the third batch."""
    late = fgd(teacher_file, "--model.schedule.start=1", "--model.schedule.ramp=2")
    seen = []
    original = DetectionDistiller._factor

    def factor(self):
        seen.append((self.step, original(self)))
        return seen[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DetectionDistiller, "_factor", factor)
        accumulate = ["--trainer.accumulate_grad_batches=2", "--trainer.limit_val_batches=0"]
        run(fit_args(tmp_path, *late, *accumulate, steps=3))
    assert seen == [(0, 0.0), (0, 0.0), (1, 0.0), (1, 0.0), (2, 0.5), (2, 0.5)]


def test_bfloat16_training_stays_near_float32(fit_args, teacher_file, tmp_path):
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        more = [*fgd(teacher_file), f"--trainer.precision={precision}", "--trainer.limit_val_batches=1"]
        ran = run(fit_args(tmp_path / precision, *more, steps=2))
        losses[precision] = logged(tmp_path / precision)
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in ran.model.parameters())
    for full, mixed in zip(*losses.values(), strict=True):
        for name, value in full.items():
            assert mixed[name] == pytest.approx(value, rel=0.1, abs=1e-3), name
    assert losses["bf16-mixed"][0]["loss"] != losses["32-true"][0]["loss"]


def test_float16_with_a_scaler_stays_near_float32(pair, batch):
    """What 16-mixed does on a GPU; on a CPU Lightning takes bf16-mixed for it, so the parts are used by hand here."""
    student, teacher = pair
    config = FGDConfig(temperature=8.0, alpha=4e-5, beta=8e-4, gamma=8e-3, lambda_=1e-6)
    criterion = build_criterion(student, teacher, "backbone.fpn", "backbone.fpn", config)
    distiller = DetectionDistiller(student, teacher, criterion)
    gradients, losses = [], []
    for dtype in (torch.float32, torch.float16):
        model = copy.deepcopy(distiller)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=dtype == torch.float16)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.float16):
            terms = model(*batch)
            total = torch.stack(list(terms.values())).sum()
        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        losses.append(torch.stack(list(terms.values())).detach().float())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=1e-3)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_options_that_would_be_unused(tmp_path):
    student = DetectorConfig("digits_student", 11)
    for options in ({"schedule": Schedule(1)}, {"teacher_cache": CacheConfig(str(tmp_path))}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected fgd.*unused"):
            DetectionModule(student, **options)
    with pytest.raises(ValueError, match="lr_milestones: expected it or lr_scheduler"):
        DetectionModule(student, lr_milestones=LrMilestones(), lr_scheduler=lambda optimizer: None)


def test_trainer_options_that_do_not_fit_each_other(fit_args, tmp_path):
    """OneCycleLR would fail in the step after its last; Lightning refuses a fraction of an endless epoch."""
    longer = [option.replace("trainer.max_steps=2", "trainer.max_steps=3") for option in fit_args(tmp_path, steps=2)]
    with pytest.raises(SystemExit, match="fgd-distill fit: lr_scheduler.total_steps: expected at least .* 3, got 2"):
        main(longer)
    fraction = fit_args(tmp_path, "--trainer.val_check_interval=0.5", "--trainer.check_val_every_n_epoch=null")
    with pytest.raises(SystemExit, match="fgd-distill fit: `val_check_interval` should be an integer"):
        main(fraction)


def test_a_warm_up_of_a_single_step(fit_args, tmp_path):
    """OneCycleLR divides by its steps less one."""
    with pytest.raises(SystemExit, match="fgd-distill fit: lr_scheduler: expected a schedule .* change pct_start"):
        main(fit_args(tmp_path, steps=10))


def test_class_zero_is_the_background_of_two_stage_detectors():
    class Data:
        labels = CategoryLabels([0, 1])

        def max_label(self):
            return 1

        def uses_label(self, label):
            return self.used

        used = True

    adapter, student = TorchvisionAdapter(), digits_student(2)
    anchors = AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
    two_stage = FasterRCNN(student.backbone, num_classes=2, rpn_anchor_generator=anchors)
    with pytest.raises(ValueError, match="class 0 is the background; got 0"):
        training._check_labels(Data(), adapter.first_label(two_stage), 2)
    training._check_labels(Data(), adapter.first_label(student), 2)
    Data.used = False  # the supercategory that many exports list
    training._check_labels(Data(), adapter.first_label(two_stage), 2)


def test_boxes_keep_32_bits_where_the_model_has_16(fit_args, tmp_path, monkeypatch):
    seen = []
    step = DetectionModule.training_step

    def spy(self, batch, batch_idx):
        seen.append(batch)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DetectionModule, "training_step", spy)
    run(fit_args(tmp_path / "32", steps=1))
    run(fit_args(tmp_path / "16", "--trainer.precision=16-true", steps=1))
    for targets in (seen[0][1], seen[1][1]):
        assert all(target["boxes"].dtype == torch.float32 for target in targets)
    assert all(image.dtype == torch.float16 for image in seen[1][0])
    torch.testing.assert_close([t["boxes"] for t in seen[0][1]], [t["boxes"] for t in seen[1][1]], rtol=0, atol=0)
    with pytest.raises(ValueError, match="trainer.precision: expected bf16-mixed or 32-true on a CPU, got bf16-true"):
        run(fit_args(tmp_path / "b", "--trainer.precision=bf16-true", steps=1))


@pytest.fixture
def batches_of(fit_args, tmp_path, monkeypatch):
    """The image ids of each training batch, epoch by epoch, and the number of images of each validation."""

    def train(*options, epochs=3):
        epochs_seen, validations = {}, []

        def training_step(self, batch, batch_idx):
            epochs_seen.setdefault(self.current_epoch, []).append([target["image_id"] for target in batch[1]])
            self.own_losses = {"loss": torch.zeros(())}
            return next(self.parameters()).sum() * 0

        def validation_step(self, batch, batch_idx):
            validations[-1] += len(batch[0])

        monkeypatch.setattr(DetectionModule, "training_step", training_step)
        monkeypatch.setattr(DetectionModule, "validation_step", validation_step)
        monkeypatch.setattr(DetectionModule, "on_validation_epoch_start", lambda self: validations.append(0))
        monkeypatch.setattr(DetectionModule, "on_validation_epoch_end", lambda self: None)
        epoch = [f"--trainer.max_epochs={epochs}", "--trainer.max_steps=-1", "--trainer.check_val_every_n_epoch=1"]
        arguments = fit_args(tmp_path / str(len(options)), *epoch, "--trainer.val_check_interval=1.0", *options)
        monitored = ("--model.lr_scheduler", "--trainer.enable_checkpointing")
        run([*(arg for arg in arguments if not arg.startswith(monitored[0])), "--trainer.enable_checkpointing=false"])
        return list(epochs_seen.values()), validations

    return train


def test_one_batch_is_not_all_of_them(fit_args, tmp_path, monkeypatch):
    """Whatever order the two types have: to typing they are the same, and any module may have written the other."""
    annotations = inspect.unwrap(Trainer.__init__).__annotations__
    for name in ("limit_train_batches", "limit_val_batches"):
        monkeypatch.setitem(annotations, name, Union[float, int, None])  # noqa: UP007 (its order is what is tested)
    options = ["--trainer.limit_val_batches=1", "--trainer.limit_train_batches=1.0"]
    read = DistillCLI(fit_args(tmp_path, *options)[1:]).trainer
    assert [repr(read.limit_val_batches), repr(read.limit_train_batches)] == ["1", "1.0"]


def test_the_trainers_data_options_do_what_lightning_says(batches_of):
    """24 training images in 6 batches of 4, and 6 of validation in 2."""
    plain, validations = batches_of()
    assert [len(epoch) for epoch in plain] == [6, 6, 6] and validations[-3:] == [6, 6, 6]
    assert plain[0] != plain[1] and all(len({image for batch in epoch for image in batch}) == 24 for epoch in plain)
    overfit, _ = batches_of("--trainer.overfit_batches=1")
    assert overfit[0] == overfit[1] == overfit[2] and [len(epoch) for epoch in overfit] == [1, 1, 1]
    overfit, _ = batches_of("--trainer.overfit_batches=0.5")
    assert overfit[0] == overfit[1] == overfit[2] and [len(epoch) for epoch in overfit] == [3, 3, 3]
    limited, validations = batches_of("--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1")
    assert [epoch[:2] for epoch in plain] == limited and validations[-3:] == [4, 4, 4]
    reloaded, _ = batches_of("--trainer.reload_dataloaders_every_n_epochs=1")
    assert reloaded == plain
    once, validations = batches_of("--trainer.fast_dev_run=true")
    assert once == [plain[0][:1]] and validations[-1] == 4
    _, often = batches_of("--trainer.val_check_interval=2", "--trainer.num_sanity_val_steps=0", epochs=1)
    assert often == [6, 6, 6]
    _, seldom = batches_of("--trainer.check_val_every_n_epoch=2", "--trainer.num_sanity_val_steps=1", epochs=4)
    assert seldom == [4, 6, 6]
