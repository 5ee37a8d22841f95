"""What can go wrong in a launch, each as its own exception so that a test can name what it expects."""


class PtxError(Exception):
    """Base of everything the interpreter raises about the program it runs (not about its own limits)."""


class OutOfBounds(PtxError):
    """An access outside every buffer, outside shared memory, or outside a thread's local memory."""


class Misaligned(PtxError):
    """An address that is not a multiple of the access width (on a GPU: a sticky launch failure)."""


class ReadOnly(PtxError):
    """A write into a buffer that was put with ``read_only=True``, or into constant memory."""


class UninitialisedShared(PtxError):
    """A read of shared memory that nobody wrote, or whose asynchronous copy was not waited for."""


class RaceError(PtxError):
    """Two warps touched the same shared byte, one of them writing, with no barrier in between."""


class WarpSyncError(PtxError):
    """A warp-level instruction whose mask, source lane or convergence PTX leaves undefined."""


class Deadlock(PtxError):
    """Threads wait at a barrier that can never complete."""


class TooManySteps(PtxError):
    """The launch ran past its instruction budget: an endless loop, or one block waiting for another."""


class DeviceAssert(PtxError):
    """The program executed ``trap`` or called ``__assertfail``."""


class PtxSyntaxError(PtxError):
    """Text that this parser cannot read as PTX."""


class Fault(Exception):
    """Internal: an error at one position of the active threads; the scheduler adds kernel, line, block and thread."""

    def __init__(self, kind: type[PtxError], message: str, position: int = 0):
        super().__init__(message)
        self.kind, self.message, self.position = kind, message, position
