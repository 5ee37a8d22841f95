"""Ultralytics' YOLO from its YAML files, offline: training steps, frame, predictions and its own batches."""

import os

import numpy as np
import pytest
import torch
from adapter_checks import (
    assert_one_box_covers,
    assert_steps_lower_the_loss,
    assert_the_frame_is_the_steps,
    make_distiller,
    snippet,
    two_images,
)
from PIL import Image

import fgd_kernels as fgd
from fgd_distill.adapters import adapter_for
from fgd_distill.adapters.ultralytics import GREY, UltralyticsAdapter
from fgd_distill.commands import main as cli
from fgd_distill.detectors.by_name import DetectorConfig, build_detector
from fgd_distill.distiller import DetectionDistiller
from fgd_distill.inheriting import inherit
from fgd_distill.training.run import run

LOSSES = {"box_loss", "cls_loss", "dfl_loss"}


@pytest.fixture(scope="module", autouse=True)
def ultralytics(tmp_path_factory):
    """The package, offline and with its settings in a temporary folder; what it changes elsewhere is put back."""
    variables, options = set(os.environ), np.get_printoptions()
    with pytest.MonkeyPatch.context() as environment:
        for owner, name in ((torch, "save"), (Image, "open")):  # it replaces them
            environment.setattr(owner, name, getattr(owner, name))
        environment.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
        environment.setenv("YOLO_OFFLINE", "true")
        environment.setenv("YOLO_AUTOINSTALL", "false")
        environment.setenv("YOLO_VERBOSE", "false")
        package = pytest.importorskip("ultralytics", reason="pip install --no-deps -r requirements-adapters.txt")
        from ultralytics.nn.tasks import DetectionModel  # noqa: F401

        yield package
    for name in set(os.environ) - variables:
        del os.environ[name]
    torch.set_printoptions(profile="default")
    np.set_printoptions(**options)


def build(name: str = "yolov8n.yaml", width: float = 0.5, num_classes: int = 4):
    """A detector from Ultralytics' file, with ``width`` times its channels."""
    from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    config = yaml_model_load(name)
    config["scales"]["n"][1] *= width
    return DetectionModel(config, nc=num_classes, verbose=False)


def test_fit_distils_it_and_validates_and_exports(fit_args, tmp_path):
    """A detector of one's own through the command line: the configuration names the function that builds it."""
    torch.manual_seed(0)
    torch.save(build(width=1.0, num_classes=11).state_dict(), tmp_path / "teacher.pt")
    name = "test_adapters_ultralytics:build"
    models = [f"--model.student.name={name}", f"--model.teacher.name={name}", "--model.teacher.options={width: 1.0}"]
    weights = [f"--model.teacher.weights={tmp_path / 'teacher.pt'}", "--model.teacher.num_classes=11"]
    ran = run(fit_args(tmp_path, *models, *weights, "--model.fgd={temperature: 1.0}", steps=2))
    assert ran.model.distiller.student_layers == ["model.15", "model.18", "model.21"]
    assert {"train/box_loss", "train/loss_fgd_global", "val/AP"} <= ran.trainer.callback_metrics.keys()
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    cli.main(["export-student", str(checkpoint), str(tmp_path / "student.pt")])
    plain = build_detector(DetectorConfig(name, 11, str(tmp_path / "student.pt")))
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in ran.model.detector.state_dict().items())


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return build(), build(width=1.0)


@pytest.mark.parametrize(
    ("name", "layers", "dfl"),
    [
        ("yolov8n.yaml", (15, 18, 21), "dfl_loss"),
        ("yolo11n.yaml", (16, 19, 22), "dfl_loss"),
        ("yolov10n.yaml", (16, 19, 22), "dfl_loss"),
        ("yolo26n.yaml", (16, 19, 22), "l1_loss"),
    ],
)
def test_training_steps_lower_the_loss_and_boxes_share_the_maps_frame(name, layers, dfl):
    torch.manual_seed(0)
    distiller = make_distiller(build(name), build(name, width=1.0))
    assert isinstance(distiller.adapter, UltralyticsAdapter)
    assert distiller.student_layers == [f"model.{layer}" for layer in layers]
    # Padded to multiples of 32; at stride 8 the box covers rows 12/8 to ceil(30/8), columns 8/8 to ceil(50/8).
    box = [8.0, 12.0, 50.0, 30.0]
    assert_one_box_covers(distiller, two_images(), (64, 64), box, (8, 8), (1, 4), (1, 7))
    # YOLO weights its losses with how well its predictions fit, so at random weights they begin near 0 and grow first.
    assert_steps_lower_the_loss(distiller, two_images(), {"box_loss", "cls_loss", dfl}, steps=24, since=6)


