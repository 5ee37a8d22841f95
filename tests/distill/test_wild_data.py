"""Annotation files and images as other tools write them: right, or refused by name before anything is trained."""

import json
import unicodedata

import pytest
import torch
from torchvision.ops import box_convert

from fgd_distill.commands.predict import _listed, predict
from fgd_distill.data.datamodule import CocoDataModule, CocoFolder
from fgd_distill.data.evaluation import CocoEvaluator
from fgd_distill.training.run import run

CATEGORIES = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]


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
    assert "converted or filled in: 2 x images.id, 1 x annotations.image_id" in caplog.text
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
        ([_image(1, width="wide")], [], CATEGORIES, r"width in images\[0\] \('1\.png'\) to be a number of pixels"),
        ([_image(1, height=0)], [], CATEGORIES, r"height in images\[0\] \('1\.png'\) to be a number of pixels, got 0;"),
        ([_image(1, height=float("nan"))], [], CATEGORIES, "a number of pixels, got nan"),
        ([_image(10**19)], [], CATEGORIES, r"integer id in images\[0\], got 1000"),
        ([_image("9" * 5000, file_name="1.png")], [], CATEGORIES, r"integer id in images\[0\], got '9{50,80}\.\.\.;"),
        ([_image(1)], [_box(1, [0, 0, 10**400, 5])], CATEGORIES, r"bbox .* got \[0, 0, 1000"),
        ([_image(1)], [_box(1, [0, 0, float("nan"), 5])], CATEGORIES, r"bbox .* got \[0, 0, nan, 5\]; mend the box"),
        (
            [_image(1)],
            [_box(1, None, keypoints=[1, 1, 2])],
            CATEGORIES,
            "bbox .* got None; .* leave the annotation out",
        ),
        ([_image(1)], [_box(1, {"x": 1})], CATEGORIES, "bbox .* got {'x': 1}"),
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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_with_a_mark(folder, encoding):
    images, annotations = folder([_image(1)], [_box(1, [1, 2, 3, 4])])
    annotations.write_text(annotations.read_text(), encoding=encoding)
    assert CocoFolder(images, annotations)[0][1]["boxes"].tolist() == [[1, 2, 4, 6]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "JSONDecodeError"),
        ("{'ü'}".encode("latin-1"), "in UTF-8, could not read it: UnicodeDecodeError"),
        (b'{"images": [' + b"9" * 5000 + b"]}", "could not read it: ValueError: Exceeds the limit"),
    ],
)
def test_files_that_are_no_json(folder, content, message):
    images, annotations = folder([_image(1)])
    annotations.write_bytes(content)
    with pytest.raises(ValueError, match=f"annotations.json: expected a COCO detection json .*{message}") as error:
        CocoFolder(images, annotations)
    assert len(str(error.value)) < 500


def test_boxes_that_other_tools_write_differently(folder, caplog):
    polygon = [4, 6, 14, 6, 9, 26]
    boxes = [
        _box(1, ["1", "2.5", "3", "4"]),
        _box(1, [], segmentation=[polygon, [20, 1, 30, 1, 30, 9]]),
        {"image_id": 1, "category_id": 1, "segmentation": polygon},  # VIA: without a list of polygons around it
    ]
    data = CocoFolder(*folder([_image(1)], boxes))
    assert data[0][1]["boxes"].tolist() == [[1, 2.5, 4, 6.5], [4, 1, 30, 26], [4, 6, 14, 26]]
    assert "converted or filled in: 1 x annotations.bbox, 2 x annotations.bbox from polygons" in caplog.text
    assert _perfect(data) == pytest.approx(100)


@pytest.mark.parametrize("area", [0, -1, "100", None, 100.0])
def test_areas_that_are_placeholders_are_the_boxes(folder, area):
    """pycocotools would ignore an object of a negative area and take one of area 0 for a small one."""
    data = CocoFolder(*folder([_image(1)], [_box(1, [5, 5, 10, 10], area=area)]))
    assert data.coco.anns[1]["area"] == 100 and _perfect(data) == pytest.approx(100)


