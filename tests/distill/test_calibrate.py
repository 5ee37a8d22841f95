import math
import re
from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn

import fgd_kernels as fgd
from fgd_distill import distil
from fgd_distill.calibration.choose import choose_weights
from fgd_distill.calibration.measure import SHARE, Attention, Measurement, measure, temperature_for
from fgd_distill.calibration.propose import Bounds, propose
from fgd_distill.calibration.report import report, warnings_of
from fgd_distill.commands import main as cli
from fgd_distill.commands.calibrate import CalibrateCLI, Calibration, calibrate
from fgd_distill.criterion import TERMS, WEIGHTS, FGDConfig, build_criterion, guess_preset, resolved
from fgd_distill.distiller import DetectionDistiller
from fgd_distill.training.run import run


def arguments(digits, *more):
    return [
        "--config=digits_student.yaml",
        "--config=digits_inherit.yaml",
        f"--data.root={digits}",
        "--data.num_workers=0",
        "--data.batch_size=4",
        *more,
    ]


@pytest.fixture(scope="module")
def calibrated(digits, tmp_path_factory):
    """The digits pair, with its shipped teacher, through the command line; the file written and what was printed."""
    path = tmp_path_factory.mktemp("calibration") / "calibrated.yaml"
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        cli.main(["calibrate", *arguments(digits, "--batches=2", f"--output={path}")])
    return path, "\n".join(printed)


def table(printed, name):
    """The sums that ``calibrate`` printed for these weights."""
    block = printed.split("Terms as multiples")[1].split(f"\n{name} ", 1)[1].splitlines()[:5]
    return [float(line.split()[-1]) for line in block]


def test_the_shares_are_what_the_criterion_returns(calibrated, digits):
    path, printed = calibrated
    built = CalibrateCLI(arguments(digits, f"--config={path}"))
    built.datamodule.setup("fit")
    distiller, loader = built.model.distiller.train(), iter(built.datamodule.train_dataloader())
    sums = dict.fromkeys((*fgd.LOSS_NAMES, "own"), 0.0)
    with torch.no_grad():
        for _ in range(2):
            for name, loss in distiller(*next(loader)).items():
                sums[name if name in sums else "own"] += float(loss)
    expected = [sums[name] / sums["own"] for name in fgd.LOSS_NAMES]
    assert table(printed, "proposed") == pytest.approx([*expected, sum(expected)], rel=0.01)
    assert table(printed, "proposed")[-1] == pytest.approx(3.0, rel=0.03)


def test_fit_takes_the_proposal(calibrated, digits, tmp_path):
    path, _ = calibrated
    written = yaml.safe_load(path.read_text())["model"]["fgd"]
    assert written["preset"] == "one_stage_anchor_free"  # an FCOS
    assert path.read_text().startswith("# fgd-distill calibrate --config=digits_student.yaml")
    ran = run(
        [
            "fit",
            *arguments(digits, f"--config={path}"),
            "--trainer.max_steps=2",
            "--trainer.limit_val_batches=0",
            "--trainer.logger=false",
            "--trainer.enable_checkpointing=false",
            "--trainer.enable_progress_bar=false",
            f"--trainer.default_root_dir={tmp_path}",
        ]
    )
    criterion = ran.model.distiller.criterion
    assert {name: getattr(criterion, name) for name in (*WEIGHTS, "temperature")} == {
        name: written[name] for name in (*WEIGHTS, "temperature")
    }


def test_what_is_printed_of_the_presets(calibrated):
    _, printed = calibrated
    assert all(f"\n{name} " in printed for name in fgd.PRESETS)
    anchor, two_stage = table(printed, "one_stage_anchor"), table(printed, "two_stage")
    ratios = [fgd.PRESETS["one_stage_anchor"][name] / fgd.PRESETS["two_stage"][name] for name in WEIGHTS]
    assert [a / b for a, b in zip(anchor, two_stage, strict=False)][:4] == pytest.approx(ratios, rel=0.02)
    assert re.search(r"warning: T = 0.5 \(two_stage.*\): one pixel of 256 takes \d\d% of the teacher's", printed)
    assert "--model.fgd.level_weights=inverse_area leaves it" in printed


def test_weights_of_the_configuration_are_shown_and_switches_kept(digits, tmp_path, capsys):
    more = ("--config=digits_fgd.yaml", "--config=ablations/foreground.yaml", "--model.fgd.level_weights=inverse_area")
    proposed = calibrate(
        arguments(digits, *more, "--batches=1", "--temperature=5", "--ratios=equal", f"--output={tmp_path / 'c.yaml'}")
    )
    printed = capsys.readouterr().out
    assert "as configured" in printed and "T 7.7: strongest pixel" in printed and "inverse_area leaves" not in printed
    assert proposed.temperature == 5 and proposed.beta == proposed.lambda_ == 0
    fg, bg, attention, glob, total = table(printed, "proposed")
    assert bg == glob == 0 and fg == pytest.approx(attention, rel=0.03) and total == pytest.approx(1.5, rel=0.03)
    assert yaml.safe_load((tmp_path / "c.yaml").read_text())["model"]["fgd"]["level_weights"] == "inverse_area"


