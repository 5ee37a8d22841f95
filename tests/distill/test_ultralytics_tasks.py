"""Ultralytics' tasks beside detection, and its RT-DETR: a training step of each, and the trainer in short runs."""

import math
import os

import numpy as np
import pytest
import torch
import yaml
from adapter_checks import two_images
from PIL import Image
from test_adapters_ultralytics import ultralytics  # noqa: F401  (a fixture)

import fgd_kernels as fgd
from fgd_distill import distil
from fgd_distill.adapters.ultralytics import UltralyticsAdapter

BOX_LOSSES = {"box_loss", "cls_loss"}


def network(kind: str, name: str, width: float = 0.25):
    """A model of Ultralytics' file, with ``width`` times its channels."""
    from ultralytics.nn import tasks

    config = tasks.yaml_model_load(name)
    if "scales" in config:
        config["scales"]["n"][1] *= width
    if kind == "PoseModel":
        config["kpt_shape"] = [3, 2]
    return getattr(tasks, kind)(config, nc=4, verbose=False)


def batch_of(kind: str, images: int = 2) -> dict:
    """Two objects in the first image, one in the second, as the task's data set gives them."""
    index = torch.tensor([0.0, 0.0, 1.0])
    boxes = torch.tensor([[0.3, 0.4, 0.4, 0.2], [0.7, 0.7, 0.3, 0.3], [0.5, 0.5, 0.5, 0.25]])
    batch = {"img": torch.rand(images, 3, 64, 64), "batch_idx": index, "cls": torch.tensor([[1.0], [2], [3]])}
    if kind == "OBBModel":
        boxes = torch.cat([boxes, torch.tensor([[0.5], [1.0], [0.0]])], 1)
    if kind == "PoseModel":
        batch["keypoints"] = torch.rand(3, 3, 2)
    if kind == "SegmentationModel":
        masks = torch.zeros(2, 16, 16)
        masks[0, 5:8, 2:8], masks[0, 9:14, 9:14], masks[1, 6:10, 4:12] = 1, 2, 1
        batch["masks"], batch["sem_masks"] = masks, torch.zeros(2, 16, 16).long()
    return batch | {"bboxes": boxes}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("DetectionModel", "yolo12n.yaml"),
        *(("SegmentationModel", f"yolo{version}n-seg.yaml") for version in ("v8", "11", "26")),
        *(("PoseModel", f"yolo{version}n-pose.yaml") for version in ("v8", "11", "26")),
        *(("OBBModel", f"yolo{version}n-obb.yaml") for version in ("v8", "11", "26")),
    ],
)
def test_a_step_of_every_task(kind, name):
    """Losses are the model's own, the terms are there, and the student learns by both."""
    torch.manual_seed(0)
    widths = (1.0, 1.0) if "12" in name else (0.25, 0.5)  # its blocks have 32 channels or a multiple
    student, teacher = (network(kind, name, width) for width in widths)
    distiller = distil(student, teacher, verbose=False)
    batch = batch_of(kind)
    torch.manual_seed(1)
    losses = distiller(batch)
    torch.manual_seed(1)
    theirs, items = student.loss(batch)
    assert losses.keys() == items.keys() | set(fgd.LOSS_NAMES) and losses.keys() > BOX_LOSSES
    own = torch.stack([losses[name] for name in items])
    torch.testing.assert_close(own.sum(), theirs.sum() / 2, rtol=1e-3, atol=1e-5)
    assert all(float(losses[name]) > 0 for name in fgd.LOSS_NAMES)
    sum(losses[name] for name in fgd.LOSS_NAMES).backward()
    assert student.model[0].conv.weight.grad.abs().sum() > 0


def test_rotated_boxes_are_foreground_as_they_lie():
    adapter, batch = UltralyticsAdapter(), batch_of("OBBModel")
    student = network("OBBModel", "yolov8n-obb.yaml").train()
    step = adapter.student_step(student, batch, None)
    weights = step.foreground(16, 16)
    angle, (w, h) = 0.5, (0.4 * 64, 0.2 * 64)
    reach = (w * math.cos(angle) + h * math.sin(angle)) / 2, (w * math.sin(angle) + h * math.cos(angle)) / 2
    expected = [0.3 * 64 - reach[0], 0.4 * 64 - reach[1], 0.3 * 64 + reach[0], 0.4 * 64 + reach[1]]
    torch.testing.assert_close(step.boxes[0][0], torch.tensor(expected))  # the upright box around it
    upright = fgd.reference.foreground_mask(*fgd.pack_boxes(step.boxes, [(64, 64)] * 2, "cpu"), 16, 16)
    assert (upright[weights > 0] > 0).all() and 0 < (weights > 0).sum() < (upright > 0).sum()
    torch.testing.assert_close(weights[1], upright[1])  # its angle is 0
    distiller = distil(student, network("OBBModel", "yolov8n-obb.yaml", 0.5), verbose=False)
    features = distiller.features(batch, None)
    found = features.judged_by(distiller.criterion)
    by_hand = distiller.criterion(features.student, features.teacher, foreground=features.step.foreground)
    by_boxes = distiller.criterion(features.student, features.teacher, features.step.boxes, features.frames)
    assert found == by_hand and found["loss_fgd_fg"] != by_boxes["loss_fgd_fg"]
    # A criterion that knows no foreground gets the boxes.
    assert features.judged_by(lambda s, t, boxes, sizes: boxes) is features.step.boxes


