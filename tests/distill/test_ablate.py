import csv

import pytest
import yaml

from fgd_distill.commands import main as cli
from fgd_distill.data.evaluation import METRICS
from fgd_distill.digits import ablations as ablate_module
from fgd_distill.digits.ablations import COLUMNS, CONFIGS, FINDINGS, ablate, loss_of, overlay_of, write_page
from fgd_distill.digits.paper_tables import TABLES, chosen_tables, settings_of, table_cells
from fgd_distill.digits.row_weights import CRITERIA, ROWS, TIMES, bounds_of
from fgd_distill.training.comparison import Trainings
from fgd_distill.training.run import DistillCLI

LOSSES = ["alone", "focal", "global", "fgd"]  # the settings of table 4


@pytest.fixture
def folder(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablate_module, "make_digits", lambda folder: digits)
    return tmp_path


@pytest.fixture
def counted(folder, monkeypatch):
    """Runs that train nothing: they count, and their AP is 10 for the first of each seed, 11 for the second, ..."""
    runs = []

    def run(data, setting, seed, steps, workers, maps, command):
        runs.append((setting, seed))
        if len(runs) == 4:
            raise KeyboardInterrupt
        ap = 10 + LOSSES.index(setting) + 2 * seed
        line = dict.fromkeys(COLUMNS, "") | {name: str(ap) for name in METRICS}
        return line | {
            "setting": setting, "seed": str(seed), "steps": str(steps), "loss": loss_of(setting), "command": command,
            "seconds": "1",
        }  # fmt: skip

    monkeypatch.setattr(ablate_module, "_run", run)
    return runs


def test_every_overlay_answers_a_row_and_builds():
    settings = settings_of(TABLES.values())
    assert {path.stem for path in (CONFIGS / "ablations").glob("*.yaml")} == set(settings) - {"alone"}
    seen = {}
    for setting in settings:
        built = DistillCLI(["--config=digits_student.yaml", *(f"--config={name}" for name in overlay_of(setting))])
        assert (built.model.distiller is None) == (setting == "alone")
        assert loss_of(setting) not in seen, f"{setting} is {seen[loss_of(setting)]}"
        seen[loss_of(setting)] = setting


def test_temperatures_are_the_papers_multiples():
    base = yaml.safe_load((CONFIGS / "ablations" / "fgd.yaml").read_text())["model"]["fgd"]["temperature"]
    for row, paper in zip(TABLES[7].rows[2:], (0.3, 0.5, 0.8, 1.0, 1.2), strict=True):
        overlay = yaml.safe_load((CONFIGS / overlay_of(row.setting)[-1]).read_text())["model"]["fgd"]
        assert overlay["temperature"] / base == pytest.approx(paper / 0.5, rel=0.02)
        assert float(row.label) == pytest.approx(paper / 0.5)


def test_a_table_from_the_command_line(folder, capsys):
    cli.main(["ablate", "--tables=[4]", "--seeds=[3]", "--steps=2", "--workers=0", "--output=out/a.csv"])
    lines = list(csv.DictReader((folder / "out/a.csv").open()))
    assert [line["setting"] for line in lines] == LOSSES and {line["seed"] for line in lines} == {"3"}
    assert all(line["machine"] and line["versions"] and 0 <= float(line["AP"]) <= 100 for line in lines)
    assert list((folder / "out/digits_teacher_maps/maps").iterdir())
    assert '"alpha": 0.0' in lines[2]["loss"] and lines[0]["loss"] == ""
    page, printed = (folder / "out/a.md").read_text(), capsys.readouterr().out
    assert "## Table 4" in page and "Table 7" not in page and "fgd-distill ablate --tables '[4]' --seeds '[3]'" in page
    assert "| focal | 1 |" in page and "| 40.2 | +2.8 | 56.2 |" in page and "Table 4: losses" in printed