def test_with_normalise_the_file_has_the_temperature_alone(digits, tmp_path, capsys):
    path = tmp_path / "c.yaml"
    calibrate(arguments(digits, "--model.fgd.normalise=detector", "--batches=1", f"--output={path}"))
    assert "normalise: it finds the weights itself" in capsys.readouterr().out
    written = yaml.safe_load(path.read_text())["model"]["fgd"]
    assert written.keys() == {"preset", "normalise", "temperature"} and 5 < written["temperature"] < 10


def measurement(terms, areas=(256, 64), detector=2.0, pixels=0.4, recall=0.7):
    """Of a pair whose levels measure these terms at weights of 1, at every temperature asked for."""
    terms = torch.tensor(terms, dtype=torch.float64)
    temperatures = (0.5, 7.7)
    attention = [Attention(0.02, pixels * area, area) for area in areas]
    return Measurement(
        4,
        {"own": detector},
        [6.4, 3.0],
        dict.fromkeys(temperatures, terms),
        dict.fromkeys(temperatures, attention),
        7.7,
        recall,
    )


def shares_of(measured, config):
    return measured.shares(config).sum(dim=0).tolist()


def test_the_presets_ratios_are_kept_where_the_bounds_allow():
    preset = fgd.PRESETS["one_stage_anchor"]
    # At the preset's weights the terms relate as 1 : 1 : 2 : 4, so with a total of 3 all are within 0.1 to 2.
    terms = [[part / preset[name] for part, name in zip((1, 1, 2, 4), WEIGHTS, strict=True)], [0, 0, 0, 0]]
    measured = measurement(terms)
    proposed = propose(measured, FGDConfig(), Bounds())
    assert shares_of(measured, proposed) == pytest.approx([0.375, 0.375, 0.75, 1.5], rel=0.03)
    factors = [getattr(proposed, name) / preset[name] for name in WEIGHTS]
    assert factors == pytest.approx([factors[0]] * 4, rel=0.03)
    # 1 : 100 : 100 : 10,000: the first is lifted to 0.1, the last held at 2, the others share what is left.
    terms[0] = [part / preset[name] for part, name in zip((1, 100, 100, 10000), WEIGHTS, strict=True)]
    measured = measurement(terms)
    proposed = propose(measured, FGDConfig(), Bounds())
    assert shares_of(measured, proposed) == pytest.approx([0.1, 0.45, 0.45, 2.0], rel=0.03)
    assert proposed.beta / proposed.gamma == pytest.approx(preset["beta"] / preset["gamma"], rel=0.03)


def test_terms_that_are_off_or_without_objects():
    measured = measurement([[0.0, 1e3, 1e2, 1e6]])  # no box in the images
    proposed = propose(measured, FGDConfig(lambda_=0.0), Bounds())
    preset = fgd.PRESETS["one_stage_anchor"]
    assert proposed.lambda_ == 0 and sum(shares_of(measured, proposed)) == pytest.approx(1.5, rel=0.03)
    assert proposed.alpha / proposed.beta == pytest.approx(preset["alpha"] / preset["beta"], rel=0.03)
    found = warnings_of(measured, {"proposed": proposed})
    assert any("fg is 0 on these images" in warning for warning in found)
    assert not any("global is 0" in warning for warning in found)
    with pytest.raises(ValueError, match="terms of the loss above 0 and finite"):
        propose(measurement([[0.0, 0.0, float("nan"), 0.0]]), FGDConfig(), Bounds())


def test_level_warning_tells_what_inverse_area_would_do():
    measured = measurement([[9e4, 9e3, 900, 9e6], [1e4, 1e3, 100, 1e6]])
    proposed = propose(measured, FGDConfig(), Bounds())
    (warning,) = warnings_of(measured, {"proposed": proposed})
    assert "level 0 has 90% of the loss" in warning and "leaves it 69%" in warning  # 9/256 of 9/256 + 1/64
    assert warnings_of(measured, {"proposed": replace(proposed, level_weights=[1.0, 4.0])}) == []
    assert f"T {proposed.temperature:g}" in "\n".join(report(measured, {"proposed": proposed}))


