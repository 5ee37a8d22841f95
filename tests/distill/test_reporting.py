"""What a training prints: the table after a validation, and the progress bar; how an error of its log reads."""

import csv
import errno
import os
import re

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger

from fgd_distill.adapters import TorchvisionAdapter
from fgd_distill.data.datamodule import CocoFolder
from fgd_distill.digits.detectors import digits_student
from fgd_distill.errors import FGDOSError
from fgd_distill.training.reporting import RunProgressBar, ValidationTable, validation_table, with_named_logs
from fgd_distill.training.run import run
from fgd_distill.training.start_report import _way, start_report

NAN = float("nan")


def test_a_training_prints_a_table_after_each_validation_with_the_best(fit_args, tmp_path, capsys):
    arguments = fit_args(tmp_path, "--trainer.val_check_interval=2", "--trainer.limit_val_batches=2", steps=4)
    trained = run(arguments)
    lines = capsys.readouterr().out.splitlines()
    titles = [line for line in lines if line.startswith("validation after")]
    assert [re.match(r"validation after (\d) steps; best AP so far \d", title)[1] for title in titles] == ["2", "4"]
    table = lines[lines.index(titles[1]) + 1 :]
    assert table[0].split() == ["AP", "AP50", "AP75", "small", "medium", "large"]
    shown = table[1].split()[1:]
    metrics = trained.trainer.callback_metrics
    assert float(shown[0]) == pytest.approx(float(metrics["val/AP"]), abs=0.051)
    assert table[2] == "AP by category"
    found = trained.model.evaluator.category_ap
    assert len(found) == 10
    known = [value for value in found.values() if value == value]
    assert sum(known) / len(known) == pytest.approx(float(metrics["val/AP"]), rel=1e-6)


def test_a_dash_stands_where_nothing_is_and_many_categories_share_lines():
    metrics = {"AP": 41.26, "AP50": 60.0, "AP75": 44.0, "AP_small": NAN, "AP_medium": 40.0, "AP_large": 50.0}
    categories = {f"category {number}": float(number) for number in range(80)} | {"none": NAN}
    lines = validation_table(metrics, categories)
    assert lines[1].split() == ["boxes", "41.3", "60.0", "44.0", "-", "40.0", "50.0"]
    assert len(lines) < 25 and max(map(len, lines)) <= 110
    assert re.search(r"none +-", lines[-1])
    assert len(validation_table(metrics, {"only": 1.0})) == 2


def test_the_best_is_remembered_when_a_training_resumes():
    table = ValidationTable()
    table.best = (12.5, 300)
    resumed = ValidationTable()
    resumed.load_state_dict(table.state_dict())
    assert resumed.best == (12.5, 300)


def test_the_bar_is_of_the_whole_run(fit_args, tmp_path, capsys):
    arguments = fit_args(tmp_path, "--trainer.limit_val_batches=1", steps=4)
    arguments = [argument for argument in arguments if "progress_bar" not in argument]
    trained = run([*arguments, "--trainer.limit_train_batches=2"])  # two steps an epoch
    bar = trained.trainer.progress_bar_callback
    assert type(bar) is RunProgressBar and isinstance(bar, TQDMProgressBar)
    assert bar.train_progress_bar.total == bar.train_progress_bar.n == 4
    told = capsys.readouterr().out
    assert "Epoch 2" in told and "4/4" in told and "/-" not in told


def test_a_log_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    logger = CSVLogger(tmp_path, name="run")
    trainer = pl.Trainer(logger=logger, max_steps=1, enable_checkpointing=False, accelerator="cpu")
    with_named_logs(trainer)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.save()
    assert "loss" in (path := tmp_path / "run" / "version_0" / "metrics.csv").read_text()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger.log_metrics({"loss": 0.5}, 1)
    monkeypatch.setattr(csv.DictWriter, "writerows", full)
    with pytest.raises(FGDOSError, match=r"version_0/the log: could not be written: No space left on device; [0-9]"):
        logger.save()
    assert "1.0" in path.read_text()


def test_a_training_begins_with_sizes_and_without_noise(fit_args, teacher_file, tmp_path, capsys, caplog, recwarn):
    teacher = ("--config=digits_fgd.yaml", f"--model.teacher.weights={teacher_file}", "--trainer.limit_val_batches=0")
    larger = "--model.student.options={image_size: 96}"
    run(fit_args(tmp_path, *teacher, larger, steps=1))
    told = capsys.readouterr().out
    assert "student FCOS: 0.316 million parameters, 0.316 million of them trained; teacher FCOS: 1.59 million" in told
    assert "images, width x height: 128x128 in the file, 96x96 in the network, with its padding" in told
    half = int(re.search(r"half of them are longer than (\d+) pixels", told)[1])
    assert 8 <= half < 96
    noise = ("Tip:", "TPU", "litlogger")
    assert not [record for record in caplog.records if any(word in record.getMessage() for word in noise)]
    assert not [warning for warning in recwarn if "LeafSpec" in str(warning.message)]


def test_objects_that_a_resize_makes_tiny_are_told(digits):
    data = CocoFolder(digits / "images/train", digits / "annotations/train.json")
    lines = start_report(digits_student(image_size=24), None, TorchvisionAdapter(), data)
    assert "few levels can see that" in lines[-1] and "teacher" not in lines[0]
    shapes = [torch.zeros(3, 60, 90), torch.zeros(1, 3, 64, 96)]
    assert _way(90, 60, shapes[0], shapes[1][:, :, :60, :90]) == "90x60, never resized"
    way = "180x120 in the file, 90x60 after the transforms, 96x64 in the network, with its padding"
    assert _way(180, 120, *shapes) == way


def test_validating_needs_no_teacher(fit_args, digits, teacher_file, tmp_path, capsys):
    pair = ("--config=digits_fgd.yaml", "--config=digits_inherit.yaml", f"--model.teacher.weights={teacher_file}")
    run(fit_args(tmp_path, *pair, "--trainer.limit_val_batches=1", steps=1))
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    assert "inherited" in capsys.readouterr().out
    missing = [option.replace(str(teacher_file), "/nowhere.pt") for option in pair]
    options = [f"--data.root={digits}", "--data.num_workers=0", "--trainer.logger=false"]
    found = run(["validate", "--config=digits_student.yaml", *missing, *options, f"--ckpt_path={checkpoint}"])
    assert found.model.distiller is None and "inherited" not in capsys.readouterr().out


def test_of_several_processes_the_first_one_speaks(fit_args, teacher_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fgd_distill.training.noise.rank_zero_only.rank", 1, raising=False)
    inherit = ("--config=digits_inherit.yaml", f"--model.teacher.weights={teacher_file}")
    run(fit_args(tmp_path, *inherit, "--trainer.limit_val_batches=0", steps=1))
    told = capsys.readouterr().out
    assert "inherited" not in told and "images, width" not in told
