"""Figures that stand in a page and in a file of results are the same."""

import csv
import itertools
import re
import statistics
from pathlib import Path

import pytest

from fgd_distill.digits.equal_time import KEPT, SETTINGS
from fgd_distill.digits.paper_tables import TABLES, table_cells

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
CONTENDERS = {
    "published loop": "published",
    "reference, eager": "reference",
    "reference, `torch.compile`": "compiled",
    "**fgd_kernels**": "ours",
    "streaming bound": "bound",
}


def rows_of(name):
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def table(text, first_cells):
    """The rows of the tables in a Markdown text whose first cell is one of these, as lists of cells."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if "|" in line]
    return [row for row in rows if row[0] in first_cells]


def assert_shown(text, value):
    """That `text` is `value`, rounded to as many decimals as it has; units and emphasis around it do not count."""
    number = re.search(r"[\d,]+(\.\d+)?", text)[0]
    half = 0.5 * 10.0 ** -len(number.partition(".")[2])
    assert abs(float(number.replace(",", "")) - float(value)) <= half * 1.000001, f"{text} is {value} in the results"


def median(rows, contender, dtype="float32", threads=1):
    (row,) = (
        row
        for row in rows
        if (row["contender"], row["batch"], row["dtype"], row["threads"]) == (contender, "4", dtype, str(threads))
    )
    return float(row["median_ms"])


def assert_speeds(text, rows):
    found = table(text, CONTENDERS)
    assert len(found) >= 3
    for name, *cells in found:
        for dtype, (time, ratio) in zip(("float32", "bfloat16"), (cells[:2], cells[2:]), strict=True):
            value, ours = median(rows, CONTENDERS[name], dtype), median(rows, "ours", dtype)
            assert_shown(time, value)
            if ratio:
                assert_shown(ratio, value / ours)


def test_speed():
    readme, page = (ROOT / "README.md").read_text(), (ROOT / "docs" / "performance.md").read_text()
    epyc, xeon = rows_of("loss_cpu_epyc.csv"), rows_of("loss_cpu_xeon.csv")
    before, _, after = page.partition("Intel Xeon (Sapphire Rapids)")
    assert_speeds(readme, epyc)
    assert_speeds(before, epyc)
    assert_speeds(after.partition("**Memory.**")[0], xeon)


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md", "docs/guides/from-the-published-code.md"])
def test_times_as_fast(page):
    """Every 'N times as fast' is a machine's, and the first page gives both its ends."""
    ratios = {
        f"{median(rows, 'published') / median(rows, 'ours'):.0f}"
        for rows in (rows_of("loss_cpu_epyc.csv"), rows_of("loss_cpu_xeon.csv"))
    }
    text = (ROOT / page).read_text()
    for found in re.findall(r"(\d+)(?: to (\d+))? times as fast", text):
        assert set(found) - {""} <= ratios
    if page == "README.md":
        milliseconds, seconds = re.search(r"(\d+) ms instead of ([\d.]+) s", text).groups()
        epyc = rows_of("loss_cpu_epyc.csv")
        assert_shown(milliseconds, median(epyc, "ours"))
        assert_shown(seconds, median(epyc, "published") / 1000)


def test_threads_and_memory():
    page = (ROOT / "docs" / "performance.md").read_text()
    files = {
        "AMD EPYC, memory given back": "loss_cpu_epyc_threads.csv",
        "AMD EPYC, memory kept": "loss_cpu_epyc_kept.csv",
        "Intel Xeon, memory given back": "loss_cpu_xeon_threads.csv",
        "Intel Xeon, memory kept": "loss_cpu_xeon_kept.csv",
    }
    found = table(page, files)
    assert len(found) == 4
    for name, one, two, gain in found:
        times = [median(rows_of(files[name]), "ours", threads=threads) for threads in (1, 2)]
        assert_shown(one, times[0])
        assert_shown(two, times[1])
        assert_shown(gain, times[0] / times[1])
    peaks = {
        row["contender"]: row["peak_mib"]
        for row in rows_of("loss_cpu_xeon_peak.csv")
        if (row["batch"], row["dtype"]) == ("4", "float32")
    }
    for contender, pattern in {
        "ours": r"takes (\S+) MiB in float32",
        "published": r"loop\s+takes (\S+) MiB",
        "compiled": r"reference (\S+) MiB",
    }.items():
        assert_shown(re.search(pattern, page)[1], peaks[contender])


