"""A small detection data set made of real images: handwritten digits pasted on photographs, in COCO format.

Everything comes with scikit-learn (1,797 scanned 8x8 digits and two photographs), so nothing is downloaded. On disk it
is an ordinary COCO folder::

    <folder>/images/{train,val}/000001.png      RGB, image_size x image_size pixels
    <folder>/annotations/{train,val}.json       COCO detection json; category ids 1..10 stand for the digits 0..9
    <folder>/dataset.json                       the settings, written last: its presence means that all is there
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import FGDFileExistsError, FGDValueError
from ..files import atomic_folder

log = logging.getLogger(__name__)
# Part of dataset.json: raise it whenever the same seed would give other pixels, so that old folders are not mistaken.
RECIPE_VERSION = 1
SPLITS = ("train", "val")
PHOTO_COLUMNS = {"train": (0.0, 0.68), "val": (0.70, 1.0)}  # shares of a photograph's width, with a gap between
# Digit heights in pixels of a 128-pixel image, and how often each band is drawn: one band an FPN level of the digit
# detectors (see models.py), so that every level has objects to learn from.
SIZE_BANDS = ((14, 30), (36, 60), (68, 108))
BAND_PROBABILITIES = (0.50, 0.32, 0.18)
EMPTY_IMAGES = 0.03  # the share of images without a digit: real data has them, so training must cope with them


@dataclass(frozen=True)
class DigitsSettings:
    """What determines every pixel of the data set.

    Args:
        seed: of all random choices.
        train_images, val_images: the number of images in each split.
        image_size: height and width of every image in pixels, at least 64.
    """

    seed: int = 0
    train_images: int = 2400
    val_images: int = 400
    image_size: int = 128

    def __post_init__(self) -> None:
        if self.image_size < 64:
            raise FGDValueError(f"image_size: expected at least 64 pixels, got {self.image_size}")
        for name in ("train_images", "val_images"):
            if getattr(self, name) < 1:
                raise FGDValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


def make_digits(
    folder: str | Path,
    seed: int = 0,
    train_images: int = 2400,
    val_images: int = 400,
    image_size: int = 128,
    progress: bool = True,
) -> Path:
    """Makes the digits data set in ``folder``, or leaves it alone if it is there already, made with these settings.

    The data set is built in a temporary folder beside ``folder`` and moved into place when it is complete. A folder
    that holds only a part of a digits data set is made again.

    Args:
        folder: where it goes.
        seed: of all random choices; the same seed gives the same bytes.
        train_images: number of training images.
        val_images: number of validation images; they use other digits and other parts of the photographs.
        image_size: height and width in pixels.
        progress: whether to show a progress bar.

    Returns:
        ``folder`` as a path.

    Raises:
        ValueError: a setting is out of range.
        FileExistsError: ``folder`` holds a digits data set made with other settings, or files that are not one.
    """
    folder = Path(folder)
    settings = DigitsSettings(seed, train_images, val_images, image_size)
    if is_complete(folder, settings):
        return folder
    _refuse_foreign(folder, settings)
    if _read_manifest(folder) is not None:
        log.warning("%s: is not as it was written, and made again", folder)
    with atomic_folder(folder) as partial:
        _write_dataset(partial, settings, progress)
    return folder


def is_complete(folder: Path, settings: DigitsSettings) -> bool:
    """Whether ``folder`` holds the data set that ``settings`` describe, every file as it was written."""
    manifest = _read_manifest(folder)
    return manifest is not None and manifest == _manifest(settings) | {"sha256": _digest(folder)}


def _digest(folder: Path) -> str:
    """Over the names and contents of all images and annotations."""
    digest = hashlib.sha256()
    for path in sorted(path for part in ("annotations", "images") for path in (folder / part).rglob("*.*")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _manifest(settings: DigitsSettings) -> dict:
    return {"dataset": "digits", "recipe": RECIPE_VERSION, **asdict(settings)}


def _read_manifest(folder: Path) -> dict | None:
    try:
        found = json.loads((folder / "dataset.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _refuse_foreign(folder: Path, settings: DigitsSettings) -> None:
    """Raises unless ``folder`` is missing, empty or a broken copy of the wanted data set: only those are replaced."""
    if not folder.exists():
        return
    manifest = _read_manifest(folder)
    if manifest is not None:
        manifest.pop("sha256", None)
    if manifest is not None and manifest != _manifest(settings):
        raise FGDFileExistsError(
            f"{folder} holds a data set made with other settings: expected {_manifest(settings)}, found {manifest}; "
            "choose another folder or delete this one"
        )
    foreign = sorted({entry.name for entry in folder.iterdir()} - {"images", "annotations", "dataset.json"})
    if foreign:
        raise FGDFileExistsError(f"{folder}: expected an empty folder or a digits data set, found also {foreign[:5]}")


def _write_dataset(folder: Path, settings: DigitsSettings, progress: bool) -> None:
    digits, photos = _load_digits(settings.seed), _load_photos()
    bar = tqdm(total=settings.train_images + settings.val_images, desc="digits", unit="image", disable=not progress)
    (folder / "annotations").mkdir(parents=True)
    with bar:
        for split_index, split in enumerate(SPLITS):
            count = settings.train_images if split == "train" else settings.val_images
            (folder / "images" / split).mkdir(parents=True)
            painter = _Painter(digits[split], photos, split, settings.image_size)
            coco = _empty_coco()
            for index in range(count):
                # One generator an image: an image depends on nothing but the seed, its split and its number.
                rng = np.random.default_rng([settings.seed, split_index, index])
                pixels, source, objects = painter.paint(rng)
                name = f"{index + 1:06d}.png"
                Image.fromarray(pixels).save(folder / "images" / split / name)
                _append(coco, name, settings.image_size, source, objects)
                bar.update()
            (folder / "annotations" / f"{split}.json").write_text(json.dumps(coco))
    (folder / "dataset.json").write_text(json.dumps(_manifest(settings) | {"sha256": _digest(folder)}, indent=1))


def _load_digits(seed: int) -> dict[str, list[tuple[int, int, np.ndarray]]]:
    """(index in scikit-learn's set, digit, 8x8 ink in 0..1) for each split; the splits share no digit."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    train, val = train_test_split(np.arange(len(bunch.target)), test_size=0.3, random_state=seed, stratify=bunch.target)
    return {
        split: [(int(i), int(bunch.target[i]), bunch.images[i] / 16.0) for i in sorted(indices)]
        for split, indices in zip(SPLITS, (train, val), strict=True)
    }


def _load_photos() -> list[tuple[str, np.ndarray]]:
    from sklearn.datasets import load_sample_images

    bunch = load_sample_images()
    return [(Path(name).name, image) for name, image in zip(bunch.filenames, bunch.images, strict=True)]


class _Painter:
    """Paints one image of a split from the split's digits and its part of the photographs."""

    def __init__(self, digits: list, photos: list, split: str, image_size: int) -> None:
        self.digits, self.photos, self.size = digits, photos, image_size
        self.columns = PHOTO_COLUMNS[split]

    def paint(self, rng: np.random.Generator) -> tuple[np.ndarray, dict, list[dict]]:
        """Returns the (size, size, 3) uint8 pixels, where the background comes from, and the objects."""
        canvas, source = self._background(rng)
        objects: list[dict] = []
        wanted = 0 if rng.random() < EMPTY_IMAGES else int(rng.integers(2, 7))
        # Large digits first: they find room only while the image is empty.
        bands = sorted(rng.choice(len(SIZE_BANDS), size=wanted, p=BAND_PROBABILITIES), reverse=True)
        for band in bands:
            placed = self._place(canvas, SIZE_BANDS[band], [o["bbox"] for o in objects], rng)
            if placed is not None:
                objects.append(placed)
        return canvas.round().astype(np.uint8), source, objects

    def _background(self, rng: np.random.Generator) -> tuple[np.ndarray, dict]:
        name, photo = self.photos[rng.integers(len(self.photos))]
        height, width = photo.shape[:2]
        left, right = (int(share * width) for share in self.columns)
        side = int(rng.integers(80, min(right - left, height) + 1))
        x, y = int(rng.integers(left, right - side + 1)), int(rng.integers(0, height - side + 1))
        crop = Image.fromarray(photo[y : y + side, x : x + side])
        pixels = np.asarray(crop.resize((self.size, self.size), Image.Resampling.BILINEAR), dtype=np.float64)
        return pixels.copy(), {"photo": name, "crop": [x, y, side, side]}

    def _place(self, canvas: np.ndarray, band: tuple[int, int], taken: list, rng: np.random.Generator) -> dict | None:
        """Pastes one digit where it hides none of the others; None if ten tries find no room."""
        index, digit, ink = self.digits[rng.integers(len(self.digits))]
        height = round(rng.uniform(*band) * self.size / 128)
        alpha = _render(ink, height, rng.uniform(-15.0, 15.0))
        rows, columns = np.flatnonzero((alpha > 0.3).any(axis=1)), np.flatnonzero((alpha > 0.3).any(axis=0))
        alpha = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        h, w = alpha.shape
        if h > self.size or w > self.size:
            return None
        for _ in range(10):
            x, y = int(rng.integers(0, self.size - w + 1)), int(rng.integers(0, self.size - h + 1))
            if not any(_overlap((x, y, w, h), other) for other in taken):
                patch = canvas[y : y + h, x : x + w]
                patch += alpha[..., None] * (_colour(patch, rng) - patch)
                return {"bbox": [x, y, w, h], "category_id": digit + 1, "digit_index": index}
        return None


def _render(ink: np.ndarray, height: int, degrees: float) -> np.ndarray:
    """The 8x8 ink, scaled to ``height`` pixels and rotated, as opacity in 0..1."""
    image = Image.fromarray((ink * 255).astype(np.uint8)).resize((height, height), Image.Resampling.BICUBIC)
    turned = image.rotate(degrees, resample=Image.Resampling.BILINEAR, expand=True)
    # Steeper than the blurred scan, so that a digit has an edge at every size.
    return np.clip((np.asarray(turned, dtype=np.float64) / 255 - 0.15) * 1.8, 0.0, 1.0)


def _colour(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random colour whose brightness differs from the patch's, so that the digit can be seen at all."""
    background = patch.mean()
    colour = rng.uniform(0, 255, size=3)
    if abs(colour.mean() - background) < 45:
        colour = colour * 0.35 if background > 127 else 255 - (255 - colour) * 0.35
    return colour


def _overlap(a: tuple, b: tuple) -> bool:
    """Whether two xywh boxes share a pixel."""
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _empty_coco() -> dict:
    categories = [{"id": digit + 1, "name": str(digit), "supercategory": "digit"} for digit in range(10)]
    return {"info": {"description": "digits on photographs"}, "images": [], "annotations": [], "categories": categories}


def _append(coco: dict, name: str, size: int, source: dict, objects: list[dict]) -> None:
    image_id = len(coco["images"]) + 1
    coco["images"].append({"id": image_id, "file_name": name, "height": size, "width": size, "source": source})
    for item in objects:
        x, y, w, h = item["bbox"]
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        coco["annotations"].append(
            {"id": len(coco["annotations"]) + 1, "image_id": image_id, "area": w * h, "iscrowd": 0, **item}
            | {"segmentation": [corners]}
        )
