import csv
import errno
import math
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser

from fgd_distill import files
from fgd_distill.commands import main as cli
from fgd_distill.commands import slips
from fgd_distill.criterion import FGDConfig
from fgd_distill.detectors.by_name import DetectorConfig, build_detector
from fgd_distill.digits import demo
from fgd_distill.errors import FGDOSError
from fgd_distill.training.module import DetectionModule
from fgd_distill.training.profiling import measure_step
from fgd_distill.training.run import SaveWholeConfig, run


@pytest.fixture(scope="module")
def distilled(fit_args, teacher_file, tmp_path_factory):
    """Five steps with both, through the command line."""
    folder = tmp_path_factory.mktemp("run")
    both = ("--config=digits_inherit.yaml", "--config=digits_fgd.yaml", f"--model.teacher.weights={teacher_file}")
    return folder, run(fit_args(folder, *both))


def test_five_steps_of_fit(distilled):
    folder, ran = distilled
    assert ran.trainer.global_step == 5
    logged = ran.trainer.callback_metrics
    assert {"train/classification", "train/loss_fgd_fg", "train/loss_fgd_global", "val/AP", "val/AR"} <= logged.keys()
    assert all(math.isfinite(logged[name]) for name in logged if name.startswith("train/"))
    with next(folder.rglob("metrics.csv")).open() as file:
        assert "train/loss_fgd_attention" in next(csv.reader(file))
    assert (next(folder.rglob("config.yaml"))).read_text().count("temperature: 7.7") == 1


def test_config_yaml_is_replaced_whole(tmp_path, monkeypatch):
    parser = ArgumentParser()
    parser.add_argument("--steps", type=int)
    trainer = SimpleNamespace(log_dir=tmp_path / "run", is_global_zero=True)

    def save(steps):
        SaveWholeConfig(parser, parser.parse_args([f"--steps={steps}"]), overwrite=True).setup(trainer, None, "fit")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(3)
    save(4)
    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(FGDOSError, match=r"run/config.yaml: could not be written: No space left on device"):
        save(5)
    assert {path.name: path.read_text() for path in (tmp_path / "run").iterdir()} == {"config.yaml": "steps: 4\n"}


def test_checkpoint_has_no_teacher_and_its_student_exports(distilled, tmp_path, capsys):
    folder, ran = distilled
    checkpoint = next(folder.rglob("*.ckpt"))
    names = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert names and all(name.startswith(("distiller.student.", "distiller.criterion.")) for name in names)
    output = tmp_path / "exports" / "student.pt"
    cli.main(["export-student", str(checkpoint), str(output)])
    plain = build_detector(DetectorConfig("digits_student", 11, str(output)))
    for name, value in ran.model.distiller.student.state_dict().items():
        assert torch.equal(value.cpu(), plain.state_dict()[name])
    assert [path.name for path in output.parent.iterdir()] == ["student.pt"]


def test_validate_takes_exported_weights(distilled, digits, tmp_path, monkeypatch):
    folder, _ = distilled
    cli.main(["export-student", str(next(folder.rglob("*.ckpt"))), str(tmp_path / "student.pt")])
    monkeypatch.chdir(tmp_path)
    ran = run(
        [
            "validate",
            "--config=digits_student.yaml",
            f"--model.student.weights={tmp_path / 'student.pt'}",
            f"--data.root={digits}",
            "--data.num_workers=0",
            "--trainer.logger=false",
        ]
    )
    assert 0 <= ran.trainer.callback_metrics["val/AP"] <= 100
    assert not list(tmp_path.rglob("config.yaml"))  # it would replace the one of a training


def test_same_seed_same_run(fit_args, tmp_path):
    runs = [run(fit_args(tmp_path / str(index))).model.detector.state_dict() for index in range(2)]
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def test_the_loss_of_an_optimizer_that_misses_the_criterion(fit_args, teacher_file, tmp_path, monkeypatch):
    def only_student(self):
        return torch.optim.SGD(self.distiller.student.parameters(), lr=0.1)

    monkeypatch.setattr(DetectionModule, "configure_optimizers", only_student)
    fgd = ("--config=digits_fgd.yaml", f"--model.teacher.weights={teacher_file}")
    with pytest.raises(RuntimeError, match="in no optimizer"):
        run(fit_args(tmp_path, *fgd))


def test_too_few_classes(fit_args, tmp_path):
    with pytest.raises(ValueError, match="num_classes: expected more than.*10, got 10"):
        run(fit_args(tmp_path, "--model.student.num_classes=10"))


def test_settings_that_would_silently_do_nothing(teacher_file):
    student, teacher = DetectorConfig("digits_student", 11), DetectorConfig("digits_teacher", 11, str(teacher_file))
    with pytest.raises(ValueError, match="inherit, fgd and criterion need one"):
        DetectionModule(student, fgd=FGDConfig())
    with pytest.raises(ValueError, match="unused"):
        DetectionModule(student, teacher)
    with pytest.raises(ValueError, match="would teach noise"):
        DetectionModule(student, DetectorConfig("digits_teacher", 11), inherit=True)


