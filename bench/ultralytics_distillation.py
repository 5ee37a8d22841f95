"""FGD beside the distillation that Ultralytics brings along (``distill_model``), in Ultralytics' own trainer.

    fgd-distill make-digits data/digits
    python -m bench.ultralytics_distillation      # CSV in runs/ultralytics.csv, a row a training; run again, it goes on

The digits data in YOLO's format, resized to 96 pixels. The teacher is YOLOv8n; the student is the same network with
half its channels, trained by the same 1,500 steps alone, with ``distill_model=`` as Ultralytics sets it, and with
``FGDTrainer``, its weights calibrated so that all terms are at first three times the student's own loss, or once. AP is
that of the 400 images left out of training. One thread. It needs ``pip install ultralytics globox``.
"""

import argparse
import csv
import os
import pathlib
import statistics
import time

os.environ["OMP_NUM_THREADS"] = "1"

import yaml
from globox import AnnotationSet
from ultralytics import YOLO
from ultralytics.nn.tasks import yaml_model_load

from bench.machine import description
from fgd_distill.ultralytics import FGDTrainer

FGD = {"fgd": "calibrate", "fgd_total_1": 1.0}  # the argument weights
SETTINGS = ("alone", "distill_model", *FGD)
SEEDS = (0, 1, 2)
EPOCHS, TEACHER_EPOCHS = 5, 5  # of 300 steps
COLUMNS = ("setting", "seed", "epochs", "AP", "AP50", "cpu_seconds", *description())


def write_yolo(source: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The data set's file for Ultralytics, with the labels of a COCO folder beside links to its images."""
    file = folder / "digits.yaml"
    if file.exists():
        return file
    names = [str(digit) for digit in range(10)]
    for split in ("train", "val"):
        labels = AnnotationSet.from_coco(source / "annotations" / f"{split}.json")
        (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
        labels.save_yolo_v5(folder / "labels" / split, label_to_id={name: i for i, name in enumerate(names)})
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        for image in (source / "images" / split).resolve().iterdir():  # a link to the folder would be resolved
            (folder / "images" / split / image.name).symlink_to(image)
    told = {
        "path": str(folder.resolve()),
        "train": "images/train",
        "val": "images/val",
        "names": dict(enumerate(names)),
    }
    file.write_text(yaml.safe_dump(told))
    return file


def write_student(folder: pathlib.Path) -> pathlib.Path:
    """YOLOv8 with half of scale n's channels."""
    config = yaml_model_load("yolov8n.yaml")
    depth, width, largest = config["scales"]["n"]
    file = folder / "yolov8n-half.yaml"
    kept = {name: config[name] for name in config.keys() - {"scale", "yaml_file"}}
    file.write_text(yaml.safe_dump(kept | {"nc": 10, "scales": {"n": [depth, width / 2, largest]}}))
    return file


def options(data: pathlib.Path, folder: pathlib.Path, name: str, epochs: int, seed: int) -> dict:
    """What all trainings have in common: small images need no mosaics, and digits are not mirrored."""
    return {
        "data": str(data.resolve()), "project": str(folder.resolve()), "name": name, "exist_ok": True,
        "epochs": epochs, "seed": seed, "imgsz": 96, "batch": 8, "nbs": 8, "workers": 0, "device": "cpu",
        "warmup_epochs": 0.5, "mosaic": 0.0, "fliplr": 0.0, "plots": False, "amp": False, "verbose": False,
    }  # fmt: skip


def train(setting: str, file: pathlib.Path, teacher: pathlib.Path, common: dict):
    """One training of the student, or of the teacher, which goes on where it was interrupted; its box metrics."""
    chosen = {"val": setting == "teacher"}  # the best epoch's weights are the teacher; a student's end counts
    last = teacher.with_name("last.pt")
    if setting == "teacher" and last.exists():
        file, common, chosen = last, {}, {"resume": True}
    elif setting == "distill_model":
        chosen["distill_model"] = str(teacher)
    elif setting in FGD:
        chosen["trainer"] = FGDTrainer.with_teacher(teacher, weights=FGD[setting])
    model = YOLO(file)
    model.train(**common, **chosen)
    return model.metrics.box


def read(output: pathlib.Path) -> list[dict]:
    if not output.exists():
        return []
    with output.open() as file:
        return list(csv.DictReader(file))


def append(output: pathlib.Path, row: dict) -> None:
    new = not output.exists()
    with output.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def table(rows: list[dict]) -> list[str]:
    """A line of Markdown a setting: AP of each training, the mean, and the mean of the processor's seconds."""
    lines = ["| | AP by seed | mean AP | mean AP50 | CPU seconds |", "|---|---|---|---|---|"]
    for setting in ("teacher", *SETTINGS):
        of_setting = [row for row in rows if row["setting"] == setting]
        if of_setting:
            found = {name: [float(row[name]) for row in of_setting] for name in ("AP", "AP50", "cpu_seconds")}
            ap, ap50, seconds = (statistics.mean(values) for values in found.values())
            each = ", ".join(f"{value:.1f}" for value in found["AP"])
            lines.append(f"| {setting} | {each} | {ap:.1f} | {ap50:.1f} | {seconds:.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default="data/digits", help="a COCO folder of make-digits")
    parser.add_argument("--folder", type=pathlib.Path, default="runs/ultralytics", help="of the trainings")
    parser.add_argument("--output", type=pathlib.Path, default="runs/ultralytics.csv")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args()
    data, student = write_yolo(args.data, args.folder), write_student(args.folder)
    teacher = args.folder / "teacher" / "weights" / "best.pt"

    trainings = [("teacher", 0, TEACHER_EPOCHS)]
    trainings += [(setting, seed, args.epochs) for seed in args.seeds for setting in args.settings]
    for setting, seed, epochs in trainings:
        row = {"setting": setting, "seed": str(seed), "epochs": str(epochs)}
        if any(row.items() <= done.items() for done in read(args.output)):
            continue
        name, file = ("teacher", "yolov8n.yaml") if setting == "teacher" else (f"{setting}-{seed}", student)
        begin = time.process_time()
        box = train(setting, file, teacher, options(data, args.folder, name, epochs, seed))
        row |= {"AP": f"{100 * box.map:.2f}", "AP50": f"{100 * box.map50:.2f}"}
        append(args.output, row | {"cpu_seconds": f"{time.process_time() - begin:.0f}"} | description())
    print(*table(read(args.output)), sep="\n")


if __name__ == "__main__":
    main()
