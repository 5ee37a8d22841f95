"""A kernel made ready to run: every instruction a Python closure over numbered slots of the batch's register file.

A slot is one register seen through one type. The arrays behind the slots are made per batch (``Batch``), so a
closure is built once per kernel and reads ``batch.r[slot]``. Constants and special registers are slots too
(broadcast arrays), which leaves one way to fetch an operand.
"""

from . import syntax
from .flow import lay_out
from .inline import flatten
from .instructions import CONTROL, STEPS
from .ptx_types import PtxType, parse_literal, type_of


class Program:
    """Closures, slots and the memory layout of one kernel."""

    def __init__(self, module: syntax.Module, function: syntax.Function):
        flat = flatten(module, function)
        self.name, self.module = function.name, module
        self.body, self.labels = lay_out(flat.body, flat.labels, flat.tables)
        self.tables, self.registers = flat.tables, flat.registers
        self.slots: list[tuple] = []
        self._slot_numbers: dict = {}
        self._lay_out_params(function)
        self._lay_out_variables(flat)
        self.narrowest_shared = self.narrowest_global = 16
        self.steps, self.control = [], {}
        for pc, ins in enumerate(self.body):
            self._compile(pc, ins, STEPS, CONTROL)
        self.segment_end = self._segments()

    # ---- layout of memory -------------------------------------------------------------------------------------

    def _lay_out_params(self, function) -> None:
        self.params, self.param_offsets, offset = function.params, {}, 0
        for param in function.params:
            offset = -(-offset // param.align) * param.align
            self.param_offsets[param.name] = offset
            offset += param.size
        self.param_bytes = max(offset, 1)

    def _lay_out_variables(self, flat) -> None:
        """Shared and local variables get offsets; module variables (global, const) are placed by the GPU."""
        used = {name for ins in flat.body for operand in ins.operands for name in _symbols(operand)}
        outer = [v for v in self.module.variables.values() if v.name in used]
        self.shared_offsets, self.local_offsets = {}, {}
        self.global_names = {v.name for v in outer if v.space in ("global", "const")}
        self.shared_static = self.local_bytes = 0
        dynamic = []
        for variable in outer + flat.variables:
            if variable.space == "shared" and variable.size is None:
                dynamic.append(variable)
            elif variable.space == "shared":
                self.shared_static = -(-self.shared_static // variable.align) * variable.align
                self.shared_offsets[variable.name] = self.shared_static
                self.shared_static += variable.size
            elif variable.space in ("local", "param"):
                self.local_bytes = -(-self.local_bytes // variable.align) * variable.align
                self.local_offsets[variable.name] = self.local_bytes
                self.local_bytes += variable.size
        self.dynamic_start = -(-self.shared_static // 16) * 16
        if dynamic:
            align = max(max(v.align for v in dynamic), 16)
            self.dynamic_start = -(-self.shared_static // align) * align
        self.has_dynamic = bool(dynamic)
        for variable in dynamic:
            self.shared_offsets[variable.name] = self.dynamic_start

    # ---- instructions -----------------------------------------------------------------------------------------

    def _compile(self, pc, ins, steps, control) -> None:
        root = ins.parts[0]
        if root == "mbarrier" and ins.parts[1] in ("try_wait", "test_wait"):
            root = "mbarrier_wait"  # the one form that can stop a thread
        try:
            if root in control:
                self.control[pc] = control[root](self, ins, pc)
                self.steps.append(None)
                return
            if root not in steps:
                raise NotImplementedError("unknown instruction")
            step = steps[root](self, ins)
        except (NotImplementedError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise NotImplementedError(
                f"{self.name}: line {ins.line}: `{ins.text}`: not supported ({error!r})"
            ) from error
        self.steps.append(self._guarded(step, ins))

    def _guarded(self, step, ins):
        if ins.guard is None:
            return step
        slot, negated = self.source(ins.guard, type_of("pred")), ins.guard_negated

        def guarded(m):
            outer = m.act
            inner = outer.narrow(m.r[slot], negated)
            if inner is not None:
                m.act = inner  # left in place if the step raises: the message then names a thread that did it
                step(m)
                m.act = outer
                m.counts.predicated_off += outer.n - inner.n
            else:
                m.counts.predicated_off += outer.n

        return guarded

    def _segments(self) -> list[int]:
        """For each pc the next control instruction at or after it: up to there execution is a straight line."""
        ends, following = [0] * len(self.body), len(self.body)
        for pc in range(len(self.body) - 1, -1, -1):
            following = pc if pc in self.control else following
            ends[pc] = following
        return ends

    # ---- operands ---------------------------------------------------------------------------------------------

    def slot(self, *key) -> int:
        if key not in self._slot_numbers:
            self._slot_numbers[key] = len(self.slots)
            self.slots.append(key)
        return self._slot_numbers[key]

    def source(self, operand, kind: PtxType) -> int:
        """The slot that reads ``operand`` as ``kind`` (of a wider register: its low part)."""
        if isinstance(operand, syntax.Vector) and len(operand.items) == 1:
            operand = operand.items[0]
        if isinstance(operand, syntax.Register):
            return self.slot("register", operand.name, kind.name)
        if isinstance(operand, syntax.Special):
            return self.slot("special", operand.name, kind.name)
        if isinstance(operand, syntax.Immediate):
            value = parse_literal(operand.text, kind)
            return self.slot("constant", kind.name, value.tobytes())
        if isinstance(operand, syntax.Symbol):
            return self.slot("symbol", operand.name, operand.offset, kind.name)
        raise NotImplementedError(f"operand {operand}")

    def target(self, operand, kind: PtxType) -> int | None:
        """The slot that writes a result of ``kind``: an integer type widens to the register's, ``_`` is None."""
        if isinstance(operand, syntax.Vector) and len(operand.items) == 1:
            operand = operand.items[0]
        if isinstance(operand, syntax.Symbol) and operand.name == "_":
            return None
        if not isinstance(operand, syntax.Register):
            raise NotImplementedError(f"destination {operand}")
        width = type_of(self.registers[operand.name]).bits
        if kind.kind in "us" and kind.lanes == 1 and width > kind.bits and width <= 64:
            kind = type_of(f"{kind.kind}{width}")
        return self.slot("register", operand.name, kind.name)

    def register_type(self, operand) -> PtxType:
        return type_of(self.registers[operand.name])

    def predicate(self, operand) -> tuple[int, bool]:
        """``(slot, negated)`` of a predicate source, which may be written ``!p``."""
        if isinstance(operand, syntax.Negated):
            return self.source(operand.operand, type_of("pred")), True
        return self.source(operand, type_of("pred")), False

    def note_shared(self, width: int) -> None:
        """Remember the narrowest shared access: who wrote what is tracked in cells of that size."""
        self.narrowest_shared = min(self.narrowest_shared, width)

    def note_global(self, width: int) -> None:
        """The same for global memory."""
        self.narrowest_global = min(self.narrowest_global, width)


class Kernel:
    """A kernel of a module; compiled for the machine at its first launch."""

    def __init__(self, module: syntax.Module, function: syntax.Function):
        self.module, self.function, self.name = module, function, function.name
        self._program = None

    @property
    def params(self) -> list[syntax.Parameter]:
        return self.function.params

    @property
    def program(self) -> Program:
        if self._program is None:
            self._program = Program(self.module, self.function)
        return self._program

    def __repr__(self) -> str:
        kinds = ", ".join(p.type if not p.is_array else f"{p.size} bytes" for p in self.params)
        return f"<kernel {self.name}({kinds})>"


def _symbols(operand):
    """Names of all symbols in an operand."""
    if isinstance(operand, syntax.Symbol):
        yield operand.name
    elif isinstance(operand, syntax.Address):
        yield from _symbols(operand.base)
    elif isinstance(operand, (syntax.Vector, syntax.Arguments)):
        for item in operand.items:
            yield from _symbols(item)
