"""The shipped configurations: all are parsed, one pair takes real steps on small images."""

import json
import math

import pytest
import torch
import yaml
from torchvision.models import resnet50

from fgd_distill.commands.calibrate import CalibrateCLI
from fgd_distill.commands.compare import _model_of
from fgd_distill.commands.main import COMMANDS
from fgd_distill.commands.profile import ProfileCLI
from fgd_distill.commands.slips import slip
from fgd_distill.detectors.by_name import DetectorConfig, build_detector, detector_names
from fgd_distill.shipped import CONFIGS
from fgd_distill.training.bases import with_bases
from fgd_distill.training.run import DistillCLI, run

PAIRS = sorted(path.name for path in CONFIGS.glob("*_r50.yaml"))
OVERLAYS = {"coco.yaml": PAIRS[0], "coco_inherit.yaml": PAIRS[0], "digits_fgd.yaml": "digits_student.yaml"}
OVERLAYS |= dict.fromkeys(("digits_inherit.yaml", "digits_normalise.yaml"), "digits_student.yaml")
OVERLAYS["alone.yaml"] = OVERLAYS["economical.yaml"] = PAIRS[0]


def load(name):
    """A pair's configuration with its base."""
    own = yaml.safe_load((CONFIGS / name).read_text())
    return laid_over(yaml.safe_load((CONFIGS / own.pop("base")).read_text()), own)


def laid_over(below, above):
    both = {
        key: laid_over(below[key], above[key]) for key in below.keys() & above.keys() if isinstance(below[key], dict)
    }
    return below | above | both


