"""The relation of the global term: Non-local blocks (the paper's table 6), or none (table 4)."""

import copy
import io

import pytest
import torch
from cases import make_boxes
from torch import nn

import fgd_kernels as fgd

SHAPES = [(8, 9, 7), (8, 4, 3)]
SIZES = [(104, 136)] * 2


def inputs(dtype=torch.float32, channels=8):
    student = [torch.randn(2, channels, h, w, dtype=dtype, requires_grad=True) for _, h, w in SHAPES]
    teacher = [torch.randn(2, c, h, w, dtype=dtype) for c, h, w in SHAPES]
    return student, teacher, make_boxes((2, 0)), SIZES


def criterion(relation="non_local", channels=8, **settings):
    """One whose blocks add something: as they start, the last convolution is 0."""
    loss = fgd.FGDLoss(channels, 8, 2, relation=relation, lambda_=0.01, **settings)
    for parameter in loss.parameters():
        nn.init.normal_(parameter, std=0.5)
    return loss


def published(block, features):
    """The toolboxes' Non-local block, which writes out the P×P attention."""
    n, _, h, w = features.shape
    g, theta, phi = (layer(features).flatten(2) for layer in (block.g, block.theta, block.phi))
    pairwise = theta.transpose(1, 2) @ phi / theta.shape[1] ** 0.5
    related = pairwise.softmax(dim=-1) @ g.transpose(1, 2)
    return features + block.conv_out(related.transpose(1, 2).reshape(n, -1, h, w))


def expected_global(loss, student, teacher):
    terms = []
    for level, s, t in zip(loss.levels, student, teacher, strict=True):
        s = s if level.align is None else level.align(s)
        terms.append((published(level.non_local_s, s) - published(level.non_local_t, t)).square().sum() / len(s))
    return torch.stack(terms) * loss.lambda_


def test_value_and_gradients_are_those_of_the_written_out_attention():
    loss = criterion(channels=6).double()
    student, teacher, boxes, sizes = inputs(torch.float64, channels=6)
    leaves = [*student, *loss.parameters()]
    found, levels = loss(student, teacher, boxes, sizes, return_levels=True)
    expected = expected_global(loss, student, teacher)
    torch.testing.assert_close(found["loss_fgd_global"], expected.sum())
    torch.testing.assert_close(levels[:, 3], expected.detach())
    assert torch.equal(torch.stack(list(found.values())).detach(), levels.sum(dim=0))
    ours = torch.autograd.grad(found["loss_fgd_global"], leaves)
    theirs = torch.autograd.grad(expected.sum(), leaves)
    for gradient, truth in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-9, atol=1e-12)


def test_other_terms_are_those_of_the_fused_pass():
    student, teacher, boxes, sizes = inputs()
    with_gc, with_non_local = fgd.FGDLoss(8, 8, 2), fgd.FGDLoss(8, 8, 2, relation="non_local")
    ours, theirs = with_non_local(student, teacher, boxes, sizes), with_gc(student, teacher, boxes, sizes)
    assert list(ours) == list(theirs) == list(fgd.LOSS_NAMES)
    # As they start, both relations add nothing.
    for name in fgd.LOSS_NAMES:
        torch.testing.assert_close(ours[name], theirs[name])


def test_gradcheck():
    loss = criterion().double()
    student, teacher, boxes, sizes = inputs(torch.float64)
    names = [name for name, _ in loss.named_parameters()]

    def total(s0, s1, *parameters):
        values = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(loss, values, ([s0, s1], teacher, boxes, sizes))["loss_fgd_global"]

    assert torch.autograd.gradcheck(total, (*student, *loss.parameters()), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    loss = criterion()
    student, teacher, boxes, sizes = inputs(dtype)
    found = loss(student, teacher, boxes, sizes)
    truth = expected_global(loss, [s.float() for s in student], [t.float() for t in teacher]).sum()
    assert found["loss_fgd_global"].dtype == torch.float32
    torch.testing.assert_close(found["loss_fgd_global"], truth)
    found["loss_fgd_global"].backward()
    assert all(s.grad.dtype == dtype and s.grad.isfinite().all() for s in student)


def test_autocast_changes_nothing():
    loss = criterion()
    student, teacher, boxes, sizes = inputs()
    plain = loss(student, teacher, boxes, sizes)["loss_fgd_global"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = loss(student, teacher, boxes, sizes)["loss_fgd_global"]
    assert cast.dtype == torch.float32 and torch.equal(plain, cast)


def test_compiles_as_one_graph():
    loss = criterion()
    student, teacher, boxes, sizes = inputs()
    packed = fgd.pack_boxes(boxes, sizes, "cpu")
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    plain = torch.stack(list(loss(student, teacher, packed).values())).sum()
    found = torch.stack(list(compiled(student, teacher, packed).values())).sum()
    torch.testing.assert_close(found, plain)
    (gradient,) = torch.autograd.grad(found, student[:1])
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, student[:1])[0])


