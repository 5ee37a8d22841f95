"""What instructions do with the register file: read and write slots for the active threads."""

import operator

import numpy as np


def elementwise(target: int | None, sources: list[int], function):
    """The step ``target = function(*sources)`` for all active threads.

    Three ways, by how many threads are active: write all lanes, in place where ``function`` is a ufunc; compute all
    lanes and blend; gather a few lanes, compute, scatter. ``function`` must tolerate the garbage of inactive lanes.
    """
    fetch = operator.itemgetter(*sources) if len(sources) > 1 else (lambda r, only=sources[0]: (r[only],))
    in_place = isinstance(function, np.ufunc)
    if target is None:
        return lambda m: None

    def step(m):
        r, act = m.r, m.act
        if act.open:
            if in_place:
                function(*fetch(r), out=r[target], casting="unsafe")
            else:
                r[target][...] = function(*fetch(r))
        elif act.sparse:
            ix = act.ix
            r[target][ix] = function(*[array[ix] for array in fetch(r)])
        else:
            blend(r[target], function(*fetch(r)), act.mask)

    return step


def blend(target: np.ndarray, value, mask: np.ndarray) -> None:
    """Write where the mask holds; packed registers have a second axis."""
    np.copyto(target, value, where=mask if target.ndim == 1 else mask[:, None], casting="unsafe")


def read(m, slot: int) -> np.ndarray:
    """The active threads' values, compact."""
    return m.act.pick(m.r[slot])


def write(m, slot: int | None, values) -> None:
    """Store one value per active thread."""
    if slot is None:
        return
    if m.act.whole:
        m.r[slot][...] = values
    else:
        m.r[slot][m.act.ix] = values
