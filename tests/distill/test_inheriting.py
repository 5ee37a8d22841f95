import pytest
import torch
from torch import nn

from fgd_distill.detectors.checkpoint import export_student, student_state_dict
from fgd_distill.inheriting import inherit


def test_neck_and_head_come_from_the_teacher(pair, capsys):
    student, teacher = pair
    stem = student.backbone.body.layer0[0].weight.clone()
    report = inherit(student, teacher)
    logits, taught = (model.head.classification_head.cls_logits for model in pair)
    assert torch.equal(logits.weight, taught.weight)
    assert torch.equal(student.backbone.fpn.layer_blocks[0][0].weight, teacher.backbone.fpn.layer_blocks[0][0].weight)
    assert torch.equal(student.backbone.body.layer0[0].weight, stem)
    # The lateral convolutions meet backbones of other widths.
    assert [name for name, *_ in report.mismatched] == [f"backbone.fpn.inner_blocks.{i}.0.weight" for i in range(3)]
    printed = capsys.readouterr().out
    assert f"inherited {len(report.loaded)} tensors" in printed
    assert "mismatched backbone.fpn.inner_blocks.0.0.weight: student (64, 32, 1, 1), teacher (64, 64, 1, 1)" in printed


def test_the_share_is_of_parameters_and_a_small_one_is_warned_of():
    def model(width):
        parts = {"narrow": nn.Linear(width, 3), "wide": nn.Linear(7, 10, bias=False)}
        return nn.ModuleDict(parts)

    with pytest.warns(UserWarning, match="inherited 26% of the parameters of narrow, wide.*1 tensors of other shapes"):
        changed = model(7)
        changed["wide"] = nn.Linear(8, 10, bias=False)
        inherit(model(7), changed, modules=["narrow", "wide"])  # 24 numbers of 94
    report = inherit(model(6), model(7), modules=["narrow", "wide"], verbose=False)
    assert report.share == pytest.approx((70 + 3) / (70 + 3 + 18)) and "80% of the modules' parameters" in str(report)


def test_the_student_keeps_its_own_memory(pair):
    student, teacher = pair
    inherit(student, teacher, verbose=False)
    logits, taught = (model.head.classification_head.cls_logits for model in pair)
    with torch.no_grad():
        logits.bias.add_(1.0)
    assert not torch.equal(logits.bias, taught.bias)


def test_another_number_of_classes_is_reported_not_loaded(pair, capsys):
    from fgd_distill.digits.detectors import digits_student

    report = inherit(digits_student(num_classes=4), pair[1], modules=["head"])
    assert {name for name, *_ in report.mismatched} == {
        "head.classification_head.cls_logits.weight",
        "head.classification_head.cls_logits.bias",
    }


def test_nothing_loaded_is_an_error(pair):
    """Silently unloaded weights are what users of the published code lost most time with."""
    student, teacher = pair
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(ValueError, match=r"nothing could be inherited from the modules \['backbone.body.layer1'\]"):
        inherit(student, teacher, modules="backbone.body.layer1")
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_modules_that_one_model_lacks(pair):
    with pytest.raises(ValueError, match="no module 'backbone.fnp'; close names are .*'backbone.fpn'"):
        inherit(*pair, modules=["head", "backbone.fnp"])
    pair[1].head = nn.Identity()
    with pytest.raises(ValueError, match="no module 'head.classification_head'"):
        inherit(*pair, modules="head.classification_head")


def test_entries_of_one_side_are_skipped(pair):
    student, teacher = pair
    student.head.extra = nn.Linear(2, 2)
    assert inherit(student, teacher, verbose=False).skipped == ["head.extra.bias", "head.extra.weight"]


def test_export_names_are_the_plain_detectors(pair):
    student, _ = pair
    for prefix in ("student.", "distiller.student.", "model.distiller.student."):
        state = {prefix + name: value for name, value in student.state_dict().items()}
        state |= {"distiller.criterion.levels.0.conv_mask_s.weight": torch.zeros(1)}
        exported = student_state_dict({"state_dict": state})
        assert exported.keys() == student.state_dict().keys()


def test_export_of_compiled_parts_and_of_a_part_called_student(pair):
    student, _ = pair
    names = student.state_dict().keys()
    student.backbone.fpn = torch.compile(student.backbone.fpn)
    student.student = nn.Linear(1, 1)
    holder = nn.ModuleDict({"student": student, "criterion": nn.Linear(1, 1)})
    exported = student_state_dict(torch.compile(holder).state_dict())
    assert exported.keys() == names | {"student.weight", "student.bias"}


def test_export_of_two_students_is_not_a_mixture():
    state = {"model.student.weight": torch.zeros(1), "average.student.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"expected one student, got those of \['average', 'model'\]"):
        student_state_dict({"state_dict": state})


def test_export_of_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.ckpt"):
        export_student(str(tmp_path / "nothing.ckpt"), str(tmp_path / "out.pt"))
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="expected a checkpoint of fgd-distill fit.*weights"):
        export_student(str(tmp_path / "other.ckpt"), str(tmp_path / "out.pt"))
    with pytest.raises(ValueError, match="expected entries of a student"):
        student_state_dict({"state_dict": {"backbone.weight": torch.zeros(1)}})
    assert not (tmp_path / "out.pt").exists()
