"""A family of detectors that fgd_distill knows nothing of, through everything that is offered. 12 s.

Its module lies in the working directory, as a user's would, and is not importable otherwise.
"""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import spots
import torch
from adapter_checks import assert_one_box_covers, assert_steps_lower_the_loss, make_distiller, two_images
from PIL import Image

import fgd_kernels as fgd
from fgd_distill import distil, inherit
from fgd_distill.adapters import as_adapter, registry
from fgd_distill.commands import main as cli
from fgd_distill.detectors.by_name import DetectorConfig, build_detector
from fgd_distill.pictures import view_attention
from fgd_distill.training.run import run

PAIR = """
model:
  adapter: my_spots:SpotAdapter
  student: {name: "my_spots:small", num_classes: 11}
  teacher: {name: "my_spots:large", num_classes: 11, weights: teacher.pt}
  inherit: true
  fgd: {preset: one_stage_anchor_free}
"""
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "your-own-family.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with the family's module, a pair of its detectors and a teacher's weights."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_spots.py").write_text(Path(spots.__file__).read_text())
    (folder / "pair.yaml").write_text(PAIR)
    torch.manual_seed(1)
    torch.save(spots.large().state_dict(), folder / "teacher.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "meta_path", [*sys.meta_path])
        yield folder
        sys.modules.pop("my_spots", None)


@pytest.fixture
def options(fit_args, folder):
    """Of a command that takes those of ``fit``: two steps on two images each."""
    return fit_args(folder / "runs", "--config=pair.yaml", steps=2, batch_size=2)[1:]


@pytest.fixture(scope="module")
def trained(fit_args, folder):
    ran = run(fit_args(folder / "runs", "--config=pair.yaml", steps=2, batch_size=2))
    return ran, next((folder / "runs").rglob("*.ckpt"))


def test_it_is_not_found_but_in_the_working_directory(folder):
    assert all(Path(entry or os.curdir).resolve() != folder for entry in sys.path)


def test_fit_with_fgd_and_inherit(trained):
    ran, checkpoint = trained
    logged = ran.trainer.callback_metrics
    assert {"train/class", "train/box", "val/AP", *(f"train/{name}" for name in fgd.LOSS_NAMES)} <= logged.keys()
    assert ran.trainer.global_step == 2 and type(ran.model.adapter).__name__ == "SpotAdapter"
    assert ran.model.distiller.adapter is ran.model.adapter
    teacher = torch.load("teacher.pt", weights_only=True)["head.weight"]
    moved = (ran.model.detector.head.weight.detach() - teacher).abs().max()
    assert 0 < moved < 0.01, "inherited, then trained for two steps"
    assert torch.load(checkpoint, weights_only=True)["adapter"] == "my_spots:SpotAdapter"


def test_validate(trained, options):
    ran, checkpoint = trained
    found = run(["validate", *options, f"--ckpt_path={checkpoint}"]).trainer.callback_metrics
    assert float(found["val/AP"]) == float(ran.trainer.callback_metrics["val/AP"])


def test_calibrate(folder, options, capsys):
    cli.main(["calibrate", *options, "--batches=1", "--model.fgd.preset=two_stage", "--output=weights.yaml"])
    assert "which is one_stage_anchor_free with alpha x" in capsys.readouterr().out, "the preset is the adapter's"
    assert "preset: one_stage_anchor_free" in Path("weights.yaml").read_text()


def test_profile(folder, options, capsys):
    cli.main(["profile", *options, "--steps=1", "--warmup=0"])
    assert re.search(r"^teacher forward +[\d.]+", capsys.readouterr().out, re.M)


def test_predict_by_the_checkpoint_alone_and_by_exported_weights(trained, digits, capsys):
    """export-student needs no adapter; predict takes the checkpoint's, or one that is named."""
    _, checkpoint = trained
    cli.main(["export-student", str(checkpoint), "student.pt"])
    images, common = str(digits / "images/val"), ["--score_threshold=0", "--num_workers=0"]
    cli.main(["predict", images, "a.json", f"--checkpoint={checkpoint}", *common])
    detector = ["--detector.name=my_spots:small", "--detector.num_classes=11", "--detector.weights=student.pt"]
    cli.main(["predict", images, "b.json", *detector, "--adapter=my_spots:SpotAdapter", *common])
    assert Path("a.json").read_text() == Path("b.json").read_text()
    found = json.loads(Path("a.json").read_text())
    assert len(found) == 6 * 20 and {result["category_id"] for result in found} <= set(range(1, 11))
    with pytest.raises(SystemExit, match=r"no adapter for SpotNet.*register_adapter.*--model\.adapter"):
        cli.main(["predict", images, "c.json", *detector, *common])


def test_show_attention(trained, digits):
    _, checkpoint = trained
    cli.main(["export-student", str(checkpoint), "student.pt"])
    detectors = {"teacher": ("large", "teacher.pt"), "student": ("small", "student.pt")}
    named = [f"--{role}={{name: my_spots:{n}, num_classes: 11, weights: {w}}}" for role, (n, w) in detectors.items()]
    folder = [f"--images={digits / 'images/val'}", f"--annotations={digits / 'annotations/val.json'}"]
    cli.main(["show-attention", *named, *folder, "--adapter=my_spots:SpotAdapter", "--output=attention.png"])
    assert np.asarray(Image.open("attention.png").convert("RGB")).std() > 5


def test_show_attention_of_detectors_with_fewer_classes(folder, digits):
    """The category ids of the file, 1 to 10, are none of their labels; a picture needs only the boxes."""
    torch.save(spots.small(num_classes=3).state_dict(), "few.pt")
    named = [f"--{role}={{name: my_spots:small, num_classes: 3, weights: few.pt}}" for role in ("teacher", "student")]
    folder = [f"--images={digits / 'images/val'}", f"--annotations={digits / 'annotations/val.json'}"]
    cli.main(["show-attention", *named, *folder, "--adapter=my_spots:SpotAdapter", "--output=few.png"])
    assert Path("few.png").is_file()


def test_an_adapter_that_cannot_be_used(folder, options):
    for name, told in {
        "my_spots:NoSuch": "adapter: expected module:Class, cannot import 'my_spots:NoSuch'",
        "no_such_module:Adapter": "cannot import 'no_such_module:Adapter': No module named",
        "my_spots": "adapter: expected module:Class",
        "my_spots:SpotNet": "got SpotNet without check_pair, default_layers",
    }.items():
        with pytest.raises((TypeError, ValueError), match=re.escape(told)):
            as_adapter(name, spots.small())
    with pytest.raises(SystemExit, match=r"fit: no adapter for SpotNet: .*register_adapter.*--model\.adapter"):
        cli.main(["fit", *options, "--model.adapter=null"])


def test_a_folder_of_logs_is_no_package(folder):
    (folder / "runs_of_mine").mkdir()
    with pytest.raises(ValueError, match="No module named 'runs_of_mine'"):
        as_adapter("runs_of_mine:Adapter", spots.small())


# ---- in Python -------------------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", [])
    registry.register_adapter(spots.SpotNet, spots.SpotAdapter)


@pytest.fixture
def spot_pair():
    torch.manual_seed(0)
    return spots.small(side=64).train(), spots.large(side=64)


def test_distil_and_inherit(spot_pair, capsys):
    student, teacher = spot_pair
    inherit(student, teacher, adapter=spots.SpotAdapter(), verbose=False)
    assert torch.equal(student.head.weight, teacher.head.weight)
    distiller = distil(student, teacher, adapter="spots:SpotAdapter")
    told = capsys.readouterr().out
    assert "adapter SpotAdapter, given" in told and "layers neck.0, neck.1 of the student" in told
    assert "one_stage_anchor_free (by the student's class)" in told
    assert set(fgd.LOSS_NAMES) | {"class", "box"} == distiller(*two_images()).keys()


def test_training_steps_lower_the_loss_and_boxes_share_the_maps_frame(spot_pair, registered):
    """The 48 x 64 image is put 8 pixels from the top of the square of 64, and its box with it."""
    distiller = make_distiller(*spot_pair)
    assert_one_box_covers(distiller, two_images(), (64, 64), [8.0, 20.0, 50.0, 38.0], (8, 8), (2, 5), (1, 7))
    assert_steps_lower_the_loss(distiller, two_images(), {"class", "box"}, steps=12, lr=1e-2)


def test_predictions_come_back_to_the_image(spot_pair):
    """Boxes of the whole square are cut to the image, wherever it was put."""
    student = spot_pair[0].eval()
    torch.nn.init.zeros_(student.head.weight)
    student.head.bias.data[-4:] = torch.tensor([0.0, 0.0, 9.0, 9.0])  # centre 0.5, size 1
    images = [torch.rand(3, 24, 32), torch.rand(3, 60, 48)]
    for found, image in zip(spots.SpotAdapter().predict(student, images), images, strict=True):
        whole = torch.tensor([0.0, 0.0, image.shape[2], image.shape[1]])
        torch.testing.assert_close(found["boxes"], whole.expand(20, 4), atol=0.1, rtol=0)


def test_a_picture_is_the_image_in_the_familys_frame(spot_pair, registered):
    student, teacher = spot_pair
    colour = torch.tensor([0.2, 0.5, 0.8]).view(3, 1, 1)
    view = view_attention(teacher, {"s": student}, colour.expand(3, 32, 64), torch.tensor([[8.0, 8.0, 24.0, 24.0]]))
    torch.testing.assert_close(view.picture[:, 16:48], colour.expand(3, 32, 64))
    assert (view.picture[:, :16] == 0.5).all() and view.boxes.tolist() == [[8.0, 24.0, 24.0, 40.0]]


def test_the_guide_shows_this_adapter():
    """Line by line, so that what the guide says was run."""
    shown = [part.strip("\n") for part in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S)]
    text = Path(spots.__file__).read_text()
    parts = [part for part in shown if part.startswith(("class ", "def "))]
    assert all(part in text for part in parts)
    lines = sum(1 for part in parts[1:] for line in part.splitlines() if line.strip())
    assert f"These are {lines} lines." in GUIDE.read_text()