def test_instance_masks_are_foreground_on_request():
    batch = batch_of("SegmentationModel")
    student = network("SegmentationModel", "yolov8n-seg.yaml").train()
    weights = UltralyticsAdapter(masks=True).student_step(student, batch, None).foreground(16, 16)
    assert torch.equal(weights > 0, batch["masks"] > 0) and float(weights[0, 5, 2]) == pytest.approx(1 / 18)
    student.args.overlap_mask = False  # one map an object
    apart = torch.stack([batch["masks"][0] == 1, batch["masks"][0] == 2, batch["masks"][1] == 1]).float()
    step = UltralyticsAdapter(masks=True).student_step(student, batch | {"masks": apart}, None)
    assert torch.equal(step.foreground(16, 16), weights)
    with pytest.raises(TypeError, match="images: expected masks"):
        UltralyticsAdapter(masks=True).student_step(
            network("DetectionModel", "yolov8n.yaml").train(), batch_of("DetectionModel"), None
        )


RT_DETR, YOLO = ["RTDETRDecoder", ["nc", 32, 20, 4, 2, 1, 32]], ["Detect", ["nc"]]


def small(head: list, channels: int = 32) -> dict:
    """The configuration of a network with maps of strides 8, 16 and 32."""
    convolutions = [[-1, 1, "Conv", [count, 3, stride]] for count, stride in ((8, 4), (16, 2), (16, 2), (channels, 2))]
    return {"nc": 4, "backbone": convolutions, "head": [[[1, 2, 3], 1, *head]]}


def small_rt_detr(channels: int = 32):
    from ultralytics.nn.tasks import RTDETRDetectionModel

    torch.manual_seed(channels)
    return RTDETRDetectionModel(small(RT_DETR, channels), nc=4, verbose=False)


def small_pair(tmp_path):
    """A teacher's network, and the file of a student's."""
    from ultralytics.nn.tasks import DetectionModel

    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small(YOLO)))
    torch.manual_seed(0)
    return DetectionModel(small(YOLO, 48), nc=4, verbose=False), "small.yaml"


def test_rt_detr_steps_and_predicts():
    student = small_rt_detr()
    distiller = distil(student, small_rt_detr(48), verbose=False)
    assert distiller.student_layers == ["model.1", "model.2", "model.3"]
    batch = batch_of("DetectionModel")
    torch.manual_seed(1)
    losses = distiller(batch)
    torch.manual_seed(1)
    total, items = student.loss(batch)
    own = [value for name, value in losses.items() if name not in fgd.LOSS_NAMES]
    assert losses.keys() == items.keys() | {"other_layers_loss"} | set(fgd.LOSS_NAMES)
    torch.testing.assert_close(torch.stack(own).sum(), total, rtol=1e-4, atol=1e-4)
    sum(losses.values()).backward()
    assert student.model[0].conv.weight.grad.abs().sum() > 0
    images, targets = two_images()
    assert distiller(images, targets).keys() == losses.keys()
    found = distiller.eval()(images)
    assert len(found) == 2 and found[0]["boxes"].shape[1] == 4 and float(found[0]["boxes"].max()) <= 64


def test_tasks_train_on_their_own_batches_alone():
    images, targets = two_images()
    student = network("PoseModel", "yolov8n-pose.yaml").train()
    with pytest.raises(TypeError, match="images: expected a batch of Ultralytics' own trainer for PoseModel"):
        UltralyticsAdapter().student_step(student, images, targets)


