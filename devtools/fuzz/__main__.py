"""The fuzz campaign.

python -m devtools.fuzz --cases 20000 --seed 1          goes on where it was stopped
python -m devtools.fuzz --case 1/4711                   one case again, in detail
python -m devtools.fuzz --seed 1 --page docs/accuracy.md   the page of the lines so far, nothing run
"""

import argparse
import math
import pathlib

from devtools.accuracy.budget import Budget

from . import campaign, generator, table, variants

LINES = pathlib.Path("build/fuzz")


def main() -> None:
    """Parse, run, print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m devtools.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=0, help="indices 0 to this one, of which those without a line run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--variants", nargs="+", default=available(), choices=list(variants.VARIANTS))
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long")
    parser.add_argument("--case", help="seed/index of one case, to be run again")
    parser.add_argument("--page", type=pathlib.Path, help="write the page with the tables")
    options = parser.parse_args()
    chosen = [variants.VARIANTS[name] for name in options.variants]
    if options.case:
        show(*map(int, options.case.split("/")), chosen)
        return
    path = LINES / f"{options.seed}.jsonl"
    try:
        campaign.run(options.seed, range(options.cases), chosen, path, 60 * options.minutes)
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
    lines = list(campaign.read(path))
    print(table.tables(lines, options.seed))
    if options.page:
        options.page.write_text(table.page(lines, options.seed))


def available() -> list[str]:
    """The variants that can run here."""
    return [name for name, variant in variants.VARIANTS.items() if not variant.missing()]


def show(seed: int, index: int, chosen: list[variants.Variant]) -> None:
    """One case: what it is, and what is wrong with each result of each variant."""
    case = generator.make_case(seed, index)
    print(case)
    budget = Budget(case, variants.inputs_of(seed, index))
    for variant in chosen:
        if not variant.runs(index):
            continue
        worker = variants.Worker(variant)
        worker.send(seed, index)
        for name, value in worker.receive().items():
            judged = budget.judge(name, value)
            print(f"{variant.name}: {name} {judged.ratio:.3g}: {judged}")
        worker.close()


if __name__ == "__main__":
    main()
