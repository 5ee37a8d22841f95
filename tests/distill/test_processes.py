"""Two processes over gloo, started by Lightning and by torchrun, do what one process does with the joint batch."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from torchvision.models import resnet18

from fgd_distill.detectors.by_name import DetectorConfig, build_detector
from fgd_distill.training.run import run

COMMAND = ["-m", "fgd_distill.commands.main"]
LAUNCHERS = {
    "Lightning": COMMAND,
    "torchrun": [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "fgd_distill.commands.main",
    ],
}
# Frozen batch norms, and losses that are means over images: then the mean of two processes' gradients is the gradient
# of the joint batch. (Batch norms that learn, and FCOS's loss over all foreground pixels of a batch, differ a little.)
DETECTOR = {"name": "retinanet_resnet18_fpn", "num_classes": 11, "options": {"min_size": 64, "max_size": 64}}
STEPS = 2


@pytest.fixture(scope="module")
def arguments(digits, tmp_path_factory):
    """Arguments of a distilled training on joint batches of four images."""
    files = tmp_path_factory.mktemp("files")
    torch.manual_seed(2)
    torch.save(resnet18().state_dict(), files / "resnet18.pth")
    torch.save(build_detector(DetectorConfig(**DETECTOR)).state_dict(), files / "teacher.pt")
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.001, "momentum": 0.9}}
    checkpoint = {"every_n_train_steps": STEPS, "filename": "end"}
    callback = {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": checkpoint}
    overlay = {
        "trainer": {"callbacks": [callback], "limit_val_batches": 0, "log_every_n_steps": 1, "max_steps": STEPS},
        "model": {
            "student": DETECTOR | {"backbone_weights": str(files / "resnet18.pth")},
            "teacher": DETECTOR | {"weights": str(files / "teacher.pt")},
            "fgd": {"temperature": 4.0},
            "optimizer": optimizer,
            "lr_scheduler": None,
        },
        "data": {
            "root": str(digits),
            "num_workers": 0,
            "train_transforms": [{"class_path": "torchvision.transforms.v2.RandomHorizontalFlip"}],
        },
    }
    (files / "overlay.yaml").write_text(json.dumps(overlay))

    def make(folder, images, devices):
        return [
            "fit",
            "--config=digits_student.yaml",
            f"--config={files / 'overlay.yaml'}",
            f"--data.batch_size={images}",
            f"--trainer.devices={devices}",
            "--trainer.enable_progress_bar=false",
            f"--trainer.default_root_dir={folder}",
            f"--trainer.logger.init_args.save_dir={folder}",
        ]

    return make


def launch(launcher, arguments, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *LAUNCHERS[launcher], *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def outcome(folder):
    """Logged losses, weights and accumulated gradients of a training."""
    with next(folder.rglob("metrics.csv")).open() as file:
        lines = [{key: float(value) for key, value in line.items() if value} for line in csv.DictReader(file)]
    checkpoint = torch.load(next(folder.rglob("end.ckpt")), weights_only=True)
    moments = [state["momentum_buffer"] for state in checkpoint["optimizer_states"][0]["state"].values()]
    return lines, checkpoint["state_dict"], moments


@pytest.fixture(scope="module")
def alone(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    run(arguments(folder, images=4, devices=1))
    return outcome(folder)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train_as_one(arguments, alone, tmp_path, launcher):
    launch(launcher, arguments(tmp_path, images=2, devices=2), tmp_path)
    lines, weights, gradients = outcome(tmp_path)
    assert len(lines) == len(alone[0]) == STEPS
    for ours, theirs in zip(lines, alone[0], strict=True):
        assert {"loss", "train/loss_fgd_fg", "level4/loss_fgd_global"} <= ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, rel=1e-4)
    largest = max(gradient.abs().max() for gradient in alone[2])
    for ours, theirs in zip(gradients, alone[2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * largest)
    for name, value in weights.items():
        torch.testing.assert_close(value, alone[1][name], rtol=1e-4, atol=1e-6)


def test_two_processes_validate_as_one(digits, tmp_path):
    """Six images in two processes with batches of two: the last batch is filled up, and counts its images once."""
    arguments = [
        "validate",
        "--config=digits_teacher.yaml",
        "--model.student.weights=package:digits_teacher.pt",
        f"--data.root={digits}",
        "--data.num_workers=0",
        "--data.batch_size=2",
        "--trainer.enable_progress_bar=false",
        "--verbose=false",
    ]
    metrics = run([*arguments, "--trainer.logger=false"]).trainer.callback_metrics
    log = [f"--trainer.logger.init_args.save_dir={tmp_path}", "--trainer.devices=2"]
    launch("torchrun", [*arguments, *log], tmp_path)
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        line = next(csv.DictReader(file))
    assert metrics["val/AP"] > 30
    for name in ("val/AP", "val/AP75", "val/AR", "val/AR_small"):
        assert float(line[name]) == pytest.approx(float(metrics[name]), rel=1e-5)
