"""Annotation files and images as other tools write them: right, or refused by name before anything is trained."""

import json
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torchvision.ops import box_convert

from fgd_distill.commands.predict import _Images, _listed, predict
from fgd_distill.data.datamodule import CocoDataModule, CocoFolder
from fgd_distill.data.evaluation import CocoEvaluator
from fgd_distill.data.image_files import UnreadableImageError, read_image
from fgd_distill.pictures.images import coco_image, image_file
from fgd_distill.training.run import run

CATEGORIES = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]


@pytest.fixture
def folder(tmp_path):
    """Writes images of random pixels and a json of these entries; images of None are not written."""
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


def _image(number, **more):
    return {"id": number, "file_name": f"{number}.png", "width": 40, "height": 30} | more


def _box(image_id, bbox, number=1, **more):
    return {"id": number, "image_id": image_id, "category_id": 1, "bbox": bbox} | more


def _perfect(data):
    evaluator = CocoEvaluator(data.coco)
    for index in range(len(data)):
        target = data[index][1]
        found = {"boxes": target["boxes"], "labels": target["labels"], "scores": torch.ones(len(target["labels"]))}
        evaluator.update([found], [target["image_id"]])
    return evaluator.compute()["AP"]


# --- ids --------------------------------------------------------------------------------------------------------


def test_annotation_ids_that_begin_anew_in_every_image(folder):
    boxes = [_box(1, [0, 0, 10, 10], 1), _box(1, [20, 5, 6, 6], 2), _box(2, [5, 5, 20, 20], 1)]
    data = CocoFolder(*folder([_image(1), _image(2)], boxes))
    assert data[0][1]["boxes"].tolist() == [[0, 0, 10, 10], [20, 5, 26, 11]]
    assert data[1][1]["boxes"].tolist() == [[5, 5, 25, 25]]
    assert _perfect(data) == pytest.approx(100)


def test_annotation_zero_is_matched(folder):
    data = CocoFolder(*folder([_image(1)], [_box(1, [4, 4, 12, 12], 0)]))
    assert _perfect(data) == pytest.approx(100)


@pytest.mark.parametrize("missing", [{}, {"id": None}, {"id": "x"}], ids=["none", "null", "text"])
def test_annotations_need_no_ids(folder, missing):
    boxes = [{"image_id": 1, "category_id": 2, "bbox": [1, 2, 30, 4], **missing} for _ in range(2)]
    data = CocoFolder(*folder([_image(1)], boxes))
    assert data[0][1]["boxes"].tolist() == [[1, 2, 31, 6]] * 2 and data[0][1]["labels"].tolist() == [2, 2]


def test_two_images_or_categories_with_one_id(folder):
    with pytest.raises(
        ValueError, match=r"annotations\.json: expected every id in images once.*7 of \['a.png', 'b.png'"
    ):
        CocoFolder(*folder([_image(7, file_name="a.png"), _image(7, file_name="b.png")]))
    with pytest.raises(ValueError, match=r"every id in categories once.*1 of \['a', 'z'\]"):
        CocoFolder(*folder([_image(1)], categories=[{"id": 1, "name": "a"}, {"id": "1", "name": "z"}]))


def test_ids_written_as_text_are_numbers(folder, caplog):
    images = [_image("1", file_name="a.png"), _image(2.0, file_name="b.png")]
    boxes = [_box("1", [0, 0, 9, 9], category_id="2"), _box(2, [1, 1, 8, 8])]
    data = CocoFolder(*folder(images, boxes))
    assert [data[index][1]["image_id"] for index in (0, 1)] == [1, 2]
    assert data[0][1]["labels"].tolist() == [2] and data[1][1]["boxes"].tolist() == [[1, 1, 9, 9]]
    assert "ids that are no integers were converted: 2 x images.id, 1 x annotations.image_id" in caplog.text
    assert _perfect(data) == pytest.approx(100)


