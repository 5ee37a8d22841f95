"""The curves of an error analysis as stacked areas, the paper's figure 6."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from ..data.error_analysis import KINDS, SIZES, ErrorCurves
from .style import tidy

# Of COCO's own plots: what is found in white, each kind of error in its colour.
FILLS = ("#FFFFFF", "#FFFFFF", "#4F82BD", "#BF4D4C", "#5CE661", "#8063A3", "#FF9900")


def draw_errors(analyses: Mapping[str, ErrorCurves], group: tuple[str, str]) -> Figure:
    """A row for each set of detections, a column for each size that has objects.

    Args:
        analyses: by label, of the same annotations.
        group: of categories, a key of ``ErrorCurves.groups``.
    """
    curves = {label: found.curves(found.groups()[group]) for label, found in analyses.items()}
    first = next(iter(curves.values()))
    shown = [index for index in range(len(SIZES)) if not np.isnan(first[0, :, index]).any()]
    figure = Figure(figsize=(3.4 * max(len(shown), 1), 3.2 * len(curves)), layout="constrained")
    grid = figure.subplots(len(curves), max(len(shown), 1), squeeze=False, sharex=True, sharey=True)
    for row, (label, of_label) in zip(grid, curves.items(), strict=True):
        for axes, size in zip(row, shown, strict=False):
            below = np.zeros_like(analyses[label].recall)
            for kind, fill, curve in zip(KINDS, FILLS, of_label[..., size], strict=True):
                named = f"{curve.mean():.3f} {kind}"
                axes.fill_between(
                    analyses[label].recall, below, curve, facecolor=fill, edgecolor="black", linewidth=0.5, label=named
                )
                below = curve
            axes.set(title=f"{label}: {SIZES[size]}", xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision")
            axes.legend(loc="lower left", fontsize=7, framealpha=0.85)
            tidy(axes)
    figure.suptitle(group[1] if group[0] != "all" else "all categories")
    return figure
