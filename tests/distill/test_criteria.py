"""The other losses on feature maps: their equations, and what every one of them shares with FGDLoss."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

import fgd_kernels as fgd
from fgd_distill import distil
from fgd_distill.commands import main as cli
from fgd_distill.criteria import CRITERIA, CriterionConfig, criterion_class
from fgd_distill.criteria.regions import anchor_regions, box_regions
from fgd_distill.training.run import DistillCLI

SIZES = [(20, 28), (10, 14), (5, 7)]
FRAMES = [(160, 224)] * 2
BOXES = [[[8, 8, 200, 150], [3, 5, 40, 30], [100.5, 70.2, 103, 72]], [[0, 0, 130, 140], [30, 30, 120, 150]]]
NAMES = list(CRITERIA)


def boxes(*counts):
    return [torch.tensor(b, dtype=torch.float32)[:n].view(-1, 4) for b, n in zip(BOXES, counts or (3, 2), strict=True)]


def make(name, student=8, teacher=8, **settings):
    """One whose parameters matter: some begin at zero, or near it."""
    torch.manual_seed(0)
    loss = criterion_class(name)(student, teacher, len(SIZES), **settings)
    for parameter in loss.parameters():
        nn.init.normal_(parameter, std=0.3)
    return loss


def features(student=8, teacher=8, dtype=torch.float32):
    torch.manual_seed(1)
    return (
        [torch.randn(2, student, h, w, dtype=dtype, requires_grad=True) for h, w in SIZES],
        [torch.randn(2, teacher, h, w, dtype=dtype) for h, w in SIZES],
    )


def call(loss, s, t, b=None, **options):
    torch.manual_seed(2)
    return loss(s, t, boxes() if b is None else b, FRAMES, **options)


def total(losses):
    return torch.stack(list(losses.values())).sum()


# ---------------------------------------------------------------------------- what each one computes


def expected_imitation(loss, s, t):
    return [sum(((x - y) ** 2).sum() / y.numel() for x, y in zip(s, t, strict=True))]


def expected_pkd(loss, s, t):
    """1 - r of each channel over the batch, a mean over the channels; n - 1 in deviations, and 1e-6 beside them."""
    terms = []
    for x, y in zip(s, t, strict=True):
        pairs = [torch.corrcoef(torch.stack([x[:, c].flatten(), y[:, c].flatten()]))[0, 1] for c in range(x.shape[1])]
        n = x[:, 0].numel()
        terms.append((1 - torch.stack(pairs)).mean() * (n - 1) / n)
    return [6 * sum(terms)]


def expected_cwd(loss, s, t):
    terms = []
    for x, y in zip(s, t, strict=True):
        p = F.softmax(y.flatten(2), dim=2)
        q = F.softmax(x.flatten(2), dim=2)
        terms.append((p * (p / q).log()).sum() / (x.shape[0] * x.shape[1]))
    return [10 * sum(terms)]


def expected_mgd(loss, s, t):
    torch.manual_seed(2)
    terms = []
    for level, (x, y) in enumerate(zip(s, t, strict=True)):
        kept = torch.where(torch.rand(len(x), 1, *x.shape[2:]) > 1 - 0.65, 0.0, 1.0)
        terms.append((loss.generation[level](x * kept) - y).square().sum() / len(x))
    return [2e-5 * sum(terms)]


def expected_fgfi(loss, s, t):
    terms = []
    for level, (x, y) in enumerate(zip(s, t, strict=True)):
        near = torch.zeros(len(x), *x.shape[2:], dtype=torch.bool)
        for image, of_image in enumerate(boxes()):
            for box in of_image:
                if level_of(box) == level:
                    near[image] |= near_anchors(box, level, *x.shape[2:])
        error = (loss.adapt[level](x) - y).square().sum(dim=1)
        terms.append(error[near].sum() / (2 * max(int(near.sum()), 1)))
    return [0.01 * sum(terms) / len(s)]


def expected_defeat(loss, s, t):
    inside_terms, outside_terms = [], []
    for level, (x, y) in enumerate(zip(s, t, strict=True)):
        inside = torch.zeros(len(x), *x.shape[2:], dtype=torch.bool)
        for image, of_image in enumerate(boxes()):
            for box in of_image:
                if level_of(box) == level:
                    x1, y1, x2, y2 = (box / (8 * 2**level)).int().tolist()
                    inside[image, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = True
        error = (loss.adapt[level](x) - y).square()
        for area, into in ((inside, inside_terms), (~inside, outside_terms)):
            chosen = error.movedim(1, -1)[area]
            into.append(chosen.sum() / (2 * max(chosen.numel(), 1)))
    return [3 * sum(inside_terms) / len(s), 12 * sum(outside_terms) / len(s)]


def expected_fkd(loss, s, t):
    terms = torch.zeros(4, dtype=s[0].dtype)
    for level, (x, y) in enumerate(zip(s, t, strict=True)):
        own = loss.levels[level]
        masks = [F.softmax(f.detach().abs().mean(1).flatten(1) / 0.5, dim=1) * f[0, 0].numel() for f in (x, y)]
        mask = ((masks[0] + masks[1]) / 2).view(len(x), 1, *x.shape[2:])
        relation = own.related(dot_products(own.relation_s, x)) - dot_products(own.relation_t, y)
        terms = terms + torch.stack(
            [
                ((own.features(x) - y).square() * mask).sum().sqrt() * 7e-5,
                (own.channels(x.mean((2, 3))) - y.mean((2, 3))).norm() * 4e-3,
                (own.pixels(x.mean(1, keepdim=True)) - y.mean(1, keepdim=True)).norm() * 4e-3,
                relation.norm() * 7e-5,
            ]
        )
    return list(terms)


def dot_products(block, x):
    """With the matrix of pixels by pooled pixels written out."""
    theta = block.theta(x).flatten(2)
    phi, g = (F.max_pool2d(layer(x), min(block.stride, *x.shape[2:])).flatten(2) for layer in (block.phi, block.g))
    pairwise = theta.transpose(1, 2) @ phi / phi.shape[2]
    related = (pairwise @ g.transpose(1, 2)).transpose(1, 2).reshape(len(x), -1, *x.shape[2:])
    out = block.out(related)
    mean, var = out.mean((0, 2, 3), keepdim=True), out.var((0, 2, 3), keepdim=True, unbiased=False)
    scale, shift = (p.view(1, -1, 1, 1) for p in (block.norm.weight, block.norm.bias))
    return x + (out - mean) / (var + block.norm.eps).sqrt() * scale + shift


def level_of(box):
    side = ((box[2] - box[0] + 1) * (box[3] - box[1] + 1)).sqrt()
    return int((side / 56 + 1e-6).log2().floor().clamp(0, len(SIZES) - 1))


def near_anchors(box, level, height, width):
    """FGFI's mask of one box, anchor by anchor."""
    stride = 8 * 2**level
    overlaps = torch.zeros(height, width, 3)
    for y in range(height):
        for x in range(width):
            for index, ratio in enumerate((0.5, 1.0, 2.0)):
                w, h = stride * 8 / ratio**0.5, stride * 8 * ratio**0.5
                anchor = [x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2]
                across = max(0, min(anchor[2], float(box[2])) - max(anchor[0], float(box[0])))
                down = max(0, min(anchor[3], float(box[3])) - max(anchor[1], float(box[1])))
                area = float((box[2] - box[0]) * (box[3] - box[1])) + w * h
                overlaps[y, x, index] = across * down / (area - across * down)
    return (overlaps > 0.5 * overlaps.max()).any(dim=2)


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradients_are_those_of_the_equation(name):
    settings = {"pools": [8, 4, 2]} if name == "fkd" else {}
    loss = make(name, **settings).double()
    s, t = features(dtype=torch.float64)
    found, levels = call(loss, s, t, return_levels=True)
    expected = globals()[f"expected_{name}"](loss, s, t)
    assert list(found) == list(loss.loss_names) and levels.shape == (len(SIZES), len(found))
    near = {"rtol": 1e-5, "atol": 1e-7} if name == "pkd" else {}
    torch.testing.assert_close(torch.stack(list(found.values())), torch.stack(expected), **near)
    torch.testing.assert_close(levels.sum(dim=0), torch.stack(list(found.values())).detach())
    leaves = [*s, *loss.parameters()]
    ours = torch.autograd.grad(total(found), leaves, allow_unused=True)
    theirs = torch.autograd.grad(torch.stack(expected).sum(), leaves, allow_unused=True)
    for gradient, truth in zip(ours, theirs, strict=True):
        if truth is not None or gradient is not None:
            torch.testing.assert_close(gradient, torch.zeros_like(gradient) if truth is None else truth, **near)


