"""The paper's ablations: which overlay answers which row of which table, and the page that shows both side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import FGDValueError
from ..training.comparison import Line, mean_gain, mean_of, range_of, scores_of

ALONE, FULL = "alone", "fgd"  # no distillation, for which there is no overlay, and all of it


@dataclass(frozen=True)
class TableRow:
    """A row of a table.

    Args:
        label: what is distilled.
        setting: ``alone``, or an overlay in configs/ablations, without its suffix.
        ap, ar: the paper's mAP and mAR; None where it has no such row.
    """

    label: str
    setting: str
    ap: float | None = None
    ar: float | None = None


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Args:
        number: as the paper counts.
        title: what is compared.
        detectors: the paper's teacher and student.
        rows: the first is the baseline that gains are counted from.
    """

    number: int
    title: str
    detectors: str
    rows: tuple[TableRow, ...]


TABLES = {
    table.number: table
    for table in (
        PaperTable(
            1,
            "distilled areas",
            "RetinaNet R101 to R50",
            (
                TableRow("none", ALONE, 37.4, 53.9),
                TableRow("foreground", "foreground", 39.3, 55.6),
                TableRow("background", "background", 39.2, 55.8),
                TableRow("both as one area", "no_split", 38.9, 55.1),
                TableRow("both, split", "focal", 39.4, 56.1),
            ),
        ),
        PaperTable(
            3,
            "losses on feature maps; the paper has FKD and FGD, the others are beside them",
            "RetinaNet X101 to R50",
            (
                TableRow("none", ALONE, 37.4, 53.9),
                TableRow("plain imitation, equation 1", "imitation"),
                TableRow("FKD", "fkd", 39.6, 56.1),
                TableRow("DeFeat, on the neck", "defeat"),
                TableRow("PKD", "pkd"),
                TableRow("CWD", "cwd"),
                TableRow("MGD", "mgd"),
                TableRow("FGD", FULL, 40.4, 56.7),
            ),
        ),
        PaperTable(
            4,
            "losses",
            "RetinaNet X101 to R50",
            (
                TableRow("none", ALONE, 37.4, 53.9),
                TableRow("focal", "focal", 40.2, 56.2),
                TableRow("global", "global", 40.2, 56.4),
                TableRow("both", FULL, 40.4, 56.7),
            ),
        ),
        PaperTable(
            5,
            "attention of the focal loss",
            "RetinaNet X101 to R50",
            (
                TableRow("no distillation", ALONE, 37.4, 53.9),
                TableRow("no attention", "no_attention"),
                TableRow("spatial", "spatial", 40.0, 56.1),
                TableRow("channel", "channel", 39.7, 55.8),
                TableRow("both", "focal", 40.2, 56.2),
            ),
        ),
        PaperTable(
            6,
            "relation of the global loss, alone",
            "Faster R-CNN, Cascade Mask R-CNN X101 to R50",
            (
                TableRow("none", ALONE, 38.4),
                TableRow("Non-local", "non_local", 39.8),
                TableRow("GcBlock", "global", 41.5),
            ),
        ),
        PaperTable(
            7,
            "temperature, as a multiple of the tuned one (the paper's 0.5)",
            "RetinaNet X101 to R50",
            (
                TableRow("no distillation", ALONE, 37.4, 53.9),
                TableRow("0.06 (T = 0.5 itself)", "temperature_paper"),
                TableRow("0.6", "temperature_0.6x", 40.1, 56.4),
                TableRow("1", FULL, 40.4, 56.7),
                TableRow("1.6", "temperature_1.6x", 40.4, 56.6),
                TableRow("2", "temperature_2x", 40.2, 56.5),
                TableRow("2.4", "temperature_2.4x", 40.0, 56.4),
            ),
        ),
    )
}
HEAD = ("", "seeds", "AP", "range", "gain", "AR", "paper's AP", "gain", "AR")


def chosen_tables(numbers: Iterable[int]) -> list[PaperTable]:
    """The tables with these numbers.

    Raises:
        ValueError: there is no such table, or no number at all.
    """
    numbers = list(numbers)
    unknown = [number for number in numbers if number not in TABLES]
    if unknown or not numbers:
        raise FGDValueError(f"tables: expected numbers among {', '.join(map(str, TABLES))}, got {unknown or numbers}")
    return [TABLES[number] for number in dict.fromkeys(numbers)]


def settings_of(tables: Iterable[PaperTable]) -> list[str]:
    """The settings that these tables need, each once."""
    return list(dict.fromkeys(row.setting for table in tables for row in table.rows))


def table_cells(table: PaperTable, lines: Sequence[Line]) -> list[list[str]]:
    """The table's rows as text, under ``HEAD``: mean and range over the seeds beside the paper's numbers.

    Gains count from the first row; a setting that has not run yet has empty cells.

    Args:
        table: of the paper.
        lines: rows of the CSV file.
    """
    base = table.rows[0]
    return [_cells(row, base, lines) for row in table.rows]


def _cells(row: TableRow, base: TableRow, lines: Sequence[Line]) -> list[str]:
    ap = scores_of(lines, row.setting)
    paper_gain = row.ap - base.ap if row.ap is not None and base.ap is not None and row is not base else None
    return [
        row.label,
        str(len(ap) or ""),
        mean_of(ap),
        range_of(ap),
        "" if row is base else mean_gain(ap, scores_of(lines, base.setting)),
        mean_of(scores_of(lines, row.setting, "AR")),
        "" if row.ap is None else f"{row.ap:.1f}",
        "" if paper_gain is None else f"{paper_gain:+.1f}",
        "" if row.ar is None else f"{row.ar:.1f}",
    ]
