"""FGDDetector: a student of MMDetection with a teacher, in the hands of that library's own tools, on small models. The
Runner and the shipped configurations are in test_mmdet_runner.py."""

import copy
import pickle

import pytest
import torch
from adapter_checks import two_images
from mmcv_operators import use_mmdet
from test_adapters_mmdet import faster_rcnn, fcos, retinanet

import fgd_kernels as fgd
from fgd_distill.adapters.mmdet import _pack
from fgd_distill.commands import main as cli
from fgd_distill.detectors.checkpoint import student_state_dict


@pytest.fixture(scope="module", autouse=True)
def mmdet():
    use_mmdet()
    import fgd_distill.mmdet  # noqa: F401


@pytest.fixture
def teacher_file(tmp_path):
    """Random weights of the teacher: a RetinaNet of 32 channels."""
    torch.manual_seed(1)
    torch.save({"state_dict": plain(retinanet(32)).state_dict(), "meta": {}}, tmp_path / "teacher.pth")
    return str(tmp_path / "teacher.pth")


def plain(config: dict):
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    return MODELS.build(ConfigDict(config))


def build(**config):
    torch.manual_seed(0)
    return plain({"type": "FGDDetector", **config})


def train(model, steps, optimizer=None, lr=1e-3):
    from mmengine.optim import OptimWrapper

    optimizer = optimizer or OptimWrapper(torch.optim.AdamW(model.parameters(), lr=lr))
    images, targets = two_images()
    return optimizer, [model.train().train_step(_pack(model, images, targets), optimizer) for _ in range(steps)]


def test_it_is_the_student_and_learns_from_the_teacher(teacher_file):
    from mmdet.models import RetinaNet

    model = build(student=retinanet(), teacher=retinanet(32), teacher_checkpoint=teacher_file)
    assert isinstance(model, RetinaNet) and type(model).__name__ == "FGDRetinaNet"
    assert [name for name, _ in model.named_children()][-1] == "criterion"
    teacher = model.distiller.teacher
    before = copy.deepcopy(teacher.state_dict())
    optimizer, history = train(model, 6)
    assert set(history[0]) == {"loss", "loss_cls", "loss_bbox", *fgd.LOSS_NAMES}
    assert history[-1]["loss"] < history[0]["loss"]
    model.distiller.check_optimizer(optimizer.optimizer)
    weights = torch.load(teacher_file)["state_dict"]
    assert any(not torch.equal(before[name], weights[name]) for name in weights)  # they were read when training began
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())
    images, targets = two_images()
    with torch.no_grad():
        data = model.data_preprocessor(_pack(model, images, targets), False)
        assert set(model.eval()(**data, mode="loss")) == {"loss_cls", "loss_bbox"}
    assert len(model.val_step(_pack(model, images, None))) == 2


def test_the_losses_are_those_of_the_student_and_of_the_distiller(teacher_file):
    """The same numbers as the plain detector's and those of ``fgd_distill.distil``; accuracies stay in the log."""
    config = faster_rcnn()
    torch.manual_seed(1)
    teacher = plain(faster_rcnn(32))
    model = build(student=config, teacher=teacher).train()
    images, targets = two_images()
    data = model.data_preprocessor(_pack(model, images, targets), True)
    torch.manual_seed(2)
    losses = model.loss(data["inputs"], data["data_samples"])
    alone = plain(config).train()
    alone.load_state_dict(student_state_dict(model.state_dict()))
    torch.manual_seed(2)
    own = alone.loss(data["inputs"], data["data_samples"])
    assert losses.keys() == own.keys() | set(fgd.LOSS_NAMES) and "acc" in own
    torch.testing.assert_close(losses["acc"], own["acc"])
    torch.testing.assert_close(losses["loss_cls"], own["loss_cls"].mean())
    torch.manual_seed(2)
    features = model.distiller.features(data, None)
    assert features.frames == [(64, 64)] * 2 and len(features.student) == 4
    terms = model.criterion(features.student, features.teacher, features.step.boxes, features.frames)
    torch.testing.assert_close({name: losses[name] for name in terms}, terms)