def test_temperature_follows_the_teachers_scale(pair, batch):
    student, teacher = pair
    criterion = build_criterion(student, teacher, "backbone.fpn", "backbone.fpn", FGDConfig())
    distiller = DetectionDistiller(student, teacher, criterion)
    first = measure(distiller, [batch], [0.5])
    assert min(level.share for level in first.attention[first.temperature]) == pytest.approx(SHARE, abs=0.03)
    with torch.no_grad():
        for block in teacher.backbone.fpn.layer_blocks:
            block[0].weight.mul_(100)
            block[0].bias.mul_(100)
    second = measure(distiller, [batch], [0.5])
    assert second.activation == pytest.approx([100 * value for value in first.activation], rel=1e-4)
    proposed = [m.temperature for m in (first, second)]
    assert proposed[1] / proposed[0] == pytest.approx(100, rel=0.06)
    # The teacher's attention depends on features over T alone: at the proposed T it spreads as before, at 0.5 it can't.
    spread = [m.attention[t][0] for m, t in zip((first, second), proposed, strict=True)]
    assert spread[1].pixels == pytest.approx(spread[0].pixels, rel=0.02)
    assert second.attention[0.5][0].pixels < 0.5 * spread[1].pixels
    assert 0 < spread[0].peak <= 1 <= spread[0].pixels <= spread[0].area == 256


def test_the_temperature_is_that_of_a_share_of_the_pixels():
    torch.manual_seed(0)
    maps = [[3 + spread * torch.randn(2, side, side) for _ in range(2)] for spread, side in ((2.0, 100), (0.5, 50))]
    temperature = temperature_for(maps)
    # exp(2 x / T) of a normal x: the share of the pixels is E[w]^2 / E[w^2] = exp(-4 / T^2).
    assert temperature == pytest.approx(2 / math.log(1 / SHARE) ** 0.5, rel=0.05)
    assert temperature_for([[100 * batch for batch in level] for level in maps]) == pytest.approx(100 * temperature)
    with pytest.raises(ValueError, match="teacher: expected features above 0 and finite, got a largest mean .* 0"):
        temperature_for([[torch.zeros(1, 2, 2)]])


def test_warnings_of_flat_attention_and_of_an_untrained_teacher(calibrated, digits, teacher_file, tmp_path, capsys):
    good = {"proposed": propose(measurement([[1e2, 1e2, 1e2, 1e2], [1e2] * 4]), FGDConfig(), Bounds())}
    terms = [[1e2] * 4] * 2
    assert warnings_of(measurement(terms), good) == []
    (warning,) = warnings_of(measurement(terms, pixels=0.96), good)
    assert "T = 7.7 (proposed): attention is as on 245.8 of 256 pixels" in warning and "lower T" in warning
    (warning,) = warnings_of(measurement(terms, recall=0.1), good)
    assert "the teacher finds 10% of the objects" in warning
    _, printed = calibrated
    assert int(re.search(r"the teacher finds (\d+)% of the objects", printed)[1]) > 60
    assert "looks untrained" not in printed and "weights nothing" not in printed
    untrained = (f"--model.teacher.weights={teacher_file}", f"--output={tmp_path / 'c.yaml'}", "--batches=1")
    calibrate(arguments(digits, *untrained, "--temperature=430"))
    printed = capsys.readouterr().out
    assert "it looks untrained" in printed and re.search(r"T = 430 \(proposed\).*weights nothing", printed)


def test_presets_by_family():
    families = {"FCOS": "one_stage_anchor_free", "RetinaNet": "one_stage_anchor", "FasterRCNN": "two_stage"}
    for family, preset in families.items():
        assert guess_preset(type(family, (nn.Module,), {})(), "two_stage") == preset
    assert guess_preset(nn.Linear(1, 1), "one_stage_anchor") == "one_stage_anchor"
    assert set(families.values()) == set(fgd.PRESETS) and len(TERMS) == 4
    assert resolved(FGDConfig("two_stage", beta=3.0)) == (0.5, [5e-5, 3.0, 5e-5, 5e-7])


def test_bad_input(digits, tmp_path):
    output = f"--output={tmp_path / 'c.yaml'}"
    with pytest.raises(ValueError, match="teacher.*got None"):
        calibrate(["--config=digits_student.yaml", f"--data.root={digits}", output])
    with pytest.raises(ValueError, match=r"teacher\.weights.*would teach noise"):
        calibrate(arguments(digits, "--model.teacher.weights=null", output))
    with pytest.raises(ValueError, match="batches: expected at least 1, got 0"):
        calibrate(arguments(digits, "--batches=0", output))
    with pytest.raises(ValueError, match=r"model\.fgd: expected weights"):
        calibrate(arguments(digits, "--model.fgd=null", output))
    with pytest.raises(ValueError, match="temperature: expected a number > 0"):
        Calibration(temperature=0.0)
    with pytest.raises(ValueError, match="low, high: expected 0 < low <= high"):
        Bounds(low=0)
    with pytest.raises(ValueError, match=r"total: .*from 0.4 to 8, got 9"):
        Bounds(total=9)
    with pytest.raises(ValueError, match="batches: expected at least one, got none"):
        measure(None, [], [0.5])
    assert not list(tmp_path.iterdir())


def test_choosing_weights_tells_of_terms_that_could_not_be_measured(pair):
    images = [torch.rand(3, 128, 128), torch.rand(3, 128, 128)]
    without = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * 2
    with pytest.warns(UserWarning, match="fg is 0 on these images, so alpha only keeps the preset's ratio"):
        choose_weights(distil(*pair, verbose=False), [(images, without)])
