"""Machine code as the hardware schedules it: cuobjdump's listing of a kernel, with each instruction's control word.

From Volta to Blackwell an instruction is 128 bits. Bits 41 to 57 of the upper half are ptxas' orders to the scheduler:
how many cycles to stall after issue, which of six scoreboards to set until a result is there (write) or until the
operands were read (read), and which ones to wait for before issue.
"""

import functools
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field

NO_SCOREBOARD = 7


@dataclass(frozen=True)
class Instruction:
    """One instruction of a listing."""

    address: int
    guard: str  # "@!P0", or ""
    opcode: str  # with its modifiers: LDG.E.128.CONSTANT
    operands: str
    stall: int
    write: int | None  # scoreboards
    read: int | None
    waits: frozenset[int]

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = re.search(r"0x([0-9a-f]+)$", self.operands.strip(" `()")) if self.name in ("BRA", "BSSY") else None
        return int(found[1], 16) if found else None

    def __str__(self) -> str:
        waits = ",".join(map(str, sorted(self.waits)))
        scoreboards = f"wait[{waits:5}] set[{'' if self.write is None else self.write}]"
        return f"{self.address:#06x} {scoreboards} stall {self.stall:2} {self.guard:>5} {self.opcode} {self.operands}"


@dataclass
class Loop:
    """A run of instructions that a backward branch closes."""

    body: list[Instruction] = field(repr=False)

    @property
    def begin(self) -> int:
        return self.body[0].address

    @property
    def end(self) -> int:
        return self.body[-1].address


_LINE = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;"
    r"\s*/\* 0x[0-9a-f]{16} \*/\s*/\* 0x([0-9a-f]{16}) \*/"
)


def tool(name: str) -> str | None:
    """cuobjdump or nvdisasm: of the CUDA toolkit, or of the Triton package, which brings them."""
    found = shutil.which(name)
    if found:
        return found
    try:
        import triton
    except ImportError:
        return None
    path = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(path) if os.access(path, os.X_OK) else None


def parse(listing: str) -> dict[str, list[Instruction]]:
    """The kernels of `cuobjdump -sass`, by name."""
    kernels = {}
    for part in listing.split("Function : ")[1:]:
        name = part.split(None, 1)[0]
        kernels[name] = [_instruction(*found) for found in _LINE.findall(part)]
    return kernels


def _instruction(address: str, guard: str, opcode: str, operands: str, upper: str) -> Instruction:
    control = int(upper, 16) >> 41
    write, read = control >> 5 & 7, control >> 8 & 7
    return Instruction(
        address=int(address, 16),
        guard=guard.strip(),
        opcode=opcode,
        operands=operands,
        stall=control & 15,
        write=None if write == NO_SCOREBOARD else write,
        read=None if read == NO_SCOREBOARD else read,
        waits=frozenset(bit for bit in range(6) if control >> 11 + bit & 1),
    )


@functools.cache
def disassembled(ptx: str, architecture: str) -> dict[str, list[Instruction]]:
    """The kernels of a PTX text, assembled for an architecture."""
    with tempfile.TemporaryDirectory() as folder:
        source, code = pathlib.Path(folder, "kernel.ptx"), pathlib.Path(folder, "kernel.cubin")
        source.write_text(ptx)
        subprocess.run(["ptxas", f"-arch={architecture}", "-o", code, source], check=True, capture_output=True)
        command = [tool("cuobjdump") or "cuobjdump", "-sass", str(code)]
        return parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def loops(kernel: list[Instruction]) -> list[Loop]:
    """Every run of instructions from a backward branch's target to the branch."""
    at = {instruction.address: i for i, instruction in enumerate(kernel)}
    found = []
    for i, instruction in enumerate(kernel):
        target = instruction.target
        if instruction.name == "BRA" and target is not None and target < instruction.address:
            found.append(Loop(kernel[at[target] : i + 1]))
    return found


def tile_loop(kernel: list[Instruction], loads: int = 8) -> Loop:
    """The loop over tiles: the innermost with a tile's 128-bit loads. Code that ptxas puts behind a kernel's end jumps
    back over all of it, which is no loop."""
    return min(
        (loop for loop in loops(kernel) if sum(map(is_bulk_load, loop.body)) == loads), key=lambda x: len(x.body)
    )


def is_bulk_load(instruction: Instruction) -> bool:
    """Of 16 bytes from global memory."""
    return instruction.opcode.startswith("LDG.E.128")


# What may stand between the wait for the next tile and the jump back to it: its move to the registers of this one, and
# the way out of the loop, which sm_80 writes as a call.
_MOVES = {"MOV", "IMAD", "BRA", "NOP", "ISETP", "UISETP", "IADD3", "UIADD3", "VIADD", "PLOP3", "UMOV", "R2UR", "CALL"}


def waits_for_bulk_loads(loop: Loop) -> list[Instruction]:
    """What waits for a tile's loads though it works on the tile before it: between them and the jump back, on any way.

    The last thing that a turn does is to move the next tile's registers to its own. That, which has to wait, does not
    count, as long as nothing but such moves stands behind the first wait.
    """
    body = loop.body
    at: dict[int | None, int] = {instruction.address: i for i, instruction in enumerate(body)}
    loads = [i for i, instruction in enumerate(body) if is_bulk_load(instruction)]
    scoreboards = {body[i].write for i in loads}
    reached, todo = set(), [loads[-1] + 1]
    while todo:
        i = todo.pop()
        if i in reached or i >= len(body):
            continue
        reached.add(i)
        target = body[i].target
        if body[i].name == "BRA" and target in at and i != len(body) - 1:
            todo.append(at[target])
            if not body[i].guard and "," not in body[i].operands:
                continue
        todo.append(i + 1)
    moving = len(body)
    while body[moving - 1].name in _MOVES:
        moving -= 1
    return [body[i] for i in sorted(reached) if body[i].waits & scoreboards and i < moving]