def test_a_config_laid_over_the_students_own_and_one_config_for_both(tmp_path, teacher_file):
    """``student`` names the class, and the parts stay where MMDetection's tools look for them; or student and teacher
    are one ``{{_base_.model}}``."""
    use_mmdet(runner=True)
    from mmdet.apis import init_detector
    from mmengine.config import Config

    Config({"model": retinanet()}).dump(tmp_path / "student.py")
    Config({"model": retinanet(32)}).dump(tmp_path / "teacher_config.py")
    head = '_base_ = "student.py"\ncustom_imports = dict(imports=["fgd_distill.mmdet"], allow_failed_imports=False)\n'
    (tmp_path / "over.py").write_text(
        f"{head}model = dict(type='FGDDetector', student='RetinaNet', teacher='{tmp_path}/teacher_config.py', "
        f"teacher_checkpoint='{teacher_file}')\n"
    )
    (tmp_path / "both.py").write_text(
        f"{head}model = dict(_delete_=True, type='FGDDetector', student={{{{_base_.model}}}}, "
        "teacher={{_base_.model}}, teacher_checkpoint='none.pth')\n"
    )
    over = build(**{k: v for k, v in Config.fromfile(tmp_path / "over.py").model.items() if k != "type"})
    assert over.criterion.levels[0].teacher_channels == 32
    train(over, 1)
    torch.save({"state_dict": over.state_dict(), "meta": {"dataset_meta": {"CLASSES": ("a", "b")}}}, tmp_path / "x.pth")
    for config in (tmp_path / "over.py", tmp_path / "student.py"):
        found = init_detector(str(config), str(tmp_path / "x.pth"), palette="random", device="cpu")
        assert found.dataset_meta["classes"] == ("a", "b") and not found.training
        assert all(torch.equal(value, over.state_dict()[name]) for name, value in found.state_dict().items())
    both = build(**{k: v for k, v in Config.fromfile(tmp_path / "both.py").model.items() if k != "type"})
    teachers = {id(p) for p in both.distiller.teacher.parameters()}
    assert len(teachers) > 10 and not teachers & {id(p) for p in both.parameters()}


def test_wrong_teachers_are_refused(tmp_path, teacher_file):
    with pytest.raises(ValueError, match="teacher_checkpoint: expected a file.*weights of the teacher, a RetinaNet"):
        build(student=retinanet(), teacher=retinanet(32))
    for teacher, told in ((retinanet(16), "size mismatch"), (fcos(32), "unexpected key.*retina_cls")):
        model = build(student=retinanet(), teacher=teacher, teacher_checkpoint=teacher_file)
        with pytest.raises(ValueError, match="teacher_checkpoint: expected the weights of a (?s:.*)" + told):
            model.init_weights()
        with pytest.raises(ValueError, match="teacher_checkpoint: expected the weights"):
            train(model, 1)
    missing = build(student=retinanet(), teacher=retinanet(32), teacher_checkpoint=str(tmp_path / "none.pth"))
    with pytest.raises(FileNotFoundError, match="teacher_checkpoint: could not be read: .*none.pth"):
        missing.init_weights()
    named = retinanet(32) | {"init_cfg": {"type": "Pretrained", "checkpoint": teacher_file}}
    build(student=retinanet(), teacher=named).load_teacher()


def test_wrong_configs_are_refused(teacher_file):
    with pytest.raises(TypeError, match="neck: expected an argument of FGDDetector, got an unknown one"):
        build(student=retinanet(), teacher=retinanet(32), teacher_checkpoint=teacher_file, neck={})
    with pytest.raises(TypeError, match="teacher: expected a detector's config"):
        build(student=retinanet(), teacher="RetinaNet", teacher_checkpoint=teacher_file)
    with pytest.raises(TypeError, match="alhpa: expected one of"):
        options = {"teacher_checkpoint": teacher_file, "distillation": {"alhpa": 1.0}}
        build(student=retinanet(), teacher=retinanet(32), **options)


