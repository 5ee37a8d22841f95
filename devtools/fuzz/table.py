"""docs/accuracy.md: the page, written from a campaign's lines."""

import math
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable

from .campaign import CONTROL

_PAGE = """# Accuracy

In each of the four terms and in every gradient a backend may be wrong by twice what the float32 reference is wrong on
the same inputs, and by a unit in the last place on top; float64 judges both. A single error is luck, so the reference
is asked in several orders of its sums (channels and pixels permuted, memory laid out otherwise), and its largest error
counts: 4 orders, and 32 before an error is called one (`devtools/accuracy/budget.py`). What float64 itself changes by
in other orders is granted, too. A *ratio* is the error over that budget: at most 1 is allowed.

The tables are those of the fuzz campaign, random calls of the loss: 1 to 520 channels, one or two levels, float16,
bfloat16, float32 and mixed types, NCHW and channels_last, slices of larger tensors, 0 to 40 boxes an image, T from
1e-3 to 1e3, features of magnitude 1e-6 to 1e4, relu'd and tied ones, softmaxes that one pixel fills, equal maps and
maps equal in part, align convolutions, frozen parts and every switch. The interpreters are slow, and run the smallest
cases alone: Triton's every 32nd, CUDA's kernels in [the PTX interpreter](../devtools/ptx/README.md) every 256th.

The last table is the **control**: the float32 reference itself, in one order more that the budget has not seen, in
every seventh case. What stands there is what luck makes of an algorithm that is as good as its judge.

## What keeps the errors small

Features are multiplied and added in float32, and what would lose digits there is done otherwise (symbols:
[Words](kernels.md#words)):

- Sums over pixels run in blocks that are summed by themselves first. Chunks, images, normalisers and both attentions
  are merged in float64, the attentions from differences of logits: where student and teacher hardly differ, the last
  digits of exp(z - m) are all there is.
- The factors 1/(C·T) and 1/(P·T) of both attentions are numbers of float64 (CPU; Triton but for the weights of the
  sums over pixels), the weights of the terms on the CPU: a rounding of one of them would be common to all pixels or all
  channels, which no sum averages out.
- A logit loses its maximum before it gets its factor and is rounded: one of 20 has no room for digits that its
  exponential shows, one of 500 has hardly any. So CUDA's factor of float32 rounds what is at most about 20.
- The exponential goes on below float32's smallest normal number with what digits are left, as PyTorch's does.
- Both attentions of float32 features count as equal where they differ by less than 2^-48 of their size: maps with the
  same numbers in other places have normalisers that differ by the order of a sum. Triton forms the normalisers in
  float64 of the logits themselves, so this holds wherever the numbers lie.
- The GcBlocks' matrices are multiplied in float64. The global term multiplies an error of what they add with the number
  of pixels; the reference rounds every pixel by itself.
- The largest logits of a tile whose logits lie far apart are summed in float64 (CPU), and ∂L/∂Wk is Σ f·F - ctx·Σ f, in
  which the rounding of a pixel that has all the weight does not count. Such a pixel's ∂L/∂s gets -Σ f of the others
  (CPU) or 0 (CUDA, Triton) in the place of its f.
- The key gradient of a constant map is 0, and no square of a rounding: on the CPU because its context is that map,
  exactly; in CUDA and Triton because a difference of Σ f·F and ctx·Σ f below 2^-18 of them is taken for 0.

## What can be above 1, and why

Of 20,000 cases 16 have a result above 1 (one in 1,250), of the control's 2,858 cases seven (one in 400). A case is
named by seed and index, 1/1929.

- **Maps that have hardly another order.** One to three numbers can be summed in few ways, and there the reference may
  be exact by luck. 1/1929 (20 for the global term, whose squares of roundings it hits), 1/1005, 1/8277, 1/10002,
  1/11443, 1/14444 and 1/16984 (1.1 to 2.2).
- **Differences that are nearly constant** (a constant map; tiny features behind an align convolution with a bias):
  Σ d adds nearly the same number again and again, with the same rounding. The CPU kernels add few of them at a time: 16
  pixels in channels_last, 8 vectors of pixels in NCHW. Left are 1/3308 (4.7 for a global term of one pixel), 1/16965
  (1.9 in ∂ `align.weight`) and 1/13053 (1.2 in ∂ `student`, baseline alone); with AVX-512 1/2895 (1.3 in
  ∂ `conv_mask.weight`).
- **Losses made of softmax weights below float32's smallest normal number**, which have few digits: the foreground terms
  of 1/12953 and 1/13001, 1e-33 and 6e-40, are off by 0.3 and 0.7%.
- **Chance**, as in the control: 1/3985 (1.6 in ∂ `align.bias`, baseline alone), 1/9994 (1.1 in four gradients of one
  GcBlock, which have a common factor), 1/14703 (1.1 in the attention term) and 1/19956 (1.1 in the background term).

Attentions that tie look worse than they are. Where a student's map has the teacher's numbers in other places (tied
features of one channel), attentions are equal and their sign is 0, but float64 has two that differ by the order of a
sum, and its sign is a rounding. That is why the truth is asked in other orders, too. Where logits or channel sums
themselves differ by the order of a sum in float32, nothing tells a tie.

## What was run

    {command}

{cases} cases, {results} results, on {machine}. `make fuzz` goes on where it was stopped;
`python -m devtools.fuzz --case {seed}/4711` runs one case again and prints all its errors.

{tables}
"""


