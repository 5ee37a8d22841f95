"""``fgd-distill compare``: each setting is what its name says, a comparison goes on, and gains are seed by seed."""

from types import SimpleNamespace

import pytest

from fgd_distill.commands import compare as module
from fgd_distill.commands import main as cli
from fgd_distill.commands.compare import COLUMNS, METRICS, Comparison, _outlasted, equal_steps, stretched, table
from fgd_distill.training.comparison import Trainings


def line(setting, seed, ap, seconds="10", steps="100"):
    found = dict.fromkeys(METRICS, str(ap))
    return {
        "setting": setting,
        "seed": str(seed),
        "steps": steps,
        **found,
        "seconds": seconds,
        "options": "",
        "machine": "",
    }


def test_a_comparison_of_a_pair(fit_args, teacher_file, tmp_path, capsys, monkeypatch):
    built = []
    trained = module.run

    def spied(args):
        ran = trained(args)
        built.append((ran.model.distiller is not None, ran.trainer.max_steps))
        return ran

    monkeypatch.setattr(module, "run", spied)
    output = tmp_path / "compare.csv"
    options = fit_args(tmp_path, "--config=digits_inherit.yaml", "--config=digits_fgd.yaml", steps=2)[1:]
    options += [f"--model.teacher.weights={teacher_file}", "--trainer.limit_val_batches=1"]
    command = ["compare", *options, "--trainer.enable_checkpointing=false", f"--output={output}"]
    cli.main([*command, "--seeds", "3", "--settings", "alone", "both"])
    assert [distils for distils, _ in built] == [False, True]
    cli.main([*command, "--seeds", "3"])
    assert [distils for distils, _ in built[2:]] == [False, True, False]  # inherited, distilled, alone for as long
    lines = Trainings(output, COLUMNS, "compare").lines
    assert int(lines[-1]["steps"]) == built[-1][1] == equal_steps(lines, 3) >= 2
    assert output.with_suffix(".png").stat().st_size > 1000
    told = capsys.readouterr().out
    assert told.count("inherited 31 tensors") == 2  # both, inherited
    cli.main([*command, "--seeds", "3"])
    assert len(built) == 5 and "both" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="output: expected trainings with"):
        cli.main([*command, "--seeds", "3", "--data.seed=5"])


def test_gains_are_seed_by_seed():
    lines = [line("alone", 0, 10), line("alone", 1, 20), line("both", 1, 26, "15"), line("alone, equal time", 1, 25)]
    rows = [row.split("  ") for row in table(lines)]
    cells = {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}
    assert cells["both"][:5] == ["1", "100", "26.0", "+6.0", "+1.0"]
    assert cells["alone"][:4] == ["2", "100", "15.0", "10.0 to 20.0"]
    assert equal_steps(lines, 1) == 150


def test_equal_time_is_made_again_where_a_longer_training_came_later():
    early = [line("alone", 0, 10), line("inherited", 0, 12, "12"), line("alone, equal time", 0, 11, "12", "120")]
    assert _outlasted(early, 0) is None and _outlasted(early, 1) is None
    assert _outlasted([*early, line("distilled", 0, 20, "11")], 0) is None
    assert _outlasted([*early, line("both", 1, 20, "15")], 0) is None
    assert _outlasted([*early, line("both", 0, 20, "15")], 0) is early[-1]


def test_the_learning_rate_takes_as_long_as_the_training():
    def model(scheduler=None, milestones=None):
        lr_milestones = None if milestones is None else SimpleNamespace(milestones=milestones)
        return SimpleNamespace(lr_scheduler=scheduler, lr_milestones=lr_milestones)

    def option(name, value):
        return [f"--model.lr_scheduler.init_args.{name}={value}"]

    assert stretched(model(), 1.5) == []
    assert stretched(model(milestones=[16, 22]), 1.5) == ["--model.lr_milestones.milestones=[24, 33]"]
    one_cycle = {"init_args": {"max_lr": 0.1, "total_steps": 601, "epochs": None, "pct_start": 0.1}}
    assert stretched(model(one_cycle), 1.5) == option("total_steps", 902)
    assert stretched(model({"init_args": {"milestones": [1, 4], "gamma": 0.1}}), 1.1) == option("milestones", [2, 5])
    assert stretched(model({"init_args": {"step_size": 10}}), 1.0) == option("step_size", 10)
    assert stretched(model({"class_path": "LinearLR"}), 2) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"settings": ["FGB"]}, "expected seeds and some of"),
        ({"settings": ["alone", "alone, equal time"]}, "expected 'alone' and another"),
        ({"output": "a.txt"}, "ends in .csv"),
    ],
)
def test_bad_input(arguments, told):
    with pytest.raises(ValueError, match=told):
        Comparison(**arguments)