def test_names_initialisation_state_dict_and_copies():
    loss = fgd.FGDLoss(6, 8, 1, relation="non_local")
    layers = [f"non_local_{net}.{layer}" for net in "st" for layer in ("g", "theta", "phi", "conv_out")]
    names = ["align", *layers]
    assert list(loss.state_dict()) == [f"levels.0.{name}.{kind}" for name in names for kind in ("weight", "bias")]
    state = loss.levels[0].state_dict()
    assert (state["non_local_s.conv_out.weight"] == 0).all() and (state["non_local_t.g.bias"] == 0).all()
    big = fgd.FGDLoss(256, 256, 1, relation="non_local").levels[0].non_local_s
    assert float(big.theta.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    loss, other = criterion(), fgd.FGDLoss(8, 8, 2, relation="non_local")
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    other.lambda_ = loss.lambda_
    data = inputs()
    assert loss(*data) == other(*data) == copy.deepcopy(loss)(*data)


def test_level_weights_scale_the_relation():
    loss, data = criterion(), inputs()
    _, plain = loss(*data, return_levels=True)
    loss.level_weights = "inverse_area"
    _, weighted = loss(*data, return_levels=True)
    torch.testing.assert_close(weighted, plain / torch.tensor([[63.0], [12.0]]))


def test_no_images_give_zero_and_gradients_of_zero():
    loss = criterion()
    student = [torch.zeros(0, 8, h, w, requires_grad=True) for _, h, w in SHAPES]
    teacher = [torch.zeros(0, 8, h, w) for _, h, w in SHAPES]
    losses = loss(student, teacher, [], torch.zeros(0, 2))
    torch.stack(list(losses.values())).sum().backward()
    assert all(float(value.detach()) == 0 for value in losses.values())
    assert all((parameter.grad == 0).all() for parameter in loss.parameters())


def test_without_a_relation_there_is_no_global_term():
    loss = fgd.FGDLoss(6, 8, 2, relation="none")
    assert {name.split(".")[2] for name in loss.state_dict()} == {"align"}
    losses = loss(*inputs(channels=6))
    assert float(losses["loss_fgd_global"].detach()) == 0 and float(losses["loss_fgd_fg"].detach()) > 0
    with pytest.raises(ValueError, match="relation: expected one of gc, non_local, none, got 'nonlocal'"):
        fgd.FGDLoss(8, 8, relation="nonlocal")


def test_the_attention_is_not_written_out():
    """With 2 MB a map and P = 2048 pixels, P² floats would be 16 MB for each of two networks and two images."""
    loss = fgd.FGDLoss(16, 16, 1, relation="non_local")
    s, t = torch.randn(2, 16, 32, 64, requires_grad=True), torch.randn(2, 16, 32, 64)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.stack(list(loss([s], [t], make_boxes((1, 1)), [(256, 512)] * 2).values())).sum().backward()
    # An operator's own allocations: one that wrote a P×P matrix would show at least this much.
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < 2048 * 2048 * 4, f"{largest / 1e6:.1f} MB in one operator"


def test_shapes_alone():
    """On the meta device, as the other relations."""
    loss = fgd.FGDLoss(8, 8, 2, relation="non_local").to("meta")
    student, teacher = ([torch.empty(2, *shape, device="meta") for shape in SHAPES] for _ in range(2))
    boxes = [box.to("meta") for box in make_boxes((2, 0))]
    assert {value.device.type for value in loss(student, teacher, boxes, SIZES).values()} == {"meta"}
