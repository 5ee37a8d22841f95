"""normalise="detector": the four terms at shares of the detector's own loss. 3 seconds."""

import copy

import pytest
import torch

import fgd_kernels as fgd
from fgd_distill import DetectionDistiller, DetectorShares, Schedule, distil
from fgd_distill.calibration.choose import find_weights, set_weights
from fgd_distill.criterion import FGDConfig, build_criterion
from fgd_distill.shares import SHARES, NormalisedFGDLoss, checked_shares

BOXES, FRAMES = [torch.tensor([[2.0, 3.0, 20.0, 25.0]])], [(32, 32)]


def maps(generator, scale=1.0):
    return [scale * torch.randn(1, 4, side, side, generator=generator) for side in (8, 4)]


def loss():
    torch.manual_seed(0)
    return NormalisedFGDLoss(4, 4, num_levels=2, temperature=2.0)


def stacked(terms):
    return torch.stack([term.detach() for term in terms.values()])


def test_shares_hold_while_features_and_the_detector_s_loss_drift():
    """The teacher's features double in 300 batches, and the detector's loss falls by a third."""
    generator, criterion, held, plain = torch.Generator().manual_seed(1), loss(), [], []
    for step in range(300):
        student, teacher = maps(generator), maps(generator, 2 ** (step / 300))
        own = (1 - step / 900) * (1 + torch.rand((), generator=generator))
        with torch.no_grad():
            terms = criterion(student, teacher, BOXES, FRAMES)
        kept = criterion.shares(terms, own)
        held.append(stacked(kept) / own)
        plain.append(stacked(terms) / own)
    wanted = torch.tensor(SHARES)
    torch.testing.assert_close(held[0], wanted)  # from the first batch
    for part in (held[:50], held[150:200], held[-50:]):
        assert ((torch.stack(part).mean(0) / wanted - 1).abs() < 0.35).all()  # the means lag behind
    grown = torch.stack(plain[-50:]).mean(0) / torch.stack(plain[:50]).mean(0)
    assert grown[0] > 2 and grown[3] > 2


