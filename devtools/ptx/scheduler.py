"""Runs a batch: fragments of threads, each with its own program counter, the lowest first.

A fragment runs until it branches, waits, ends, or reaches the program counter of another fragment, with which it
then merges. The layout of the code (``flow``) makes lowest-first mean that diverged threads meet where they should.
What a warp does depends on nothing outside its block, so that counters do not depend on how many blocks share a
batch.
"""

from .active import Active
from .errors import Deadlock, Fault, TooManySteps


class Scheduler:
    def __init__(self, batch, budget: int):
        self.batch, self.program, self.budget = batch, batch.program, budget
        self.ready: list[tuple[int, Active]] = [(0, Active(batch, batch.size))]
        self.waiting: list = []  # threads that someone else has to release: barriers.Waiting and mbarrier.Waiting
        self.barriers: dict = {}  # number -> barriers.BlockBarrier
        batch.scheduler = self
        length = len(self.program.body) + 1
        # issues per instruction as differences: a straight run adds at its start and subtracts behind its end
        self.threads, self.warps = [0] * length, [0] * length

    def push(self, pc: int, act: Active) -> None:
        """Make ``act`` ready to run at ``pc``."""
        for number, (other_pc, other) in enumerate(self.ready):
            if other_pc == pc:
                self.ready[number] = (pc, other.union(act))
                return
        self.ready.append((pc, act))

    def run(self) -> None:
        """Until every thread has ended."""
        batch = self.batch
        try:
            while self.ready:
                self._advance()
                if not self.ready and self.waiting:
                    waiting = self.waiting[0]
                    batch.act, batch.pc = waiting.act, waiting.pc
                    raise Fault(Deadlock, f"{waiting.act.n} threads wait at a barrier that the others never reach")
        except (Fault, NotImplementedError) as error:
            ins = self.program.body[batch.pc]
            place = f"{self.program.name}: line {ins.line}: `{ins.text}`"
            if isinstance(error, NotImplementedError):
                raise NotImplementedError(f"{place}: {error}") from error
            raise error.kind(f"{place}: {error.message}; {batch.where(error.position)}") from None
        except Exception as error:  # a mistake of the interpreter's own: say where the program was
            raise RuntimeError(f"{self.program.name}: failed to run `{self.program.body[batch.pc].text}`") from error

    def _advance(self) -> None:
        ready, batch, program = self.ready, self.batch, self.program
        number = min(range(len(ready)), key=lambda k: ready[k][0]) if len(ready) > 1 else 0
        pc, act = ready.pop(number)
        if pc >= len(program.body):
            batch.retire(act)
            self.retired()
            return
        end, meets = program.segment_end[pc], False
        for other_pc, _ in ready:
            if other_pc <= end:
                end, meets = other_pc, True  # even a control instruction there must wait for the merged threads
        act.refresh()
        batch.act = act
        steps = program.steps
        for batch.pc in range(pc, end):
            steps[batch.pc](batch)
        self._count(pc, end, act)
        if meets or end == len(program.body):
            self.push(end, act)
        else:
            batch.pc = end
            self._count(end, end + 1, act)
            program.control[end](self, act)

    def _count(self, start: int, end: int, act: Active) -> None:
        n, warps = act.n, act.warps
        self.threads[start] += n
        self.threads[end] -= n
        self.warps[start] += warps
        self.warps[end] -= warps
        self.budget -= end - start
        if self.budget < 0:
            raise Fault(TooManySteps, "the budget of instructions is spent; an endless loop?")

    def retired(self) -> None:
        """Threads ended: barriers count them as arrived from now on."""
        for waiting in list(self.waiting):
            waiting.release(self)
