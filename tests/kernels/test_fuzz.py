"""The campaign's machinery, and a few hundred of its cases on the CPU kernels.

Worth its half minute: a campaign of this kind found sums that lost a digit, and normalisers that were rounded the same
way a thousand times.
"""

import json

import pytest
import torch

import fgd_kernels as fgd
from devtools.accuracy.budget import Budget, Order, error, reorder
from devtools.accuracy.case import FEATURES, Case, evaluate, make_inputs
from devtools.fuzz import campaign, generator, table, variants

SEED, CASES = 5, 200


def test_a_case_is_a_function_of_seed_and_index():
    assert generator.make_case(3, 17) == generator.make_case(3, 17) != generator.make_case(3, 18)
    one, other = (variants.inputs_of(3, 17)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    kinds = {generator.make_case(1, index).features for index in range(300)}
    assert kinds == set(FEATURES)
    assert [generator.size_of(index) for index in (0, 8, 9, 32, 256)] == ["tiny", "medium", "large", "small", "tiny"]


def test_the_orders_of_the_reference_are_the_same_loss():
    case = Case("", ((5, 4, 6), (7, 3, 2)), (2, 1), loss={"temperature": 0.7})
    inputs = make_inputs(case)
    orders = [Order(torch.randperm(c), torch.randperm(h * w)) for c, h, w in case.levels]
    plain = evaluate(inputs, "reference", torch.float64)
    found = evaluate(reorder(case, inputs, orders, torch.channels_last), "reference", torch.float64)
    for name in fgd.LOSS_NAMES:
        torch.testing.assert_close(found[name], plain[name], rtol=1e-6, atol=0)  # masks have float32
    budget = Budget(case, inputs)
    assert all(budget.judge(name, value).ratio < 1 for name, value in evaluate(inputs, "reference").items())
    for name, value in budget.truth.items():  # gradients, too, put back into their places
        assert budget.doubt(name) <= 1e-6 * float(value.norm()) + 1e-12, name


def test_the_budget_sees_an_error_and_excuses_none():
    case = Case("", ((24, 5, 9),), (1,))
    inputs = make_inputs(case)
    budget, found = Budget(case, inputs), evaluate(inputs, "reference")
    for name, value in found.items():
        if float(budget.truth[name].norm()) > 0:
            wrong = budget.judge(name, value * (1 + 1e-4))
            assert not wrong.holds and wrong.ratio > 5, name
    bias = "levels.0.conv_mask_s.bias"  # whose truth is 0
    assert budget.judge(bias, torch.zeros(1)).ratio == 0
    assert not budget.judge("student[0]", found["student[0]"] * float("nan")).holds
    infinite = torch.tensor([1.0, float("inf")])
    assert error(infinite, infinite) == 0 and error(infinite, -infinite) == float("inf")


def test_a_campaign_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    class Worker:
        def __init__(self, variant):
            pass

        def send(self, seed, index):
            self.sent = seed, index

        def receive(self):
            seed, index = self.sent
            if index == 2:
                raise RuntimeError("no such luck")
            fixed = generator.make_case(seed, index).fixed_student
            return evaluate(variants.inputs_of(seed, index), "reference", None, fixed)

        def close(self):
            pass

    monkeypatch.setattr(campaign, "Worker", Worker)
    path, chosen = tmp_path / "lines.jsonl", [variants.VARIANTS["cpu, baseline"]]
    campaign.run(1, range(2), chosen, path, 60)
    path.write_text(path.read_text()[:-30])  # stopped in the middle of a line
    assert [line["index"] for line in campaign.read(path)] == [0]
    campaign.run(1, range(4), chosen, path, 60)
    lines = list(campaign.read(path))
    assert sorted(line["index"] for line in lines) == [0, 1, 2, 3]
    page = table.page(lines, 1)
    assert "Failed: 1/2." in page and "## Control" in page and "make fuzz CASES=4 SEED=1" in page
    assert json.loads(path.read_text().splitlines()[0])["ratios"]["cpu, baseline"]["loss, fg"] <= 1


@pytest.mark.skipif(not fgd.backends()["cpu"].available, reason=fgd.backends()["cpu"].reason)
def test_the_cpu_kernels_on_random_cases():
    """Every result is within the budget."""
    ratios: dict[str, list[float]] = {}
    for index in range(CASES):
        case, inputs = generator.make_case(SEED, index), variants.inputs_of(SEED, index)
        budget = Budget(case, inputs)
        for name, value in evaluate(inputs, "cpu", None, case.fixed_student).items():
            ratios.setdefault(campaign.quantity(name), []).append(budget.judge(name, value).ratio)
    assert len(ratios) >= 15
    for quantity, found in ratios.items():
        assert table.percent(found, 0.5) < 0.6, quantity
        assert max(found) <= 1, (quantity, sorted(found)[-8:])
