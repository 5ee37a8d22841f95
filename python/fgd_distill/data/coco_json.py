"""Reading a COCO detection json as other tools write it: made right where that is unambiguous, else refused by name.

pycocotools takes a file at its word: with annotation ids that begin anew in every image (CVAT, TACO and merged files
have them) it hands out another image's boxes, and an annotation with the id 0 counts as unmatched. So annotations are
numbered anew, numbers written as strings become numbers, and what is left out is filled in.
"""

from __future__ import annotations

import json
import logging
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import FGDOSError, FGDValueError

log = logging.getLogger("fgd_distill.data")
Entry = dict[str, Any]
LARGEST_ID = 2**63 - 1  # of torch's integers
LARGEST_COORDINATE = 1e9  # no image has as many pixels in a row; pycocotools ignores objects above 1e10 pixels


def read_coco_json(path: Path, annotated: bool = True) -> dict[str, Any]:
    """The content of a COCO detection json, with integer ids and annotations numbered from 1.

    Args:
        path: of the json.
        annotated: whether there must be annotations and categories; images alone do for a prediction.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or an entry makes no sense; the message names file, entry and remedy.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise FGDOSError(f"{path}: expected a COCO detection json, could not open it: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FGDValueError(
            f"{path}: expected a COCO detection json in UTF-8, could not read it: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(content, dict):
        raise FGDValueError(f"{path}: expected a COCO detection json, got a {type(content).__name__} at its top")
    for key in ("images", "annotations", "categories"):
        entries = content.setdefault(key, []) if key != "images" and not annotated else content.get(key)
        if not isinstance(entries, list):
            got = f"missing are the keys ['{key}']" if key not in content else f"{key} is {shown(entries)}"
            raise FGDValueError(f"{path}: expected a COCO detection json with lists of entries, {got}")
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise FGDValueError(
                    f"{path}: expected a COCO detection json, whose {key}[{index}] is an object, got {shown(entry)}"
                )
    _Cleaner(path).clean(content)
    return content


class _Cleaner:
    """The checks of one file, which all name it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.converted: Counter[str] = Counter()
        """By field, how many numbers were written as something else, or were left out and could be filled in."""

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
        if +self.converted:
            told = ", ".join(f"{count} x {field}" for field, count in (+self.converted).items())
            log.warning("%s: converted or filled in: %s", self.path, told)

    def _image(self, image: Entry, where: str) -> None:
        image["id"] = self._id(image, "id", where)
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            raise FGDValueError(f"{self.path}: expected a file_name of every image, got {shown(name)} in {where}")
        for key in ("width", "height"):
            if image.get(key) is None:
                image.pop(key, None)
                continue
            size = _integer(image[key])
            if size is None or size < 1:
                raise FGDValueError(
                    f"{self.path}: expected {key} in {where} ({shown(name)}) to be a number of pixels, "
                    f"got {shown(image[key])}; leave it out where it is not known"
                )
            image[key] = size

    def _annotation(self, annotation: Entry, where: str, categories: set[int]) -> None:
        named = f"annotation {annotation.get('id')} ({where})"
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list) and segmentation and not any(isinstance(part, list) for part in segmentation):
            annotation["segmentation"] = [
                segmentation
            ]  # VIA writes the numbers of a polygon without a list around them
        box = annotation["bbox"] = self._box(annotation, named)
        annotation["image_id"] = self._id(annotation, "image_id", named)
        annotation["category_id"] = self._id(annotation, "category_id", named)
        if annotation["category_id"] not in categories:
            raise FGDValueError(
                f"{self.path}: {named} has category_id {annotation['category_id']}, which is not among the categories"
            )
        crowd = annotation.get("iscrowd")
        annotation["iscrowd"] = 0 if crowd is None else _integer(int(crowd) if isinstance(crowd, bool) else crowd)
        if annotation["iscrowd"] not in (0, 1):
            raise FGDValueError(f"{self.path}: expected iscrowd 0 or 1 in {named}, got {shown(crowd)}")
        area = annotation.get("area")
        if area is not None and _number(area) is None:
            raise FGDValueError(
                f"{self.path}: expected area to be a finite number in {named}, got {shown(area)}; leave it out, and it "
                "is the box's"
            )
        # pycocotools ignores objects of a negative area, and sorts small and large ones by it.
        annotation["area"] = _number(area) or 0
        if annotation["area"] <= 0:
            self.converted["annotations.area"] += area is not None
            annotation["area"] = box[2] * box[3]

    def _box(self, annotation: Entry, named: str) -> list[float]:
        box: Any = annotation.get("bbox")
        if box in (None, []) and (corners := _corners(annotation.get("segmentation"))):
            xs, ys = corners[0::2], corners[1::2]
            self.converted["annotations.bbox from polygons"] += 1
            return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        numbers = [_number(value) for value in box] if isinstance(box, list) else []
        finite = [number for number in numbers if number is not None]
        if not len(finite) == len(numbers) == 4:
            raise FGDValueError(
                f"{self.path}: expected bbox [x, y, width, height] of finite numbers in {named}, got {shown(box)}; "
                "mend the box, or leave the annotation out"
            )
        self.converted["annotations.bbox"] += finite != box
        return finite

    def _id(self, entry: Entry, key: str, where: str) -> int:
        value = entry.get(key)
        number = _integer(value)
        if number is None:
            raise FGDValueError(
                f"{self.path}: expected a COCO detection json with an integer {key} in {where}, got {shown(value)}; "
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


def category_names(content: dict[str, Any]) -> dict[int, str | None]:
    """By id, the names of a file's categories; None where one has no name."""
    names = {category["id"]: category.get("name") for category in content["categories"]}
    return {number: None if name is None else str(name) for number, name in names.items()}


def check_same_categories(
    known: dict[int, str | None], source: str | Path, content: dict[str, Any], path: Path
) -> None:
    """Raises ValueError where an id means another category than in training, or one that training does not have.

    Args:
        known: names of the training's categories, by id.
        source: where they come from, for the message.
        content: of the file to compare.
        path: of that file.
    """
    used = {annotation["category_id"] for annotation in content["annotations"]}
    differs = []
    for number, name in category_names(content).items():
        if number not in known:
            if number in used:
                differs.append(f"{number} is {name!r} here only")
        else:
            theirs = known[number]
            if name is not None and theirs is not None and _plain(name) != _plain(theirs):
                differs.append(f"{number} is {theirs!r} there and {name!r} here")
    if differs:
        raise FGDValueError(
            f"{path}: expected the categories of {source}, {len(differs)} differ: {'; '.join(differs[:4])}; "
            "write all files with one list of categories"
        )


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def _integer(value: object) -> int | None:
    """The integer that a value unambiguously is: 7, 7.0 or "7"; None for everything else."""
    number: object = value
    if isinstance(value, float):
        number = int(value) if value.is_integer() and abs(value) < 2**53 else None  # above, floats leave integers out
    elif isinstance(value, str):
        number = int(value) if len(value) < 30 and value.strip().removeprefix("-").isdecimal() else None
    return number if type(number) is int and abs(number) <= LARGEST_ID else None


def _number(value: object) -> float | None:
    """The number that a value is, or is the text of; None for everything else, and beyond any image."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < LARGEST_COORDINATE else None  # nan is not, either


def _corners(segmentation: object) -> list[float]:
    """x and y of all corners of an annotation's polygons; none where it has no polygons."""
    polygons = segmentation if isinstance(segmentation, list) else []
    flat = [value for polygon in polygons if isinstance(polygon, list) for value in polygon]
    numbers = [number for value in flat if (number := _number(value)) is not None]
    return numbers if len(numbers) == len(flat) and len(flat) >= 6 and len(flat) % 2 == 0 else []


def shown(value: object) -> str:
    """A value for a message, cut to a length that a line takes."""
    shown = repr(value)
    return shown if len(shown) < 80 else f"{shown[:77]}..."
