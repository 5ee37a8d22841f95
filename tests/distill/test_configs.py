"""The shipped configurations: all are parsed, one pair takes real steps on small images."""

import json
import math

import pytest
import torch
import yaml
from torchvision.models import resnet50

from fgd_distill.commands import main as cli
from fgd_distill.detectors.by_name import DetectorConfig, build_detector, detector_names

PAIRS = sorted(path.name for path in cli.CONFIGS.glob("*_r50.yaml"))
OVERLAYS = {"coco_inherit.yaml": PAIRS[0], "digits_fgd.yaml": "digits_student.yaml"}
OVERLAYS["digits_inherit.yaml"] = "digits_student.yaml"


def load(name):
    return yaml.safe_load((cli.CONFIGS / name).read_text())


@pytest.fixture
def parse(monkeypatch):
    """The configuration that a command line gives, without building anything from it."""
    monkeypatch.setattr(cli.DistillCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(cli.DistillCLI, "_run_subcommand", lambda self, name: None)
    return lambda *names: cli.run(["fit", *(f"--config={name}" for name in names)]).config["fit"]


@pytest.mark.parametrize("name", sorted(path.name for path in cli.CONFIGS.glob("*.yaml")))
def test_every_configuration_parses(parse, name):
    names = [OVERLAYS[name], name] if name in OVERLAYS else [name]
    config = parse(*names)
    for detector in (config.model.student, config.model.teacher):
        assert detector is None or detector.name in detector_names()


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
    run = name.removesuffix(".yaml")
    assert config["trainer"]["default_root_dir"] == f"runs/{run}"
    assert [logger["init_args"]["name"] for logger in config["trainer"]["logger"]] == [run, run]
    assert run in (cli.CONFIGS / name).read_text().split("seed_everything")[0]


def test_mask_rcnn_of_the_paper_takes_steps(digits, tmp_path):
    """The real pair, with its overlay, at 64 pixels: two steps, AP of boxes and of masks, both loggers."""
    small = {"min_size": 64, "max_size": 64, "rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 20}
    torch.save(resnet50().state_dict(), tmp_path / "resnet50.pth")
    teacher = build_detector(DetectorConfig("maskrcnn_resnet101_fpn", 91))
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    del teacher
    ran = cli.run(
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
    assert terms | {"train/loss_mask", "val/AP", "val/AP_mask", "level4/loss_fgd_fg"} <= logged.keys()
    assert all(math.isfinite(logged[name]) for name in logged if not name.startswith("val/"))
    body = ran.model.detector.backbone.body
    assert not body.conv1.weight.requires_grad and body.layer2[0].conv1.weight.requires_grad
    assert list(tmp_path.rglob("metrics.csv")) and list(tmp_path.rglob("events.out.tfevents.*"))


def loggers(folder):
    return [
        {"class_path": f"pytorch_lightning.loggers.{name}", "init_args": {"save_dir": str(folder), "name": "run"}}
        for name in ("CSVLogger", "TensorBoardLogger")
    ]