def test_regions_leave_out_boxes_that_are_none():
    odd = [[50.0, 50, 40, 40], [float("nan"), 0, 9, 9], [-50.0, -50, -10, -10], [10.0, 10, 40, 40]]
    packed = fgd.pack_boxes([torch.tensor(odd[2:])], FRAMES[:1], "cpu", capacity=4)
    # As on a GPU, where values are not looked at; the last row belongs to no image.
    packed.values.copy_(torch.tensor(odd))
    packed.offsets[1] = 3
    for regions in (box_regions(packed, 0, 3, 20, 28), anchor_regions(packed, 0, 3, 20, 28, [8.0], [1.0], 0.5)):
        assert not regions.any()


# ---------------------------------------------------------------------------- what all of them hold


@pytest.mark.parametrize("name", NAMES)
def test_channels_that_differ_are_aligned(name):
    loss = make(name, 6, [8, 4, 8])
    s, _ = features(6)
    t = [torch.randn(2, c, h, w) for c, (h, w) in zip((8, 4, 8), SIZES, strict=True)]
    total(call(loss, s, t)).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in s)


@pytest.mark.parametrize("name", NAMES)
def test_images_without_boxes_and_batches_without_images(name):
    loss = make(name)
    s, t = features()
    losses = call(loss, s, t, boxes(0, 0))
    total(losses).backward()
    assert all(value.isfinite() for value in losses.values()) and all(x.grad.isfinite().all() for x in s)
    loss.zero_grad()
    nothing = [torch.zeros(0, 8, h, w, requires_grad=True) for h, w in SIZES]
    losses = loss(nothing, [x.detach() for x in nothing], [], torch.zeros(0, 2))
    total(losses).backward()
    assert all(float(value.detach()) == 0 for value in losses.values())
    assert all((parameter.grad == 0).all() for parameter in loss.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_equal_maps_and_maps_of_one_pixel_have_finite_gradients(name):
    loss = criterion_class(name)(8, 8, 1)
    for shape in ((2, 8, 6, 6), (1, 8, 1, 1)):
        s = torch.ones(shape, requires_grad=True)
        losses = loss([s], [torch.ones(shape)], boxes(1, 1)[: shape[0]], FRAMES[: shape[0]])
        total(losses).backward()
        assert all(value.isfinite() for value in losses.values()) and s.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_features_are_summed_in_float32(name, dtype):
    loss = make(name)
    s, t = features(dtype=dtype)
    found = call(loss, s, t)
    truth = call(make(name), [x.detach().float() for x in s], [x.float() for x in t])
    for key, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, truth[key], rtol=2e-3, atol=1e-6)
    total(found).backward()
    assert all(x.grad.dtype == dtype and x.grad.isfinite().all() for x in s)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_leaves_large_sums_finite(name):
    """Features of 200, whose squares float16 cannot hold."""
    loss = make(name)
    s, t = features()
    scaled = ([x.detach() * 200 for x in s], [x * 200 for x in t])
    with torch.autocast("cpu", dtype=torch.float16):
        found = call(loss, *scaled)
    plain = call(loss, *scaled)
    for key, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, plain[key], rtol=0.02, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_meta_tensors_under_autocast(name):
    loss = make(name).to("meta")
    s, t = ([x.detach().to("meta") for x in maps] for maps in features())
    packed = fgd.pack_boxes([box.to("meta") for box in boxes()], FRAMES, "meta")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(value.is_meta for value in loss(s, t, packed).values())


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_and_copies(name):
    loss, other = make(name), criterion_class(name)(8, 8, len(SIZES))
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    s, t = features()
    assert call(loss, s, t) == call(copy.deepcopy(loss), s, t) == call(other, s, t)


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_told_as_by_fgd(name):
    loss = make(name)
    s, t = features()
    with pytest.raises(ValueError, match=r"student_features: expected a list of 3 tensors \(num_levels\), got 2"):
        call(loss, s[:2], t[:2])
    with pytest.raises(ValueError, match=r"student\[1\]: expected 8 channels, got 6"):
        call(loss, [s[0], s[1][:, :6], s[2]], t)
    with pytest.raises(ValueError, match=r"teacher\[0\]: expected shape \(2, 8, 20, 28\), got .* \(resize the maps\)"):
        call(loss, s, [t[0][:, :, 1:], *t[1:]])
    with pytest.raises(ValueError, match="expected no gradient"):
        call(loss, s, [x.clone().requires_grad_() for x in t])
    with pytest.raises(ValueError, match="boxes: expected one tensor for each of 2 images, got 1"):
        loss(s, t, boxes()[:1], FRAMES[:1])
    with pytest.raises(ValueError, match="weight: expected a finite number >= 0, got -1"):
        make(name, weight=-1)
    with pytest.raises(ValueError, match="student_channels: expected an integer >= 1, got 0"):
        make(name, student=0)


