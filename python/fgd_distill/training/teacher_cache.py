"""The teacher's feature maps on disk, so that it sees each image once instead of once an epoch.

Cached maps are right only as long as the teacher gets the same pixels. So everything that they depend on is compared:
the teacher's weights and the tapped layers (a fingerprint in ``cache.json``), the size of the padded batch, and the
image itself, by a thumbnail of 8 x 8 pixels stored beside its maps. Where an image may come in several forms, mirrored
for instance, each form has an entry, which is named by a checksum of all its pixels.

An entry is a file of plain numbers: what it belongs to, a checksum, the thumbnail, the maps. Whatever does not fit, for
whatever reason, is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FGDFileExistsError, FGDOSError, FGDTypeError, FGDValueError
from ..files import remove_stale, write_bytes, write_text, writing
from ..processes import process_rank

log = logging.getLogger(__name__)
MANIFEST, MAPS = "cache.json", "maps"
THUMBNAIL = (3, 8, 8)  # float32


@dataclass
class CacheConfig:
    """Where and how the teacher's feature maps are kept.

    Args:
        folder: of the cache; made if it is missing. It serves one teacher, one choice of layers and one batch size in
            pixels.
        dtype: the type to store; the training sees the rounded values from the first epoch on.
        max_gb: refuses before anything is written if the whole cache would need more gigabytes. These have 10^9 bytes.
        forms: in how many forms an image may come, each the same pixel for pixel whenever it comes. 2 where the
            training mirrors images at random, 4 where it also turns them upside down. The cache is as many times as
            large.

    Raises:
        TypeError, ValueError: ``forms`` is not a whole number from 1 on.
    """

    folder: str
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    max_gb: float = 50.0
    forms: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.forms, bool) or not isinstance(self.forms, int):
            raise FGDTypeError(f"teacher_cache.forms: expected a whole number, got {self.forms!r}")
        if self.forms < 1:
            raise FGDValueError(f"teacher_cache.forms: expected 1 or more, got {self.forms}")


def teacher_fingerprint(teacher: nn.Module, layers: Sequence[str]) -> dict[str, Any]:
    """What feature maps depend on beside the image: a hash over all weights, and the layers' names."""
    digest = hashlib.sha256()
    for name, value in sorted(teacher.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {"teacher": digest.hexdigest(), "layers": list(layers)}


class TeacherCache:
    """The ``teacher_cache`` of ``DetectionDistiller``, in a folder: one file an image.

    Args:
        config: folder, type and limit.
        fingerprint: of the teacher, by ``teacher_fingerprint``.
        images: how many images the training has, for the size that is told before anything is written.

    Raises:
        ValueError: the folder holds maps of another teacher, of other layers or in another type.
        FileExistsError: the folder holds something else.
    """

    def __init__(self, config: CacheConfig, fingerprint: dict[str, Any], images: int) -> None:
        self.config, self.images = config, images
        self.folder = Path(config.folder)
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        several = {"forms": config.forms} if config.forms > 1 else {}
        self.manifest = {**fingerprint, "dtype": config.dtype, **several}
        self.frame: list[int] | None = None
        """Height and width of the padded batch, in pixels."""
        self.shapes: list[list[int]] = []
        """(C, H, W) of each level, as soon as ``frame`` is known."""
        if self.folder.exists() and not self.folder.is_dir():
            raise FGDFileExistsError(f"{self.folder}: expected a folder or none yet, found a file")
        remove_stale(self.folder)
        remove_stale(self.folder / MAPS)
        found = self._stored_manifest()
        if found is not None:
            self._compare(found)
        elif self.folder.exists() and {path.name for path in self.folder.iterdir()} - {MANIFEST, MAPS}:
            raise FGDFileExistsError(f"{self.folder}: expected an empty folder or a teacher cache, found other files")
        if process_rank()[0] == 0:
            self._remove_older_entries()
        self.known: defaultdict[str, set[str]] = defaultdict(set)
        """The forms of each image that have an entry, where there may be several."""
        if config.forms > 1:
            for path in (self.folder / MAPS).glob("*-*.maps"):
                image, _, form = path.stem.rpartition("-")
                self.known[image].add(form)

    def _remove_older_entries(self) -> None:
        """Those of a version before the first release, which stored entries by torch.save, are read by none since."""
        older = [path for path in (self.folder / MAPS).glob("*.pt") if path.stem.lstrip("-").isdigit()]
        if older:
            size = sum(path.stat().st_size for path in older)
            log.warning(
                "teacher cache: %s: %d entries (%.3g GB) of an earlier version's format are removed; their maps are "
                "made again",
                self.folder / MAPS,
                len(older),
                size / 1e9,
            )
        for path in older:
            path.unlink(missing_ok=True)

    def _stored_manifest(self) -> dict[str, Any] | None:
        path = self.folder / MANIFEST
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_bytes())
            if found.pop("checksum") == _checksum(found):
                return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass  # not JSON, or of another structure
        self._unfit(path, "it is damaged")
        return None

    def _compare(self, found: dict[str, Any]) -> None:
        differs = [key for key in {**self.manifest, "forms": None} if found.get(key) != self.manifest.get(key)]
        if differs:
            told = "; ".join(f"{key}: {found.get(key)} there, {self.manifest.get(key)} here" for key in differs)
            raise FGDValueError(
                f"{self.folder}: holds the feature maps of another set-up ({told}); choose another folder for the "
                "teacher cache, or delete this one"
            )
        self.frame, self.shapes = found["frame"], found["shapes"]

    def features(self, batch: Tensor, targets: Any, compute: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """The teacher's maps for a batch, from disk where it was there before.

        Args:
            batch: (N, 3, H, W), as the student's backbone gets it; H and W the same in every call.
            targets: one mapping an image, with its ``image_id``.
            compute: runs the teacher on some images of the batch.

        Returns:
            one (N, C, H, W) a level, of the stored type, on the batch's device.

        Raises:
            ValueError: H and W change, an image looks different from before, or a value does not fit the type.
            OSError: the cache would be larger than allowed, or than the disk has room for.
        """
        ids = [int(target["image_id"]) for target in targets]
        self._check_frame(list(batch.shape[-2:]))
        thumbnails = F.adaptive_avg_pool2d(batch.detach().float(), 8).cpu()
        names = [self._name(image_id, image) for image_id, image in zip(ids, batch, strict=True)]
        maps = [self._read(*entry) for entry in zip(names, ids, thumbnails, strict=True)]
        missing = [place for place, levels in enumerate(maps) if levels is None]
        if missing:
            fresh = compute(batch if len(missing) == len(ids) else batch[missing])
            self._begin(fresh, list(batch.shape[-2:]))
            for row, place in enumerate(missing):
                rounded = maps[place] = [self._rounded(level[row], ids[place]) for level in fresh]
                self._write(names[place], ids[place], rounded, thumbnails[place])
        return [torch.stack(level).to(batch.device) for level in zip(*maps, strict=True)]

    def _check_frame(self, frame: list[int]) -> None:
        if self.frame is not None and frame != self.frame:
            raise FGDValueError(
                f"teacher cache: expected batches of {self.frame[0]}x{self.frame[1]} pixels as before, got "
                f"{frame[0]}x{frame[1]}; an image's maps depend on its batch's padding, so the detector needs one "
                "size, such as student.options: {fixed_size: [width, height]}"
            )

    def _begin(self, fresh: list[Tensor], frame: list[int]) -> None:
        """Before the first write: tells the size, refuses what has no room, and writes what the maps belong to."""
        if self.frame is not None:
            return
        size = self.images * self.config.forms * sum(level[0].numel() for level in fresh) * self.dtype.itemsize
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        told = f"{self.images} images in {self.folder} need {size / 1e9:.3g} GB as {self.config.dtype}"
        if size > min(free, self.config.max_gb * 1e9):
            raise FGDOSError(f"teacher cache: {told}; max_gb is {self.config.max_gb:g}, free are {free / 1e9:.3g} GB")
        if process_rank()[0] == 0:
            print(f"teacher cache: {told}; free are {free / 1e9:.3g} GB", flush=True)
        self.frame, self.shapes = frame, [list(level.shape[1:]) for level in fresh]
        content = {**self.manifest, "frame": frame, "shapes": self.shapes}
        write_text(self.folder / MANIFEST, json.dumps({**content, "checksum": _checksum(content)}, indent=2))

    def _name(self, image_id: int, image: Tensor) -> str:
        """Of an image's entry: its number, and if there are several forms, which of them it is."""
        if self.config.forms == 1:
            return str(image_id)
        form, known = f"{zlib.crc32(_as_bytes(image.detach().cpu()).numpy().data):08x}", self.known[str(image_id)]
        known.add(form)
        if len(known) > self.config.forms:
            raise FGDValueError(
                f"teacher cache: image {image_id} came in {len(known)} forms, teacher_cache.forms is "
                f"{self.config.forms}; beside the mirroring that it counts there may be no random train_transforms and "
                "no random sizes"
            )
        return f"{image_id}-{form}"

    def _path(self, name: str) -> Path:
        return self.folder / MAPS / f"{name}.maps"

    def _read(self, name: str, image_id: int, thumbnail: Tensor) -> list[Tensor] | None:
        path = self._path(name)
        if self.frame is None or not path.is_file():
            return None
        owner = self._owner(image_id)
        sizes = [len(owner), 4, 4 * math.prod(THUMBNAIL)]
        sizes += [math.prod(shape) * self.dtype.itemsize for shape in self.shapes]
        try:
            content = np.fromfile(path, np.uint8)
        except OSError as error:
            self._unfit(path, error.strerror or str(error))
            return None
        if len(content) != sum(sizes):
            self._unfit(path, f"it has {len(content):,} bytes instead of {sum(sizes):,}")
            return None
        head, crc, view, *levels = torch.from_numpy(content).split(sizes)
        if head.numpy().tobytes() != owner or crc.numpy().tobytes() != _crc(owner, [view, *levels]):
            self._unfit(path, "it is damaged, or belongs to another cache or image")
            return None
        if not torch.allclose(view.view(torch.float32).view(THUMBNAIL), thumbnail, rtol=0, atol=1e-3):
            raise FGDValueError(
                f"teacher cache: image {image_id} looks different from when its maps were stored in {self.folder}; "
                "the cache needs the same pixels in every epoch: no random train_transforms but mirroring, with "
                "teacher_cache.forms 2 or 4, and no random sizes"
            )
        return [level.view(self.dtype).view(shape) for level, shape in zip(levels, self.shapes, strict=True)]

    def _unfit(self, path: Path, reason: str) -> None:
        log.warning("teacher cache: %s is made again: %s", path, reason)

    def _owner(self, image_id: int) -> bytes:
        """What an entry belongs to, 16 bytes: the teacher, layers, type, frame and shapes, and the image."""
        whose = {**self.manifest, "frame": self.frame, "shapes": self.shapes, "image": image_id}
        return hashlib.blake2b(json.dumps(whose, sort_keys=True).encode(), digest_size=16).digest()

    def _rounded(self, level: Tensor, image_id: int) -> Tensor:
        rounded = level.detach().to("cpu", self.dtype)
        if not rounded.isfinite().all():
            raise FGDValueError(
                f"teacher cache: a feature of image {image_id} is not finite in {self.config.dtype}; "
                "use bfloat16 or float32"
            )
        return rounded

    def _write(self, name: str, image_id: int, maps: list[Tensor], thumbnail: Tensor) -> None:
        owner, parts = self._owner(image_id), [_as_bytes(part) for part in (thumbnail, *maps)]
        # Folders of many entries are not listed for each of them: the stale ones were removed at the beginning.
        write_bytes(self._path(name), owner, _crc(owner, parts), *(part.numpy() for part in parts), tidy=False)


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _crc(owner: bytes, parts: Sequence[Tensor]) -> bytes:
    crc = zlib.crc32(owner)
    for part in parts:
        crc = zlib.crc32(part.numpy().data, crc)
    return crc.to_bytes(4, "little")


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