def own_batch(images, targets):
    """As Ultralytics' trainer gives it to a model."""
    batch = torch.full((2, 3, 64, 64), GREY)
    for number, image in enumerate(images):
        batch[number, :, : image.shape[1], : image.shape[2]] = image
    return {
        "img": batch,
        "batch_idx": torch.tensor([0.0]),
        "cls": torch.tensor([[2.0]]),
        "bboxes": torch.tensor([[29 / 64, 21 / 64, 42 / 64, 18 / 64]]),
        "im_file": ["a.png", "b.png"],
    }


def test_losses_are_the_models_own_of_an_image(pair):
    student, adapter = pair[0].train(), UltralyticsAdapter()
    images, targets = two_images()
    ours = adapter.student_step(student, images, targets)
    theirs, items = student.loss(own_batch(images, targets))
    torch.testing.assert_close(torch.stack(list(ours.losses.values())), theirs / 2)
    torch.testing.assert_close({k: v.detach() for k, v in ours.losses.items()}, dict(items))
    step = adapter.student_step(student, own_batch(images, targets), None)
    torch.testing.assert_close(step.losses, ours.losses)
    torch.testing.assert_close(step.boxes, ours.boxes)
    assert torch.equal(step.batch, ours.batch)
    empty = adapter.student_step(student, images, [targets[1]] * 2)
    assert empty.losses.keys() == LOSSES and empty.losses["box_loss"] == 0 < empty.losses["cls_loss"]


def test_a_model_out_of_the_package_s_interface(ultralytics, pair):
    """``YOLO(...)`` is no network, and its network comes with a dict in place of hyperparameters."""
    images, targets = two_images()
    wrapped = ultralytics.YOLO("yolov8n.yaml", task="detect")
    with pytest.raises(TypeError, match="student: expected the network, got YOLO around it; pass its attribute model"):
        UltralyticsAdapter().check_pair(wrapped, pair[1])
    student = wrapped.model.train()
    assert isinstance(student.args, dict)
    student.args["box"] = 0.0
    losses = UltralyticsAdapter().student_step(student, images, targets).losses
    assert losses["box_loss"] == 0 < losses["cls_loss"]


def test_the_loss_follows_the_model_to_another_device(pair):
    student = pair[0].train()
    images, targets = two_images()
    adapter = UltralyticsAdapter()
    adapter.student_step(student, images, targets)
    criterion = student.criterion
    adapter.student_step(student, images, targets)
    assert student.criterion is criterion
    criterion.device = torch.device("meta")  # as if it had been made elsewhere
    adapter.student_step(student, images, targets)
    assert student.criterion is not criterion


def test_predictions_are_those_of_its_own_predictor(ultralytics, tmp_path):
    """An image of 64x64 needs no letterbox. The best detection is the same; further ones need not be, because the
    predictor gives a box one label, and validation, as here, several."""
    torch.manual_seed(0)
    student = build()
    pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    student.train()(torch.rand(16, 3, 64, 64))  # else the signal dies on its way through random layers
    student.eval()
    head = student.model[-1]
    for sides, classes in zip(head.cv2, head.cv3, strict=True):
        sides[-1].weight.data.mul_(0.1)
        sides[-1].bias.data.copy_(torch.randn(64) - torch.arange(16).repeat(4))  # small boxes of several shapes
        torch.nn.init.normal_(classes[-1].weight, std=0.1)
    (ours,) = UltralyticsAdapter().predict(student, [pixels / 255])
    (swapped,) = UltralyticsAdapter().predict(student, [pixels.flip(0) / 255])
    assert len(ours["boxes"]) > 10 and not torch.equal(ours["scores"][0], swapped["scores"][0])

    wrapped = ultralytics.YOLO("yolov8n.yaml", task="detect")
    wrapped.model = student
    bgr = pixels.flip(0).permute(1, 2, 0).contiguous().numpy()
    (theirs,) = wrapped.predict(bgr, imgsz=64, conf=0.001, device="cpu", save=False, project=str(tmp_path))
    best = {"boxes": theirs.boxes.xyxy[:1], "scores": theirs.boxes.conf[:1], "labels": theirs.boxes.cls[:1].long()}
    torch.testing.assert_close({name: value[:1] for name, value in ours.items()}, best, rtol=1e-4, atol=1e-4)


