"""What one launch did, in numbers that are the same every time."""

from collections import Counter
from dataclasses import dataclass, field, fields

CLASSES = {
    "move": "mov cvta selp slct prmt isspacep nop",
    "integer": "add sub mul mad mad24 mul24 div rem abs neg min max and or xor not cnot lop3 shl shr shf bfe bfi bfind "
    "popc clz brev sad dp4a dp2a szext bmsk addc subc madc fns",
    "compare": "setp set testp",
    "float": "fma copysign",
    "special": "ex2 lg2 rcp rsqrt sqrt sin cos tanh",
    "convert": "cvt",
    "control": "bra brx ret exit call trap brkpt nanosleep",
    "barrier": "bar barrier membar fence mbarrier griddepcontrol setmaxnreg",
    "warp": "shfl vote match redux activemask elect",
    "atomic": "atom red",
}
CLASS_OF = {name: label for label, names in CLASSES.items() for name in names.split()}
FLOATS = {"f16", "f16x2", "bf16", "bf16x2", "f32", "f32x2", "f64"}


def classify(parts: tuple) -> tuple[str, str]:
    """``(label, class)`` of an opcode: ('ld.global', 'global'), ('fma', 'float'), ('add', 'integer')."""
    root = parts[0]
    if root in ("ld", "ldu", "st", "ldmatrix", "stmatrix", "atom", "red", "cp", "prefetch", "prefetchu"):
        space = next(
            (s for s in ("global", "shared", "local", "param", "const") for p in parts if p.split("::")[0] == s),
            "generic",
        )
        if root == "cp":
            return ("cp.async.bulk" if "bulk" in parts else "cp.async"), "async copy"
        return f"{root}.{space}", "atomic" if root in ("atom", "red") else space
    label = CLASS_OF.get(root, "other")
    if label == "integer" and FLOATS & set(parts):
        label = "float"
    return root, label


@dataclass
class Counts:
    """Counters of one launch; add two with ``+``.

    An instruction counts for every active thread, or every warp with an active thread, that issues it, predicated off
    or not: that is the issue slot it costs. These are PTX instructions: ptxas fuses some and expands others.
    Bytes and requests count threads and warps that really access. Widths are bytes per thread and instruction.
    """

    thread_instructions: int = 0
    warp_instructions: int = 0
    predicated_off: int = 0  # thread instructions whose guard was false
    thread_instructions_by_opcode: Counter = field(default_factory=Counter)
    warp_instructions_by_opcode: Counter = field(default_factory=Counter)
    thread_instructions_by_class: Counter = field(default_factory=Counter)
    warp_instructions_by_class: Counter = field(default_factory=Counter)
    thread_instructions_by_line: Counter = field(default_factory=Counter, repr=False)  # keyed (line, text)
    global_read_sectors: int = 0
    global_write_sectors: int = 0
    global_atomic_sectors: int = 0
    global_read_requests: int = 0
    global_write_requests: int = 0
    global_atomic_requests: int = 0
    global_read_bytes_by_width: Counter = field(default_factory=Counter)
    global_write_bytes_by_width: Counter = field(default_factory=Counter)
    shared_read_wavefronts: int = 0
    shared_write_wavefronts: int = 0
    shared_requests: int = 0
    shared_read_bytes_by_width: Counter = field(default_factory=Counter)
    shared_write_bytes_by_width: Counter = field(default_factory=Counter)
    local_requests: int = 0
    local_bytes: int = 0
    global_atomics: int = 0  # thread-level operations
    shared_atomics: int = 0
    shared_atomic_wavefronts: int = 0
    shared_collisions: int = 0  # lanes whose store lost to another value of the same warp and instruction
    barriers: int = 0  # completed barriers of blocks
    divergent_branches: int = 0  # branches where a warp split
    blocks: int = 0
    threads: int = 0

    @property
    def global_sectors(self) -> int:
        return self.global_read_sectors + self.global_write_sectors + self.global_atomic_sectors

    @property
    def shared_wavefronts(self) -> int:
        return self.shared_read_wavefronts + self.shared_write_wavefronts + self.shared_atomic_wavefronts

    @property
    def atomics(self) -> int:
        return self.global_atomics + self.shared_atomics

    @property
    def global_read_bytes(self) -> int:
        return sum(self.global_read_bytes_by_width.values())

    @property
    def global_write_bytes(self) -> int:
        return sum(self.global_write_bytes_by_width.values())

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def hottest(self, n: int = 20) -> str:
        """The ``n`` source instructions that most threads issued, for reading."""
        rows = self.thread_instructions_by_line.most_common(n)
        return "\n".join(f"{count:>14,}  line {line}: {text}" for (line, text), count in rows)

    def tally(self, instructions, threads: list[int], warps: list[int]) -> None:
        """Fold the scheduler's per-instruction sums in."""
        for ins, thread_count, warp_count in zip(instructions, threads, warps, strict=False):
            if not thread_count or ins.opcode == "goto":
                continue
            label, kind = classify(ins.parts)
            self.thread_instructions += thread_count
            self.warp_instructions += warp_count
            self.thread_instructions_by_opcode[label] += thread_count
            self.warp_instructions_by_opcode[label] += warp_count
            self.thread_instructions_by_class[kind] += thread_count
            self.warp_instructions_by_class[kind] += warp_count
            self.thread_instructions_by_line[ins.line, ins.text] += thread_count