@pytest.fixture
def parse(monkeypatch):
    """The configuration that a command line gives, without building anything from it."""
    monkeypatch.setattr(DistillCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(DistillCLI, "_run_subcommand", lambda self, name: None)
    return lambda *names: run(["fit", *(f"--config={name}" for name in names)]).config["fit"]


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_configuration_parses(parse, name):
    names = [OVERLAYS[name], name] if name in OVERLAYS else [name]
    config = parse(*names)
    for detector in (config.model.student, config.model.teacher):
        assert detector is None or detector.name in detector_names()


@pytest.mark.parametrize("command", ["calibrate", "compare", "profile"])
def test_what_a_training_has_written_serves_the_other_commands(parse, tmp_path, command):
    """Its config.yaml has two keys more than they take; on the command line these are a slip."""
    saved = yaml.safe_load((CONFIGS / PAIRS[0]).read_text()) | {"ckpt_path": "a.ckpt", "weights_only": None}
    saved["base"] = str(CONFIGS / saved["base"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(saved))
    options = [f"--config={path}"]
    assert slip(command, COMMANDS[command].function, True, options) is None
    read = {"calibrate": CalibrateCLI, "compare": _model_of, "profile": ProfileCLI}[command](options)
    model = read if command == "compare" else read.config.model
    assert model.student.name == parse(PAIRS[0]).model.student.name
    assert "unrecognized option" in slip(command, COMMANDS[command].function, True, [*options, "--ckpt_path=a.ckpt"])


def test_economical_is_the_same_pair_with_a_cheaper_teacher(parse):
    plain, economical = parse(PAIRS[0]).model, parse(PAIRS[0], "economical.yaml").model
    assert (economical.teacher.dtype, economical.teacher.channels_last) == ("bfloat16", True)
    economical.teacher.dtype, economical.teacher.channels_last = plain.teacher.dtype, plain.teacher.channels_last
    assert economical == plain


def test_the_paper_has_its_pairs():
    assert PAIRS == [
        "fasterrcnn_r101_r50.yaml",
        "fcos_r101_r50.yaml",
        "maskrcnn_r101_r50.yaml",
        "maskrcnn_x101_r50.yaml",
        "retinanet_r101_r50.yaml",
        "retinanet_x101_r50.yaml",
    ]


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_parsed_with_its_base(parse, name):
    config = parse(name)
    assert config.base is None and config.trainer.max_epochs == 24
    assert config.model.student.name.endswith("_resnet50_fpn") and config.data.train_images == "train2017"
    rate = config.model.optimizer.init_args
    assert (rate.lr, rate.momentum) == (0.01 if "one_stage" in config.model.fgd.preset else 0.02, 0.9)


def test_a_file_of_ones_own_builds_on_a_pair(parse, tmp_path, monkeypatch):
    """Also through two files, one beside the other; the nearest value wins."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pair.yaml").write_text("base: retinanet_r101_r50.yaml\ndata: {batch_size: 3, root: there}\n")
    (tmp_path / "runs" / "mine.yaml").write_text("base: pair.yaml\ndata: {batch_size: 5}\n")
    data = parse("runs/mine.yaml").data
    assert (data.batch_size, data.root, data.num_workers) == (5, "there", 4)
    assert parse("runs/mine.yaml", "runs/pair.yaml").data.batch_size == 3


def test_bases_come_before_every_configuration(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: coco.yaml\n")
    found = with_bases(["--config", "digits_student.yaml", "--data.root=x", f"--config={mine}", "-c", str(mine)])
    student, coco = CONFIGS / "digits_student.yaml", CONFIGS / "coco.yaml"
    expected = [f"--config={coco}", "--config", str(student), "--data.root=x", f"--config={mine}", "-c", str(mine)]
    assert found == expected


def test_a_configuration_on_the_command_line_has_a_base_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("base: coco.yaml\n")
    inline = "{base: ./mine.yaml, data: {root: a/b}}"
    assert with_bases(["--config", inline]) == [
        f"--config={CONFIGS / 'coco.yaml'}",
        "--config=mine.yaml",
        "--config",
        inline,
    ]


def test_bases_that_cannot_be(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: nowhere.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"mine.yaml: base: expected a configuration.*nowhere.yaml"):
        with_bases([f"--config={mine}"])
    mine.write_text("base: mine.yaml\n")
    with pytest.raises(ValueError, match="expected another file, got mine.yaml"):
        with_bases([f"--config={mine}"])
    mine.write_text("base: [a, b]\n")
    with pytest.raises(ValueError, match="expected the name of a configuration, got"):
        with_bases([f"--config={mine}"])


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_follow_the_papers_recipe(name):
    """Written out, so that a slip of one file is found: what differs between the pairs, and nothing else."""
    config = load(name)
    family, teacher = name.removesuffix("_r50.yaml").split("_")
    one_stage = family in ("retinanet", "fcos")
    presets = {"retinanet": "one_stage_anchor", "fcos": "one_stage_anchor_free"}
    model = config["model"]
    assert model["student"]["name"] == f"{family}_resnet50_fpn"
    assert model["teacher"]["name"] == f"{family}_{dict(r101='resnet101', x101='resnext101_64x4d')[teacher]}_fpn"
    assert model["fgd"] == {"preset": presets.get(family, "two_stage")}
    assert model["optimizer"]["class_path"] == "torch.optim.SGD"
    assert model["optimizer"]["init_args"] == {
        "lr": 0.01 if one_stage else 0.02,
        "momentum": 0.9,
        "weight_decay": 1e-4,
    }
    assert config["data"].get("with_masks", False) == (family == "maskrcnn")
    config["data"].pop("with_masks", None)
    other = load(PAIRS[0])
    assert config["data"] == other["data"] and model["lr_milestones"] == other["model"]["lr_milestones"]
    same = ("max_epochs", "gradient_clip_val", "callbacks", "log_every_n_steps")
    assert all(config["trainer"][key] == other["trainer"][key] for key in same)
    assert (config["trainer"]["max_epochs"], config["trainer"]["gradient_clip_val"]) == (24, 35.0)
    folder = name.removesuffix(".yaml")
    assert config["trainer"]["default_root_dir"] == f"runs/{folder}"
    assert [logger["init_args"]["name"] for logger in config["trainer"]["logger"]] == [folder, folder]
    assert folder in (CONFIGS / name).read_text().split("base:")[0]


def test_mask_rcnn_of_the_paper_takes_steps(digits, tmp_path):
    """The real pair, with its overlay, at 64 pixels: two steps, AP of boxes and of masks, both loggers."""
    small = {"min_size": 64, "max_size": 64, "rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 20}
    torch.save(resnet50().state_dict(), tmp_path / "resnet50.pth")
    teacher = build_detector(DetectorConfig("maskrcnn_resnet101_fpn", 91))
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    del teacher
    ran = run(
        [
            "fit",
            "--config=maskrcnn_r101_r50.yaml",
            "--config=coco_inherit.yaml",
            f"--model.student.backbone_weights={tmp_path / 'resnet50.pth'}",
            f"--model.teacher.weights={tmp_path / 'teacher.pt'}",
            f"--model.student.options={json.dumps(small)}",
            f"--model.teacher.options={json.dumps(small)}",
            "--model.fgd.temperature=4",
            *(f"--data.{split}_images=images/{split}" for split in ("train", "val")),
            *(f"--data.{split}_annotations=annotations/{split}.json" for split in ("train", "val")),
            f"--data.root={digits}",
            "--data.num_workers=0",
            "--trainer.accelerator=cpu",
            "--trainer.max_steps=2",
            "--trainer.limit_train_batches=2",
            "--trainer.limit_val_batches=1",
            "--trainer.num_sanity_val_steps=0",
            "--trainer.log_every_n_steps=1",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            f"--trainer.default_root_dir={tmp_path}",
            f"--trainer.logger={json.dumps(loggers(tmp_path))}",
            "--trainer.callbacks=[]",
            "--trainer.enable_checkpointing=false",
        ]
    )
    logged = ran.trainer.callback_metrics
    terms = {f"train/loss_fgd_{term}" for term in ("fg", "bg", "attention", "global")}
    assert terms | {"train/loss_mask", "val/AP", "val/AP_mask", "level3/loss_fgd_fg"} <= logged.keys()
    assert all(math.isfinite(logged[name]) for name in logged if not name.startswith("val/"))
    body = ran.model.detector.backbone.body
    assert not body.conv1.weight.requires_grad and body.layer2[0].conv1.weight.requires_grad
    assert list(tmp_path.rglob("metrics.csv")) and list(tmp_path.rglob("events.out.tfevents.*"))


def loggers(folder):
    return [
        {"class_path": f"pytorch_lightning.loggers.{name}", "init_args": {"save_dir": str(folder), "name": "run"}}
        for name in ("CSVLogger", "TensorBoardLogger")
    ]
