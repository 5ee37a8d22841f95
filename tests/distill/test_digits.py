import hashlib
import json

import pytest
import torch

from fgd_distill.data.datamodule import CocoFolder
from fgd_distill.digits.dataset import PHOTO_COLUMNS, make_digits
from fgd_distill.digits.detectors import digits_student

SMALL = {"train_images": 4, "val_images": 2, "progress": False}


def digest(folder):
    """One hash over the names and bytes of all files."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


def annotations(folder, split):
    return json.loads((folder / "annotations" / f"{split}.json").read_text())


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    first, again, other = (
        make_digits(tmp_path / name, seed=seed, **SMALL) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert digest(first) == digest(again)
    assert (first / "images/train/000001.png").read_bytes() != (other / "images/train/000001.png").read_bytes()


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path, digits):
    few = make_digits(tmp_path / "few", **SMALL)
    for number in range(1, 5):
        name = f"images/train/{number:06d}.png"
        assert (few / name).read_bytes() == (digits / name).read_bytes()


def test_splits_share_neither_digits_nor_parts_of_a_photograph(digits):
    train, val = annotations(digits, "train"), annotations(digits, "val")
    indices = [{item["digit_index"] for item in split["annotations"]} for split in (train, val)]
    assert all(indices) and not indices[0] & indices[1]
    train_right = max(x + w for x, _, w, _ in (image["source"]["crop"] for image in train["images"]))
    val_left = min(image["source"]["crop"][0] for image in val["images"])
    assert train_right <= 0.68 * 640 and val_left >= 0.70 * 640
    assert PHOTO_COLUMNS["train"][1] < PHOTO_COLUMNS["val"][0]


def test_the_json_is_coco(digits):
    train = annotations(digits, "train")
    assert [category["id"] for category in train["categories"]] == list(range(1, 11))
    assert len({item["id"] for item in train["annotations"]}) == len(train["annotations"])
    for item in train["annotations"]:
        x, y, w, h = item["bbox"]
        assert 0 <= x < x + w <= 128 and 0 <= y < y + h <= 128
        assert item["area"] == w * h and item["iscrowd"] == 0 and 1 <= item["category_id"] <= 10


def test_every_level_of_the_pyramid_gets_objects(digits):
    model = digits_student()
    matched = []
    compute_loss = model.head.compute_loss

    def record(targets, head_outputs, anchors, matched_idxs):
        matched.extend(matched_idxs)
        return compute_loss(targets, head_outputs, anchors, matched_idxs)

    model.head.compute_loss = record
    data = CocoFolder(digits / "images/train", digits / "annotations/train.json")
    images, targets = zip(*(data[index] for index in range(len(data))), strict=True)
    with torch.no_grad():
        model(list(images), list(targets))
    levels = torch.stack(matched).split([16 * 16, 8 * 8, 4 * 4], dim=1)
    assert all((level >= 0).sum() >= 5 for level in levels)


def test_a_second_run_touches_nothing(tmp_path):
    folder = make_digits(tmp_path / "digits", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    make_digits(folder, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("lost", ["images/val/000002.png", "annotations/train.json", "dataset.json"])
def test_a_half_written_folder_is_made_again(tmp_path, lost):
    folder = make_digits(tmp_path / "digits", **SMALL)
    whole = digest(folder)
    (folder / lost).unlink()
    assert digest(make_digits(folder, **SMALL)) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]  # nothing temporary stays


def test_files_that_are_not_as_they_were_written_are_made_again(tmp_path, caplog):
    folder = make_digits(tmp_path / "digits", **SMALL)
    whole = digest(folder)
    for name in ("images/val/000002.png", "annotations/train.json"):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 4
        (folder / name).write_bytes(content)
        assert digest(make_digits(folder, **SMALL)) == whole
        assert "is not as it was written, and made again" in caplog.text
        caplog.clear()
    for content in (b"[1]", b"7", b"\xff", b"{"):
        (folder / "dataset.json").write_bytes(content)
        assert digest(make_digits(folder, **SMALL)) == whole
    make_digits(folder, **SMALL)
    assert not caplog.records


def test_other_settings_and_foreign_files_are_refused(tmp_path):
    folder = make_digits(tmp_path / "digits", **SMALL)
    with pytest.raises(FileExistsError, match="other settings.*'seed': 9"):
        make_digits(folder, seed=9, **SMALL)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("do not delete")
    with pytest.raises(FileExistsError, match="thesis.tex"):
        make_digits(mine, **SMALL)
    assert (mine / "thesis.tex").read_text() == "do not delete"


@pytest.mark.parametrize("wrong", [{"image_size": 10}, {"train_images": 0}, {"val_images": -1}])
def test_settings_out_of_range(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_digits(tmp_path / "digits", **{**SMALL, **wrong})
    assert not (tmp_path / "digits").exists()
