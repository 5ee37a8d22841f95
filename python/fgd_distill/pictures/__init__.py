"""Pictures of a distillation, as PNG files: attention, training curves and AP by object size."""

from typing import TYPE_CHECKING

from .._lazy import names_from

if TYPE_CHECKING:
    from .attention import draw_attention, show_attention
    from .bars import draw_ap, plot_ap
    from .curves import draw_curves, plot_training
    from .foreground import draw_foreground
    from .view import AttentionView, view_attention

__all__ = [
    "AttentionView",
    "draw_ap",
    "draw_attention",
    "draw_curves",
    "draw_foreground",
    "plot_ap",
    "plot_training",
    "show_attention",
    "view_attention",
]
__getattr__ = names_from(
    __name__,
    {
        "attention": ("draw_attention", "show_attention"),
        "bars": ("draw_ap", "plot_ap"),
        "curves": ("draw_curves", "plot_training"),
        "foreground": ("draw_foreground",),
        "view": ("AttentionView", "view_attention"),
    },
)
