"""FGDLoss and FeatureLoss: names, initialisation, presets, copies, and the training code around them."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from cases import make_boxes

import fgd_kernels as fgd

PUBLISHED_KEYS = [
    "conv_mask_s.weight",
    "conv_mask_s.bias",
    "conv_mask_t.weight",
    "conv_mask_t.bias",
    *[f"channel_add_conv_{net}.{i}.{kind}" for net in "st" for i in (0, 1, 3) for kind in ("weight", "bias")],
]


def small_inputs(channels=6, images=2):
    student = [torch.randn(images, channels, 9, 7, requires_grad=True), torch.randn(images, channels, 4, 3)]
    teacher = [torch.randn(images, 8, 9, 7), torch.randn(images, 8, 4, 3)]
    return student, teacher, make_boxes((2,) * images), [(104, 136)] * images


def test_feature_loss_has_the_published_state_dict():
    assert list(fgd.FeatureLoss(8, 8, "loss").state_dict()) == PUBLISHED_KEYS
    aligned = fgd.FeatureLoss(6, 8, name="loss_fgd_fpn_0")
    assert list(aligned.state_dict()) == ["align.weight", "align.bias", *PUBLISHED_KEYS]
    shapes = {key: tuple(value.shape) for key, value in aligned.state_dict().items()}
    assert shapes["conv_mask_s.weight"] == (1, 8, 1, 1) and shapes["channel_add_conv_s.1.weight"] == (4, 1, 1)
    assert shapes["channel_add_conv_t.0.weight"] == (4, 8, 1, 1) and shapes["align.weight"] == (8, 6, 1, 1)


def test_pyramid_names_its_levels():
    loss = fgd.FGDLoss([8, 6], [8, 8])
    keys = [f"levels.0.{key}" for key in PUBLISHED_KEYS]
    keys += [f"levels.1.{key}" for key in ["align.weight", "align.bias", *PUBLISHED_KEYS]]
    assert list(loss.state_dict()) == keys
    loss.levels[0].load_state_dict(fgd.FeatureLoss(8, 8, "old checkpoint").state_dict())


def test_initialisation():
    """W_k: Kaiming normal over fan_in; biases 0; the last convolutions 0, so that both GcBlocks begin as identity."""
    loss = fgd.FeatureLoss(512, 512, "loss")
    assert float(loss.conv_mask_s.weight.detach().std()) == pytest.approx((2 / 512) ** 0.5, rel=0.15)
    zeros = ("conv_mask_s.bias", "conv_mask_t.bias", "channel_add_conv_s.3.weight", "channel_add_conv_t.3.bias")
    assert all((loss.state_dict()[key] == 0).all() for key in zeros)
    s, t = torch.randn(1, 512, 4, 5), torch.randn(1, 512, 4, 5)
    losses = fgd.FGDLoss(512, 512, 1, lambda_=1.0)([s], [t], [torch.zeros(0, 4)], [(8, 10)])
    assert float(losses["loss_fgd_global"]) == pytest.approx(float((s - t).square().sum()), rel=1e-5)


def test_presets_are_the_papers():
    assert fgd.PRESETS["two_stage"] == {
        "alpha": 5e-5, "beta": 2.5e-5, "gamma": 5e-5, "lambda_": 5e-7, "temperature": 0.5
    }  # fmt: skip
    assert [fgd.PRESETS["one_stage_anchor"][k] for k in ("alpha", "beta", "gamma", "lambda_")] == [
        1e-3,
        5e-4,
        1e-3,
        5e-6,
    ]
    loss = fgd.FGDLoss(8, 8, preset="one_stage_anchor_free", gamma=8e-4, temperature=0.8)
    assert (loss.alpha, loss.gamma, loss.temperature, len(loss.levels)) == (1.6e-3, 8e-4, 0.8, 5)


def test_terms_sum_to_the_levels_and_level_weights_scale():
    student, teacher, boxes, sizes = small_inputs(8)
    loss = fgd.FGDLoss(8, 8, 2)
    losses, levels = loss(student, teacher, boxes, sizes, return_levels=True)
    assert levels.shape == (2, 4) and not levels.requires_grad
    torch.testing.assert_close(levels.sum(0), torch.stack([losses[name].detach() for name in fgd.LOSS_NAMES]))
    loss.level_weights = [0.5, 0.0]
    _, weighted = loss(student, teacher, boxes, sizes, return_levels=True)
    torch.testing.assert_close(weighted, levels * torch.tensor([[0.5], [0.0]]))
    loss.level_weights = "inverse_area"
    _, weighted = loss(student, teacher, boxes, sizes, return_levels=True)
    torch.testing.assert_close(weighted, levels / torch.tensor([[63.0], [12.0]]))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_independent_and_equal(copied):
    student, teacher, boxes, sizes = small_inputs()
    loss = fgd.FGDLoss(6, 8, 2)
    twin = copied(loss)
    assert loss(student, teacher, boxes, sizes) == twin(student, teacher, boxes, sizes)
    sum(twin(student, teacher, boxes, sizes).values()).backward()
    assert all(p.grad is None for p in loss.parameters()) and all(p.grad is not None for p in twin.parameters())


def test_state_dict_through_a_file():
    loss, other = fgd.FGDLoss(6, 8, 2), fgd.FGDLoss(6, 8, 2)
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    student, teacher, boxes, sizes = small_inputs()
    assert loss(student, teacher, boxes, sizes) == other(student, teacher, boxes, sizes)


def test_packed_boxes_serve_many_calls():
    student, teacher, boxes, sizes = small_inputs()
    loss = fgd.FGDLoss(6, 8, 2)
    packed = fgd.pack_boxes(boxes, sizes, "cpu")
    assert loss(student, teacher, packed) == loss(student, teacher, boxes, sizes)


def test_frame_of_the_published_interface():
    """The padded batch, where the metas tell it; the boxes count in its pixels."""
    student, teacher, boxes, _ = small_inputs(8, 1)
    loss = fgd.FeatureLoss(8, 8, "loss")
    image, padded = {"img_shape": (80, 100, 3)}, {"pad_shape": (104, 136, 3)}
    batch = {"batch_input_shape": (104, 136)}
    values = [loss(student[0], teacher[0], boxes, [meta]) for meta in (image, image | padded, image | batch)]
    assert values[1] == values[2] != values[0]
    with pytest.raises(ValueError, match=r"img_metas\[0\]: expected 'batch_input_shape'"):
        loss(student[0], teacher[0], boxes, [{}])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"preset": "yolo"}, "preset: expected one of two_stage"),
        ({"num_levels": 0}, "num_levels: expected an integer >= 1, got 0"),
        ({"student_channels": [6, 6, 6], "num_levels": 2}, "student_channels: expected 2 numbers"),
        ({"teacher_channels": 0}, "teacher_channels: expected an integer >= 1, got 0"),
        ({"student_channels": True}, "student_channels: expected an integer >= 1, got True"),
        ({"preset": None}, "preset: expected one of two_stage"),
        ({"alpha": float("nan")}, "alpha: expected a finite number >= 0, got nan"),
        ({"temperature": 0}, "temperature: expected a number > 0, got 0"),
        ({"attention": "all"}, "attention: expected one of both"),
        ({"num_levels": 2, "level_weights": [1.0]}, "level_weights: expected 2 numbers"),
        ({"backend": "gpu"}, "backend: expected 'auto' or one of"),
    ],
)
def test_bad_construction(arguments, words):
    with pytest.raises(ValueError, match=words):
        fgd.FGDLoss(**{"student_channels": 6, "teacher_channels": 8} | arguments)


def test_bad_calls():
    student, teacher, boxes, sizes = small_inputs()
    loss = fgd.FGDLoss(6, 8, 2)
    with pytest.raises(ValueError, match=r"student_features: expected 2 levels \(num_levels\), got 1"):
        loss(student[:1], teacher, boxes, sizes)
    with pytest.raises(ValueError, match=r"student_features\[0\]: expected 6 channels, got 8"):
        loss(teacher, teacher, boxes, sizes)
    with pytest.raises(TypeError, match="student_features: expected a list of 2 tensors, got dict"):
        loss(dict(enumerate(student)), teacher, boxes, sizes)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"preds_T": [1]}, r"preds_T: expected a tensor \(N, C_t, H, W\), got list"),
        ({"gt_bboxes": None}, "gt_bboxes: expected a list, one entry an image, got NoneType"),
        ({"img_metas": None}, "img_metas: expected a list, one entry an image, got NoneType"),
        ({"img_metas": [3, 4]}, r"img_metas\[0\]: expected a mapping, got int"),
        (
            {"img_metas": [{"pad_shape": 5}] * 2},
            r"img_metas\[0\]\['pad_shape'\]: expected \(height, width, ..\), got 5",
        ),
    ],
)
def test_bad_calls_of_the_published_interface(change, words):
    student, teacher, boxes, sizes = small_inputs(8)
    arguments = {
        "preds_S": student[0],
        "preds_T": teacher[0],
        "gt_bboxes": boxes,
        "img_metas": [{"img_shape": (*size, 3)} for size in sizes],
    }
    with pytest.raises(TypeError, match=words):
        fgd.FeatureLoss(8, 8, "loss")(**arguments | change)


def test_parametrised_gc_blocks():
    """A weight that is computed from others is taken as it is, and they learn."""
    student, teacher, boxes, sizes = small_inputs()
    loss = fgd.FGDLoss(6, 8, 2)
    before = loss(student, teacher, boxes, sizes)
    torch.nn.utils.parametrizations.weight_norm(loss.levels[0].conv_mask_s)
    torch.testing.assert_close(loss(student, teacher, boxes, sizes), before)
    torch.nn.init.normal_(loss.levels[0].channel_add_conv_s[3].weight)
    sum(loss(student, teacher, boxes, sizes).values()).backward()
    assert (loss.levels[0].conv_mask_s.parametrizations.weight.original1.grad != 0).any()


def test_numpy_integers_are_integers():
    criterion = fgd.FGDLoss(np.int64(16), np.int32(8), num_levels=np.int64(2))
    assert [tuple(level.align.weight.shape) for level in criterion.levels] == [(8, 16, 1, 1)] * 2
    assert fgd.FeatureLoss(np.uint8(16), 16, "loss").align is None
    for wrong in (np.float64(16), True, np.bool_(True), "16"):
        with pytest.raises(ValueError, match="student_channels: expected an integer >= 1"):
            fgd.FGDLoss(wrong, 8, num_levels=1)
