"""What the documentation tells readers to run: commands and snippets. Links, figures and tables: tests/docs."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import fgd_kernels as fgd
from fgd_distill.commands import main as cli
from fgd_distill.data import CocoDataModule

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"(<!-- runnable -->\n)?```(\w+)\n(.*?)```", re.S)
COMMAND = re.compile(r"^ {4,}(fgd-distill (?:.*\\\n)*.*)$", re.M)
# The page's commands, made short: a few images, a few steps, no loader processes.
DATA = ["--data.batch_size=2", "--data.num_workers=0"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
FIT = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"]
SHORT = {
    "make-digits": ["--train_images=24", "--val_images=21", "--progress=false"],
    "fit": [*DATA, *QUIET, *FIT, "--trainer.limit_val_batches=1"],
    "validate": [*DATA, *QUIET, "--trainer.limit_val_batches=1"],
    "calibrate": [*DATA, "--batches=1"],
    "predict": ["--num_workers=0"],
}


def steps_of(page):
    """("yaml" | "python" | "command", text) of a page, in its order; Python that is not marked runnable is left out."""
    text = page.read_text()
    found = [
        (match.start(), match[2], match[3])
        for match in FENCE.finditer(text)
        if match[2] == "yaml" or (match[2] == "python" and match[1])
    ]
    found += [(match.start(), "command", match[1].replace("\\\n", " ")) for match in COMMAND.finditer(text)]
    return [(kind, content) for _, kind, content in sorted(found)]


def test_the_page_on_distilling_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ran: list[str] = []
    names: dict = {}
    for kind, content in steps_of(ROOT / "docs" / "tutorials" / "distil-your-own.md"):
        if kind == "yaml":
            Path("my_pair.yaml").write_text(content)
        elif kind == "python":
            exec(compile(content, "distil-your-own.md", "exec"), names)
        else:
            name, *options = shlex.split(content)[1:]
            ran.append(name)
            steps = ["--trainer.max_steps=4"] if any("ckpt_path" in option for option in options) else []
            cli.main([name, *options, *SHORT.get(name, []), *(steps if name == "fit" else [])])
    expected = {"make-digits", "calibrate", "fit", "validate", "export-student"}
    assert expected | {"predict", "show-attention", "plot-training", "plot-ap"} <= set(ran)
    pictures = ["runs/attention.png", "runs/training.png", "runs/ap.png", "a.png"]
    for path in ["runs/my_pair/student.pt", "runs/detections.json", "student.pt", *pictures]:
        assert (tmp_path / path).stat().st_size > 1000
    assert "inherited" in capsys.readouterr().out


def test_the_page_on_the_published_code(tmp_path, monkeypatch):
    """Its snippets, on a checkpoint with the published names."""
    monkeypatch.chdir(tmp_path)
    levels = [fgd.FeatureLoss(256, 256, f"loss_fgd_fpn_{i}") for i in range(5)]
    state = {f"distill_losses.{loss.name}.{key}": value for loss in levels for key, value in loss.state_dict().items()}
    state |= {"student.neck.weight": torch.rand(3), "teacher.neck.weight": torch.rand(3)}
    torch.save({"state_dict": state, "optimizer": {}}, "epoch_24.pth")
    names: dict = {}
    for _, content in steps_of(ROOT / "docs" / "guides" / "from-the-published-code.md"):
        exec(compile(content, "from-the-published-code.md", "exec"), names)
    assert (names["criterion"].gamma, names["criterion"].temperature) == (8e-4, 0.8)
    assert torch.equal(names["criterion"].levels[3].conv_mask_s.weight, levels[3].conv_mask_s.weight)
    assert list(names["student"]) == ["neck.weight"]


def test_the_page_on_a_loop_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for _, content in steps_of(ROOT / "docs" / "tutorials" / "your-own-loop.md"):
        exec(compile(content, "your-own-loop.md", "exec"), names)
    assert set(names["losses"]) == set(fgd.LOSS_NAMES)
    assert names["student"].stem.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in names["teacher"].parameters())
    assert Path("foreground.png").stat().st_size > 1000
    assert "student_features: expected 3 levels (num_levels), got 2" in capsys.readouterr().out


def test_the_page_on_data_converts_pascal_voc_and_yolo(tmp_path, monkeypatch):
    pytest.importorskip("globox", reason="pip install --no-deps -r requirements-adapters.txt")
    monkeypatch.chdir(tmp_path)
    boxes = {"train": [(0, 6, 11, 30, 35), (1, 2, 4, 8, 9)], "val": [(1, 10, 0, 60, 40)]}
    for split, found in boxes.items():
        for folder in (f"voc/{split}", f"images/{split}", f"labels/{split}", "annotations"):
            Path(folder).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(found)).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        for name, contents in (("a", found), ("b", [])):
            Image.fromarray(pixels).save(f"images/{split}/{name}.jpg")
            objects = "".join(
                f"<object><name>{('cat', 'dog')[label]}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
                f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
                for label, x0, y0, x1, y1 in contents
            )
            size = "<size><width>60</width><height>40</height><depth>3</depth></size>"
            Path(f"voc/{split}/{name}.xml").write_text(
                f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
            )
            lines = [
                f"{label} {(x0 + x1) / 120} {(y0 + y1) / 80} {(x1 - x0) / 60} {(y1 - y0) / 40}\n"
                for label, x0, y0, x1, y1 in contents
            ]
            Path(f"labels/{split}/{name}.txt").write_text("".join(lines))
    steps = steps_of(ROOT / "docs" / "guides" / "data.md")
    (configured,) = (yaml.safe_load(content)["data"] for kind, content in steps if kind == "yaml")
    names: dict = {}
    for content in (content for kind, content in steps if kind == "python"):
        for path in Path("annotations").iterdir():
            path.unlink()
        exec(compile(content, "data.md", "exec"), names)
        data = CocoDataModule(**configured, batch_size=2, num_workers=0)
        data.setup("fit")
        for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
            ((images, targets),) = list(loader)
            assert len(images) == 2
            read = [
                (label - 1, *box)
                for target in targets
                for label, box in zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True)
            ]
            assert sorted(read) == [pytest.approx(box, abs=1e-4) for box in sorted(boxes[split])]


def test_the_readme(tmp_path, monkeypatch):
    """Its ten lines define all that they use; its commands run, in order."""
    monkeypatch.chdir(tmp_path)
    readme = ROOT / "README.md"
    (content,) = (match[3] for match in FENCE.finditer(readme.read_text()) if match[2] == "python")
    assert len([line for line in content.splitlines() if line]) <= 10
    names: dict = {}
    exec(compile(content, "README.md", "exec"), names)
    assert set(names["losses"]) == set(fgd.LOSS_NAMES)
    assert all(features.grad.abs().sum() > 0 for features in names["student"])
    commands = [shlex.split(command, comments=True)[1:] for kind, command in steps_of(readme) if kind == "command"]
    assert [name for name, *_ in commands] == ["make-digits", "fit"]
    for name, *options in commands:
        cli.main([name, *options, *SHORT[name]])
    assert list((tmp_path / "runs").rglob("*.ckpt"))