LABELS = {
    "detect": "2 0.45 0.33 0.6 0.3\n",
    "segment": "2 0.2 0.2 0.8 0.2 0.8 0.6 0.2 0.6\n",
    "obb": "2 0.3 0.2 0.8 0.5 0.7 0.7 0.2 0.4\n",
    "pose": "2 0.45 0.33 0.6 0.3 0.3 0.3 0.5 0.4\n",
}
HEADS = {
    "segment": ("SegmentationModel", ["Segment", ["nc", 8, 16]], "small-seg.yaml"),
    "obb": ("OBBModel", ["OBB", ["nc", 1]], "small-obb.yaml"),
    "pose": ("PoseModel", ["Pose", ["nc", "kpt_shape"]], "small-pose.yaml"),
    "rtdetr": ("RTDETRDetectionModel", RT_DETR, "rtdetr-small.yaml"),
}


@pytest.fixture
def training(ultralytics, tmp_path, monkeypatch, request):  # noqa: F811
    """A folder with a data set of the task, and the options of a short training in it."""
    monkeypatch.chdir(tmp_path)
    task = getattr(request, "param", "detect")
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / folder / split).mkdir(parents=True)
        for number in range(4):
            image = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "images" / split / f"{number}.png")
            (tmp_path / "labels" / split / f"{number}.txt").write_text(LABELS.get(task, LABELS["detect"]))
    shape = "kpt_shape: [2, 2]\n" if task == "pose" else ""
    (tmp_path / "data.yaml").write_text(
        f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames: {{0: a, 1: b, 2: c, 3: d}}\n{shape}"
    )
    # It puts the table into the checkpoint, read by polars, which is large and needed for nothing else.
    monkeypatch.setattr("ultralytics.engine.trainer.BaseTrainer.read_results_csv", lambda trainer: {})
    names = {"project": str(tmp_path), "name": "run", "data": "data.yaml"}
    return names | {"imgsz": 64, "batch": 2, "device": "cpu", "workers": 0, "amp": False, "plots": False, "epochs": 1}


def rows(tmp_path):
    lines = [line.split(",") for line in (tmp_path / "run" / "results.csv").read_text().splitlines()]
    return [dict(zip([name.strip() for name in lines[0]], map(float, line), strict=True)) for line in lines[1:]]