def test_gradients_are_those_of_weights():
    """A factor on a term is what the same weight is: features' and parameters' gradients."""
    generator, criterion = torch.Generator().manual_seed(2), loss()
    student, teacher = maps(generator), maps(generator)
    for features in student:
        features.requires_grad_()
    terms = criterion(student, teacher, BOXES, FRAMES)
    kept = criterion.shares(terms, torch.tensor(3.0))
    torch.testing.assert_close(stacked(kept), 3 * torch.tensor(SHARES))
    sum(kept.values()).backward()
    found = (3 * torch.tensor(SHARES) / stacked(terms)).tolist()
    weights = dict(zip(("alpha", "beta", "gamma", "lambda_"), found, strict=True))
    torch.manual_seed(0)
    weighted = fgd.FGDLoss(4, 4, num_levels=2, temperature=2.0, **weights)
    again = [features.detach().clone().requires_grad_() for features in student]
    sum(weighted(again, teacher, BOXES, FRAMES).values()).backward()
    for ours, theirs in zip([*student, *criterion.parameters()], [*again, *weighted.parameters()], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def numbers(*terms):
    return {name: torch.tensor(float(term)) for name, term in zip("abcd", terms, strict=False)}


def test_what_does_not_count():
    shares = DetectorShares((1.0, 1.0))
    first = shares(numbers(0, 10), torch.tensor(0.0))  # no detector's loss yet: as if it were 1; no objects yet: 0
    assert [float(term) for term in first.values()] == [0, 1]
    assert shares.counts.tolist() == [0, 0, 1]
    shares(numbers(5, 10), torch.tensor(2.0))
    assert shares.averages.tolist() == [2, 5, 10] and shares.counts.tolist() == [1, 1, 2]
    before = copy.deepcopy(shares.state_dict())
    assert float(shares(numbers(0, 10), torch.tensor(float("nan")))["b"]) == 2  # the factors that there were
    shares(numbers(float("inf"), 10), torch.tensor(2.0))
    with torch.no_grad():
        shares(numbers(50, 100), torch.tensor(2.0))
    shares.eval()(numbers(50, 100), torch.tensor(2.0))
    assert all(torch.equal(value, before[name]) for name, value in shares.state_dict().items())


def test_numbers_stay_float32_where_the_loss_is_converted():
    shares = DetectorShares((1.0,))
    shares(numbers(1e7), torch.tensor(2.0))
    kept = shares.averages.clone()
    assert torch.equal(shares.half().averages, kept) and shares.averages.dtype == torch.float32
    assert shares.to("meta").averages.is_meta


def test_another_number_compiles_nothing_anew():
    torch._dynamo.reset()
    graphs, shares = [], DetectorShares((1.0, 2.0))
    compiled = torch.compile(shares, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for own in (1.0, 2.0, 3.0):
        kept = compiled(numbers(own * 4, 5), torch.tensor(own))
        assert [float(term) for term in kept.values()] == pytest.approx([own, (1 + own)])
    assert len(graphs) == 1


@pytest.fixture
def distiller(pair):
    settings = {"temperature": 4.0, "normalise": "detector", "shares": [1.0, 0.5, 0.25, 0.125], "verbose": False}
    return distil(*pair, schedule=Schedule(every=2), **settings)


def own_of(losses):
    return torch.stack([loss.detach() for name, loss in losses.items() if name not in fgd.LOSS_NAMES]).sum()


def test_a_distiller_s_terms(distiller, batch):
    """In steps that distil, every second one, twice the shares; level by level the same."""
    for step in (0, 1):
        distiller.set_step(step)
        losses = distiller(*batch)
        terms = torch.stack([losses[name].detach() for name in fgd.LOSS_NAMES])
        torch.testing.assert_close(terms, step * 2 * own_of(losses) * torch.tensor([1.0, 0.5, 0.25, 0.125]))
    torch.testing.assert_close(distiller.level_terms.sum(0), terms)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in distiller.parameters())
    assert distiller.criterion.shares.counts.tolist() == [1] * 5


def test_a_resumed_training_goes_on_bit_for_bit(distiller, batch):
    """The criterion's state dict has the averages; a copy has its own."""
    distiller.set_step(1)
    distiller(*batch)
    copied = copy.deepcopy(distiller)
    shares = distiller.criterion.shares
    shares.averages.mul_(3)  # as after a while
    state = copy.deepcopy(distiller.state_dict())
    ended = [distiller(*batch) for _ in range(2)][-1]
    fresh = copied.criterion.shares.averages
    assert not torch.equal(fresh * 3, shares.averages) and copied.criterion.shares.counts[0] == 1
    copied.load_state_dict(state)
    resumed = [copied(*batch) for _ in range(2)][-1]
    assert all(torch.equal(resumed[name], loss) for name, loss in ended.items())


def test_a_share_of_0_switches_a_term_off(pair, batch):
    config = FGDConfig(normalise="detector", shares=[1.0, 0.0, 0.0, 0.0], temperature=4.0)
    criterion = build_criterion(*pair, None, None, config)
    losses = DetectionDistiller(*pair, criterion).train()(*batch)
    assert [losses[name].item() for name in fgd.LOSS_NAMES[1:]] == [0, 0, 0]
    torch.testing.assert_close(losses["loss_fgd_fg"].detach(), own_of(losses))


def test_calibrating_finds_the_temperature_alone(distiller, batch):
    before = copy.deepcopy(distiller.criterion.state_dict())
    found = find_weights(distiller, [batch], {"normalise": "detector"})
    assert found.keys() == {"temperature"}
    set_weights(distiller.criterion, found)
    assert distiller.criterion.temperature == found["temperature"] and distiller.criterion.alpha == 1
    assert all(torch.equal(value, before[name]) for name, value in distiller.criterion.state_dict().items())


def test_one_number_or_four():
    assert checked_shares(None) == SHARES and sum(SHARES) == 3
    assert checked_shares(6) == pytest.approx([4.0, 0.3, 0.2, 1.5])
    assert checked_shares([0, 0, 0, 1]) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"normalise": "teacher"}, ValueError, "normalise: expected 'detector' or None, got 'teacher'"),
        ({"shares": 3.0}, ValueError, "shares: expected normalise='detector' beside it, got none and 3.0"),
        ({"normalise": "detector", "alpha": 1.0}, ValueError, "alpha: expected None beside normalise='detector'.* 1.0"),
        ({"normalise": "detector", "shares": 0.0}, ValueError, "shares: expected one number > 0, or 4 numbers"),
        ({"normalise": "detector", "shares": [1.0, 2.0]}, ValueError, r"shares: .*got \[1.0, 2.0\]"),
        ({"normalise": "detector", "shares": "all"}, TypeError, "shares: .*got 'all'"),
    ],
)
def test_contradictions(settings, error, message):
    with pytest.raises(error, match=message):
        FGDConfig(**settings).check()


def test_what_is_told(pair, capsys):
    distil(*pair, normalise="detector", shares=6.0)
    told = "temperature 0.5, kept at shares of the detector's own loss: fg 4, bg 0.3, attention 0.2, global 1.5"
    assert told in capsys.readouterr().out


def test_terms_that_are_switched_off_have_no_share():
    assert checked_shares(None, split=False) == (0.0, SHARES[0] + SHARES[1], *SHARES[2:])
    assert checked_shares(6, relation="none", attention="none") == pytest.approx((6 * 2 / 2.15, 6 * 0.15 / 2.15, 0, 0))
    for shares, switch in (([1, 0, 0, 0], {"split": False}), ([0, 0, 0, 1], {"relation": "none"})):
        with pytest.raises(ValueError, match="shares: expected 0 for what split="):
            FGDConfig(normalise="detector", shares=shares, **switch).check()


def test_what_the_shares_of_a_loop_refuse():
    for arguments, error in ((((-1.0,),), ValueError), ((2.0,), TypeError), (((1.0,), 0), ValueError)):
        with pytest.raises(error, match="expected"):
            DetectorShares(*arguments)
    with pytest.raises(ValueError, match="terms: expected 2, as there are shares, got fg"):
        DetectorShares((1.0, 1.0))({"fg": torch.tensor(1.0)}, torch.tensor(1.0))


def test_a_validation_waits_for_no_other_process(monkeypatch):
    shares = DetectorShares((1.0,)).eval()
    monkeypatch.setattr("fgd_distill.shares.sum_over_processes", None)
    kept = shares({"fg": torch.tensor(4.0)}, torch.tensor(2.0))
    assert float(kept["fg"]) == 2 and not shares.counts.any()