def test_neck_and_head_are_inherited():
    torch.manual_seed(0)
    student, teacher = build(), build()
    report = inherit(student, teacher)
    assert not report.mismatched and not report.skipped
    assert not any(name.startswith(f"model.{index}.") for name in report.loaded for index in range(10))
    for name in ("model.22.cv3.0.2.weight", "model.12.cv1.conv.weight"):
        assert torch.equal(student.state_dict()[name], teacher.state_dict()[name])


def test_the_frame_without_a_step(pair):
    adapter = UltralyticsAdapter()
    assert_the_frame_is_the_steps(adapter, pair[0], two_images())
    assert (adapter.preset(pair[0]), adapter.first_label(pair[0])) == ("one_stage_anchor_free", 0)


def test_a_model_of_another_task_is_refused():
    from ultralytics.nn.tasks import ClassificationModel

    model = ClassificationModel("yolov8n-cls.yaml", verbose=False)
    with pytest.raises(TypeError, match="model: expected a YOLO detector, got ClassificationModel"):
        adapter_for(model).default_layers(model)


def test_wrong_input_is_told(pair):
    student, teacher = pair
    adapter = adapter_for(student)
    images, targets = two_images()
    with pytest.raises(ValueError, match=r"targets\[0\].*labels from 0 to 3, got -1 to -1"):
        adapter.student_step(student, images, [targets[0] | {"labels": torch.tensor([-1])}, targets[1]])
    with pytest.raises(ValueError, match="images: expected at least one image"):
        adapter.student_step(student, [], [])
    with pytest.raises(TypeError, match=r"images\['img'\].*uint8"):
        adapter.student_step(student, own_batch(images, targets) | {"img": torch.zeros(2, 3, 64, 64).byte()}, None)
    with pytest.raises(
        TypeError, match="teacher: expected a YOLO detector, got ClassificationModel with the head Classify"
    ):
        from ultralytics.nn.tasks import ClassificationModel

        adapter.check_pair(student, ClassificationModel("yolov8n-cls.yaml", verbose=False))
    with pytest.raises(ValueError, match="teacher: its largest stride, 64, must divide the student's, 32"):
        adapter.check_pair(student, build("yolov8n-p6.yaml"))
    with pytest.raises(ValueError, match="student: expected parameters to train"):
        DetectionDistiller(student.requires_grad_(False), teacher, torch.nn.Identity())


