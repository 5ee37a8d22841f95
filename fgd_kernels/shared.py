"""Numbers that Python shares with the compiled kernels: csrc/include/fgd says what each means.

Stated here once for Python; tests/kernels/test_shared.py compares them with the headers, one by one.
"""

import enum

MAX_CHANNELS = 2048


class Map(enum.IntEnum):
    """Numbers a pixel that are saved for the backward pass, `maps` (N, len(Map), H·W) of each level."""

    FOCAL = 0
    ATTENTION = 1
    CONTEXT_S = 2
    CONTEXT_T = 3


class Stat(enum.IntEnum):
    """Numbers a channel that are saved for the backward pass, `stats` (N, len(Stat), C) of each level."""

    ATTENTION = 0
    ATTENTION_GRAD = 1
    SHIFT = 2
    SHIFT_GRAD = 3
    CONTEXT_S = 4
    CONTEXT_T = 5


class Term(enum.IntEnum):
    """The loss's terms, in the order of `LOSS_NAMES` and of each level's weights."""

    FG = 0
    BG = 1
    ATTENTION = 2
    GLOBAL = 3