def test_help_and_unknown_commands(capsys):
    cli.main(["--help"])
    told = capsys.readouterr().out
    assert "digits_fgd.yaml" in told and max(map(len, told.splitlines())) <= 120
    with pytest.raises(SystemExit, match="expected one of the commands fit, validate.*got 'train'"):
        cli.main(["train"])


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_help_of_training_is_a_page(capsys, command):
    cli.main([command, "--help"])
    told = capsys.readouterr().out
    assert len(told.splitlines()) < 100 and max(map(len, told.splitlines())) <= 120
    for option in ("--ckpt_path", "lr_milestones", "teacher_cache", "temperature", "train_transforms", "--help-all"):
        assert option in told
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help-all"])
    assert "--trainer.accumulate_grad_batches" in capsys.readouterr().out


@pytest.mark.parametrize("command", [name for name, command in cli.COMMANDS.items() if not command.parses])
def test_help_of_the_tools_names_the_command(capsys, command):
    cli.main([command, "--help"])
    told = capsys.readouterr().out
    assert told.startswith(f"usage: fgd-distill {command}")
    assert len(told.splitlines()) < 60 and max(map(len, told.splitlines())) <= 120
    assert not re.findall(r"default: [A-Z_]+\)", told)  # a constant's name tells nothing
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help-all"])
    parsers = capsys.readouterr().out
    assert f"usage: fgd-distill {command}" in parsers
    # An option of the page is one of the parser's, and the other way round.
    known = set(re.findall(r"--[a-z_]+", parsers)) - {"--help", "--config", "--print_config", "--print_shtab"}
    assert known == set(re.findall(r"^  (--[a-z_]+)", told, re.M))


@pytest.mark.parametrize(
    ("command", "option", "default"),
    [("calibrate", "--total", "3.0"), ("calibrate", "--low, --high", "0.1, 2.0"), ("profile", "--warmup", "3")],
)
def test_help_of_what_takes_a_configuration_begins_with_its_own_options(capsys, command, option, default):
    cli.main([command, "--help"])
    told = capsys.readouterr().out
    assert "fgd-distill fit --help" in told and len(told.splitlines()) < 30
    assert re.search(rf"^  {option} .*\(default: {default}\)$", told, re.M)


@pytest.mark.parametrize("command", ["fit", "validate", "calibrate", "profile"])
def test_the_options_that_are_checked_early_are_the_parsers(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help-all"])
    options = re.findall(r"^  (?:-c, )?--([\w.]+)", capsys.readouterr().out, re.M)
    expected = {tuple(option.split(".")) for option in options}
    known = slips.configuration(command)
    if command not in slips.OF_LIGHTNING:  # taken in the config.yaml of a training alone
        expected -= {(name,) for name in slips.SAVED}
    for option in expected:
        names = known
        for part in option:
            if names is not None and part != "help":
                assert part in names, f"{command}: the parser takes --{'.'.join(option)}"
                names = names[part]
    for section in ("model", "data", "trainer"):
        assert set(known[section]) == {option[1] for option in expected if option[0] == section and len(option) > 1}
    assert set(known) <= {option[0] for option in expected} | {*slips.ALWAYS, *slips.OF_FIT}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("fit --trainer.max_stepz 3", "unrecognized option --trainer.max_stepz; did you mean max_steps"),
        ("fit --model.fgd.alpa=3", "unrecognized option --model.fgd.alpa; did you mean alpha"),
        ("fit --config typo.yaml", "typo.yaml: unrecognized key model.studnt; did you mean student"),
        ("fit --config broken.yaml", "broken.yaml: expected YAML"),
        ("fit -c nothing.yaml", "--config: expected a file, or one shipped with the package"),
        ("fit --config ~/typo.yaml", "/typo.yaml: unrecognized key model.studnt"),
        ("fit --config={model:{studnt:1}}", "--config: unrecognized key model.studnt"),
        ("calibrate --totl 3", "unrecognized option --totl; did you mean total"),
        ("export-student a.ckpt", "the following arguments are required: output"),
        ("predict --score=0.3 a", "unrecognized option --score"),
    ],
)
def test_slips_are_told_with_the_right_name(capsys, tmp_path, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "typo.yaml").write_text("model:\n  studnt: {name: digits_student}\n")
    (tmp_path / "broken.yaml").write_text("model: [\n")
    with pytest.raises(SystemExit, match="2"):
        cli.main(options.split())
    said = capsys.readouterr().err
    assert said.startswith(f"fgd-distill {options.split()[0]}: ") and told in said