def test_inheriting_and_options(teacher_file):
    from mmengine.logging import MessageHub

    options = {
        "teacher": retinanet(16),
        "inherit": True,
        "distillation": {"preset": "two_stage", "layers": "neck.fpn_convs.0", "schedule": {"start": 3}, "alpha": 1e-3},
    }
    file = teacher_file.replace("teacher.pth", "other.pth")
    torch.save(
        build(student=retinanet(), teacher=retinanet(), teacher_checkpoint="none").distiller.teacher.state_dict(), file
    )
    model = build(student=retinanet(), teacher_checkpoint=file, **options)
    model.init_weights()
    assert model.inherit_report.share == 1.0 and not model.inherit_report.skipped
    ours, theirs = model.state_dict(), model.distiller.teacher.state_dict()
    inherited = {name for name, value in theirs.items() if torch.equal(value, ours[name])}
    assert {name for name in theirs if name.startswith(("neck.", "bbox_head."))} <= inherited
    assert any(name.startswith("backbone.") for name in theirs.keys() - inherited)
    assert len(model.criterion.levels) == 1 and model.criterion.alpha == 1e-3
    for iteration, distilled in ((2, False), (3, True)):
        MessageHub.get_current_instance().update_info("iter", iteration)
        _, (losses,) = train(model, 1, lr=0.0)
        assert (losses["loss_fgd_fg"] > 0) == distilled
    some = build(student=retinanet(), teacher_checkpoint=file, **options | {"inherit": ["neck"]})
    some.init_weights()
    assert {name.split(".")[0] for name in some.inherit_report.loaded} == {"neck"}


def test_averages_and_copies(teacher_file):
    from mmengine.model import ExponentialMovingAverage

    model = build(student=retinanet(), teacher=retinanet(32), teacher_checkpoint=teacher_file)
    train(model, 1)
    average = ExponentialMovingAverage(model, momentum=0.5)
    train(model, 1)
    average.update_parameters(model)
    train(model, 1)
    average.update_parameters(model)
    averaged = average.module
    assert averaged.distiller.student is averaged and averaged.distiller.teacher is model.distiller.teacher
    name = "criterion.levels.0.conv_mask_s.weight"
    assert not torch.equal(averaged.state_dict()[name], model.state_dict()[name])
    loaded = pickle.loads(pickle.dumps(model))
    assert type(loaded) is type(model) and loaded.distiller.student is loaded
    assert loaded.distiller.criterion is loaded.criterion
    torch.testing.assert_close(train(loaded, 1)[1][0], train(model, 1)[1][0])


def test_checkpoints_of_the_published_code(tmp_path, teacher_file):
    """Its distiller's names, with the feature maps that it keeps as buffers, load as they are and export."""
    from mmengine.runner import load_checkpoint

    torch.manual_seed(3)
    student, levels = plain(retinanet()), [fgd.FeatureLoss(16, 32, f"loss_fgd_fpn_{i}") for i in range(5)]
    state = {f"student.{name}": value for name, value in student.state_dict().items()}
    state |= {f"teacher.{name}": value for name, value in plain(retinanet(32)).state_dict().items()}
    state |= {f"distill_losses.{loss.name}.{key}": value for loss in levels for key, value in loss.state_dict().items()}
    state |= {"student_neck_fpn_convs_0_conv": torch.rand(1, 16, 4, 4)}
    torch.save({"meta": {"epoch": 24}, "state_dict": state, "optimizer": {}}, tmp_path / "epoch_24.pth")
    model = build(student=retinanet(), teacher=retinanet(32), teacher_checkpoint=teacher_file)
    load_checkpoint(model, str(tmp_path / "epoch_24.pth"), strict=True)
    found = model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in student.state_dict().items())
    for index, level in enumerate(levels):
        for name, value in level.state_dict().items():
            assert torch.equal(value, found[f"criterion.levels.{index}.{name}"])
    cli.main(["export-student", str(tmp_path / "epoch_24.pth"), str(tmp_path / "student.pth")])
    load_checkpoint(plain(retinanet()), str(tmp_path / "student.pth"), strict=True)


