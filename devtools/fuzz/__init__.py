"""The fuzz campaign: random calls of the loss, on every backend that runs here, judged by devtools/accuracy.

    python -m devtools.fuzz --cases 20000 --seed 1

generator.py makes the cases, variants.py runs the backends, campaign.py judges and writes one line a case, table.py
makes docs/accuracy.md of the lines.
"""
