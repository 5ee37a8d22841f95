"""Loader processes stay when a signal for the whole training comes: its last step needs their images."""

from __future__ import annotations

import os
import signal
import threading

# Seconds from a foreign SIGTERM to the end, in any case: two signals of a kind that come at once are one, so the one of
# the training process can be missed.
PATIENCE = 120


def outlive_signals(worker: int = 0) -> None:
    """Makes a loader process leave SIGINT and SIGTERM to the training process; for ``worker_init_fn``.

    Ctrl-C reaches all processes of a terminal, and SLURM's SIGTERM all of a job. A loader process that ended then would
    fail the step that the training wants to end in order. A SIGTERM from the training process still ends it at once,
    and without that process it ends by itself within seconds: torch sees to that.

    Args:
        worker: the process's number, which does not matter.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere (macOS) nothing tells who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_says_so, args=(os.getppid(),), daemon=True).start()


def _end_when_the_parent_says_so(parent: int) -> None:
    told: signal.struct_siginfo | None = signal.sigwaitinfo({signal.SIGTERM})
    while told is not None and told.si_pid != parent:
        told = signal.sigtimedwait({signal.SIGTERM}, PATIENCE)
    os._exit(0)