@pytest.mark.parametrize(
    "options",
    [
        "fit --config=digits_student.yaml --model.studnt=1",
        "fit --config=digits_student.yaml --trainer.max_step=3",  # not taken for max_steps
        "fit --config=digits_student.yaml --config=digits_fgd.yaml --model.fgd.alpa=3",
        "fit --config=nothing.yaml",
        "predict images out.json --chckpoint=x",
    ],
)
def test_wrong_keys_give_short_errors(capsys, options):
    with pytest.raises(SystemExit, match="2"):
        cli.main(options.split())
    told = capsys.readouterr().err
    wrong = options.split()[-1].split("=")[0].split(".")[-1].removeprefix("--")
    assert ("nothing.yaml" if wrong == "config" else wrong) in told
    assert len(told.splitlines()) < 16


def test_our_own_checks_end_without_a_traceback(digits, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="fgd-distill validate: expected a folder of images"):
        cli.main(["validate", "--config=digits_student.yaml", f"--data.root={tmp_path}", "--trainer.logger=false"])

    def unforeseen(images: str, output: str):
        int("not a number")

    monkeypatch.setattr("fgd_distill.commands.predict.predict", unforeseen)
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main(["predict", "x", "y"])


def test_errors_of_the_loss_end_without_a_traceback(fit_args, teacher_file, tmp_path):
    wrong = ("--config=digits_fgd.yaml", f"--model.teacher.weights={teacher_file}", "--model.fgd.attention=most")
    with pytest.raises(SystemExit, match="fgd-distill fit: attention: expected"):
        cli.main(fit_args(tmp_path, *wrong))


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["trian"],
        ["fit", "--help"],
        ["predict", "--help"],
        ["calibrate", "--help"],
        ["fit", "--config", "nothing.yaml"],
        ["fit", "--trainer.max_stepz", "3"],
        ["export-student", "a.ckpt"],
    ],
)
def test_help_and_slips_load_nothing_heavy(args):
    """A second is what a user waits for a page of help."""
    code = f"""
import sys
from fgd_distill.commands.main import main
try:
    main({args})
except SystemExit:
    pass
assert not {{"torch", "jsonargparse", "yaml"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_ends_quietly_where_nobody_reads_on():
    """As `--help | head -1` does, in which the rest of the page has no reader any more."""
    code = "import sys; sys.argv[1:] = ['--help']; from fgd_distill.commands.main import main; sys.stdin.read(); main()"
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b"" and process.wait(60) == -signal.SIGPIPE


def test_metrics_are_loaded_late():
    """Lightning's start leaves out what only metrics need; who asks for one gets it."""
    code = """
import sys
from fgd_distill.commands.late_metrics import load_late
load_late()
import pytorch_lightning
assert not {"scipy.signal", "transformers", "matplotlib", "torchmetrics.functional"} & set(sys.modules)
from torchmetrics.aggregation import SumMetric
import torch, torchmetrics
total = SumMetric()
total.update(torch.tensor(2.0))
figure, _ = total.plot()
assert type(figure).__module__ == "matplotlib.figure" and "torchmetrics.functional" not in sys.modules
assert torchmetrics.Accuracy.__module__.startswith("torchmetrics.") and "torchmetrics.functional" in sys.modules
assert issubclass(SumMetric, torchmetrics.Metric) and pytorch_lightning.core.module.Metric is torchmetrics.Metric
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_shares_of_a_step_add_up(distilled):
    _, ran = distilled
    cost = measure_step(ran.model.distiller, next(iter(ran.datamodule.train_dataloader())))
    assert 0 < cost.loss_share < 1 and 0 < cost.teacher_share < 1
    assert cost.loss + cost.teacher < 1.5 * cost.step and cost.student < 1.2 * cost.step


def test_the_demo_from_end_to_end(digits, teacher_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fgd_distill.detectors.weights.PACKAGE_WEIGHTS", teacher_file.parent)
    teacher_file.with_name("digits_teacher.pt").write_bytes(teacher_file.read_bytes())
    monkeypatch.setattr(demo, "make_digits", lambda folder: digits)
    monkeypatch.setattr(demo, "measure_step", lambda distiller, batch: measure_step(distiller, batch, repeats=1))
    demo.main(["--steps", "2", "--all", "--output", "out/table.csv", "--workers", "0"])
    rows = list(csv.DictReader((tmp_path / "out/table.csv").open()))
    assert [row["setting"] for row in rows] == ["teacher", *demo.SETTINGS, demo.EQUAL_TIME]
    assert [bool(row["fgd_loss_share"]) for row in rows] == [False, False, False, True, True, False]
    assert all(row["machine"] and row["versions"] and row["command"] for row in rows)
    assert "| inherited + FGD | 1 | 2 |" in (tmp_path / "out/table.md").read_text()
    assert "inherited + FGD" in capsys.readouterr().out


def test_retraining_the_teacher_replaces_the_shipped_weights(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "PACKAGE_WEIGHTS", tmp_path / "weights")
    short = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--data.batch_size=4"]
    monkeypatch.setattr(demo, "run", lambda args: run([*args, *short]))
    demo.train_teacher(digits, workers=0)
    weights = tmp_path / "weights" / "digits_teacher.pt"
    build_detector(DetectorConfig("digits_teacher", 11, str(weights)))
    assert weights.stat().st_size < 4e6
