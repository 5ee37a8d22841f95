"""A kernel with every call replaced by the callee's body: the machine then needs no call stack.

Each inlined copy gets a prefix for its registers, labels and variables. Formal parameters are bound to the names of the
actual ones, which live in the caller's frame, as PTX's .param variables of a call do.
"""

from dataclasses import dataclass, field, replace

from . import syntax

MAX_DEPTH = 16


@dataclass
class Flat:
    """One straight list of instructions with unique names."""

    body: list = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    variables: list = field(default_factory=list)
    tables: dict[str, list[str]] = field(default_factory=dict)
    copies: int = 0


def flatten(module: syntax.Module, kernel: syntax.Function) -> Flat:
    """The kernel's instructions with all calls of functions in the module inlined."""
    flat = Flat()
    _Copy(module, kernel, flat, "", {}, None, 0).append()
    return flat


class _Copy:
    """One copy of a function's body on its way into the flat list."""

    def __init__(self, module, function, flat, prefix, bindings, end_label, depth):
        if depth > MAX_DEPTH:
            raise NotImplementedError(f"calls deeper than {MAX_DEPTH} (recursion?) in {function.name}")
        self.module, self.function, self.flat, self.prefix = module, function, flat, prefix
        self.bindings, self.end_label, self.depth = bindings, end_label, depth
        self.local_names = {variable.name for variable in function.variables}

    def append(self) -> None:
        function, flat = self.function, self.flat
        for name, kind in function.registers.items():
            flat.registers[self.prefix + name] = kind
        for variable in function.variables:
            flat.variables.append(replace(variable, name=self.prefix + variable.name))
        marks: dict[int, list[str]] = {}
        for (scope, name), index in function.labels.items():
            marks.setdefault(index, []).append(f"{self.prefix}{scope}:{name}")
        for index, instruction in enumerate(function.body):
            for label in marks.get(index, ()):
                flat.labels[label] = len(flat.body)
            self._instruction(instruction)
        for label in marks.get(len(function.body), ()):
            flat.labels[label] = len(flat.body)

    def _instruction(self, ins: syntax.Instruction) -> None:
        root = ins.parts[0]
        if root == "call":
            self._call(ins)
        elif root == "ret" and self.end_label is not None:
            self._emit(ins, "bra", [syntax.Symbol(self.end_label)])
        elif root == "bra":
            self._emit(ins, ins.opcode, [syntax.Symbol(self._label(ins, ins.operands[0].name))])
        elif root == "brx":
            self._emit(ins, ins.opcode, [self._rename(ins.operands[0]), syntax.Symbol(self._table(ins))])
        else:
            self._emit(ins, ins.opcode, [self._rename(operand) for operand in ins.operands])

    def _emit(self, ins, opcode, operands) -> None:
        guard = self._rename(ins.guard) if ins.guard else None
        self.flat.body.append(replace_instruction(ins, opcode, operands, guard))

    def _label(self, ins, name: str) -> str:
        for scope in reversed(ins.scopes):
            if (scope, name) in self.function.labels:
                return f"{self.prefix}{scope}:{name}"
        raise KeyError(f"line {ins.line}: no label {name}")

    def _table(self, ins) -> str:
        name = ins.operands[1].name
        for scope in reversed(ins.scopes):
            if (scope, name) in self.function.branch_tables:
                unique = f"{self.prefix}{scope}:{name}"
                targets = self.function.branch_tables[scope, name]
                self.flat.tables[unique] = [self._label(ins, target) for target in targets]
                return unique
        raise KeyError(f"line {ins.line}: no branch table {name}")

    def _rename(self, operand):
        if isinstance(operand, syntax.Register):
            return syntax.Register(self.prefix + operand.name)
        if isinstance(operand, syntax.Symbol):
            if operand.name in self.bindings:
                return syntax.Symbol(self.bindings[operand.name], operand.offset)
            known = operand.name in self.local_names
            return syntax.Symbol(self.prefix + operand.name, operand.offset) if known else operand
        if isinstance(operand, syntax.Address) and operand.base is not None:
            return syntax.Address(self._rename(operand.base), operand.offset)
        if isinstance(operand, (syntax.Vector, syntax.Arguments)):
            return type(operand)(tuple(self._rename(item) for item in operand.items))
        if isinstance(operand, syntax.Pair):
            return syntax.Pair(self._rename(operand.first), self._rename(operand.second))
        if isinstance(operand, syntax.Negated):
            return syntax.Negated(self._rename(operand.operand))
        return operand

    def _call(self, ins) -> None:
        lists = [item for item in ins.operands if isinstance(item, syntax.Arguments)]
        target = next(item for item in ins.operands if not isinstance(item, syntax.Arguments))
        if not isinstance(target, syntax.Symbol):
            raise NotImplementedError(f"line {ins.line}: indirect call: {ins.text}")
        callee = self.module.functions.get(target.name)
        if callee is None or not callee.body:  # external: fails (or asserts) when it is reached, not before
            self._emit(ins, ins.opcode, [syntax.Symbol(target.name)])
            return
        if any(param.in_register for param in callee.params + callee.returns):
            raise NotImplementedError(f"line {ins.line}: call with register parameters: {ins.text}")
        returned = lists.pop(0).items if isinstance(ins.operands[0], syntax.Arguments) else ()
        passed = lists.pop(0).items if lists else ()
        formals = [param.name for param in callee.returns + callee.params]
        bindings = dict(zip(formals, [self._rename(item).name for item in returned + passed], strict=True))
        self.flat.copies += 1
        prefix = f"{callee.name}#{self.flat.copies}/"
        end = f"{prefix}end"
        if ins.guard is not None:
            skip = replace_instruction(ins, "bra", [syntax.Symbol(end)], self._rename(ins.guard))
            skip.guard_negated = not ins.guard_negated
            self.flat.body.append(skip)
        _Copy(self.module, callee, self.flat, prefix, bindings, end, self.depth + 1).append()
        self.flat.labels[end] = len(self.flat.body)


def replace_instruction(ins, opcode, operands, guard) -> syntax.Instruction:
    """A copy of ``ins`` that keeps its line and text for messages."""
    return syntax.Instruction(opcode, operands, guard, ins.guard_negated, ins.line, ins.text, ins.scopes)