def test_load_from_a_plain_checkpoint_and_layer_decay(tmp_path, teacher_file):
    use_mmdet(runner=True)
    from mmengine.optim import build_optim_wrapper
    from mmengine.runner import load_checkpoint

    torch.manual_seed(3)
    alone = plain(retinanet())
    torch.save({"state_dict": alone.state_dict(), "meta": {}}, tmp_path / "plain.pth")
    model = build(student=retinanet(), teacher=retinanet(32), teacher_checkpoint=teacher_file)
    before = {name: value.clone() for name, value in model.criterion.state_dict().items()}
    load_checkpoint(model, str(tmp_path / "plain.pth"), strict=True)
    assert all(torch.equal(value, before[name]) for name, value in model.criterion.state_dict().items())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in alone.state_dict().items())
    optimizer = {"type": "AdamW", "lr": 1e-3}
    keys = {"custom_keys": {"backbone": {"lr_mult": 0.1}, "criterion": {"lr_mult": 2.0}}}
    wrapper = build_optim_wrapper(model, {"type": "OptimWrapper", "optimizer": optimizer, "paramwise_cfg": keys})
    rates = {id(p): group["lr"] for group in wrapper.optimizer.param_groups for p in group["params"]}
    told = {name.split(".")[0]: rates[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert told == {"backbone": pytest.approx(1e-4), "neck": 1e-3, "bbox_head": 1e-3, "criterion": 2e-3}


def test_distributed_and_mixed_precision(tmp_path):
    """One process of MMEngine's wrapper takes the plain steps, also where the schedule leaves the criterion out; under
    autocast all parameters learn."""
    from mmengine.logging import MessageHub
    from mmengine.model import MMDistributedDataParallel
    from mmengine.optim import OptimWrapper

    options = {"student": retinanet(), "teacher": plain(retinanet(32)), "distillation": {"schedule": {"start": 2}}}
    alone, spread = build(**options).train(), build(**options).train()
    images, targets = two_images()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = MMDistributedDataParallel(spread)
        optimizers = [OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3)) for model in (alone, wrapped)]
        for iteration in range(4):
            MessageHub.get_current_instance().update_info("iter", iteration)
            for model, optimizer in zip((alone, wrapped), optimizers, strict=True):
                model.train_step(_pack(alone, images, targets), optimizer)
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(value, spread.state_dict()[name]) for name, value in alone.state_dict().items())
    alone.zero_grad()
    # Twice the size: where a convolution of stride 2 meets a single pixel, as P7's would, oneDNN's bfloat16 gradient of
    # its weights reads memory that nobody wrote (seen in torch 2.14.1 on AVX-512 with bfloat16), and NaN may lie there.
    images = [image.repeat(1, 2, 2) for image in images]
    with torch.autocast("cpu", torch.bfloat16):
        losses = alone(**alone.data_preprocessor(_pack(alone, images, targets), True), mode="loss")
    alone.parse_losses(losses)[0].backward()
    learning = [p for p in alone.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)


def test_yolox_resizes_its_batch_and_switches_its_mode():
    from mmengine.hub import get_config
    from mmengine.logging import MessageHub

    def small(width):
        model = get_config("mmdet::yolox/yolox_tiny_8xb8-300e_coco.py").model
        channels = int(256 * width)
        model.backbone.update(deepen_factor=0.1, widen_factor=width)
        model.neck.update(in_channels=[channels, 2 * channels, 4 * channels], out_channels=channels, num_csp_blocks=1)
        model.bbox_head.update(in_channels=channels, feat_channels=channels, num_classes=4)
        model.data_preprocessor.batch_augments[0].update(interval=1, random_size_range=(64, 128))
        return model

    model = build(student=small(0.125), teacher=plain(small(0.25)))
    assert len(model.criterion.levels) == 3
    images, targets = two_images()
    sizes, names, seen = set(), [], []
    model.distiller.criterion.register_forward_pre_hook(lambda _, given: seen.append((given[0][0].shape, given[3])))
    for iteration in range(6):
        MessageHub.get_current_instance().update_info("iter", iteration)
        model.bbox_head.use_l1 = iteration == 5
        data = model.data_preprocessor(_pack(model, images, targets), True)
        names.append(set(model.train()(**data, mode="loss")))
        size = tuple(data["inputs"].shape[-2:])
        sizes.add(size)
        shape, frames = seen[-1]
        assert frames == [size] * 2 and tuple(shape[-2:]) == (size[0] // 8, size[1] // 8)
    assert len(sizes) > 1 and names[5] - names[4] == {"loss_l1"}
