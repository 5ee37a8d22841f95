"""PTX's fundamental types, and how a register's bits are seen through each of them as a numpy array."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PtxType:
    """``lanes`` is 2 for packed types; bf16 has no numpy type and is held as its bits in uint16."""

    name: str
    kind: str  # 'u' unsigned or untyped, 's' signed, 'f' IEEE float, 'bf' bfloat16, 'p' predicate
    bits: int
    dtype: np.dtype
    lanes: int = 1

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def signed(self) -> bool:
        return self.kind == "s"


def _table() -> dict[str, PtxType]:
    rows = [PtxType("pred", "p", 8, np.dtype(bool)), PtxType("b128", "u", 128, np.dtype(np.uint64), 2)]
    for bits in (8, 16, 32, 64):
        rows += [
            PtxType(f"{k}{bits}", "s" if k == "s" else "u", bits, np.dtype(f"{'i' if k == 's' else 'u'}{bits // 8}"))
            for k in "bus"
        ]
    rows += [PtxType(f"f{bits}", "f", bits, np.dtype(f"f{bits // 8}")) for bits in (16, 32, 64)]
    rows += [PtxType("bf16", "bf", 16, np.dtype(np.uint16)), PtxType("bf16x2", "bf", 32, np.dtype(np.uint16), 2)]
    rows += [PtxType("f16x2", "f", 32, np.dtype(np.float16), 2), PtxType("f32x2", "f", 64, np.dtype(np.float32), 2)]
    rows += [PtxType("u16x2", "u", 32, np.dtype(np.uint16), 2), PtxType("s16x2", "s", 32, np.dtype(np.int16), 2)]
    rows += [PtxType("tf32", "u", 32, np.dtype(np.uint32))]
    return {row.name: row for row in rows}


TYPES = _table()


def type_of(name: str) -> PtxType:
    """The type called ``name``; KeyError for one this interpreter does not know (fp8, for instance)."""
    return TYPES[name]


def last_type(parts) -> PtxType:
    """The last type named in an opcode: in ``cvt.f32.s32`` the source's, in most others the only one."""
    for part in reversed(parts):
        if part in TYPES:
            return TYPES[part]
    raise NotImplementedError("no known type in ." + ".".join(parts))


def require_known(parts, allowed: str) -> None:
    """Raise NotImplementedError for a modifier that is neither a type nor in ``allowed``: never ignore one unseen."""
    unknown = [part for part in parts if part not in TYPES and part not in allowed.split()]
    if unknown:
        raise NotImplementedError("modifier ." + ", .".join(unknown))


def parse_literal(text: str, kind: PtxType):
    """The numpy scalar that a literal means for an instruction of this type (packed types: their raw bits)."""
    if text[:2].lower() in ("0f", "0d"):  # the bits of a float32 or float64
        integer, floating = (np.uint32, np.float32) if text[1] in "fF" else (np.uint64, np.float64)
        bits = int("0x" + text[2:], 0)
        return integer(bits).view(floating).astype(kind.dtype) if kind.kind == "f" else _raw(bits, kind)
    if "." in text or ("e" in text.lower() and not text.lower().startswith(("0x", "-0x"))):
        return kind.dtype.type(float(text))
    value = int(text.rstrip("U"), 0)
    if kind.kind == "p":
        return np.bool_(value)
    if kind.kind == "f" and kind.lanes == 1 and not text.lower().startswith("0x"):
        return kind.dtype.type(value)
    return _raw(value, kind)


def _raw(value: int, kind: PtxType):
    """``value``'s low bits, reinterpreted; a packed type gives an array of its two lanes."""
    raw = (value & ((1 << kind.bits) - 1)).to_bytes(kind.bytes, "little")
    lanes = np.frombuffer(raw, kind.dtype)
    return lanes if kind.lanes > 1 else lanes[0]
