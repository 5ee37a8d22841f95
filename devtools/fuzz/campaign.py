"""Runs cases, judges what the variants compute, and keeps one line a case: a campaign can be stopped and goes on."""

import itertools
import json
import pathlib
import time
from collections.abc import Iterable, Iterator

from devtools.accuracy.budget import Budget, in_other_orders

from . import generator
from .variants import Variant, Worker, inputs_of

CONTROL = "reference"  # the float32 reference in an order that the budget has not seen: what luck alone makes
CONTROLLED = 7  # every so manyth case has a control: no multiple of it decides how large a case is (generator.py)


def quantity(name: str) -> str:
    """What the table calls a result: levels and nets are not told apart."""
    if name.startswith("loss_fgd_"):
        return f"loss, {name[9:]}"
    if name.startswith("student["):
        return "∂ student"
    return "∂ " + name.split(".", 2)[2].replace("_s.", ".").replace("_t.", ".")


def judge_case(seed: int, index: int, workers: dict[str, Worker]) -> dict:
    """A line of the campaign: of every variant the ratio of each quantity, worst of its levels and nets."""
    for worker in workers.values():
        worker.send(seed, index)
    case, inputs = generator.make_case(seed, index), inputs_of(seed, index)
    budget = Budget(case, inputs)
    line: dict = {"index": index, "ratios": {}, "failures": {}}
    for name, worker in workers.items():
        try:
            found = worker.receive()
            if found.keys() != budget.truth.keys():
                raise RuntimeError(f"results: expected {sorted(budget.truth)}, got {sorted(found)}")
        except RuntimeError as failure:
            line["failures"][name] = str(failure)[:500]
            continue
        line["ratios"][name] = _worst(budget, found)
    if index % CONTROLLED == 0:
        unseen = next(itertools.islice(in_other_orders(case, inputs, seed=2), 1, None))
        line["ratios"][CONTROL] = _worst(budget, unseen)
    return line


def _worst(budget: Budget, found: dict) -> dict[str, float]:
    worst: dict[str, float] = {}
    for name, value in found.items():
        worst[quantity(name)] = max(worst.get(quantity(name), 0.0), budget.judge(name, value).ratio)
    return worst


def run(seed: int, indices: Iterable[int], variants: list[Variant], path: pathlib.Path, limit_s: float) -> None:
    """Judge the cases that `path` has no line of yet and a variant runs, until all are done or the time is up."""
    done, until = {line["index"] for line in read(path)}, time.monotonic() + limit_s
    indices = [index for index in indices if index not in done and any(variant.runs(index) for variant in variants)]
    if not indices:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    workers = {variant.name: Worker(variant) for variant in variants}
    by_name = {variant.name: variant for variant in variants}
    try:
        with path.open("a") as file:
            if done and not path.read_text().endswith("\n"):
                file.write("\n")  # after a line that was cut off
            for count, index in enumerate(indices):
                if time.monotonic() > until:
                    break
                taking_part = {name: worker for name, worker in workers.items() if by_name[name].runs(index)}
                file.write(json.dumps(judge_case(seed, index, taking_part)) + "\n")
                file.flush()
                if count % 100 == 99:
                    print(f"{count + 1} cases judged, the last {seed}/{index}", flush=True)
    finally:
        for worker in workers.values():
            worker.close()


def read(path: pathlib.Path) -> Iterator[dict]:
    """The lines of a campaign so far; one that was cut off is left out, and judged again."""
    if not path.exists():
        return
    for text in path.read_text().splitlines():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            continue
