"""Results and logs that are cut, damaged or something else are told in one line. A second."""

import shutil
from pathlib import Path

import pytest

from fgd_distill.digits.ablations import COLUMNS
from fgd_distill.digits.summary import write_summary
from fgd_distill.errors import FGDError
from fgd_distill.pictures.bars import read_ap
from fgd_distill.pictures.curves import read_metrics
from fgd_distill.training.comparison import Trainings

RESULTS = Path(__file__).parents[2] / "bench" / "results"
METRICS = b"epoch,loss,step,val/AP,val/AP_small\n0,2.5,1,,\n0,1.5,2,30.5,12.25\n"


@pytest.fixture
def tables(tmp_path):
    """One file of each kind, and what reads it."""
    students, ablations, metrics = (tmp_path / name for name in ("students.csv", "ablations.csv", "metrics.csv"))
    shutil.copy(RESULTS / "digits_students.csv", students)
    shutil.copy(RESULTS / "digits_ablations.csv", ablations)
    metrics.write_bytes(METRICS)
    return {
        students: [write_summary, lambda path: read_ap(path, "x")],
        ablations: [lambda path: Trainings(path, COLUMNS, "fgd-distill ablate")],
        metrics: [read_metrics, lambda path: read_ap(path, "x")],
    }


def damages(content):
    lines = content.splitlines(keepends=True)
    return {
        "empty": b"",
        "text": b"Dear reader,\nthis is a letter.\n",
        "bytes": bytes(range(256)) * 20,
        "a cell too many": content + lines[1].rstrip() + b",1\n",
        "no number": content.replace(lines[-1], b",".join([b"none"] * (lines[-1].count(b",") + 1)) + b"\n"),
        "an open quote": lines[0] + b'"' + b"".join(lines[1:]),
    }


@pytest.mark.parametrize("kind", damages(METRICS))
def test_what_is_wrong_with_a_table_is_told_in_a_line(tables, kind):
    for path, readers in tables.items():
        whole = path.read_bytes()
        for read in readers:
            read(path)
            path.write_bytes(damages(whole)[kind])
            with pytest.raises(FGDError) as caught:
                read(path)
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)
            path.write_bytes(whole)


def test_the_last_line_of_a_log_may_be_half_written(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(METRICS + b"0,1.2,3,,")
    assert read_metrics(path)["loss"] == ([1, 2], [2.5, 1.5])
    path.write_bytes(METRICS[:-3])
    assert read_metrics(path)["loss"] == ([1], [2.5])
