"""Reading a COCO detection json as other tools write it: made right where that is unambiguous, else refused by name.

pycocotools takes a file at its word: with annotation ids that begin anew in every image (CVAT, TACO and merged files
have them) it hands out another image's boxes, and an annotation with the id 0 counts as unmatched. So annotations are
numbered anew, ids written as strings become numbers, and what is left out is filled in.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import FGDValueError

log = logging.getLogger("fgd_distill.data")
Entry = dict[str, Any]


def read_coco_json(path: Path) -> dict[str, Any]:
    """The content of a COCO detection json, with integer ids and annotations numbered from 1.

    Raises:
        ValueError: it is no such file, or an entry makes no sense; the message names file, entry and remedy.
    """
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FGDValueError(f"{path}: expected a COCO detection json, could not read it: {error!r}") from error
    if not isinstance(content, dict):
        raise FGDValueError(f"{path}: expected a COCO detection json, got a {type(content).__name__} at its top")
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list):
            got = f"missing are the keys ['{key}']" if key not in content else f"{key} is {_shown(entries)}"
            raise FGDValueError(f"{path}: expected a COCO detection json with lists of entries, {got}")
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise FGDValueError(
                    f"{path}: expected a COCO detection json, whose {key}[{index}] is an object, got {_shown(entry)}"
                )
    _Cleaner(path).clean(content)
    return content


class _Cleaner:
    """The checks of one file, which all name it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.converted: Counter[str] = Counter()
        """By field, how many ids were written as something else than an integer."""

    def clean(self, content: dict[str, Any]) -> None:
        for index, image in enumerate(content["images"]):
            self._image(image, f"images[{index}]")
        for index, category in enumerate(content["categories"]):
            category["id"] = self._id(category, "id", f"categories[{index}]")
        self._unique(content["images"], "images", "file_name")
        self._unique(content["categories"], "categories", "name")
        categories = {category["id"] for category in content["categories"]}
        for index, annotation in enumerate(content["annotations"]):
            self._annotation(annotation, f"annotations[{index}]", categories)
            annotation["id"] = index + 1
        if self.converted:
            told = ", ".join(f"{count} x {field}" for field, count in self.converted.items())
            log.warning("%s: ids that are no integers were converted: %s", self.path, told)

    def _image(self, image: Entry, where: str) -> None:
        image["id"] = self._id(image, "id", where)
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            raise FGDValueError(f"{self.path}: expected a file_name of every image, got {_shown(name)} in {where}")
        for key in ("width", "height"):
            if image.get(key) is None:
                image.pop(key, None)
                continue
            size = _integer(image[key])
            if size is None or size < 1:
                raise FGDValueError(
                    f"{self.path}: expected {key} in {where} ({name}) to be a number of pixels, "
                    f"got {_shown(image[key])}"
                )
            image[key] = size

    def _annotation(self, annotation: Entry, where: str, categories: set[int]) -> None:
        named = f"annotation {annotation.get('id')} ({where})"
        box: Any = annotation.get("bbox")
        if not _is_box(box):
            raise FGDValueError(
                f"{self.path}: expected bbox [x, y, width, height] of finite numbers in {named}, got {_shown(box)}"
            )
        annotation["image_id"] = self._id(annotation, "image_id", named)
        annotation["category_id"] = self._id(annotation, "category_id", named)
        if annotation["category_id"] not in categories:
            raise FGDValueError(
                f"{self.path}: {named} has category_id {annotation['category_id']}, which is not among the categories"
            )
        crowd = annotation.get("iscrowd")
        annotation["iscrowd"] = 0 if crowd is None else _integer(int(crowd) if isinstance(crowd, bool) else crowd)
        if annotation["iscrowd"] not in (0, 1):
            raise FGDValueError(f"{self.path}: expected iscrowd 0 or 1 in {named}, got {_shown(crowd)}")
        area = annotation.get("area")
        if area is None:
            annotation["area"] = box[2] * box[3]
        elif not _is_number(area):
            raise FGDValueError(f"{self.path}: expected area to be a finite number in {named}, got {_shown(area)}")

    def _id(self, entry: Entry, key: str, where: str) -> int:
        value = entry.get(key)
        number = _integer(value)
        if number is None:
            raise FGDValueError(
                f"{self.path}: expected a COCO detection json with an integer {key} in {where}, got {_shown(value)}; "
                "number images and categories, and refer to them by their numbers"
            )
        if type(value) is not int:
            self.converted[f"{where.split('[')[0]}.{key}" if "(" not in where else f"annotations.{key}"] += 1
        return number

    def _unique(self, entries: list[Entry], key: str, name: str) -> None:
        counts = Counter(entry["id"] for entry in entries)
        twice = [value for value, count in counts.items() if count > 1]
        if twice:
            names = [entry.get(name) for entry in entries if entry["id"] == twice[0]]
            raise FGDValueError(
                f"{self.path}: expected every id in {key} once, got {len(twice)} more than once, such as {twice[0]} of "
                f"{names[:3]}; give each its own and let annotations refer to it"
            )


def check_same_categories(train: dict[str, Any], train_path: Path, val: dict[str, Any], val_path: Path) -> None:
    """Raises ValueError where an id means another category in validation, or one that training does not have.

    Args:
        train, val: contents of two files; their paths, for the message.
    """
    theirs = {category["id"]: category.get("name") for category in train["categories"]}
    used = {annotation["category_id"] for annotation in val["annotations"]}
    differs = []
    for category in val["categories"]:
        number, name = category["id"], category.get("name")
        if number not in theirs:
            if number in used:
                differs.append(f"{number} is {name!r} in validation only")
        elif None not in (name, theirs[number]) and str(name).strip() != str(theirs[number]).strip():
            differs.append(f"{number} is {theirs[number]!r} in training and {name!r} in validation")
    if differs:
        raise FGDValueError(
            f"{val_path}: expected the categories of {train_path}, {len(differs)} differ: {'; '.join(differs[:4])}; "
            "write both files with one list of categories"
        )


def _integer(value: object) -> int | None:
    """The integer that a value unambiguously is: 7, 7.0 or "7"; None for everything else."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().removeprefix("-").isdecimal():
        return int(value)
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_box(box: object) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) < 80 else f"{shown[:77]}..."
