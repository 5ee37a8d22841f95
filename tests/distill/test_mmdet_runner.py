"""The shipped configurations of the paper's pairs, made small, by MMEngine's Runner: two iterations on four images of
digits, a validation, the export; resuming; hooks and optimizer constructors.

Compiled operators of mmcv are torchvision's where it has none: mmcv_operators.py names one that is needed and lacks.
30 seconds.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from adapter_checks import snippet
from mmcv_operators import Operators, use_mmdet
from mmdet_runs import plain_model, small_config, write_digits
from test_adapters_mmdet import retinanet

import fgd_kernels as fgd
from fgd_distill.commands import main as cli
from fgd_distill.criterion import WEIGHTS
from fgd_distill.shipped import CONFIGS

ROOT = Path(__file__).parents[2]
# As published (section 4.2; lr, clipping and the epochs of GFL: the authors' configurations): preset, epochs, lr, and
# what stays as it was when the student inherits.
DEFORMABLE = {"deform_conv_forward"}
PAIRS = {
    "retinanet_r101_r50": ("one_stage_anchor", 24, 0.01, set()),
    "retinanet_x101_r50": ("one_stage_anchor", 24, 0.01, set()),
    "fasterrcnn_r101_r50": ("two_stage", 24, 0.02, set()),
    "cascade_x101_fasterrcnn_r50": ("two_stage", 24, 0.02, DEFORMABLE),
    "cascade_x101_maskrcnn_r50": ("two_stage", 24, 0.02, DEFORMABLE),
    "fcos_r101_r50": ("one_stage_anchor_free", 24, 0.01, set()),
    "reppoints_x101_r50": ("one_stage_anchor_free", 24, 0.01, DEFORMABLE),
    "gfl_r101_r50": ("one_stage_anchor", 12, 0.01, set()),
}


@pytest.fixture(scope="module", autouse=True)
def mmdet():
    use_mmdet(runner=True)


@pytest.fixture(autouse=True)
def configs_are_logged_as_they_are(monkeypatch):
    """To lay them out nicely takes three quarters of a short run."""
    monkeypatch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda text, **_: (text, True))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("coco"))


def run(config):
    from mmengine.runner import Runner

    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def test_every_configuration_is_of_a_pair():
    from fgd_distill.mmdet import config_path

    names = {path.stem for path in (CONFIGS / "mmdet").glob("*.py")}
    assert names == {*PAIRS, *(f"{name}_inherit" for name in PAIRS)}
    page = (ROOT / "docs" / "tutorials" / "mmdetection.md").read_text()
    assert re.findall(r"^\| `(\w+_r50)` \|", page, re.M) == list(PAIRS)
    with pytest.raises(FileNotFoundError, match="name: expected one of cascade_x101_fasterrcnn_r50.py, .*; got 'a.py'"):
        config_path("a.py")


@pytest.mark.parametrize("name", PAIRS)
def test_settings_are_the_published_ones(name):
    """And the configuration that inherits differs in nothing else."""
    from mmengine.config import Config

    from fgd_distill.mmdet import config_path

    preset, epochs, rate, _ = PAIRS[name]
    config, inheriting = (Config.fromfile(config_path(f"{name}{more}.py")) for more in ("", "_inherit"))
    assert not config.model.inherit and inheriting.model.inherit
    heads = ["neck", "rpn_head"] if name.startswith("cascade") else True
    assert inheriting.model.inherit == heads
    inheriting.model.inherit = False
    assert inheriting.to_dict() == config.to_dict()
    assert config.model.distillation.preset == preset and set(config.model.distillation) <= {"preset", "layers"}
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("SGD", rate, 0.9, 1e-4)
    assert config.optim_wrapper.clip_grad == {"max_norm": 35, "norm_type": 2}
    assert config.train_cfg.max_epochs == epochs and config.train_dataloader.batch_size == 2
    assert config.param_scheduler[-1].milestones == ([8, 11] if epochs == 12 else [16, 22])
    assert config.model.teacher_checkpoint.startswith("https://download.openmmlab.com/mmdetection/v2.0/")


@pytest.mark.parametrize("name", PAIRS)
def test_it_trains_validates_and_exports(name, data, tmp_path, capsys):
    from mmdet.registry import MODELS
    from mmengine.runner import load_checkpoint

    from fgd_distill.mmdet import config_path

    config = small_config(config_path(f"{name}_inherit.py"), data, tmp_path)
    Operators.asked.clear()
    runner = run(config)
    assert runner.iter == 2 and set(fgd.LOSS_NAMES) <= {
        key.split("/")[-1] for key in runner.message_hub.log_scalars if key.startswith("train/")
    }
    (log,) = (tmp_path / "run").rglob("*.log")
    metrics = log.read_text()
    assert "coco/bbox_mAP: " in metrics and ("coco/segm_mAP: " in metrics) == ("maskrcnn" in name)
    report = runner.model.inherit_report
    # FCOS's student has biases that its teacher, without the tricks, has not.
    biases = {f"bbox_head.{part}_convs.0.conv.bias" for part in ("cls", "reg")} if name.startswith("fcos") else set()
    assert report.loaded and not report.mismatched and set(report.skipped) == biases
    levels = 4 if PAIRS[name][0] == "two_stage" else 5
    assert len(runner.model.criterion.levels) == levels
    if Operators.asked:
        needed = {found for found in Operators.asked if "backward" not in found}
        assert needed - {"roi_align_forward"} == {"nms"} | PAIRS[name][3]

    cli.main(["export-student", str(tmp_path / "run" / "epoch_1.pth"), str(tmp_path / "student.pth")])
    plain = MODELS.build(plain_model(config)).eval()
    load_checkpoint(plain, str(tmp_path / "student.pth"), strict=True)
    (batch,) = runner.val_dataloader
    with torch.no_grad():
        ours, theirs = (model.eval().val_step(batch)[0].pred_instances for model in (runner.model, plain))
    assert len(ours) and torch.equal(ours.scores, theirs.scores) and torch.equal(ours.bboxes, theirs.bboxes)


def test_a_teacher_in_bfloat16_hands_on_its_own_digits(data, tmp_path):
    from mmdet.registry import MODELS

    from fgd_distill.mmdet import config_path

    config = small_config(config_path("retinanet_r101_r50_inherit.py"), data, tmp_path).model
    config.distillation = {**config.get("distillation", {}), "teacher_settings": {"dtype": "bfloat16"}}
    model = MODELS.build(config)
    model.init_weights()
    assert {parameter.dtype for parameter in model.distiller.teacher.parameters()} == {torch.bfloat16}
    content = torch.load(config.teacher_checkpoint, weights_only=True)
    content, own = content.get("state_dict", content), model.state_dict()
    assert model.inherit_report.loaded
    assert all(torch.equal(own[name], content[name]) for name in model.inherit_report.loaded)


def test_a_resumed_training_is_the_one_that_was_not_cut(data, tmp_path):
    """Every number of student, criterion and average, after two epochs."""
    from fgd_distill.mmdet import config_path

    def configured(folder):
        config = small_config(config_path("retinanet_r101_r50_inherit.py"), data, folder, epochs=2)
        config.custom_hooks = [{"type": "EMAHook", "momentum": 0.5}]
        config.model.distillation.normalise = "detector"
        config.param_scheduler = [{"type": "MultiStepLR", "milestones": [1], "by_epoch": True}]
        return config

    whole = run(configured(tmp_path / "whole"))
    config = configured(tmp_path / "cut")
    config.resume, config.load_from = True, str(tmp_path / "whole" / "run" / "epoch_1.pth")
    resumed = run(config)
    assert resumed.iter == whole.iter == 4
    ours, theirs = (torch.load(tmp_path / f"{n}/run/epoch_2.pth", weights_only=False) for n in ("cut", "whole"))
    for part in ("state_dict", "ema_state_dict"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(value, theirs[part][name]) for name, value in ours[part].items()), part
    started = torch.load(config.load_from, weights_only=False)["state_dict"]
    for name in ("criterion.levels.0.conv_mask_s.weight", "criterion.shares.averages"):
        assert not torch.equal(ours["state_dict"][name], started[name])


def test_calibrated_weights(data, tmp_path):
    """By the hook, before the first iteration; a resumed training has them from its checkpoint."""
    from fgd_distill.mmdet import config_path

    def configured(folder, epochs=1):
        config = small_config(config_path("fcos_r101_r50.py"), data, folder, epochs)
        config.custom_hooks = [{"type": "FGDCalibration", "batches": 2, "total": 1.0}]
        return config

    def weights(runner):
        return [getattr(runner.model.criterion, name) for name in ("temperature", *WEIGHTS)]

    first = run(configured(tmp_path / "one"))
    preset = list(fgd.PRESETS["one_stage_anchor_free"].values())
    assert sorted(weights(first)) != sorted(preset)
    scalars = {name: first.message_hub.get_scalar(f"train/{name}").data[0][0] for name in ("loss", *fgd.LOSS_NAMES)}
    own = scalars["loss"] - sum(scalars[name] for name in fgd.LOSS_NAMES)
    assert 1 / 3 < (scalars["loss"] - own) / own < 3  # once it, on other batches
    checkpoint = tmp_path / "one" / "run" / "epoch_1.pth"
    config = configured(tmp_path / "two", epochs=2)
    config.resume, config.load_from = True, str(checkpoint)
    resumed = run(config)
    assert resumed.iter == 4 and weights(resumed) == weights(first)
    content = torch.load(checkpoint, weights_only=False)
    del content["fgd_weights"]
    torch.save(content, checkpoint)
    with pytest.raises(ValueError, match="load_from: expected a checkpoint with 'fgd_weights'"):
        run(config)


def test_the_page_s_own_pair(data, tmp_path, monkeypatch):
    """The snippets of docs/tutorials/mmdetection.md, on small configs."""
    from mmengine.config import Config

    from fgd_distill.mmdet import config_path

    config = small_config(config_path("retinanet_r101_r50.py"), data, tmp_path)
    monkeypatch.chdir(tmp_path)
    Config({"model": config.model.teacher}).dump("my_teacher.py")
    config.model = plain_model(config)
    config.pop("custom_imports")
    config.dump("my_student.py")
    (tmp_path / "my_pair.py").write_text(snippet("own", "tutorials/mmdetection.md"))
    code = snippet("train", "tutorials/mmdetection.md")
    code = code.replace('config_path("retinanet_x101_r50_inherit.py")', '"my_pair.py"')
    exec(compile(code, "mmdetection.md", "exec"), {})
    state = torch.load("runs/retinanet_x101_r50/epoch_1.pth", weights_only=False)["state_dict"]
    assert any(name.startswith("criterion.") for name in state)


def test_yolox_s_mode_switch_and_rates_by_layer(monkeypatch):
    from mmdet.engine.hooks import YOLOXModeSwitchHook
    from mmdet.models import ResNet
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict
    from mmengine.optim import build_optim_wrapper

    import fgd_distill.mmdet  # noqa: F401

    class ConvNeXtLike(ResNet):
        """For a constructor that asks for the class's name."""

    student = retinanet()
    student["backbone"] = student["backbone"] | {"type": ConvNeXtLike}
    teacher = MODELS.build(ConfigDict(retinanet(32)))
    model = MODELS.build(ConfigDict(type="FGDDetector", student=student, teacher=teacher))
    dataset = SimpleNamespace(update_skip_type_keys=lambda keys: None)
    runner = {"model": model, "epoch": 0, "max_epochs": 1, "train_dataloader": SimpleNamespace(dataset=dataset)}
    YOLOXModeSwitchHook(1).before_train_epoch(SimpleNamespace(**runner, logger=SimpleNamespace(info=print)))
    assert model.bbox_head.use_l1
    wrapper = {
        "constructor": "LearningRateDecayOptimizerConstructor",
        "paramwise_cfg": {"num_layers": 6, "decay_rate": 0.5, "decay_type": "stage_wise"},
        "optimizer": {"type": "AdamW", "lr": 1.0},
    }
    groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
