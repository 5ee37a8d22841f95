"""The weights of the ablations, a calibration for each row: ``python -m fgd_distill.digits.row_weights``.

Every row's loss is made ``TOTAL`` times the detector's own, so that rows differ by what they distil and not by how
much of it. It writes configs/ablations, which ``fgd-distill ablate`` runs and which can be laid over a configuration
by hand. Rows of FGD have the temperature of ``fgd.yaml``, but for those on temperature.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..calibration.propose import Bounds
from ..commands.calibrate import calibrate
from ..files import write_text
from ..shipped import CONFIGS

FOLDER = CONFIGS / "ablations"
BASE, TOTAL = "fgd", Bounds.total
TERMS = ("alpha", "beta", "gamma", "lambda_")
FOCAL = {"lambda_": 0.0}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    BASE: ("all of FGD (tables 3, 4 and 7)", {}),
    "foreground": ("features count only in boxes, attention everywhere (table 1)", FOCAL | {"beta": 0.0}),
    "background": ("features count only outside of all boxes, attention everywhere (table 1)", FOCAL | {"alpha": 0.0}),
    "no_split": ("the whole image is one area, weighted by beta (table 1)", FOCAL | {"split": False, "alpha": 0.0}),
    "focal": ("focal distillation alone (tables 1, 4 and 5)", FOCAL),
    "global": ("global distillation alone (tables 4 and 6)", dict.fromkeys(TERMS[:3], 0.0)),
    "non_local": (
        "global distillation alone, with Non-local blocks (table 6)",
        dict.fromkeys(TERMS[:3], 0.0) | {"relation": "non_local"},
    ),
    "no_attention": (
        "focal distillation without attention, whose term is 0, too (table 5)",
        FOCAL | {"attention": "none", "gamma": 0.0},
    ),
    "spatial": ("focal distillation with spatial attention alone (table 5)", FOCAL | {"attention": "spatial"}),
    "channel": ("focal distillation with channel attention alone (table 5)", FOCAL | {"attention": "channel"}),
}
TIMES = {"0.6x": 0.6, "1.6x": 1.6, "2x": 2.0, "2.4x": 2.4}
"""The paper's 0.3, 0.8, 1.0 and 1.2 as multiples of its 0.5."""
PAPERS_TEMPERATURE = 0.5
CRITERIA = ("imitation", "fkd", "defeat", "pkd", "cwd", "mgd")
"""Those that a detector without anchors can take."""
HEADING = """# Laid over digits_inherit.yaml: {what}.
# Made by python -m fgd_distill.digits.row_weights: the loss begins at {total:g} times the detector's own.
"""


def bounds_of(switches: dict[str, Any]) -> tuple[str, str]:
    """Options of ``calibrate`` with which the terms that are on have ``TOTAL`` together, whatever their number.

    ``calibrate`` leaves the part of terms that are off to nobody, and holds each below a limit, here the total.
    """
    on = len(TERMS) - sum(switches.get(name) == 0 for name in TERMS)
    return f"--total={TOTAL * len(TERMS) / on}", f"--high={max(TOTAL, TOTAL * len(TERMS) / on / len(TERMS))}"


def calibrated(options: Sequence[str]) -> dict[str, Any]:
    """The ``model`` section that ``calibrate`` writes for the digits pair with these options."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "weights.yaml"
        with contextlib.redirect_stdout(io.StringIO()):  # a page for each row
            calibrate(["--config=digits_student.yaml", "--config=digits_inherit.yaml", *options, f"--output={output}"])
        return yaml.safe_load(output.read_text())["model"]


def write_row(name: str, what: str, model: dict[str, Any]) -> None:
    """Writes the overlay of one row."""
    text = HEADING.format(what=what, total=TOTAL) + yaml.safe_dump({"model": model}, sort_keys=False)
    write_text(FOLDER / f"{name}.yaml", text)
    print(f"{name}: {model}", flush=True)


def main() -> None:
    """Calibrates the rows that are named, or all."""
    names = [*ROWS, "temperature_paper", *(f"temperature_{times}" for times in TIMES), *CRITERIA]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/digits", help="the digits data set")
    parser.add_argument("--rows", nargs="+", default=names, choices=names, metavar="ROW", help=", ".join(names))
    arguments = parser.parse_args()
    common = (f"--data.root={arguments.data}", "--data.num_workers=0")
    if BASE in arguments.rows:
        write_row(BASE, ROWS[BASE][0], calibrated(common))
    tuned = yaml.safe_load((FOLDER / f"{BASE}.yaml").read_text())["model"]["fgd"]["temperature"]
    for name in arguments.rows:
        if name == BASE:
            continue
        if name in CRITERIA:
            options, what = [f"--model.criterion.name={name}", f"--total={TOTAL}"], f"the loss {name} in place of FGD"
        elif name in ROWS:
            what, switches = ROWS[name]
            chosen = [f"--model.fgd.{key}={yaml.safe_dump(value).split()[0]}" for key, value in switches.items()]
            options = [*chosen, *bounds_of(switches), f"--temperature={tuned}"]
        else:
            times = TIMES.get(name.removeprefix("temperature_"))
            temperature = PAPERS_TEMPERATURE if times is None else float(f"{times * tuned:.3g}")
            what = (
                "the paper's T on this teacher (table 7)" if times is None else f"T = {times:g} of the tuned (table 7)"
            )
            options = [f"--temperature={temperature}"]
        write_row(name, what, calibrated((*options, *common)))


if __name__ == "__main__":
    main()