@pytest.mark.parametrize(
    ("images", "annotations", "categories", "message"),
    [
        ([_image("scene_a")], [], CATEGORIES, r"integer id in images\[0\], got 'scene_a'"),
        ([_image(None)], [], CATEGORIES, r"integer id in images\[0\], got None"),
        ([_image(True)], [], CATEGORIES, r"integer id in images\[0\], got True"),
        ([_image(1.5)], [], CATEGORIES, r"integer id in images\[0\], got 1\.5"),
        ([_image(1)], [], [{"name": "a"}], r"integer id in categories\[0\], got None"),
        ([_image(1)], [_box(None, [1, 1, 5, 5])], CATEGORIES, r"integer image_id in annotation 1 \(annotations\[0\]\)"),
        ([_image(1)], [_box(1, [1, 1, 5, 5], category_id="cat")], CATEGORIES, r"integer category_id in .* got 'cat'"),
        ([_image(1)], [_box(1, None)], CATEGORIES, r"bbox .* in annotation 1 \(annotations\[0\]\), got None"),
        ([_image(1)], [_box(1, [1, 1, 5])], CATEGORIES, r"bbox .* got \[1, 1, 5\]"),
        ([_image(1)], [_box(1, [1, 1, True, 5])], CATEGORIES, r"bbox .* got \[1, 1, True, 5\]"),
        ([_image(1)], [_box(1, [1, 1, 5, 5], area="big")], CATEGORIES, "area to be a finite number"),
        ([_image(1)], [_box(1, [1, 1, 5, 5], iscrowd=7)], CATEGORIES, "iscrowd 0 or 1 in annotation 1"),
        ([_image(1, file_name=None)], [], CATEGORIES, r"file_name of every image, got None in images\[0\]"),
        ([_image(1, width="wide")], [], CATEGORIES, r"width in images\[0\] \(1\.png\) to be a number of pixels"),
        ([_image(1, height=0)], [], CATEGORIES, r"height in images\[0\] \(1\.png\) to be a number of pixels, got 0"),
        (["1.png"], [], CATEGORIES, r"images\[0\] is an object, got '1.png'"),
    ],
)
def test_entries_that_make_no_sense_are_named(folder, tmp_path, images, annotations, categories, message):
    if isinstance(images[0], str):
        (tmp_path / "images").mkdir()
        paths = tmp_path / "images", tmp_path / "annotations.json"
        paths[1].write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    else:
        paths = folder([dict(image) for image in images], annotations, categories)
    with pytest.raises(ValueError, match=r"annotations\.json: .*" + message):
        CocoFolder(*paths)


def test_nulls_where_a_value_is_optional(folder):
    box = _box(1, [2, 2, 10, 5], iscrowd=None, area=None, segmentation=None)
    data = CocoFolder(*folder([_image(1, width=None, height=None)], [box]))
    assert data[0][1]["boxes"].tolist() == [[2, 2, 12, 7]] and data.coco.anns[1]["area"] == 50


def test_categories_of_training_and_validation_must_agree(folder, tmp_path):
    def module(val_categories, category_id=1):
        folder([_image(1)], [_box(1, [0, 0, 9, 9])], name="train.json")
        folder([_image(1)], [_box(1, [0, 0, 9, 9], category_id=category_id)], val_categories, "val.json")
        return CocoDataModule(str(tmp_path), "images", "train.json", "images", "val.json", num_workers=0)

    swapped = [{"id": 1, "name": "b"}, {"id": 2, "name": "a"}]
    with pytest.raises(
        ValueError, match=r"val\.json: expected the categories of .*train\.json, 2 differ: 1 is 'a' in tr"
    ):
        module(swapped).setup("fit")
    with pytest.raises(ValueError, match="1 differ: 3 is 'c' in validation only"):
        module([*CATEGORIES, {"id": 3, "name": "c"}], 3).setup("fit")
    for fine in (CATEGORIES, CATEGORIES[:1], [*CATEGORIES, {"id": 3, "name": "c"}], [{"id": 1}]):
        module(fine).setup("fit")
    module(swapped).setup("validate")


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "present"),
    [
        ("sub\\a.png", "sub/a.png"),
        ("a%20b.png", "a b.png"),
        (unicodedata.normalize("NFD", "gruß_ü.png"), unicodedata.normalize("NFC", "gruß_ü.png")),
        ("export/images/a.png", "a.png"),
        ("A.PNG", "a.png"),
    ],
)
def test_the_error_names_a_near_file(folder, listed, present):
    paths = folder([_image(1, file_name=present), _image(2, file_name=listed, write=False)])
    with pytest.raises(FileNotFoundError, match=r"1 of them are not in .*but there is .* for ") as error:
        CocoFolder(*paths)
    assert repr(present) in str(error.value)


@pytest.mark.parametrize(
    "name", ["../secret.png", "a/../../b.png", "/etc/a.png", "C:\\a.png", "..\\a.png", "\\\\s\\a.png"]
)
def test_files_outside_the_folder_are_refused(folder, name):
    with pytest.raises(ValueError, match=r"file_name in images\[0\] to lie in the folder of images"):
        CocoFolder(*folder([_image(1, file_name=name, write=False)]))


# --- pixels -----------------------------------------------------------------------------------------------------


