"""The teacher's feature maps on disk, so that it sees each image once instead of once an epoch.

Cached maps are right only as long as the teacher gets the same pixels. So everything that they depend on is compared:
the teacher's weights and the tapped layers (a fingerprint in ``cache.json``), the size of the padded batch, and the
image itself, by a thumbnail of 8 x 8 pixels stored beside its maps.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FGDFileExistsError, FGDOSError, FGDValueError
from ..files import atomic_write
from ..processes import process_rank

log = logging.getLogger(__name__)
MANIFEST = "cache.json"


@dataclass
class CacheConfig:
    """Where and how the teacher's feature maps are kept.

    Args:
        folder: of the cache; made if it is missing. It serves one teacher, one choice of layers and one batch size in
            pixels.
        dtype: the type to store; the training sees the rounded values from the first epoch on.
        max_gb: refuses before anything is written if the whole cache would need more gigabytes (10^9 bytes).
    """

    folder: str
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    max_gb: float = 50.0


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
        self.manifest = {**fingerprint, "dtype": config.dtype}
        self.frame: list[int] | None = None
        """Height and width of the padded batch, in pixels."""
        if (self.folder / MANIFEST).is_file():
            self._compare(json.loads((self.folder / MANIFEST).read_text()))
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise FGDFileExistsError(f"{self.folder}: expected an empty folder or a teacher cache, found other files")

    def _compare(self, found: dict[str, Any]) -> None:
        differs = [key for key, value in self.manifest.items() if found.get(key) != value]
        if differs:
            told = "; ".join(f"{key}: {found.get(key)} there, {self.manifest[key]} here" for key in differs)
            raise FGDValueError(
                f"{self.folder}: holds the feature maps of another set-up ({told}); choose another folder for the "
                "teacher cache, or delete this one"
            )
        self.frame = found["frame"]

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
        maps = [self._read(image_id, view) for image_id, view in zip(ids, thumbnails, strict=True)]
        missing = [place for place, levels in enumerate(maps) if levels is None]
        if missing:
            fresh = compute(batch if len(missing) == len(ids) else batch[missing])
            self._begin(fresh, list(batch.shape[-2:]))
            for row, place in enumerate(missing):
                rounded = maps[place] = [self._rounded(level[row], ids[place]) for level in fresh]
                self._write(ids[place], rounded, thumbnails[place])
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
        size = self.images * sum(level[0].numel() for level in fresh) * self.dtype.itemsize
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        told = f"{self.images} images in {self.folder} need {size / 1e9:.3g} GB as {self.config.dtype}"
        if size > min(free, self.config.max_gb * 1e9):
            raise FGDOSError(f"teacher cache: {told}; max_gb is {self.config.max_gb:g}, free are {free / 1e9:.3g} GB")
        if process_rank()[0] == 0:
            print(f"teacher cache: {told}; free are {free / 1e9:.3g} GB", flush=True)
        self.frame = frame
        text = json.dumps({**self.manifest, "frame": frame}, indent=2)
        atomic_write(self.folder / MANIFEST, lambda temporary: temporary.write_text(text))

    def _path(self, image_id: int) -> Path:
        return self.folder / "maps" / f"{image_id}.pt"

    def _read(self, image_id: int, thumbnail: Tensor) -> list[Tensor] | None:
        path = self._path(image_id)
        if self.frame is None or not path.is_file():
            return None
        try:
            stored = torch.load(path, weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            log.warning("teacher cache: %s is damaged and made again: %s", path, error)
            return None
        if not torch.allclose(stored["thumbnail"], thumbnail, rtol=0, atol=1e-3):
            raise FGDValueError(
                f"teacher cache: image {image_id} looks different from when its maps were stored in {self.folder}; "
                "the cache needs the same pixels in every epoch: no random train_transforms, no random sizes"
            )
        return stored["maps"]

    def _rounded(self, level: Tensor, image_id: int) -> Tensor:
        rounded = level.detach().to("cpu", self.dtype)
        if not rounded.isfinite().all():
            raise FGDValueError(
                f"teacher cache: a feature of image {image_id} is not finite in {self.config.dtype}; "
                "use bfloat16 or float32"
            )
        return rounded

    def _write(self, image_id: int, maps: list[Tensor], thumbnail: Tensor) -> None:
        # clone(): a row of a batch would be saved with the whole batch's memory.
        content = {"maps": [level.clone() for level in maps], "thumbnail": thumbnail.clone()}
        atomic_write(self._path(image_id), lambda temporary: torch.save(content, temporary))
