"""A cheaper teacher: its type, layout and compilation change what it costs and not what it says."""

import copy
import functools

import pytest
import torch
from spots import SpotAdapter, large, small
from torch import nn

import fgd_kernels as fgd
from fgd_distill import DetectionDistiller, Schedule, TeacherSettings, distil
from fgd_distill.calibration.choose import choose_weights
from fgd_distill.commands.calibrate import CalibrateCLI
from fgd_distill.teacher_settings import compile_what_runs
from fgd_distill.training.run import run


def features(pair, batch, settings):
    distiller = DetectionDistiller(*pair, fgd.FGDLoss(64, 64, 3, temperature=4.0), teacher_settings=settings).train()
    return distiller, distiller.features(*batch).teacher


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_maps_come_in_the_type_and_layout_and_are_the_teachers(pair, batch, dtype):
    plain = features(copy.deepcopy(pair), batch, None)[1]
    distiller, cheap = features(pair, batch, TeacherSettings(dtype, channels_last=True))
    seen = []
    distiller.teacher.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):  # the type that was asked for wins
        distiller.double().float().features(*batch)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    for level, reference in zip(cheap, plain, strict=True):
        assert level.dtype == seen[0].dtype == getattr(torch, dtype)
        assert level.is_contiguous(memory_format=torch.channels_last)
        error = (level.float() - reference).norm() / reference.norm()
        assert 0 < error < 0.02 if dtype == "bfloat16" else error < 1e-5


def test_the_loss_takes_a_teacher_in_bfloat16(pair, batch):
    expected = distil(*copy.deepcopy(pair), verbose=False)(*batch)
    losses = distil(*pair, verbose=False, teacher_settings=TeacherSettings("bfloat16"))(*batch)
    torch.testing.assert_close(losses, expected, rtol=0.05, atol=1e-3)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in pair[0].parameters())


def test_dicts_are_settings_too(pair, batch):
    distiller = distil(*pair, verbose=False, teacher_settings={"dtype": "bfloat16"}, schedule={"start": 3, "part": 0.5})
    assert distiller.teacher_settings == TeacherSettings("bfloat16") and distiller.schedule == Schedule(3, part=0.5)
    for argument, names in (("schedule", "start, ramp, stop, every, part"), ("teacher_settings", "dtype, .*, compile")):
        for given, told in (({"begin": 3}, r"\['begin'\]"), (3, "3")):
            with pytest.raises(TypeError, match=f"{argument}: expected .* a dict with some of {names}, got {told}"):
                distil(*pair, verbose=False, **{argument: given})


def test_the_type_that_was_asked_for_keeps_its_digits(pair, batch):
    """Through bfloat16 and back the teacher would be another one; a teacher without a setting follows."""
    before = copy.deepcopy(pair[1].state_dict())
    for asked, kept in (("float32", True), (None, False)):
        distiller = distil(pair[0], copy.deepcopy(pair[1]), verbose=False, teacher_settings=TeacherSettings(asked))
        distiller.to(torch.bfloat16).float()
        after = distiller.teacher.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items()) == kept


def test_weights_are_chosen_with_a_teacher_of_another_type(pair, batch):
    """Its predictions, which tell whether it can teach, are taken in float32."""
    chosen = [
        choose_weights(
            distil(*copy.deepcopy(pair), verbose=False, teacher_settings=TeacherSettings(dtype)), [batch], alpha=0.0
        )
        for dtype in (None, "bfloat16")
    ]
    assert chosen[1].gamma == pytest.approx(chosen[0].gamma, rel=0.1) and chosen[1].alpha == 0


def test_of_a_detector_the_part_that_runs_is_compiled(pair, batch, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    distiller, _ = features(pair, batch, TeacherSettings(compile=True))
    distiller.features(*batch)
    assert compiled == [distiller.teacher.backbone]


@pytest.fixture
def quick_compiler(monkeypatch):
    """The same compiler without its C++, which takes a minute."""
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))


