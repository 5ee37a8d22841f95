"""The loss's preset by the name of a detector's class, for families that tell it in no better way."""

from __future__ import annotations

from typing import Any

# The first part of a name that is found decides.
BY_NAME = {
    "rcnn": "two_stage",
    "fcos": "one_stage_anchor_free",
    "yolo": "one_stage_anchor_free",
    "retinanet": "one_stage_anchor",
    "ssd": "one_stage_anchor",
}


def preset_by_name(model: Any) -> str | None:
    """The preset that the class's name tells, or None."""
    name = type(model).__name__.lower()
    return next((preset for part, preset in BY_NAME.items() if part in name), None)


def guess_preset(student: Any, default: str) -> str:
    """The preset that the class's name tells, or ``default``; an adapter's ``preset`` knows more."""
    return preset_by_name(student) or default
