"""The pieces a PTX module is made of, as the parser hands them on. No behaviour lives here."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Register:
    """A declared register; ``name`` is unique in its function (scoped names carry a suffix)."""

    name: str


@dataclass(frozen=True)
class Special:
    """A read-only register the machine provides, such as ``%tid.x``."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """A literal, kept as text because its value depends on the type of the instruction."""

    text: str


@dataclass(frozen=True)
class Symbol:
    """The address of a variable, parameter or function, or the name of a label."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class Address:
    """``[base + offset]``; base is a Register, a Symbol or None for an absolute address."""

    base: Register | Symbol | None
    offset: int = 0


@dataclass(frozen=True)
class Vector:
    """``{a, b, ...}``; an item may be ``Symbol('_')``, which discards."""

    items: tuple


@dataclass(frozen=True)
class Pair:
    """``p|q``: two destinations of one instruction."""

    first: object
    second: object


@dataclass(frozen=True)
class Negated:
    """``!p``: a predicate operand taken inverted."""

    operand: Register


@dataclass(frozen=True)
class Arguments:
    """``(a, b)``: the parameter lists of a call."""

    items: tuple


@dataclass
class Instruction:
    """One statement; ``opcode`` is split at its dots into ``parts``; ``scopes`` resolve its labels."""

    opcode: str
    operands: list
    guard: Register | None = None
    guard_negated: bool = False
    line: int = 0
    text: str = ""
    scopes: tuple = (0,)
    parts: tuple = field(init=False)

    def __post_init__(self):
        self.parts = tuple(self.opcode.split("."))


@dataclass
class Variable:
    """A variable in some state space; ``initial`` holds bytes or (offset, symbol) entries, or None."""

    name: str
    space: str
    type: str
    align: int
    size: int | None  # None: an unsized extern array, the dynamic shared memory
    initial: list | None = None


@dataclass
class Parameter:
    """A kernel or function parameter: a scalar of ``type``, or ``size`` bytes of .b8 for a struct."""

    name: str
    type: str
    align: int
    size: int
    is_array: bool
    in_register: bool = False


@dataclass
class Function:
    """A parsed .entry or .func."""

    name: str
    is_kernel: bool
    params: list
    returns: list
    body: list = field(default_factory=list)
    labels: dict = field(default_factory=dict)  # (scope, name) -> index in body
    registers: dict = field(default_factory=dict)  # name -> type
    variables: list = field(default_factory=list)
    branch_tables: dict = field(default_factory=dict)  # (scope, name) -> [label names]
    max_threads: int | None = None


class Module(dict):
    """Kernels by name: ``module["kernel"]``; a name's unique fragment works too, so C++ mangling need not be typed."""

    def __init__(self):
        super().__init__()
        self.functions: dict[str, Function] = {}
        self.variables: dict[str, Variable] = {}
        self.target = ""

    def __missing__(self, fragment: str):
        found = [name for name in self if fragment in name]
        if len(found) != 1:
            raise KeyError(f"{fragment!r} names {len(found)} of the kernels {sorted(self)}")
        return self[found[0]]