def test_first_label_is_asked_of_the_adapter(spot_pair, write_coco):
    images, annotations = write_coco([("a.png", [{"bbox": [1, 1, 20, 20], "category_id": 0}])])
    content = json.loads(annotations.read_text())
    content["categories"] = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
    annotations.write_text(json.dumps(content))
    data = {"train_images": images, "val_images": images, "train_annotations": annotations}
    paths = [f"--data.{name}={path}" for name, path in (data | {"val_annotations": annotations}).items()]
    detector = ["--model.student.name=spots:small", "--model.student.num_classes=2"]
    common = ["--data.num_workers=0", "--data.batch_size=1", "--trainer.accelerator=cpu", "--trainer.max_steps=1"]
    quiet = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]
    with pytest.raises(SystemExit, match="class 0 is the background; got 0"):
        cli.main(["fit", *detector, *paths, *common, *quiet, "--model.adapter=spots:SpotAdapter"])


def test_weights_of_its_detectors_load(spot_pair, tmp_path):
    torch.save(spot_pair[1].state_dict(), tmp_path / "t.pt")
    built = build_detector(DetectorConfig("spots:large", 11, str(tmp_path / "t.pt"), options={"side": 64}))
    assert torch.equal(built.head.weight, spot_pair[1].head.weight) and built.side == 64
