"""EfficientDet of effdet from a config, without downloads: training steps, frame and predictions. 15 s."""

import pytest
import torch
from adapter_checks import (
    assert_one_box_covers,
    assert_steps_lower_the_loss,
    assert_the_frame_is_the_steps,
    make_distiller,
    two_images,
)

from fgd_distill.adapters import adapter_for
from fgd_distill.adapters.effdet import EffDetAdapter
from fgd_distill.commands import main as cli
from fgd_distill.inheriting import inherit
from fgd_distill.training.run import run

effdet = pytest.importorskip("effdet", reason="pip install --no-deps -r requirements-adapters.txt")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


def build(num_classes: int = 5, channels: int = 16, size: int = 128, **settings):
    """A small detector of this family, whose own count of classes leaves the background out."""
    config = effdet.get_efficientdet_config("efficientdet_d0")
    config.update(
        image_size=(size, size),
        num_classes=num_classes - 1,
        backbone_name="mobilenetv3_small_050",
        backbone_args={},
        fpn_channels=channels,
        fpn_cell_repeats=1,
        box_class_repeats=1,
        **settings,
    )
    return effdet.EfficientDet(config, pretrained_backbone=False)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return build(), build(channels=32)


def test_training_steps_lower_the_loss_and_boxes_share_the_maps_frame(pair):
    """Both images are doubled, or nearly, and padded to the square that the anchors are made for."""
    distiller = make_distiller(*pair)
    assert isinstance(distiller.adapter, EffDetAdapter) and distiller.student_layers == ["fpn"]
    assert_one_box_covers(distiller, two_images(), (128, 128), [16.0, 24.0, 100.0, 60.0], (16, 16), (3, 8), (2, 13))
    assert_steps_lower_the_loss(distiller, two_images(), {"class_loss", "box_loss"}, steps=12, lr=3e-3)


def test_the_frame_without_a_step(pair):
    adapter = EffDetAdapter()
    for student in (pair[0], build(mean=(0.5, 0.4, 0.5), std=(0.5, 0.5, 0.3))):
        assert_the_frame_is_the_steps(adapter, student, two_images(), resized=True)
    images, targets = two_images()
    colour = torch.tensor([0.2, 0.5, 0.8]).view(3, 1, 1).expand(3, 48, 64)
    batch, _ = adapter.frame(pair[0], [colour, images[1]], targets)
    torch.testing.assert_close(adapter.picture(pair[0], batch)[0, :, :96], colour[:, :1, :1].expand(3, 96, 128))
    assert (batch[0, :, 96:] == 0).all()
    assert (adapter.preset(pair[0]), adapter.first_label(pair[0])) == ("one_stage_anchor", 1)


def test_losses_are_those_of_its_own_bench(pair):
    bench = effdet.DetBenchTrain(pair[0]).train()
    images, targets = two_images()
    step = EffDetAdapter().student_step(pair[0], images, targets)
    boxes = [box[:, [1, 0, 3, 2]] for box in step.boxes]  # as effdet's loaders give them
    theirs = bench(step.batch, {"bbox": boxes, "cls": [target["labels"].float() for target in targets]})
    torch.testing.assert_close(sum(step.losses.values()), theirs["loss"])
    assert theirs["box_loss"] > 0


def test_predictions_are_those_of_its_own_bench(pair):
    student, adapter = pair[0].eval(), EffDetAdapter()
    images, targets = two_images()
    ours = adapter.predict(student, images)
    scales = torch.tensor([64 / 128, 60 / 128])
    sizes = torch.tensor([[64.0, 48.0], [48.0, 60.0]])
    with torch.no_grad():
        theirs = effdet.DetBenchPredict(student)(
            adapter.frame(student, images, targets).batch, {"img_scale": scales, "img_size": sizes}
        )
    for found, expected, size in zip(ours, theirs, sizes, strict=True):
        assert len(found["scores"]) > 10 and found["labels"].min() >= 1 and found["labels"].max() <= 4
        # It cuts boxes before it suppresses some of them, so only the best is sure to be the same.
        torch.testing.assert_close(found["scores"][0], expected[0, 4])
        torch.testing.assert_close(found["boxes"][0], expected[0, :4].clamp(min=0), atol=1e-3, rtol=1e-4)
        assert (found["boxes"].amax(0) <= size.repeat(2)).all()


def test_neck_and_head_are_inherited():
    student, teacher = build(), build()
    report = inherit(student, teacher, verbose=False)
    assert not report.mismatched and not report.skipped
    assert {name.split(".")[0] for name in report.loaded} == {"fpn", "class_net", "box_net"}


def test_fit_distils_it_and_validates_and_exports(fit_args, tmp_path):
    torch.manual_seed(0)
    torch.save(build(11, 32).state_dict(), tmp_path / "teacher.pt")
    name = "test_adapters_effdet:build"
    models = [f"--model.student.name={name}", f"--model.teacher.name={name}", "--model.teacher.options={channels: 32}"]
    weights = [f"--model.teacher.weights={tmp_path / 'teacher.pt'}", "--model.teacher.num_classes=11"]
    ran = run(fit_args(tmp_path, *models, *weights, "--model.fgd={temperature: 1.0}", steps=2, batch_size=2))
    assert {"train/class_loss", "train/loss_fgd_fg", "val/AP"} <= ran.trainer.callback_metrics.keys()
    cli.main(["export-student", str(next(tmp_path.rglob("*.ckpt"))), str(tmp_path / "student.pt")])
    built = build(11)
    built.load_state_dict(torch.load(tmp_path / "student.pt", weights_only=True))


def test_wrong_input_is_told(pair):
    student, teacher = pair
    adapter = adapter_for(student)
    images, targets = two_images()
    with pytest.raises(ValueError, match=r"targets\[0\].*labels from 0 to 4, got 5 to 5"):
        adapter.student_step(student, images, [targets[0] | {"labels": torch.tensor([5])}, targets[1]])
    with pytest.raises(TypeError, match="teacher: expected effdet.*, got DetBenchTrain; pass its attribute model"):
        adapter.check_pair(student, effdet.DetBenchTrain(teacher))
    with pytest.raises(ValueError, match="must normalise alike"):
        adapter.check_pair(student, build(mean=(0.5, 0.5, 0.5)))