def test_an_interrupted_comparison_goes_on(counted, capsys):
    arguments = {"tables": [4], "seeds": [0, 1], "steps": 5, "output": "a.csv"}
    with pytest.raises(KeyboardInterrupt):
        ablate(**arguments)
    assert [line["setting"] for line in Trainings("a.csv", COLUMNS, "ablate").lines] == LOSSES[:3]
    ablate(**arguments)
    assert counted[3:] == [("fgd", 0), ("fgd", 0), *((setting, 1) for setting in LOSSES)]  # the first was interrupted
    done = len(counted)
    ablate(**arguments)
    assert len(counted) == done
    assert "40.4" in capsys.readouterr().out


def test_runs_of_other_steps_or_weights_do_not_mix(counted, monkeypatch):
    counted += [None] * 4  # past the interruption
    ablate(tables=[4], seeds=[0], steps=5, output="a.csv")
    with pytest.raises(ValueError, match=r"steps: expected 5, as the runs in a.csv have, got 6"):
        ablate(tables=[4], seeds=[0, 1], steps=6, output="a.csv")
    original = loss_of
    monkeypatch.setattr(ablate_module, "loss_of", lambda setting: original(setting).replace("temperature", "other"))
    with pytest.raises(ValueError, match=r"the run focal was made with .*temperature.* is now .*other"):
        ablate(tables=[4], seeds=[0], steps=5, output="a.csv")


def lines_of(numbers):
    return [
        {"setting": setting, "seed": str(seed), "AP": str(ap), "AR": str(ap + 20)}
        for setting, values in numbers.items()
        for seed, ap in enumerate(values)
    ]


def test_mean_range_and_gain():
    cells = table_cells(TABLES[4], lines_of({"alone": [1, 2, 6], "focal": [4, 5], "fgd": [2.5, 3, 8]}))
    assert cells[0] == ["none", "3", "3.0", "1.0 to 6.0", "", "23.0", "37.4", "", "53.9"]
    # Two seeds so far: the gain counts from the same two of the baseline, whose mean is 1.5.
    assert cells[1] == ["focal", "2", "4.5", "4.0 to 5.0", "+3.0", "24.5", "40.2", "+2.8", "56.2"]
    assert cells[2] == ["global", "", "", "", "", "", "40.2", "+2.8", "56.4"]
    assert cells[3][4] == "+1.5"


def test_findings_survive_a_new_page(tmp_path):
    path = tmp_path / "page.md"
    columns = dict.fromkeys(("command", "machine", "versions", "steps"), "x")
    lines = [line | columns for line in lines_of({"alone": [1]})]
    write_page([TABLES[1]], lines, path)
    path.write_text(path.read_text() + f"\n{FINDINGS}\n\nNothing.\n")
    write_page([TABLES[4]], lines, path)
    assert path.read_text().endswith(f"{FINDINGS}\n\nNothing.\n") and "Table 1" not in path.read_text()


def test_bad_input(folder):
    for tables in ([2], [1, 8], []):
        with pytest.raises(ValueError, match="tables: expected numbers among 1, 3, 4, 5, 6, 7, got"):
            chosen_tables(tables)
    with pytest.raises(ValueError, match="expected at least one seed and one step"):
        ablate(seeds=[])
    with pytest.raises(FileNotFoundError, match="expected an overlay at .*nonsense"):
        overlay_of("nonsense")
    (folder / "other.csv").write_text("method,seed\nalone,0\n")
    with pytest.raises(ValueError, match="other.csv: expected a file of fgd-distill ablate"):
        ablate(output="other.csv")


def test_every_row_can_be_calibrated_anew():
    """What row_weights.py makes is what the tables need, and its bounds give as many terms the same total."""
    made = {*ROWS, "temperature_paper", *(f"temperature_{times}" for times in TIMES), *CRITERIA}
    assert made == set(settings_of(TABLES.values())) - {"alone"}
    assert bounds_of({}) == ("--total=3.0", "--high=3.0")
    assert bounds_of({"alpha": 0.0, "lambda_": 0.0}) == ("--total=6.0", "--high=3.0")
    assert bounds_of({"alpha": 0.0, "beta": 0.0, "gamma": 0.0}) == ("--total=12.0", "--high=3.0")