@pytest.fixture
def training(ultralytics, tmp_path, monkeypatch):
    """A folder with a data set of Ultralytics' kind and a teacher's file, and the options of a short training in it."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / folder / split).mkdir(parents=True)
        for number in range(4):
            image = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "images" / split / f"{number}.png")
            (tmp_path / "labels" / split / f"{number}.txt").write_text("2 0.45 0.33 0.6 0.3\n")
    (tmp_path / "coco.yaml").write_text(
        f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames: {{0: a, 1: b, 2: c, 3: d}}\n"
    )
    # It puts the table into the checkpoint, read by polars, which is large and needed for nothing else.
    monkeypatch.setattr("ultralytics.engine.trainer.BaseTrainer.read_results_csv", lambda trainer: {})
    torch.manual_seed(0)
    teacher = build(width=1.0)
    teacher.args = {}
    torch.save({"model": teacher, "train_args": {}}, tmp_path / "teacher.pt")
    names = {"project": str(tmp_path), "name": "run", "data": "coco.yaml"}
    return names | {"imgsz": 64, "batch": 2, "device": "cpu", "workers": 0, "amp": False, "plots": False}


def test_distilling_in_its_own_trainer(ultralytics, training, tmp_path):
    """docs/guides/detectors.md with tiny epochs: all losses are logged, and the checkpoint is the plain student."""
    names = {"options": {name: value for name, value in training.items() if name != "data"}}
    exec(compile(snippet("ultralytics").replace("epochs=100", "epochs=2, **options"), "detectors.md", "exec"), names)
    rows = (tmp_path / "run" / "results.csv").read_text().splitlines()
    columns = [name.strip() for name in rows[0].split(",")]
    assert {f"train/{name}" for name in LOSSES | set(fgd.LOSS_NAMES)} <= set(columns) and len(rows) == 3
    values = dict(zip(columns, map(float, rows[2].split(",")), strict=True))
    assert all(values[f"train/{name}"] > 0 for name in fgd.LOSS_NAMES)
    checkpoint = torch.load(tmp_path / "run" / "weights" / "last.pt", weights_only=False)
    assert not any("fgd" in key for key in checkpoint)
    saved = checkpoint["model"]
    assert "forward" not in vars(saved) and type(saved).__module__ == "ultralytics.nn.tasks"
    assert set(saved.state_dict()) == set(ultralytics.YOLO("yolov8n.yaml").model.state_dict())


class Interrupted(Exception):
    pass


def test_its_trainer_resumes_with_the_criterion(ultralytics, training, tmp_path):
    """What the loss has learnt is at the beginning of the third epoch what it was at the end of the second."""
    from fgd_distill.ultralytics import FGDTrainer

    trainer = FGDTrainer.with_teacher("teacher.pt", verbose=False, normalise="detector")
    learnt = {}

    def interrupt(trainer):
        if trainer.epoch == 0:
            learnt["start"] = {k: v.clone() for k, v in trainer.distiller.criterion.state_dict().items()}
        if trainer.epoch == 2:
            learnt["before"] = {k: v.clone() for k, v in trainer.distiller.criterion.state_dict().items()}
            raise Interrupted

    steps = {"nbs": 2, "warmup_epochs": 0.0, "lr0": 0.01, "optimizer": "SGD"}  # one a batch, or nothing is learnt here
    model = ultralytics.YOLO("yolov8n.yaml")
    model.add_callback("on_train_epoch_start", interrupt)
    with pytest.raises(Interrupted):
        model.train(trainer=trainer, epochs=3, **training, **steps)
    resumed = ultralytics.YOLO(tmp_path / "run" / "weights" / "last.pt")

    def remember(trainer):
        state = trainer.distiller.criterion.state_dict()
        learnt["after"] = {k: v.clone() for k, v in state.items()}
        held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        assert all(id(p) in held for p in trainer.distiller.criterion.parameters())
        learnt["schedule"] = trainer._batches

    resumed.add_callback("on_train_start", remember)
    resumed.train(trainer=trainer, resume=True)
    assert learnt["before"].keys() == learnt["after"].keys() and learnt["schedule"] == 4
    last = [name for name in learnt["start"] if name.endswith(".channel_add_conv_s.3.weight")]
    last.append("shares.averages")
    assert len(last) > 1 and not any(torch.equal(learnt["start"][name], learnt["before"][name]) for name in last)
    assert all(torch.equal(value, learnt["after"][name]) for name, value in learnt["before"].items())
    rows = (tmp_path / "run" / "results.csv").read_text().splitlines()
    assert len(rows) == 4  # one header, three epochs

    plain = ultralytics.YOLO("yolov8n.yaml")
    plain.add_callback("on_train_epoch_start", interrupt_at_second)
    with pytest.raises(Interrupted):
        plain.train(epochs=3, **training | {"name": "plain"})
    without = ultralytics.YOLO(tmp_path / "plain" / "weights" / "last.pt")
    with pytest.raises(ValueError, match="optimizer state: expected the criterion's tensors.*without distillation"):
        without.train(trainer=trainer, resume=True)


def interrupt_at_second(trainer):
    if trainer.epoch == 1:
        raise Interrupted


def test_its_copy_of_a_model_runs_itself(ultralytics, training):
    """After NaN Ultralytics copies the model in the midst of a training, whose call is distillation then."""
    from fgd_distill.ultralytics import FGDTrainer

    images = torch.rand(1, 3, 64, 64)
    seen = []

    def recover(trainer):
        if trainer.epoch == 1:
            trainer._load_checkpoint_state(torch.load(trainer.last, weights_only=False))
            copied = trainer.ema.ema
            before = copied.eval()(images)[0]
            with torch.no_grad():
                for parameter in trainer.model.parameters():
                    parameter.add_(0.1)
            assert torch.equal(copied(images)[0], before)
            seen.append(trainer.epoch)

    model = ultralytics.YOLO("yolov8n.yaml")
    model.add_callback("on_train_epoch_start", recover)
    model.train(trainer=FGDTrainer.with_teacher("teacher.pt", verbose=False), epochs=2, **training)
    assert seen == [1]


def test_its_trainer_refuses_what_it_cannot_do(ultralytics, training):
    from fgd_distill.ultralytics import FGDTrainer

    for trainer, options, told in (
        (FGDTrainer, {}, "expected a teacher, got none"),
        (FGDTrainer.with_teacher("teacher.pt"), {"task": "classify"}, "task: expected one of detect, segment"),
    ):
        with pytest.raises((TypeError, ValueError), match=told):
            ultralytics.YOLO("yolov8n.yaml").train(trainer=trainer, epochs=1, **training | options)
    for teacher in ("yolov8n.yaml", ultralytics.YOLO("yolov8n.yaml")):
        with pytest.raises(ValueError, match="teacher: expected a file of weights.*got yolov8n.* nothing to teach"):
            ultralytics.YOLO("yolov8n.yaml").train(trainer=FGDTrainer.with_teacher(teacher), **training | {"epochs": 1})