def test_bad_settings():
    with pytest.raises(ValueError, match="tau: expected a finite number > 0, got 0"):
        make("cwd", tau=0)
    with pytest.raises(ValueError, match="masked: expected a share"):
        make("mgd", masked=1.5)
    with pytest.raises(ValueError, match="pools: expected 3 integers"):
        make("fkd", pools=[8, 4])
    with pytest.raises(TypeError, match="anchor_scales: expected a list"):
        make("fgfi", anchor_scales=8.0)
    with pytest.raises(ValueError, match="criterion.name: expected one of .*, got 'pdk'; did you mean pkd?"):
        CriterionConfig("pdk")
    with pytest.raises(TypeError, match="criterion.options: expected one of tau, got 'temperature'"):
        CriterionConfig("cwd", options={"temperature": 4})


# ---------------------------------------------------------------------------- from Python and the command line


@pytest.mark.parametrize("name", NAMES)
def test_distil_by_name(name, pair, batch):
    distiller = distil(*pair, criterion=name, verbose=False)
    losses = distiller(*batch)
    assert set(distiller.criterion.loss_names) < losses.keys()
    assert distiller.level_terms.shape == (3, len(distiller.criterion.loss_names))
    total(losses).backward()
    assert next(pair[0].parameters()).grad is not None


