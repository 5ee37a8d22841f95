"""The paper's ablations (tables 1, 3, 4, 5, 6 and 7) on the digits data: ``fgd-distill ablate``.

Every run is a ``fgd-distill fit`` of the digits student with an overlay from configs/ablations, where each row has the
weights that were calibrated for it (row_weights.py).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from ..data.evaluation import METRICS
from ..errors import FGDFileNotFoundError, FGDValueError
from ..files import write_text
from ..machine import machine
from ..shipped import CONFIGS
from ..text_table import aligned
from ..training.comparison import Line, Trainings, line_of, training_seconds
from .dataset import make_digits
from .paper_tables import ALONE, HEAD, PaperTable, chosen_tables, settings_of, table_cells
from .results import versions
from .runs import fit

BASE = ("digits_inherit.yaml",)
STEPS = 600
TEACHER_MAPS = "digits_teacher_maps"
COLUMNS = ("setting", "seed", "steps", *METRICS, "seconds", "loss", "command", "machine", "versions")
FINDINGS = "## What carries over"
PAGE = """# The paper's ablations on the digits data

    {command}

Machine: {machine}. Versions: {versions}.

Every student starts with the teacher's neck and head (digits_inherit.yaml), with the same initialisation and batches as
the others of its seed, and trains for {steps} steps. configs/ablations has each row's loss, with weights calibrated for
it: every row begins at the same multiple of the detector's own loss. Here: mean over the seeds and range of COCO box AP
in percent on the validation images, mean gain over the first row, mean AR. Beside it the paper's numbers, on COCO, 24
epochs, without inheriting. All metrics of every run are in the CSV file beside this page.

{tables}
"""


def ablate(
    tables: Sequence[int] = (1, 3, 4, 5, 6, 7),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = STEPS,
    data: str = "data/digits",
    output: str = "runs/digits_ablations.csv",
    threads: int = 0,
    workers: int = 1,
) -> None:
    """Trains the digits student once for each setting of the tables and each seed, and prints them beside the paper's.

    A run's line is written when the run ends. Runs that are in ``output`` already are skipped, so a comparison that was
    interrupted goes on where it stopped, and one that is complete prints its tables at once. The teacher's maps are
    kept in ``digits_teacher_maps`` beside ``output`` (0.2 GB), as float32: the students are the same bit for bit.

    Args:
        tables: numbers of the paper's tables: 1 areas, 3 other losses, 4 terms, 5 attention, 6 relations,
            7 temperature.
        seeds: one run of each setting for each; all settings of a seed run before the next seed's.
        steps: training steps of a run.
        data: folder of the digits data set; made if missing.
        output: CSV file of the runs; the page of the tables is written beside it, with the suffix .md.
        threads: threads of PyTorch; 0 leaves its choice.
        workers: processes that load images.

    Raises:
        ValueError: an unknown table, no seed, no step, or runs in ``output`` made with other steps or weights.
    """
    chosen = chosen_tables(tables)
    if not seeds or steps < 1:
        raise FGDValueError(f"expected at least one seed and one step, got seeds {list(seeds)} and steps {steps}")
    settings = settings_of(chosen)
    trainings = Trainings(output, COLUMNS, "fgd-distill ablate")
    _check_same(trainings.lines, settings, steps, output)
    folder = make_digits(data)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    if threads:
        torch.set_num_threads(threads)
    missing = trainings.missing(settings, seeds)
    command = _command(tables, seeds, steps, threads)
    for count, (setting, seed) in enumerate(missing, start=1):
        print(f"run {count} of {len(missing)}: {setting}, seed {seed}, {steps} steps", flush=True)
        line = _run(folder, setting, seed, steps, workers, Path(output).parent / TEACHER_MAPS, command)
        trainings.add(line)
        print(f"AP {float(line['AP']):.1f} after {line['seconds']} s", flush=True)
    shown = trainings.shown(settings, seeds)
    print_tables(chosen, shown)
    write_page(chosen, shown, Path(output).with_suffix(".md"))
    print(f"\n{output} has every run, {Path(output).with_suffix('.md')} the tables")


def overlay_of(setting: str) -> tuple[str, ...]:
    """The configuration files of a setting, to be laid over digits_student.yaml in this order.

    Raises:
        FileNotFoundError: there is no such overlay.
    """
    if setting == ALONE:
        return BASE
    name = f"ablations/{setting}.yaml"
    if not (CONFIGS / name).is_file():
        raise FGDFileNotFoundError(f"setting: expected an overlay at {CONFIGS / name}, found none")
    return (*BASE, name)


def loss_of(setting: str) -> str:
    """The loss of a setting as JSON, empty for none: what a run's line is recognised by."""
    model = yaml.safe_load((CONFIGS / overlay_of(setting)[-1]).read_text())["model"]
    stated = {key: model[key] for key in ("fgd", "criterion") if key in model}
    return json.dumps(stated, sort_keys=True) if stated else ""