def test_what_runs_is_compiled(quick_compiler):
    """A teacher that is called as a whole is compiled as a whole, and its pass ends from within."""
    torch.manual_seed(0)
    teacher, image = large(), torch.rand(3, 96, 64)
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 56.0]]), "labels": torch.tensor([3])}
    criterion = fgd.FGDLoss(16, 16, 2)
    found = []
    for settings in (None, TeacherSettings(compile=True)):
        distiller = DetectionDistiller(small(), teacher, criterion, adapter=SpotAdapter(), teacher_settings=settings)
        found.append([distiller.train().features([image], [target]).teacher for _ in range(2)])
    torch.testing.assert_close(found[1], found[0])
    assert teacher._compiled_call_impl is not None


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        (
            {"dtype": "int8"},
            ValueError,
            "teacher.dtype: expected one of float16, bfloat16, float32, or None, got 'int8'",
        ),
        ({"compile": "max-autotune"}, TypeError, "teacher.compile: expected true or false, got 'max-autotune'"),
        ({"channels_last": 1}, TypeError, "teacher.channels_last: expected true or false, got 1"),
    ],
)
def test_wrong_settings(settings, error, told):
    with pytest.raises(error, match=told):
        TeacherSettings(**settings)


def test_what_a_teacher_cannot_do_is_refused(pair, batch, monkeypatch):
    with pytest.raises(ValueError, match="channels_last: expected a teacher with convolutions, got Linear without"):
        TeacherSettings(channels_last=True).apply(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="teacher.compile: expected modules of Linear to run, got none"):
        compile_what_runs(nn.Linear(2, 2), lambda: None)
    large_maps = copy.deepcopy(pair)
    with torch.no_grad():
        next(large_maps[1].backbone.fpn.parameters()).fill_(1e5)  # float16 ends at 65504
    with pytest.raises(ValueError, match="teacher.dtype: expected feature maps that float16 can hold"):
        features(large_maps, batch, TeacherSettings("float16"))

    def in_float32(module, inputs):
        return (inputs[0].float(),)

    def no_compiler(module, inputs):
        raise RuntimeError("no working C++ compiler")

    without = copy.deepcopy(pair)
    monkeypatch.setattr(nn.Module, "compile", lambda module: module.register_forward_pre_hook(no_compiler))
    with pytest.raises(RuntimeError, match="teacher.compile: expected .* a compiler for it, got no working.*leave it"):
        features(without, batch, TeacherSettings("bfloat16", compile=True))
    pair[1].backbone.body.register_forward_pre_hook(in_float32)
    with pytest.raises(RuntimeError, match="teacher.dtype: expected a teacher that runs in bfloat16 here, got .*leave"):
        features(pair, batch, TeacherSettings("bfloat16"))


def test_settings_of_a_configuration(fit_args, teacher_file, tmp_path):
    """The cache stores the maps of a teacher of that type for one of that type alone."""
    cheap = [f"--config={name}" for name in ("digits_inherit.yaml", "digits_fgd.yaml")]
    cheap += [f"--model.teacher.weights={teacher_file}", f"--model.teacher_cache={{folder: {tmp_path / 'cache'}}}"]
    options = ["--trainer.limit_val_batches=0", "--trainer.enable_checkpointing=false", "--model.schedule={part: 0.5}"]
    cheap += ["--model.teacher.channels_last=true", *options]
    ran = run(fit_args(tmp_path, *cheap, "--model.teacher.dtype=bfloat16", steps=1))
    assert {p.dtype for p in ran.model.distiller.teacher.parameters()} == {torch.bfloat16}
    assert len(list((tmp_path / "cache" / "maps").iterdir())) == 2  # half of a batch of 4
    with pytest.raises(ValueError, match="holds the feature maps of another set-up"):
        run(fit_args(tmp_path, *cheap, steps=1))
    command = [option for option in fit_args(tmp_path, *cheap, steps=1)[1:] if "cache" not in option]
    calibrated = CalibrateCLI([*command, "--model.teacher.dtype=float16"]).model.distiller.teacher
    assert {p.dtype for p in calibrated.parameters()} == {torch.float32}