def test_digits():
    rows = rows_of("digits_students.csv")
    mean = {
        method: statistics.mean(float(row["AP"]) for row in rows if row["setting"] == method)
        for method in dict.fromkeys(row["setting"] for row in rows)
    }
    text = (ROOT / "README.md").read_text()
    ((teacher, *students),) = table(text, {f"{mean['teacher']:.1f}"})
    assert_shown(teacher, mean["teacher"])
    for shown, method in zip(
        students, ["alone", "inherited", "FGD", "inherited + FGD", "alone, equal time"], strict=True
    ):
        assert_shown(shown, mean[method])
    losses = [float(row["fgd_loss_share"]) for row in rows if row["fgd_loss_share"]]
    teachers = [float(row["teacher_share"]) for row in rows if row["teacher_share"]]
    low, high = re.search(r"(\d+) to (\d+)% of a\s+training step", text).groups()
    assert_shown(low, 100 * min(teachers))
    assert_shown(high, 100 * max(teachers))
    (share,) = re.search(r"the loss (\d+)%", text).groups()
    assert_shown(share, 100 * min(losses))
    assert_shown(share, 100 * max(losses))


def test_ablations():
    lines = rows_of("digits_ablations.csv")
    page = (RESULTS / "digits_ablations.md").read_text()
    rows = {}
    for paper_table in TABLES.values():
        for row, cells in zip(paper_table.rows, table_cells(paper_table, lines), strict=True):
            assert cells[1] == "3" and "| " + " | ".join(cells) + " |" in page
            rows[row.setting] = cells

    gain = {setting: cells[4] for setting, cells in rows.items()}
    shown = table((ROOT / "docs" / "paper.md").read_text(), {f"Table {number}" for number in TABLES} | {"Table 3, FKD"})
    gains = {row[0]: dict(re.findall(r"(\S+) ([+-][\d.]+)", row[-1])) for row in shown}
    losses = ("imitation", "PKD", "CWD", "DeFeat", "MGD", "FKD")
    assert gains["Table 3, FKD"] == {"FGD": gain["fgd"]} | {name: gain[name.lower()] for name in losses}
    assert gains["Table 4"] == {"focal": gain["focal"], "global": gain["global"], "both": gain["fgd"]}
    attention = {"none": "no_attention", "spatial": "spatial", "channel": "channel", "both": "focal"}
    assert gains["Table 5"] == {name: gain[setting] for name, setting in attention.items()}
    assert gains["Table 6"] == {"GcBlock": gain["global"], "Non-local": gain["non_local"]}

    guide = (ROOT / "docs" / "guides" / "which-loss.md").read_text().split("## What they gain")[1].split("\n## ")[0]
    names = {"none": "alone", "**FGD**": "fgd"} | {f"`{name.lower()}`": name.lower() for name in losses}
    found = table(guide, names)
    assert len(found) == len(names)
    for name, ap, *others in found:
        _, _, mean, *expected = rows[names[name]][:5]
        assert [ap.strip("*"), *others] == [mean, *expected]
    readme = (ROOT / "README.md").read_text()
    for name in losses:
        assert re.search(rf"{name}( gives)?\s([\d.]+)", readme)[2] == rows[name.lower()][2]


def test_errors():
    rows = {row["results"]: row for row in rows_of("digits_errors.csv") if row["kind"] == row["size"] == "all"}
    page = (ROOT / "docs" / "guides" / "errors.md").read_text()
    names = {"focal: both, split" if name == "focal.json" else name.removesuffix(".json"): name for name in rows}
    found = table(page, names)
    assert len(found) == len(names)
    for name, *cells in found:
        columns = ("C50", "Loc", "Sim", "Oth", "BG", "FN")
        c50, loc, sim, oth, background, misses = (100 * float(rows[names[name]][column]) for column in columns)
        for cell, value in zip(cells, (c50, loc - c50, sim - loc, background - oth, misses - background), strict=True):
            assert_shown(cell, value)


def test_equal_time():
    rows = rows_of("digits_equal_time.csv")
    scores = {}
    for row in rows:
        scores.setdefault(row["setting"], []).append(float(row["AP"]))
    mean = {setting: statistics.mean(found) for setting, found in scores.items()}
    page = (ROOT / "docs" / "performance.md").read_text().split("### At equal time")[1].split("\n## ")[0]
    found = table(page, mean)
    assert [name for name, *_ in found] == list(SETTINGS) == list(mean)
    for name, step, steps, ap, span, gain in found:
        assert {(step, steps)} == {(f"{float(r['step_ms']):.0f}", r["steps"]) for r in rows if r["setting"] == name}
        assert_shown(ap, mean[name])
        assert span == f"{min(scores[name]):.1f} to {max(scores[name]):.1f}"
        assert gain == ("" if name == "alone" else f"{mean[name] - mean['alone']:+.1f}")
    readme = (ROOT / "README.md").read_text().split("At equal time:")[1]
    ((alone, *distilled),) = table(readme, {f"{mean['alone']:.1f}"})
    shown = ["alone", "FGD", "FGD, teacher in bfloat16", KEPT]
    for text, setting in zip([alone, *distilled], shown, strict=True):
        assert_shown(text, mean[setting])


