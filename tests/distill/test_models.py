import pytest
import torch
from torch import nn
from torchvision.models import detection, resnet18
from torchvision.ops.misc import FrozenBatchNorm2d

from fgd_distill.detectors.by_name import BACKBONES, FAMILIES, DetectorConfig, build_detector, detector_names
from fgd_distill.detectors.weights import load_weights


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_sizes_of_the_digit_detectors(pair):
    student, teacher = pair
    assert 0.25e6 < count(student) < 0.35e6
    assert 1.4e6 < count(teacher) < 1.7e6


@pytest.mark.parametrize("training", [True, False])
def test_digit_images_are_not_resized(pair, batch, training):
    images, targets = batch
    for model in pair:
        prepared, moved = model.train(training).transform(list(images), list(targets))
        assert prepared.tensors.shape == (2, 3, 128, 128)
        assert torch.equal(prepared.tensors[0], model.transform.normalize(images[0]))
        assert torch.equal(moved[0]["boxes"], targets[0]["boxes"])


def test_strides_and_channels(pair):
    for model in pair:
        maps = model.backbone(torch.zeros(1, 3, 128, 128))
        assert [tuple(f.shape) for f in maps.values()] == [(1, 64, 16, 16), (1, 64, 8, 8), (1, 64, 4, 4)]


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_torchvisions_detectors_by_name_without_download(name):
    model = build_detector(DetectorConfig(name, num_classes=5))
    assert count(model) > 10e6


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_resnet_detectors_are_torchvisions(family):
    name = f"{family}_resnet50_fpn"
    with torch.device("meta"):
        ours = build_detector(DetectorConfig(name, 91))
        theirs = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=91)
    assert shapes(ours) == shapes(theirs)
    assert (
        ours.backbone(torch.zeros(1, 3, 128, 128, device="meta")).keys()
        == theirs.backbone(torch.zeros(1, 3, 128, 128, device="meta")).keys()
    )
    assert ours.transform.min_size == theirs.transform.min_size


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_has_the_pyramid_of_the_others(backbone):
    with torch.device("meta"):
        maps = build_detector(DetectorConfig(f"fcos_{backbone}_fpn", 91)).backbone(torch.zeros(1, 3, 256, 256))
    assert [tuple(m.shape[1:]) for m in maps.values()] == [(256, 256 // s, 256 // s) for s in (8, 16, 32, 64, 128)]


def test_backbone_weights_freeze_norms_and_first_stages(tmp_path):
    network = resnet18()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    config = DetectorConfig("fcos_resnet18_fpn", 5, backbone_weights=str(tmp_path / "resnet18.pth"))
    model = build_detector(config)
    body = model.backbone.body
    assert torch.equal(body.layer4[1].conv2.weight, network.layer4[1].conv2.weight)
    assert any(isinstance(m, FrozenBatchNorm2d) for m in body.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in body.modules())
    assert [p.requires_grad for p in (body.conv1.weight, body.layer1[0].conv1.weight, body.layer2[0].conv1.weight)] == [
        False,
        False,
        True,
    ]
    with pytest.raises(ValueError, match="do not fit IntermediateLayerGetter"):
        build_detector(DetectorConfig("fcos_resnet34_fpn", 5, backbone_weights=str(tmp_path / "resnet18.pth")))
    with pytest.raises(ValueError, match="expected a detector with a ResNet backbone"):
        build_detector(DetectorConfig("digits_student", 5, backbone_weights=str(tmp_path / "resnet18.pth")))


def test_unknown_name_lists_close_ones():
    with pytest.raises(ValueError, match="retinanet_resnet50_fpn.*got 'retinanet_r50'"):
        build_detector(DetectorConfig("retinanet_r50"))
    assert "digits_student" in detector_names()


def test_a_function_of_ones_own():
    model = build_detector(DetectorConfig("fgd_distill.digits.detectors:digits_student", 5, options={"image_size": 96}))
    assert model.head.classification_head.num_classes == 5 and model.transform.min_size == (96,)
    for name in ("no_such_module:build", "fgd_distill.detectors.by_name:no_such_function", ":build"):
        with pytest.raises(ValueError, match=f"expected module:function, cannot import '{name}'"):
            build_detector(DetectorConfig(name))
    with pytest.raises(TypeError, match="to return a torch.nn.Module, got dict"):
        build_detector(DetectorConfig("builtins:dict"))


def test_weights_load_from_other_float_types_and_from_torchvisions_checkpoints(pair, tmp_path):
    student, _ = pair
    halves = {k: v.half() if v.is_floating_point() else v for k, v in student.state_dict().items()}
    torch.save({"model": halves, "epoch": 3}, tmp_path / "checkpoint.pth")
    built = build_detector(DetectorConfig("digits_student", 11, str(tmp_path / "checkpoint.pth")))
    for name, value in built.state_dict().items():
        assert value.dtype == student.state_dict()[name].dtype
        torch.testing.assert_close(value, student.state_dict()[name], rtol=1e-3, atol=1e-3)


def test_weights_that_do_not_fit_are_an_error(pair, tmp_path):
    student, teacher = pair
    with pytest.raises(FileNotFoundError, match="nothing.pt"):
        load_weights(student, tmp_path / "nothing.pt")
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    with pytest.raises(ValueError, match="do not fit FCOS"):
        load_weights(student, tmp_path / "teacher.pt")
    torch.save({"state_dict": {}, "epoch": 1}, tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match="expected a state dict.*export-student"):
        load_weights(student, tmp_path / "run.ckpt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "teacher.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match="cut.pt.*could not read it"):
        load_weights(student, tmp_path / "cut.pt")