def test_distil_takes_the_losss_own_settings(pair, capsys):
    distiller = distil(*pair, criterion="cwd", weight=3.0, tau=4.0)
    assert (distiller.criterion.weight, distiller.criterion.tau) == (3.0, 4.0)
    assert capsys.readouterr().out.endswith("distil: the loss cwd, {'tau': 4.0, 'weight': 3.0}\n")
    with pytest.raises(TypeError, match="preset: expected None beside criterion='cwd'"):
        distil(*pair, "two_stage", criterion="cwd")
    with pytest.raises(TypeError, match="criterion.options: expected one of none, got 'alpha'"):
        distil(*pair, criterion="pkd", alpha=1.0)


def test_calibrate_finds_the_weight_and_fit_takes_it(digits, tmp_path, fit_args, capsys):
    output = tmp_path / "weight.yaml"
    common = [f"--data.root={digits}", "--data.num_workers=0", "--data.batch_size=4"]
    configs = ["--config=digits_student.yaml", "--config=digits_inherit.yaml"]
    cwd = "--model.criterion={name: cwd, options: {tau: 2}}"
    cli.main(["calibrate", *configs, *common, cwd, "--batches=1", "--total=2", f"--output={output}"])
    stated = yaml.safe_load(output.read_text())["model"]["criterion"]
    assert stated["name"] == "cwd" and stated["options"] == {"tau": 2} and stated["weight"] > 0
    built = DistillCLI([*configs, *common, f"--config={output}"])
    built.datamodule.setup("fit")
    losses = built.model.distiller.train()(*next(iter(built.datamodule.train_dataloader())))
    own = sum(float(value) for name, value in losses.items() if name != "loss_cwd")
    assert float(losses["loss_cwd"]) == pytest.approx(2 * own, rel=0.1)
    overlays = ["--config=digits_inherit.yaml", "--config=digits_fgd.yaml", f"--config={output}"]  # in place of FGD
    cli.main(fit_args(tmp_path, *overlays, steps=2))
    metrics = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0]
    assert "train/loss_cwd" in metrics and "level0/loss_cwd" in metrics


def test_fgd_and_another_loss_together_are_refused(digits, capsys):
    with pytest.raises(SystemExit, match="criterion: expected it or fgd, got both"):
        cli.main(["fit", "--config=digits_student.yaml", "--config=digits_inherit.yaml",
                  "--config=digits_fgd.yaml", f"--data.root={digits}", "--model.criterion.name=pkd"])  # fmt: skip
