"""The rows of csrc/include/fgd/layout.h by name, for the device; a test compares them with it."""

import triton.language as tl

from ..shared import Map, Stat, Term

MAP_FOCAL: tl.constexpr = tl.constexpr(Map.FOCAL.value)
MAP_ATTENTION: tl.constexpr = tl.constexpr(Map.ATTENTION.value)
MAP_CONTEXT_S: tl.constexpr = tl.constexpr(Map.CONTEXT_S.value)
MAP_CONTEXT_T: tl.constexpr = tl.constexpr(Map.CONTEXT_T.value)
MAPS: tl.constexpr = tl.constexpr(len(Map))

STAT_ATTENTION: tl.constexpr = tl.constexpr(Stat.ATTENTION.value)
STAT_ATTENTION_GRAD: tl.constexpr = tl.constexpr(Stat.ATTENTION_GRAD.value)
STAT_SHIFT: tl.constexpr = tl.constexpr(Stat.SHIFT.value)
STAT_SHIFT_GRAD: tl.constexpr = tl.constexpr(Stat.SHIFT_GRAD.value)
STAT_CONTEXT_S: tl.constexpr = tl.constexpr(Stat.CONTEXT_S.value)
STAT_CONTEXT_T: tl.constexpr = tl.constexpr(Stat.CONTEXT_T.value)
STATS: tl.constexpr = tl.constexpr(len(Stat))

SUM_FG: tl.constexpr = tl.constexpr(0)
SUM_BG: tl.constexpr = tl.constexpr(1)
SUM_D: tl.constexpr = tl.constexpr(2)
SUM_D2: tl.constexpr = tl.constexpr(3)
SUM_ABS_S: tl.constexpr = tl.constexpr(4)
SUM_ABS_T: tl.constexpr = tl.constexpr(5)
SUM_CONTEXT_S: tl.constexpr = tl.constexpr(6)
SUM_CONTEXT_T: tl.constexpr = tl.constexpr(7)
SUMS: tl.constexpr = tl.constexpr(8)

SOFTMAX_TEACHER: tl.constexpr = tl.constexpr(0)
SOFTMAX_STUDENT: tl.constexpr = tl.constexpr(1)
SOFTMAX_CONTEXT_S: tl.constexpr = tl.constexpr(2)
SOFTMAX_CONTEXT_T: tl.constexpr = tl.constexpr(3)
SOFTMAXES: tl.constexpr = tl.constexpr(4)

TERM_FG: tl.constexpr = tl.constexpr(Term.FG.value)
TERM_BG: tl.constexpr = tl.constexpr(Term.BG.value)
TERM_ATTENTION: tl.constexpr = tl.constexpr(Term.ATTENTION.value)
TERM_GLOBAL: tl.constexpr = tl.constexpr(Term.GLOBAL.value)
TERMS: tl.constexpr = tl.constexpr(len(Term))