def test_photographs():
    scores, steps, ap50 = {}, {}, {}
    for name, suffix in (("blood_cells.csv", ""), ("blood_cells_untrained.csv", ", untrained teacher")):
        for row in rows_of(name):
            setting = row["setting"] + suffix
            scores.setdefault(setting, []).append(float(row["AP"]))
            ap50.setdefault(setting, []).append(float(row["AP50"]))
            steps.setdefault(setting, set()).add(int(row["steps"]))
    page = (ROOT / "docs" / "tutorials" / "photographs.md").read_text()
    found = table(page.split("## What came out")[1], scores)
    assert [name for name, *_ in found] == list(scores)
    alone = statistics.mean(scores["alone"])
    for name, length, ap, span, gain, half in found:
        assert {int(number) for number in length.split(" to ")} == {min(steps[name]), max(steps[name])}
        assert_shown(ap, statistics.mean(scores[name]))
        assert span == f"{min(scores[name]):.1f} to {max(scores[name]):.1f}"
        assert gain == ("" if name == "alone" else f"{statistics.mean(scores[name]) - alone:+.1f}")
        assert_shown(half, statistics.mean(ap50[name]))
    shown = re.search(r"from (\S+) to (\S+) AP\s+by FGD, to (\S+) with", (ROOT / "README.md").read_text()).groups()
    for text, setting in zip(shown, ("alone", "distilled", "both"), strict=True):
        assert_shown(text, statistics.mean(scores[setting]))


def test_other_losses():
    page = (ROOT / "docs" / "guides" / "which-loss.md").read_text().split("## What they cost")[1].split("\n## ")[0]
    measured = {f"`{row['loss']}`": row for row in rows_of("losses_xeon.csv")}
    found = table(page, measured)
    assert {name for name, *_ in found} == measured.keys() - {"`fgd`", "`fgd_none`"}
    for name, time, memory in found:
        assert_shown(time, measured[name]["median_ms"])
        assert_shown(memory, measured[name]["peak_mib"])


def test_the_gpu_report():
    report = {
        (row["kernel"], row["architecture"]): row for row in rows_of("gpu_report.csv") if row["channels"] == "256"
    }
    page = (ROOT / "docs" / "cuda.md").read_text()
    kernels = {f"`{name.removeprefix('fgd_')}`": name for name, _ in report if name.startswith("fgd_")}
    found = table(page, kernels)
    assert len(found) == 12
    for name, instructions, sectors, registers, spills, *_ in found:
        row = report[kernels[name], "sm_90"]
        assert_shown(instructions, row["instructions_per_pair"])
        assert_shown(sectors, row["sectors_over_floor"])
        assert_shown(spills, row["spills"])
        for shown, architecture in zip(registers.split("/"), ["sm_80", "sm_90", "sm_100", "sm_120"], strict=True):
            assert_shown(shown, report[kernels[name], architecture]["registers"])


def test_the_gpu_report_of_wide_features():
    report = {
        (row["channels"], row["layout"], row["kernel"].split("_")[1]): row
        for row in rows_of("gpu_report.csv")
        if (row["dtype"], row["architecture"]) == ("bf16", "sm_90") and "_wide_" in row["kernel"]
    }
    page = (ROOT / "docs" / "cuda.md").read_text()
    found = table(page, {channels for channels, *_ in report})
    assert len(found) == 8
    for channels, *cells in found:
        columns = itertools.product(("nchw", "nhwc"), ("instructions_per_pair", "sectors_over_floor"))
        for cell, (layout, column) in zip(cells, columns, strict=True):
            for shown, step in zip(cell.split("/"), ("forward", "backward"), strict=True):
                assert_shown(shown, report[channels, layout, step][column])


def test_the_gpu_report_of_triton():
    page = (ROOT / "docs" / "triton.md").read_text().split("(goal 68)")[1].split("\n\n")[0]
    kinds = {
        f"{dtype}, {layout}": (short, name)
        for dtype, short in (("float32", "f32"), ("bfloat16", "bf16"))
        for layout, name in (("NCHW", "nchw"), ("channels_last", "nhwc"))
    }
    report = {
        (row["dtype"], row["layout"], row["kernel"]): row
        for row in rows_of("gpu_report.csv")
        if (row["backend"], row["architecture"]) == ("triton", "sm_90")
    }
    found = table(page, kinds)
    assert len(found) == len(kinds)
    for name, *cells in found:
        columns = itertools.product(("instructions_per_pair", "sectors_over_floor"), ("forward_pass", "backward_pass"))
        for shown, (column, kernel) in zip(cells, columns, strict=True):
            assert_shown(shown, report[(*kinds[name], kernel)][column])
