"""What all pictures share: colours that colour-blind readers can tell apart, one way to save, one way to name runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import FGDValueError
from ..files import write_stream

# Okabe and Ito's palette without its yellow, which is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
HEAT = "inferno"  # grows in lightness alone, so it survives colour blindness and grey printing


def style_of(index: int) -> dict[str, Any]:
    """Colour and dash of the line number ``index``; lines beyond the palette differ by their dash."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}


def tidy(axes: Axes) -> None:
    """No frame above and to the right, and a faint grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Figure, output: str | Path, dpi: int = 110) -> None:
    """Writes ``figure`` as PNG, whole or not at all, and says so. No display and no pyplot are involved.

    Raises:
        ValueError: ``output`` does not end in ``.png``.
    """
    output = check_png(output)
    write_stream(output, lambda out: figure.savefig(out, format="png", dpi=dpi))
    print(f"wrote {output}")


def check_png(output: str | Path) -> Path:
    """``output`` as a path.

    Raises:
        ValueError: it does not end in ``.png``.
    """
    if Path(output).suffix.lower() != ".png":
        raise FGDValueError(f"output: expected a file name that ends in .png, got {str(output)!r}")
    return Path(output)


def labelled(runs: str | Sequence[str] | Mapping[str, str], name: str) -> dict[str, Path]:
    """Paths by label. One path or several are labelled by the parts in which they differ.

    Raises:
        ValueError: there is none.
    """
    if isinstance(runs, Mapping):
        paths = {str(label): Path(path) for label, path in runs.items()}
    else:
        listed = [Path(runs)] if isinstance(runs, str) else [Path(run) for run in runs]
        paths = dict(zip(_short_names(listed), listed, strict=True))
    if not paths:
        raise FGDValueError(f"{name}: expected at least one path, got none")
    return paths


def _short_names(paths: list[Path]) -> list[str]:
    """Each path's last part, with as many parts before it as all need to differ."""
    longest = max((len(path.parts) for path in paths), default=0)
    for count in range(1, longest + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(paths):
            return names
    raise FGDValueError(f"expected different paths, got one of them twice: {[str(path) for path in paths]}")
