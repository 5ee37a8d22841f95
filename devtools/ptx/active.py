"""Which threads of a batch an instruction acts on: all, a dense subset, or a few."""

import numpy as np


class Active:
    """A set of threads, as a sorted index array or a mask, each made from the other when first asked for.

    whole   every thread of the batch is in the set: arrays need no indexing at all
    open    every thread that is still alive is in it: arithmetic may write all lanes, dead ones do not mind
    sparse  so few threads that gathering their operands is cheaper than computing all lanes and blending
    """

    __slots__ = ("_ix", "_mask", "_warp", "_warps", "batch", "n", "open", "sparse", "whole")

    def __init__(self, batch, n: int, ix=None, mask=None):
        self.batch, self.n, self._ix, self._mask = batch, n, ix, mask
        self.whole = n == batch.size
        self._warp = self._warps = None
        self.refresh()

    def refresh(self) -> None:
        """Other threads may have ended since."""
        self.open = self.n == self.batch.live
        self.sparse = not self.open and self.n * 4 < self.batch.size

    @property
    def ix(self) -> np.ndarray:
        if self._ix is None:
            self._ix = self.batch.everyone if self._mask is None else np.flatnonzero(self._mask)
        return self._ix

    @property
    def mask(self) -> np.ndarray:
        if self._mask is None:
            self._mask = np.zeros(self.batch.size, bool)
            self._mask[slice(None) if self.whole else self._ix] = True
        return self._mask

    @property
    def warp(self) -> np.ndarray:
        """Each active thread's warp, numbered through the batch."""
        if self.whole:
            return self.batch.warp
        if self._warp is None:
            self._warp = self.batch.warp[self.ix]
        return self._warp

    @property
    def warps(self) -> int:
        """How many warps have an active thread: what one issue of an instruction counts."""
        if self.whole:
            return self.batch.warps
        if self._warps is None:
            self._warps = 1 + int(np.count_nonzero(np.diff(self.warp)))
        return self._warps

    def pick(self, array: np.ndarray) -> np.ndarray:
        """The active threads' entries of a per-thread array."""
        return array if self.whole else array[self.ix]

    def narrow(self, predicate: np.ndarray, negated: bool) -> "Active | None":
        """The subset whose predicate holds; None when empty, self when nothing is lost."""
        if self.whole:
            n = int(np.count_nonzero(predicate))
            n = self.n - n if negated else n
            if n in (0, self.n):
                return self if n else None
            return Active(self.batch, n, mask=~predicate if negated else predicate.copy())
        chosen = predicate[self.ix]
        n = int(np.count_nonzero(chosen))
        n = self.n - n if negated else n
        if n in (0, self.n):
            return self if n else None
        return Active(self.batch, n, ix=self.ix[~chosen if negated else chosen])

    def subset(self, chosen: np.ndarray) -> "Active":
        """The subset given by a boolean array over the active threads; at least one must be chosen."""
        ix = self.ix[chosen]
        return Active(self.batch, len(ix), ix=ix)

    def union(self, other: "Active") -> "Active":
        ix = np.sort(np.concatenate([self.ix, other.ix]))
        return Active(self.batch, len(ix), ix=ix)
