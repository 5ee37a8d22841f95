"""Shared by the tests of the detector side: a tiny digits data set and the two small detectors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fgd_distill.digits.dataset import make_digits
from fgd_distill.digits.detectors import digits_student, digits_teacher

CATEGORIES = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]


@pytest.fixture(autouse=True)
def no_loader_processes(monkeypatch):
    """A fork of the test process doubles its memory, and fails where there is too little: images load in it."""

    def refuse(self, loader):
        raise AssertionError(f"a test started {loader.num_workers} loader processes; pass num_workers=0")

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter.__init__", refuse)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits", train_images=24, val_images=6, progress=False)


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory) -> Path:
    """Random teacher weights: the tests ask how things run, not how well they learn."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "teacher.pt"
    torch.save(digits_teacher().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def fit_args(digits):
    """Makes the arguments of a short training of the digits student that writes into a folder."""

    def args(folder, *more, steps=5, batch_size=4):
        return [
            "fit",
            "--config=digits_student.yaml",
            f"--data.root={digits}",
            "--data.num_workers=0",
            f"--data.batch_size={batch_size}",
            f"--trainer.max_steps={steps}",
            f"--trainer.val_check_interval={steps}",
            "--trainer.enable_progress_bar=false",
            "--trainer.log_every_n_steps=1",
            f"--model.lr_scheduler.init_args.total_steps={steps}",
            f"--trainer.default_root_dir={folder}",
            f"--trainer.logger.init_args.save_dir={folder}",
            *more,
        ]

    return args


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return digits_student(), digits_teacher()


@pytest.fixture
def batch():
    """Two images of 128 pixels: one with two boxes, one without."""
    generator = torch.Generator().manual_seed(0)
    images = tuple(torch.rand(3, 128, 128, generator=generator) for _ in range(2))
    targets = (
        {"boxes": torch.tensor([[8.0, 8.0, 40.0, 56.0], [60.0, 60.0, 124.0, 124.0]]), "labels": torch.tensor([3, 10])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    )
    return images, targets


@pytest.fixture
def write_coco(tmp_path):
    """Writes a COCO folder of blank 40x30 images from (file name, annotations) pairs."""

    def write(items, save=True):
        images = tmp_path / "images"
        images.mkdir(exist_ok=True)
        content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 7, "name": "b"}]}
        for index, (name, annotations) in enumerate(items, start=1):
            if save:
                Image.new("RGB", (40, 30)).save(images / name)
            content["images"].append({"id": index, "file_name": name, "width": 40, "height": 30})
            for annotation in annotations:
                box = annotation["bbox"]
                filled = {"category_id": 1, "iscrowd": 0, "area": box[2] * box[3], "segmentation": []} | annotation
                content["annotations"].append(filled | {"id": len(content["annotations"]) + 1, "image_id": index})
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        return images, path

    return write


@pytest.fixture
def folder(tmp_path):
    """Writes images of random pixels, 40x30, and a json of these entries; an entry with ``write=False`` has no file."""
    random = np.random.default_rng(0)

    def write(images, annotations=(), categories=CATEGORIES, name="annotations.json"):
        (tmp_path / "images").mkdir(exist_ok=True)
        for image in images:
            file = image.get("file_name")
            if isinstance(file, str) and image.pop("write", True):
                path = tmp_path / "images" / file
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
        content = {"images": list(images), "annotations": list(annotations), "categories": list(categories)}
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / "images", tmp_path / name

    return write
