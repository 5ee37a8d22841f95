"""``fgd-distill errors``: which errors cost how much precision, for one file of detections or several."""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from fgd_kernels.boxes import is_integer

from ..data.coco_json import read_coco_json, shown
from ..data.error_analysis import KINDS, SIZES, ErrorCurves, error_curves
from ..errors import FGDFileNotFoundError, FGDValueError
from ..files import write_text
from ..pictures.error_areas import draw_errors
from ..pictures.style import check_png, labelled, save
from ..text_table import aligned

Groups = dict[tuple[str, str], list[int]]


def errors(
    annotations: str, results: list[str] | dict[str, str], group: str = "all", output: str = "errors.png"
) -> None:
    """Analyses the errors of detections as COCO does: precision-recall areas of C75, C50, Loc, Sim, Oth, BG and FN.

    Each forgives more than the one before it: localisation, categories of the same supercategory, other categories,
    the background, and objects that were missed. The differences tell what a kind of error costs. Prints them for all
    categories by size, and for each supercategory and category; draws the curves; and writes all of it as CSV beside
    the picture.

    Args:
        annotations: a COCO detection json.
        results: COCO result files of boxes, as predict writes them, on the images of the annotations.
        group: all, a category or a supercategory: whose curves are drawn.
        output: the PNG file to write; the CSV has the same name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file of another format, detections of images or categories that the annotations do not have, or
            an unknown group.
    """
    check_png(output)
    paths = labelled(results, "results")
    ground_truth = objects_of(Path(annotations))
    analyses = {label: error_curves(ground_truth, detections(ground_truth, path)) for label, path in paths.items()}
    groups = next(iter(analyses.values())).groups()
    chosen = _group(group, groups)
    print("\n".join(aligned(_table(analyses, groups))))
    write_text(Path(output).with_suffix(".csv"), _csv(analyses, groups))
    save(draw_errors(analyses, chosen), output)


def _existing(path: Path, expected: str) -> Path:
    if not path.is_file():
        raise FGDFileNotFoundError(f"{path}: expected {expected}, found no file there")
    return path


def objects_of(path: Path) -> COCO:
    """The annotations of a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no COCO detection json, or has no annotations.
    """
    _existing(path, "a COCO detection json")
    content = read_coco_json(path)
    if not content["annotations"]:
        raise FGDValueError(f"{path}: expected annotations, it has none")
    ground_truth = COCO()
    ground_truth.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth.createIndex()
    return ground_truth


def detections(ground_truth: COCO, path: Path) -> COCO:
    """The detections of a result file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is none, or of other images or categories.
    """
    _existing(path, "a COCO result file")
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FGDValueError(f"{path}: expected a COCO result file, could not read it: {error}") from error
    if not isinstance(rows, list):
        raise FGDValueError(f"{path}: expected a COCO result file, a list of detections, got a {type(rows).__name__}")
    for index, row in enumerate(rows):
        _check_detection(ground_truth, row, f"{path}: detection {index}")
    found = COCO()
    # Not by loadRes, which refuses an empty list and takes masks where there are boxes without them.
    found.dataset = {
        "images": ground_truth.dataset["images"],
        "categories": ground_truth.dataset["categories"],
        "annotations": [
            {**row, "id": index, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
            for index, row in enumerate(rows, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
    return found


def _check_detection(ground_truth: COCO, row: Any, told: str) -> None:
    if not isinstance(row, dict) or not {"image_id", "category_id", "bbox", "score"} <= row.keys():
        raise FGDValueError(f"{told}: expected image_id, category_id, bbox and score, got {shown(row)}")
    for key, known in (("image_id", ground_truth.imgs), ("category_id", ground_truth.cats)):
        if not is_integer(row[key]) or row[key] not in known:
            raise FGDValueError(f"{told}: expected an {key} of the annotations, got {shown(row[key])}")
    box = row["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in (*box, row["score"])):
        raise FGDValueError(
            f"{told}: expected four finite numbers as bbox and one as score, got {shown(box)} and {shown(row['score'])}"
        )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _group(name: str, groups: Groups) -> tuple[str, str]:
    for key in groups:
        if key[1] == name:
            return key
    close = difflib.get_close_matches(name, [known for _, known in groups], n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise FGDValueError(f"group: expected all, a category or a supercategory of the annotations, got {name!r}{meant}")


def _table(analyses: Mapping[str, ErrorCurves], groups: Groups) -> list[list[str]]:
    """All sizes of all categories, then each group over all sizes; the files side by side, one line each."""
    rows = [["of", "size", "results", *KINDS]]
    for key, members in groups.items():
        for size, named in enumerate(SIZES if key[0] == "all" else SIZES[:1]):
            for label, found in analyses.items():
                cells = ["-" if np.isnan(area) else f"{area:.3f}" for area in found.areas(members)[:, size]]
                rows.append([f"{key[1]}" if key[0] == "all" else f"{key[0]} {key[1]}", named, label, *cells])
    return rows


def _csv(analyses: Mapping[str, ErrorCurves], groups: Groups) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["results", "kind", "group", "size", *KINDS])
    for label, found in analyses.items():
        for (kind, name), members in groups.items():
            for size, column in zip(SIZES, found.areas(members).T, strict=True):
                writer.writerow([label, kind, name, size, *("" if np.isnan(a) else f"{a:.6f}" for a in column)])
    return text.getvalue()