@pytest.mark.parametrize(("training", "task"), [(task, task) for task in HEADS], indirect=["training"])
def test_the_trainer_of_every_task(ultralytics, training, tmp_path, task):  # noqa: F811
    """Calibrated by its own batches, cut off after an epoch and resumed: criterion and weights are what they were, and
    the checkpoint is the plain student. RT-DETR's trainer is known by the file's name, or by what is in it."""
    from ultralytics.nn import tasks

    from fgd_distill.ultralytics import FGDTrainer

    kind, head, file = HEADS[task]
    torch.manual_seed(0)
    teacher = getattr(tasks, kind)(small(head, 48) | {"kpt_shape": [2, 2]}, nc=4, verbose=False)
    (tmp_path / file).write_text(yaml.safe_dump(small(head) | {"kpt_shape": [2, 2]}))
    trainer = FGDTrainer.with_teacher(teacher, weights="calibrate", verbose=False)
    seen, sizes = [], set()

    def look(trainer):
        seen.append(state_of(trainer))
        if len(seen) == 2:
            raise InterruptedError
        trainer.distiller.criterion.register_forward_pre_hook(lambda c, maps: sizes.add(maps[0][0].shape[-1]))

    steps = {"nbs": 2, "warmup_epochs": 0.0, "lr0": 0.01, "optimizer": "SGD", "deterministic": False, "epochs": 2}
    model = (ultralytics.RTDETR if task == "rtdetr" else ultralytics.YOLO)(file)
    model.add_callback("on_train_epoch_start", look)
    with pytest.raises(InterruptedError):
        model.train(trainer=trainer, **training | steps | {"multi_scale": 0.5 if task == "segment" else 0.0})
    resumed = ultralytics.YOLO(tmp_path / "run" / "weights" / "last.pt")
    resumed.add_callback("on_train_epoch_start", look)
    resumed.train(trainer=trainer, resume=True)
    start, before, after = seen
    assert (len(sizes) > 1) == (task == "segment")
    assert any(not torch.equal(value, before[name]) for name, value in start.items())
    assert not [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert before["weights"].tolist()[:4] != list(fgd.PRESETS["one_stage_anchor_free"].values())[:4]
    found = rows(tmp_path)
    assert len(found) == 2 and all(row[f"train/{name}"] > 0 for row in found for name in fgd.LOSS_NAMES)
    assert ("train/other_layers_loss" in found[0]) == (task == "rtdetr")  # whose losses are not times the batch size
    saved = torch.load(tmp_path / "run" / "weights" / "last.pt", weights_only=False)["model"]
    assert type(saved) is getattr(tasks, kind) and "forward" not in vars(saved)


def test_mixed_precision(ultralytics, training, tmp_path, monkeypatch):  # noqa: F811
    """amp="bf16", here on the CPU, which Ultralytics' autocast refuses: the criterion gets bfloat16, its terms are near
    those of float32."""
    from fgd_distill.ultralytics import FGDTrainer

    cast = lambda dtype, device: torch.autocast(device, torch.bfloat16, enabled=dtype is torch.bfloat16)  # noqa: E731
    monkeypatch.setattr("ultralytics.engine.trainer.autocast", cast)
    (teacher, student), found, seen = small_pair(tmp_path), [], []
    for amp in (False, "bf16"):
        torch.manual_seed(0)
        model = ultralytics.YOLO(student)
        model.add_callback(
            "on_train_start",
            lambda trainer: trainer.distiller.criterion.register_forward_hook(
                lambda criterion, inputs, losses: seen.append(inputs[0][0].dtype)
            ),
        )
        trainer = FGDTrainer.with_teacher(teacher, verbose=False)
        model.train(trainer=trainer, **training | {"val": False, "amp": amp, "name": f"run{amp}"})
        (tmp_path / f"run{amp}").rename(tmp_path / "run")
        found.append(rows(tmp_path)[0])
        (tmp_path / "run").rename(tmp_path / f"seen{amp}")
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2
    exact, rounded = ([row[f"train/{name}"] for name in fgd.LOSS_NAMES] for row in found)
    assert rounded == pytest.approx(exact, rel=0.1) and rounded != exact


@pytest.mark.parametrize(("weights", "total"), [("calibrate", 3), (1, 1)])
def test_weights_by_a_few_batches_of_the_training(ultralytics, training, tmp_path, weights, total):  # noqa: F811
    """Terms start at a multiple of what the detector's own loss is, and a resumed training keeps the weights."""
    from fgd_distill.ultralytics import FGDTrainer

    teacher, student = small_pair(tmp_path)
    trainer = FGDTrainer.with_teacher(teacher, weights=weights, verbose=False)
    seen = []

    def look(trainer):
        criterion = trainer.distiller.criterion
        seen.append((criterion.temperature, criterion.alpha, criterion.beta, criterion.gamma, criterion.lambda_))
        if len(seen) == 2:
            raise InterruptedError

    model = ultralytics.YOLO(student)
    model.add_callback("on_train_epoch_start", look)
    with pytest.raises(InterruptedError):
        plain = dict.fromkeys(("mosaic", "scale", "translate", "fliplr", "hsv_h", "hsv_s", "hsv_v"), 0.0)
        model.train(trainer=trainer, **training | plain | {"epochs": 2})
    assert seen[0] == seen[1] != tuple(fgd.PRESETS["one_stage_anchor_free"].values())
    (row,) = rows(tmp_path)
    own = sum(value for name, value in row.items() if name.startswith("train/") and "fgd" not in name)
    terms = sum(row[f"train/{name}"] for name in fgd.LOSS_NAMES)
    assert terms / own == pytest.approx(total, rel=0.1)  # measured on the same images, in batches of other pairs
    resumed = ultralytics.YOLO(tmp_path / "run" / "weights" / "last.pt")
    resumed.add_callback("on_train_epoch_start", lambda trainer: look(trainer))
    resumed.train(trainer=trainer, resume=True)
    assert seen[2] == seen[0]
    with pytest.raises(ValueError, match="weights: expected 'calibrate', a multiple of .* or None, got 'auto'"):
        FGDTrainer.with_teacher("teacher.pt", weights="auto")
    with pytest.raises(ValueError, match="total: expected .* from 0.4 to 8, got 0.1"):
        FGDTrainer.with_teacher("teacher.pt", weights=0.1)


@pytest.mark.parametrize("rect", [False, True])
def test_calibrating_changes_no_batch(ultralytics, training, tmp_path, rect):  # noqa: F811
    """The training sees what it sees without, mosaics too; with rect images of one shape make a batch."""
    from fgd_distill.ultralytics import FGDTrainer

    for number in range(2):
        Image.new("RGB", (64, 32)).save(tmp_path / "images" / "train" / f"{number}.png")
    teacher, student = small_pair(tmp_path)
    seen = {None: [], "calibrate": []}
    for weights, batches in seen.items():

        def listen(trainer, to=batches):
            trainer.distiller.register_forward_pre_hook(lambda _, given: to.append(given[0]["img"]))

        model = ultralytics.YOLO(student)
        model.add_callback("on_train_start", listen)
        trainer = FGDTrainer.with_teacher(teacher, weights=weights, verbose=False)
        options = training | {"val": False, "save": False, "epochs": 2, "rect": rect, "name": f"run{weights}"}
        model.train(trainer=trainer, **options)
    assert len(seen[None]) == 4 and len({batch.shape for batch in seen[None]}) == 1 + rect
    assert all(torch.equal(a, b) for a, b in zip(seen[None], seen["calibrate"], strict=True))


def test_compiled_layers_give_the_same_losses(ultralytics, training, tmp_path, monkeypatch):  # noqa: F811
    """compile=True compiles the layers of both networks; here without code generation, which takes minutes."""
    from fgd_distill.ultralytics import FGDTrainer

    compiled, original = [], torch.compile
    (teacher, student), found = small_pair(tmp_path), []
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled.append(f) or original(f, backend="eager"))
    for mode in (False, True):
        options = training | {"val": False, "name": f"run{mode}", "compile": mode}
        torch.manual_seed(0)
        ultralytics.YOLO(student).train(trainer=FGDTrainer.with_teacher(teacher, verbose=False), **options)
        (tmp_path / f"run{mode}").rename(tmp_path / "run")
        found.append(rows(tmp_path)[0])
        last = torch.load(tmp_path / "run" / "weights" / "last.pt", weights_only=False)
        assert all(layer._compiled_call_impl is None for layer in last["model"].model)
        assert last["train_args"]["compile"] is mode  # for a training that goes on
        (tmp_path / "run").rename(tmp_path / f"seen{mode}")
    assert len(compiled) == 2 * len(teacher.model)
    names = [name for name in found[0] if name.startswith("train/")]
    assert [found[0][name] for name in names] == pytest.approx([found[1][name] for name in names], rel=1e-3)