def _run(data: Path, setting: str, seed: int, steps: int, workers: int, maps: Path, command: str) -> Line:
    overlay = [f"--config={name}" for name in overlay_of(setting)]
    if loss_of(setting):
        overlay += [f"--model.teacher_cache.folder={maps}", "--model.teacher_cache.dtype=float32"]
    quiet = ("--trainer.enable_progress_bar=false", f"--trainer.logger.init_args.name=ablations/{setting}_seed{seed}")
    cli = fit(data, seed, steps, (*overlay, *quiet), workers)
    return line_of(setting, seed, cli) | {
        "seconds": f"{training_seconds(cli):.0f}",
        "loss": loss_of(setting),
        "command": command,
        "machine": machine(),
        "versions": versions(),
    }


def _command(tables: Sequence[int], seeds: Sequence[int], steps: int, threads: int) -> str:
    """The command line, without the folders, which differ from machine to machine."""
    lists = f"--tables '{list(tables)}' --seeds '{list(seeds)}'"
    return f"fgd-distill ablate {lists} --steps {steps}" + (f" --threads {threads}" if threads else "")


def _check_same(lines: Sequence[Line], settings: Sequence[str], steps: int, output: str) -> None:
    """Refuses to put runs of different lengths or weights into one table."""
    for line in lines:
        if line["steps"] != str(steps):
            raise FGDValueError(f"steps: expected {line['steps']}, as the runs in {output} have, got {steps}")
        if line["setting"] in settings and line["loss"] != loss_of(line["setting"]):
            raise FGDValueError(
                f"{output}: the run {line['setting']} was made with {line['loss']}, the configuration is now "
                f"{loss_of(line['setting'])}; name another output, or delete the line to run it again"
            )


def print_tables(tables: Sequence[PaperTable], lines: Sequence[Line]) -> None:
    """Prints the tables on the terminal."""
    for table in tables:
        print(f"\nTable {table.number}: {table.title}; the paper: {table.detectors}\n")
        for line in aligned([list(HEAD), *table_cells(table, lines)]):
            print(line)


def write_page(tables: Sequence[PaperTable], lines: Sequence[Line], path: Path) -> None:
    """Writes the tables as a page. What an author wrote under the heading of the findings stays."""
    blocks = []
    for table in tables:
        rows = [list(HEAD), ["---"] * len(HEAD), *table_cells(table, lines)]
        body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        blocks.append(f"## Table {table.number}: {table.title}\n\nThe paper's pair: {table.detectors}.\n\n{body}")
    old = path.read_text() if path.is_file() else ""
    page = PAGE.format(
        command=_values(lines, "command"),
        machine=_values(lines, "machine"),
        versions=_values(lines, "versions").replace(" ", ", ").replace("==", " "),
        steps=_values(lines, "steps"),
        tables="\n\n".join(blocks),
    )
    findings = f"\n{FINDINGS}{old.split(FINDINGS, 1)[1]}" if FINDINGS in old else ""
    write_text(path, page + findings)


def _values(lines: Sequence[Line], column: str) -> str:
    """The different values of a column: one, unless the runs come from several machines or sessions."""
    return "; ".join(dict.fromkeys(line[column] for line in lines))
