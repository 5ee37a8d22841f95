"""Draws a CSV file of loss_cpu.py: milliseconds of a step over the batch size, one panel a dtype.

python -m bench.loss_cpu_plot runs/loss_cpu.csv runs/loss_cpu.png
"""

import csv
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LABELS = {
    "published": "published loop",
    "reference": "reference, eager",
    "compiled": "reference, torch.compile",
    "ours": "fgd_kernels",
    "bound": "streaming bound",
}
STYLE = {"ours": {"linewidth": 2.5}, "bound": {"linestyle": ":", "color": "black"}}


def plot(source: pathlib.Path, target: pathlib.Path) -> None:
    """One thread only: what more threads bring stands in the CSV."""
    with open(source, newline="") as file:
        rows = list(csv.DictReader(file))
    threads = min(int(row["threads"]) for row in rows)
    rows = [row for row in rows if int(row["threads"]) == threads]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, axes = plt.subplots(1, len(dtypes), figsize=(5 * len(dtypes), 4), sharey=True, squeeze=False)
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        for name, label in LABELS.items():
            points = [
                (int(row["batch"]), *(float(row[key]) for key in ("median_ms", "p20_ms", "p80_ms")))
                for row in rows
                if row["dtype"] == dtype and row["contender"] == name
            ]
            if not points:
                continue
            batch, median, low, high = zip(*sorted(points), strict=True)
            (line,) = axis.plot(batch, median, marker="o", label=label, **STYLE.get(name, {}))
            axis.fill_between(batch, low, high, alpha=0.15, color=line.get_color())
        axis.set(title=dtype, xlabel="images in the batch", xscale="log", yscale="log", xticks=batch)
        axis.set_xticklabels(batch)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"ms, forward + backward, {threads} thread")
    axes[0][-1].legend()
    figure.suptitle(f"FGD loss, five levels of 800x1344, 256 channels\n{rows[0]['processor']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    plot(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