def train_one_of_two(rank: int, folder: str, options: dict) -> None:
    """What a process of Ultralytics' launcher does, on the CPU, which that launcher does not know."""
    os.chdir(folder)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    from ultralytics.engine import trainer as engine

    from fgd_distill.ultralytics import FGDTrainer

    wrap = torch.nn.parallel.DistributedDataParallel
    engine.nn.parallel.DistributedDataParallel = lambda model, device_ids, **kw: wrap(model, **kw)  # type: ignore[misc]
    engine.BaseTrainer.read_results_csv = lambda trainer: {}  # type: ignore[method-assign]

    def setup(trainer):
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)

    engine.BaseTrainer.final_eval = lambda trainer: None  # type: ignore[method-assign]  # asks for a GPU
    engine.BaseTrainer._setup_ddp = setup  # type: ignore[method-assign]
    trainer = FGDTrainer.with_teacher("teacher.pt", weights="calibrate", verbose=False)(
        overrides=options | {"model": "small.yaml", "task": "detect", "mode": "train"}
    )
    trainer.world_size = 2
    trainer.add_callback("on_train_start", lambda trainer: seen.append(state_of(trainer)))
    seen: list = []
    trainer.train()
    seen.append(state_of(trainer))
    torch.save(seen, f"seen{rank}.pt")
    torch.distributed.destroy_process_group()


def state_of(trainer) -> dict:
    criterion = trainer.distiller.criterion
    numbers = [criterion.alpha, criterion.beta, criterion.gamma, criterion.lambda_, criterion.temperature]
    return {k: v.clone() for k, v in criterion.state_dict().items()} | {"weights": torch.tensor(numbers)}


def test_two_processes_train_one_criterion(ultralytics, training, tmp_path):  # noqa: F811
    teacher, _ = small_pair(tmp_path)
    teacher.args = {}
    torch.save({"model": teacher, "train_args": {}}, tmp_path / "teacher.pt")
    options = training | {
        "val": False,
        "lr0": 0.01,
        "optimizer": "SGD",
        "nbs": 2,
        "warmup_epochs": 0.0,
        "exist_ok": True,
    }
    torch.multiprocessing.spawn(train_one_of_two, (str(tmp_path), options), nprocs=2)
    (start, end), (other_start, other_end) = (torch.load(tmp_path / f"seen{rank}.pt") for rank in range(2))
    assert start.keys() == end.keys()
    for name, value in start.items():
        assert torch.equal(value, other_start[name]) and torch.equal(end[name], other_end[name]), name
    assert any(not torch.equal(value, end[name]) for name, value in start.items())
    assert torch.equal(start["weights"], end["weights"])