def test_boxes_that_cover_nothing_count_nowhere(folder, caplog):
    boxes = [_box(1, [3, 5, 0, 10]), _box(1, [30, 5, -9, -9]), _box(1, [300, 5, 9, 9]), _box(1, [5, 5, 10, 10])]
    data = CocoFolder(*folder([_image(1)], boxes))
    assert data[0][1]["boxes"].tolist() == [[5, 5, 15, 15]] and _perfect(data) == pytest.approx(100)
    assert "3 boxes are empty or outside their image, left out of training and evaluation" in caplog.text


def test_annotations_of_other_images(folder, caplog):
    data = CocoFolder(*folder([_image(1)], [_box(1, [5, 5, 10, 10]), _box(7, [5, 5, 10, 10])]))
    assert len(data.coco.anns) == 1 and "1 annotations belong to no listed image" in caplog.text
    with pytest.raises(ValueError, match="the image_id of none of 1 is among their ids, such as 7"):
        CocoFolder(*folder([_image(1)], [_box(7, [5, 5, 10, 10])]))


def test_boxes_in_other_units(folder, caplog):
    with pytest.raises(
        ValueError, match=r"in pixels, got numbers that all lie in 0..1, such as \[0.1, 0.2, 0.5, 0.5\]"
    ):
        CocoFolder(*folder([_image(1)], [_box(1, [0.1, 0.2, 0.5, 0.5]), _box(1, [0, 0, 1, 1])]))
    assert CocoFolder(*folder([_image(1)], [_box(1, [0, 0, 1, 1]), _box(1, [0, 0, 9, 9])]))
    assert not caplog.text
    CocoFolder(*folder([_image(1)], [_box(1, [25, 15, 40, 30]), _box(1, [5, 5, 15, 15])]))
    assert "1 boxes reach out of their image by more than a pixel" in caplog.text
    assert "all would fit as x1, y1, x2, y2, but bbox is x, y, width, height" in caplog.text
    caplog.clear()
    CocoFolder(*folder([_image(1)], [_box(1, [30, 15, 20, 9]), _box(1, [5, 5, 15, 15], attributes={"rotation": 30.5})]))
    assert "1 boxes reach out" in caplog.text and "x1, y1" not in caplog.text
    assert "1 boxes have a rotation among their attributes" in caplog.text


def test_a_file_that_is_listed_twice(folder, caplog):
    images = [_image(1), _image(2, file_name="./1.png")]
    same = CocoFolder(*folder(images, [_box(1, [5, 5, 10, 10]), _box(2, [5, 5, 10, 10])]))
    assert torch.equal(same[0][1]["boxes"], same[1][1]["boxes"])
    for others in ([], [_box(2, [1, 1, 5, 5])], [_box(2, [5, 5, 10, 10], category_id=2)]):
        with pytest.raises(ValueError, match=r"the images \[1, 2\] of '1.png' with different boxes; merge them"):
            CocoFolder(*folder(images, [_box(1, [5, 5, 10, 10]), *others]))


def test_a_category_that_has_several_ids(folder, caplog):
    categories = [{"id": 0, "name": "a"}, *CATEGORIES]
    CocoFolder(*folder([_image(1)], [_box(1, [5, 5, 10, 10])], categories))
    assert not caplog.text  # Roboflow's unused supercategory
    CocoFolder(*folder([_image(1)], [_box(1, [5, 5, 10, 10]), _box(1, [1, 1, 5, 5], category_id=0)], categories))
    assert "categories of one name have several ids and are learnt as several: ['a']" in caplog.text


@pytest.mark.parametrize(
    "run_lengths",
    [
        {"size": [30, 40], "counts": [1, 2]},  # pycocotools would not come back from these
        {"size": [30, 40], "counts": [-5, 1205]},
        {"size": [40, 30], "counts": [100, 20, 1080]},
        {"size": [30, 40], "counts": None},
        {"size": [30, 40], "counts": "garbage!!"},
        [[0, 0, 1e8, 0, 1e8, 1e8]],  # and from these with a fault of the process, or gigabytes
        [[1e18, 1e18, 1e18, 1e18, 1e18, 1e18]],
        [[0, 0, 9e6, 9e6] * 3],
        [[0, 0, 1e300, 0, 1e300, -1e300]],
    ],
)
def test_masks_that_are_none_are_left_out(folder, caplog, run_lengths):
    good = [{"size": [30, 40], "counts": [100, 20, 1080]}, [5, 5, 15, 5, 15, 15, 5, 15]]
    boxes = [_box(1, [3, 10, 1, 20], segmentation=mask) for mask in (run_lengths, *good)]
    data = CocoFolder(*folder([_image(1)], boxes), with_masks=True)
    assert data[0][1]["masks"].sum((1, 2)).tolist() == [20, 100]
    assert "1 annotations have no usable segmentation" in caplog.text
    with pytest.raises(ValueError, match=r"none of 1 annotations has a usable segmentation, such as [{\[].*; write"):
        CocoFolder(*folder([_image(1)], boxes[:1]), with_masks=True)
    with pytest.raises(ValueError, match=r"width and height of every image.*none in images\[0\] \('1.png'\)"):
        CocoFolder(*folder([_image(1, width=None)], boxes), with_masks=True)


