import contextlib
import io
import json

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fgd_distill.commands import main as cli
from fgd_distill.commands.predict import predict
from fgd_distill.detectors.by_name import DetectorConfig, build_detector
from fgd_distill.training.run import run

TEACHER = DetectorConfig("digits_teacher", 11, "package:digits_teacher.pt")


def test_predictions_of_the_shipped_teacher_are_good(digits, tmp_path, capsys):
    """Through the command line, then judged by pycocotools alone."""
    annotations = digits / "annotations" / "val.json"
    output = tmp_path / "out" / "predictions.json"
    options = ["--detector.name=digits_teacher", "--detector.num_classes=11", f"--annotations={annotations}"]
    weights = "--detector.weights=package:digits_teacher.pt"
    cli.main(["predict", str(digits / "images/val"), str(output), *options, weights, "--num_workers=0"])
    assert "on 6 images" in capsys.readouterr().out
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(output)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] > 0.3
    assert [path.name for path in output.parent.iterdir()] == ["predictions.json"]


def test_a_checkpoint_predicts_as_its_exported_student(fit_args, digits, tmp_path):
    run(fit_args(tmp_path / "run", steps=1))
    checkpoint = str(next((tmp_path / "run").rglob("*.ckpt")))
    cli.main(["export-student", checkpoint, str(tmp_path / "student.pt")])
    common = {"score_threshold": 0.0, "num_workers": 0}
    images = str(digits / "images/val")
    ours = predict(images, str(tmp_path / "a.json"), checkpoint, **common)
    exported = DetectorConfig("digits_student", 11, str(tmp_path / "student.pt"))
    theirs = predict(images, str(tmp_path / "b.json"), detector=exported, **common)
    assert ours.read_text() == theirs.read_text()
    assert json.loads(ours.read_text())[0]["file_name"] == "000001.png"
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="expected a checkpoint of fgd-distill fit.*weights"):
        predict(images, str(tmp_path / "c.json"), str(tmp_path / "other.ckpt"))


def test_images_that_cannot_be_read_are_counted(digits, tmp_path, capsys, caplog):
    """Names that are no numbers: ids count from 1 in the order of the names, with the unreadable ones."""
    for name, source in (("a.png", 1), ("c.png", 2)):
        (tmp_path / name).write_bytes((digits / f"images/val/00000{source}.png").read_bytes())
    (tmp_path / "b.jpg").write_bytes(b"not an image")
    (tmp_path / "notes.txt").write_text("not looked at")
    output = predict(str(tmp_path), str(tmp_path / "x.json"), detector=TEACHER, batch_size=3, num_workers=0)
    results = json.loads(output.read_text())
    assert {(result["image_id"], result["file_name"]) for result in results} == {(1, "a.png"), (3, "c.png")}
    assert "on 2 images" in (told := capsys.readouterr().out) and "1 images could not be read" in told
    assert "b.jpg" in caplog.text
    assert min(result["score"] for result in results) >= 0.05


def test_masks_are_written_as_run_lengths(tmp_path):
    small = {"min_size": 64, "max_size": 64, "box_score_thresh": 0.0, "box_detections_per_img": 3}
    torch.save(
        build_detector(DetectorConfig("maskrcnn_resnet18_fpn", 4, options=small)).state_dict(), tmp_path / "w.pt"
    )
    Image.new("RGB", (50, 40), "white").save(tmp_path / "7.png")
    detector = DetectorConfig("maskrcnn_resnet18_fpn", 4, str(tmp_path / "w.pt"), options=small)
    output = predict(str(tmp_path), str(tmp_path / "x.json"), detector=detector, score_threshold=0, num_workers=0)
    results = json.loads(output.read_text())
    assert results and all(result["segmentation"]["size"] == [40, 50] for result in results)
    assert {result["image_id"] for result in results} == {7}


def test_wrong_use_is_told(digits, tmp_path, monkeypatch):
    out = str(tmp_path / "x.json")
    with pytest.raises(ValueError, match="either it or a detector.*neither"):
        predict(str(digits), out)
    with pytest.raises(ValueError, match="it would see noise"):
        predict(str(digits), out, detector=DetectorConfig("digits_student", 11))
    with pytest.raises(FileNotFoundError, match="found none at .*nothing"):
        predict(str(tmp_path / "nothing"), out, detector=TEACHER)
    with pytest.raises(ValueError, match="found none in"):
        predict(str(tmp_path), out, detector=TEACHER)
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        predict(str(digits), out, checkpoint=str(tmp_path / "no.ckpt"))
    monkeypatch.setattr("fgd_distill.commands.predict._predictions", lambda *_: pytest.fail("detected first"))
    with pytest.raises(OSError, match="could not be written: Is a directory"):
        predict(str(digits / "images" / "val"), str(tmp_path), detector=TEACHER, num_workers=0, device="cpu")


def test_images_of_which_none_can_be_read(tmp_path):
    (tmp_path / "a.png").write_text("version https://git-lfs.github.com/spec/v1")
    detector = DetectorConfig("digits_teacher", 11, "package:digits_teacher.pt")
    with pytest.raises(OSError, match="images: expected images that can be read in .*, got 1 of which none can"):
        predict(str(tmp_path), str(tmp_path / "results.json"), detector=detector, num_workers=0, device="cpu")
    assert not (tmp_path / "results.json").exists()