def page(lines: list[dict], seed: int) -> str:
    """The page with what a campaign has found so far."""
    results = sum(len(ratios) for line in lines for name, ratios in line["ratios"].items() if name != CONTROL)
    command = f"make fuzz CASES={max((line['index'] for line in lines), default=-1) + 1} SEED={seed}"
    return _PAGE.format(
        command=command,
        cases=f"{len(lines):,}",
        results=f"{results:,}",
        machine=machine(),
        seed=seed,
        tables=tables(lines, seed),
    )


def percent(values: list[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def tables(lines: Iterable[dict], seed: int) -> str:
    """A table a variant: of every quantity the number of cases, the median, 99 % and largest ratio, and its case."""
    found: dict[str, dict[str, list[tuple[float, int]]]] = defaultdict(lambda: defaultdict(list))
    failures: dict[str, list[int]] = defaultdict(list)
    for line in lines:
        for variant, ratios in line["ratios"].items():
            for quantity, ratio in ratios.items():
                found[variant][quantity].append((ratio, line["index"]))
        for variant in line["failures"]:
            failures[variant].append(line["index"])
    names = sorted(found, key=lambda name: (name == CONTROL, name))
    return "\n\n".join(_table(name, found[name], failures[name], seed) for name in names)


def _title(name: str) -> str:
    return "Control: the reference in another order" if name == CONTROL else name


def _table(name: str, quantities: dict, failures: list[int], seed: int) -> str:
    count = max(len(entries) for entries in quantities.values())
    rows = [f"## {_title(name)}", "", f"{count:,} cases.", ""]
    rows.append("| quantity | cases | median | 99 % | largest | above 1 | worst case |")
    rows.append("|---|---|---|---|---|---|---|")
    everything = [entry for entries in quantities.values() for entry in entries]
    for quantity, entries in [*sorted(quantities.items()), ("all", everything)]:
        ratios = [ratio for ratio, _ in entries]
        worst, index = max(entries)
        numbers = " | ".join(f"{x:.3g}" for x in (statistics.median(ratios), percent(ratios, 0.99), worst))
        above = sum(ratio > 1 for ratio in ratios)
        rows.append(f"| {quantity} | {len(ratios)} | {numbers} | {above} | {seed}/{index} |")
    if failures:
        rows += ["", f"Failed: {', '.join(f'{seed}/{index}' for index in failures[:20])}."]
    return "\n".join(rows)


def machine() -> str:
    """The processor's name and the number of cores."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{len(names)} cores of {names[0]}" if names else platform.processor() or platform.machine()