def _turned_jpeg(path, orientation, size=(60, 40)):
    """An image whose left half is bright as a viewer shows it upright, stored as a camera does."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    ramp = np.tile(np.linspace(0, 255, size[0]).astype(np.uint8)[None, :, None], (size[1], 1, 3))
    Image.fromarray(ramp).save(path, exif=exif, quality=95)


def test_exif_turns_the_image_where_the_json_has_the_turned_size(folder, tmp_path):
    boxes = [_box(1, [5, 40, 20, 15]), _box(1, [5, 5, 30, 34], 2)]
    entry = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 60, "write": False}
    images, annotations = folder([entry], boxes)
    _turned_jpeg(images / "a.jpg", 6)
    image, target = CocoFolder(images, annotations)[0]
    assert image.shape == (3, 60, 40)
    assert target["boxes"].tolist() == [[5, 40, 25, 55], [5, 5, 35, 39]]
    assert image[0, 0].mean() < 0.1 < 0.9 < image[0, -1].mean()  # left of the file is the top of what a viewer shows
    assert torch.equal(coco_image(images, annotations, 0)[0], image)
    torch.testing.assert_close(image_file(images / "a.jpg")[0], image)
    for listed in (_listed(images, str(annotations)), _listed(images, None)):
        assert torch.equal(_Images(listed)[0].pixels, image)


def test_exif_is_left_alone_where_the_json_has_the_stored_size(folder):
    images, annotations = folder([{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40, "write": False}])
    _turned_jpeg(images / "a.jpg", 6)
    assert CocoFolder(images, annotations)[0][0].shape == (3, 40, 60)


def test_a_size_that_fits_neither_way_is_told_with_both(folder, caplog):
    entries = [{"id": 1, "file_name": "a.jpg", "width": 50, "height": 60, "write": False}, _image(2)]
    images, annotations = folder(entries)
    _turned_jpeg(images / "a.jpg", 6)
    assert CocoFolder(images, annotations)[0][1]["image_id"] == 2
    assert "a.jpg: expected 50 x 60 pixels, as the annotations say, got 60 x 40" in caplog.text
    with pytest.raises(ValueError, match="expected a readable image, got 0: a.jpg: expected 50 x 60"):
        coco_image(images, annotations, 0)
    assert _Images(_listed(images, str(annotations)))[0].pixels is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(tmp_path, orientation):
    _turned_jpeg(tmp_path / "a.jpg", orientation)
    found = np.asarray(read_image(tmp_path / "a.jpg"))[..., 0].astype(int)
    assert found.shape == ((40, 60) if orientation < 5 else (60, 40))
    corners = [bool(found[y, x] > 128) for y, x in ((1, 1), (1, -2), (-2, 1), (-2, -2))]
    bright_right, bright_left = [False, True, False, True], [True, False, True, False]
    bright_bottom, bright_top = [False, False, True, True], [True, True, False, False]
    shown = [bright_right, bright_left, bright_left, bright_right, bright_bottom, bright_bottom, bright_top, bright_top]
    assert corners == shown[orientation - 1]


@pytest.mark.parametrize(("bits", "brightest"), [(12, 4095 / 65535), (16, 1.0)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_by_their_range(tmp_path, bits, brightest, suffix):
    ramp = np.linspace(0, 2**bits - 1, 40 * 30).reshape(30, 40).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    pixels = image_file(tmp_path / f"a.{suffix}")[0]
    torch.testing.assert_close(pixels, torch.tensor(ramp / 65535).float().expand(3, 30, 40), atol=0.5 / 255, rtol=0)
    assert pixels.max() == pytest.approx(brightest, abs=0.5 / 255)


@pytest.mark.parametrize(
    ("mode", "suffix", "error"),
    [("1", "png", 1), ("L", "png", 0), ("LA", "png", 0), ("RGB", "png", 0), ("RGBA", "png", 0), ("CMYK", "tif", 0),
     ("YCbCr", "tif", 3), ("LAB", "tif", 3), ("P", "png", 0), ("PA", "tif", 0)],
)  # fmt: skip
def test_modes(tmp_path, mode, suffix, error):
    """Each as the picture that was stored, read back by Pillow's own conversion (LAB's by its colour management)."""
    colours = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(colours)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        stored, expected = ImageCms.profileToProfile(picture, *profiles, outputMode="LAB"), picture
    else:
        stored = picture.convert(mode)
        expected = stored.convert("RGB")
    stored.save(tmp_path / f"a.{suffix}")
    found = np.asarray(read_image(tmp_path / f"a.{suffix}")).astype(int)
    assert found.shape == (30, 40, 3) and np.abs(found - np.asarray(expected)).mean() <= error


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_range_are_refused(tmp_path, mode):
    Image.fromarray(np.random.default_rng(0).random((30, 40)).astype({"I": np.int32, "F": np.float32}[mode])).save(
        tmp_path / "a.tif"
    )
    with pytest.raises(UnreadableImageError, match=f"a.tif: expected 8 or 16 bits a channel, got Pillow's mode {mode}"):
        read_image(tmp_path / "a.tif")


def test_images_that_are_too_large_are_refused_before_they_are_decoded(folder, caplog, monkeypatch):
    images, annotations = folder([_image(1), _image(2, file_name="large.png", write=False, width=None)])
    Image.new("L", (400, 300), 99).save(images / "large.png")
    data = CocoFolder(images, annotations, max_pixels=100_000)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(
        UnreadableImageError, match=r"large.png: expected at most 100000 pixels \(data.max_pixels\), got"
    ):
        data.dataset._dataset._load_image(2)


def test_opening_stays_fast(folder):
    """100,000 annotations are opened in a time that nobody waits for."""
    import time

    boxes = [_box(1 + n % 50, [n % 20, 1, 9, 9], n, area=81, iscrowd=0) for n in range(100_000)]
    paths = folder([_image(1 + n) for n in range(50)], boxes)
    begin = time.perf_counter()
    data = CocoFolder(*paths)
    assert len(data.coco.anns) == 100_000 and time.perf_counter() - begin < 20
    assert box_convert(data[0][1]["boxes"][:1], "xyxy", "xywh").tolist() == [[0, 1, 9, 9]]


# --- categories and labels --------------------------------------------------------------------------------------


def test_labels_count_on_from_the_first(folder):
    categories = [{"id": number, "name": str(number)} for number in (90, 0, 7)]
    boxes = [_box(1, [0, 0, 9, 9], category_id=number) for number in (0, 7, 90)]
    paths = folder([_image(1), _image(2)], boxes, categories)
    for first, expected in ((None, [0, 7, 90]), (0, [0, 1, 2]), (1, [1, 2, 3])):
        data = CocoFolder(*paths, first_label=first)
        assert data[0][1]["labels"].tolist() == expected and data.max_label() == expected[-1]
        assert data[1][1]["labels"].shape == (0,) and data[1][1]["labels"].dtype == torch.int64
        assert [data.labels.category(label) for label in expected] == [0, 7, 90]
        assert data.uses_label(0) == (first != 1)
    assert data.labels.category(0) is None
    with pytest.raises(ValueError, match="first_label: expected 0, 1 or none, got 2"):
        CocoDataModule(first_label=2)


def test_ids_with_gaps_and_zero_train_validate_and_come_back(digits, fit_args, tmp_path, capsys):
    """The digits 0..9 under the category ids 0, 10, .. 90: the detector counts from 1, files and results do not."""
    for split in ("train", "val"):
        content = json.loads((digits / "annotations" / f"{split}.json").read_text())
        for entry, key in [(c, "id") for c in content["categories"]] + [
            (a, "category_id") for a in content["annotations"]
        ]:
            entry[key] = 10 * (entry[key] - 1)
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    files = [f"--data.{split}_annotations={tmp_path / split}.json" for split in ("train", "val")]
    with pytest.raises(ValueError, match="num_classes: expected more than the largest category id, 90, got 11"):
        run(fit_args(tmp_path / "refused", *files, steps=1))
    teacher = ["--model.student.name=digits_teacher", "--model.student.weights=package:digits_teacher.pt"]
    frozen = ["--model.optimizer.init_args.lr=0.0"]
    plain = run(fit_args(tmp_path / "plain", *teacher, *frozen, steps=1)).trainer.callback_metrics["val/AP"]
    again = run(fit_args(tmp_path / "run", *files, *teacher, *frozen, "--data.first_label=1", steps=1))
    assert plain > 30 and again.trainer.callback_metrics["val/AP"] == pytest.approx(float(plain))
    checkpoint = str(next((tmp_path / "run").rglob("*.ckpt")))
    arguments = [arg for arg in fit_args(tmp_path / "val", *files, *teacher, steps=1) if "lr_scheduler" not in arg]
    validated = run(["validate", *arguments[1:], f"--ckpt_path={checkpoint}"]).trainer.callback_metrics["val/AP"]
    assert float(validated) == pytest.approx(float(plain))
    output = predict(str(digits / "images/val"), str(tmp_path / "results.json"), checkpoint, num_workers=0)
    found = {result["category_id"] for result in json.loads(output.read_text())}
    assert found and found <= set(range(0, 100, 10))
    with pytest.raises(
        ValueError, match=r"ckpt_path: expected the labels of the checkpoint, data.first_label=1 .* got Non"
    ):
        run(fit_args(tmp_path / "more", f"--ckpt_path={checkpoint}", steps=2))