def test_categories_of_training_and_validation_must_agree(folder, tmp_path):
    def module(val_categories, category_id=1):
        folder([_image(1)], [_box(1, [0, 0, 9, 9])], name="train.json")
        folder([_image(1)], [_box(1, [0, 0, 9, 9], category_id=category_id)], val_categories, "val.json")
        return CocoDataModule(str(tmp_path), "images", "train.json", "images", "val.json", num_workers=0)

    swapped = [{"id": 1, "name": "b"}, {"id": 2, "name": "a"}]
    with pytest.raises(
        ValueError, match=r"val\.json: expected the categories of .*train\.json, 2 differ: 1 is 'a' there and 'b' here"
    ):
        module(swapped).setup("fit")
    with pytest.raises(ValueError, match="1 differ: 3 is 'c' here only"):
        module([*CATEGORIES, {"id": 3, "name": "c"}], 3).setup("fit")
    spaced = [{"id": 1, "name": "a "}, {"id": 2, "name": "b"}]
    for fine in (CATEGORIES, CATEGORIES[:1], [*CATEGORIES, {"id": 3, "name": "c"}], [{"id": 1}], spaced):
        module(fine).setup("fit")
    module(swapped).setup("validate")


def test_a_checkpoint_is_evaluated_on_its_own_categories(digits, fit_args, tmp_path):
    run(fit_args(tmp_path, "--trainer.limit_val_batches=1", steps=1))
    checkpoint = str(next(tmp_path.rglob("*.ckpt")))
    content = json.loads((digits / "annotations" / "val.json").read_text())
    content["categories"][0]["name"], content["categories"][1]["name"] = "1", "0"
    (tmp_path / "swapped.json").write_text(json.dumps(content))
    arguments = fit_args(tmp_path, f"--data.val_annotations={tmp_path / 'swapped.json'}", f"--ckpt_path={checkpoint}")
    validate = ["validate", *(arg for arg in arguments[1:] if "lr_scheduler" not in arg)]
    with pytest.raises(
        ValueError, match=r"swapped.json: expected the categories of the checkpoint, 2 differ: 1 is '0' th"
    ):
        run(validate)
    with pytest.raises(ValueError, match="swapped.json: expected the categories of .*train.json, 2 differ"):
        run(arguments)


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "present"),
    [
        ("sub\\a.png", "sub/a.png"),
        ("a%20b.png", "a b.png"),
        (unicodedata.normalize("NFD", "gruß_ü.png"), unicodedata.normalize("NFC", "gruß_ü.png")),
        ("export/images/a.png", "a.png"),
        ("A.PNG", "a.png"),
        ("a.jpg", "a.png"),
        ("a.png ", "a.png"),
        ("https://host/files/a.png", "a.png"),
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


def test_near_files_outside_the_folder_are_not_told(folder, tmp_path):
    (tmp_path / "secret.png").write_text("x")
    with pytest.raises(FileNotFoundError) as error:
        CocoFolder(*folder([_image(1), _image(2, file_name="%2e%2e/secret.jpg", write=False)]))
    assert "but there is" not in str(error.value)


def test_predict_takes_a_json_of_images_alone(folder):
    """As COCO's own image_info_test-dev2017.json: without annotations."""
    images, annotations = folder([_image(3, width=None), _image(2)])
    annotations.write_text(json.dumps({"images": json.loads(annotations.read_text())["images"]}))
    assert [image.image_id for image in _listed(images, str(annotations))] == [2, 3]
    with pytest.raises(ValueError, match=r"missing are the keys \['annotations'\]"):
        CocoFolder(images, annotations)


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
