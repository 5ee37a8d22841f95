"""Random programs in the language that C++ and CUDA C++ share, to hold the interpreter against a CPU.

`program(seed)` writes one function of a thread's inputs: assignments, branches, loops and switches over variables of
all integer types, float and double. It avoids what the language leaves undefined; PRELUDE says the rest (saturating
conversions, signed zeros, bit tricks) once for the device, where PTX has an instruction, and once for the host. NaNs
are stored as one bit pattern.
"""

import pathlib
import random

TYPES = {"i8": "int8_t", "u8": "uint8_t", "i16": "int16_t", "u16": "uint16_t", "i32": "int32_t", "u32": "uint32_t"}
TYPES |= {"i64": "int64_t", "u64": "uint64_t", "f32": "float", "f64": "double"}
VARIABLES = ("i8", "u8", "i16", "u16", "i32", "i32", "u32", "u32", "i64", "u64", "f32", "f32", "f64", "f64")
UNSIGNED = {
    "i8": "u32",
    "u8": "u32",
    "i16": "u32",
    "u16": "u32",
    "i32": "u32",
    "u32": "u32",
    "i64": "u64",
    "u64": "u64",
}

PRELUDE = pathlib.Path(__file__).with_name("fuzz_prelude.h").read_text()


class Writer:
    """One random program."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.variables = [(f"v{i}", kind) for i, kind in enumerate(VARIABLES)]

    def pick(self, *choices):
        return self.random.choice(choices)

    def leaf(self, kind: str) -> str:
        same = [name for name, k in self.variables if k == kind]
        if self.random.random() < 0.8:
            return self.random.choice(same)
        if kind in ("f32", "f64"):
            # None beyond 2^63: nvcc 13.0 folds ceil(1e30) to -2^63 when it compiles.
            number = self.pick("0.0", "1.5", "-2.25", "3e9", "-1e-3", "1e17")
            return number + ("f" if kind == "f32" else "")
        return f"({TYPES[kind]}){self.pick(0, 1, 3, 7, 100, 255, 65535, 0x7FFFFFFF, 0xDEADBEEF)}ull"

    def expression(self, kind: str, depth: int) -> str:
        """Of type `kind`."""
        if depth == 0 or self.random.random() < 0.1:
            return self.leaf(kind)
        if self.random.random() < 0.15:
            return f"({self.condition(depth - 1)} ? {self.expression(kind, depth - 1)} : {self.leaf(kind)})"
        if kind in ("f32", "f64"):
            return self.floating(kind, depth - 1)
        return f"({TYPES[kind]})({self.integer(kind, depth - 1)})"

    def integer(self, kind: str, depth: int) -> str:
        """Arithmetic in an unsigned type, which may wrap; shifts, divisions and comparisons in the signed one too."""
        u = UNSIGNED[kind]
        wide = "64" if u == "u64" else "32"
        a, b, c = (f"({TYPES[u]})({self.expression(kind, depth)})" for _ in range(3))
        s, t = (self.expression(self.pick(kind, f"i{wide}"), depth) for _ in range(2))
        i32, j32 = (self.expression("i32", depth) for _ in range(2))
        w = self.expression("u32", depth)
        return self.pick(
            *(f"{a} {op} {b}" for op in "+-*&|^"),
            f"~{a}",
            f"{a} * {b} + {c}",
            f"({a} & {b}) | (~{a} & {c})",
            f"({a} ^ {b}) ^ {c}",
            f"{a} / ({b} | 1)",
            f"{a} % ({b} | 1)",
            f"(int64_t)({s}) / (int64_t)(({t} & 1023) + 1)",
            f"(int32_t)({i32}) % ((int32_t)({j32} & 255) + 3)",
            f"{a} << ({b} & {int(wide) - 1})",
            f"{a} >> ({b} & {int(wide) - 1})",
            f"(int{wide}_t)({s}) >> ({b} & {int(wide) - 1})",
            f"({s} < {t} ? {s} : {t})",
            f"({a} > {b} ? {a} : {b})",
            f"({a} >> {self.random.randrange(1, 20)}) & {(1 << self.random.randrange(1, 12)) - 1}",
            f"clz32({w}) + popc32({w}) * 3",
            f"ffs32({w})",
            f"clz64({self.expression('u64', depth)})",
            f"popc64({self.expression('u64', depth)})",
            f"brev{wide}({a})",
            f"perm({w}, {i32}, {j32} & 0x7777)",
            f"funnel_l({w}, {i32}, {j32})",
            f"funnel_r({w}, {i32}, {j32} & 63)",
            f"hi{wide}({a}, {b})",
            f"hi{wide}s({a}, {b})",
            f"sad32({i32}, {j32}, {w})",
            *(f"{f}({self.expression(self.pick('f32', 'f64'), depth)})" for f in ("to_i32", "round_i32", "to_u32")),
            *(f"{f}({self.expression(self.pick('f32', 'f64'), depth)})" for f in ("to_i64", "to_u64")),
            f"({self.condition(depth)}) + 2 * ({self.condition(depth)})",
        )

    def floating(self, kind: str, depth: int) -> str:
        a, b, c = (self.expression(kind, depth) for _ in range(3))
        other = self.expression("f64" if kind == "f32" else "f32", depth)
        whole = self.expression(self.pick("i8", "u16", "i32", "u32", "i64", "u64"), depth)
        choices = [
            *(f"({a} {op} {b})" for op in "+-*/"),
            f"(- {a})",
            f"({TYPES[kind]})({other})",
            f"({TYPES[kind]})({whole})",
            f"less({a}, {b})",
            f"more({a}, {b})",
            f"sqrt{kind[1:]}(fabs({a}))",
            f"copysign{'f' if kind == 'f32' else ''}({a}, {b})",
            f"floor{'f' if kind == 'f32' else ''}({a})",
            f"trunc{'f' if kind == 'f32' else ''}({a})",
            f"ceil{'f' if kind == 'f32' else ''}({a})",
        ]
        if kind == "f32":
            choices += [f"fma32({a}, {b}, {c})", f"mul_ru({a}, {b})"]
        return self.random.choice(choices)

    def condition(self, depth: int) -> str:
        kind = self.random.choice(VARIABLES)
        a, b = self.expression(kind, min(depth, 1)), self.expression(kind, min(depth, 1))
        simple = f"({a} {self.pick('<', '<=', '>', '>=', '==', '!=')} {b})"
        if depth > 0 and self.random.random() < 0.3:
            return f"({simple} {self.pick('&&', '||', '^')} {self.condition(0)})"
        return simple

    def assignment(self) -> str:
        name, kind = self.random.choice(self.variables)
        return f"{name} = {self.expression(kind, 3)};"

    def block(self, depth: int) -> str:
        return "\n".join(self.statement(depth) for _ in range(self.random.randrange(1, 4)))

    def statement(self, depth: int) -> str:
        shape = self.random.random()
        if depth == 0 or shape < 0.5:
            return self.assignment()
        if shape < 0.7:
            other = f" else {{ {self.block(depth - 1)} }}" if self.random.random() < 0.6 else ""
            return f"if ({self.condition(1)}) {{ {self.block(depth - 1)} }}{other}"
        if shape < 0.9:
            index, leave = f"k{self.random.randrange(10**9)}", self.pick("", f"if ({self.condition(1)}) break;")
            turns = f"(uint32_t)({self.expression('u32', 1)}) % 6"
            body = f"{self.block(depth - 1)} {leave} {self.pick('', f'if ({self.condition(0)}) continue;')}"
            return f"for (uint32_t {index} = {turns}; {index} > 0; --{index}) {{ {body} {self.assignment()} }}"
        cases = " ".join(f"case {i}: {self.block(depth - 1)} {self.pick('break;', '')}" for i in range(5))
        return f"switch ((uint32_t)({self.expression('u32', 1)}) % 7) {{ {cases} default: {self.assignment()} }}"

    def text(self) -> str:
        first = "\n".join(
            f"{TYPES[kind]} {name} = (({TYPES[kind]} const*)in[{i}])[at];"
            for i, (name, kind) in enumerate(self.variables)
        )
        body = "\n".join(self.statement(3) for _ in range(6))
        last = "\n".join(
            f"out[at * {len(VARIABLES)} + {i}] = bits({name});" for i, (name, _) in enumerate(self.variables)
        )
        return f"{first}\n{body}\n{last}"


def program(seeds) -> str:
    """A translation unit for either compiler: kernels fuzz_<seed>(in, out, n), functions of the same name."""
    parts = [PRELUDE]
    for seed in seeds:
        body = Writer(seed).text()
        parts.append(f"""
FN void body_{seed}(void const* const* in, uint64_t* out, uint32_t at) {{
{body}
}}
#if defined(__CUDACC__)
struct Inputs_{seed} {{ void const* in[{len(VARIABLES)}]; }};
extern "C" __global__ void fuzz_{seed}(Inputs_{seed} inputs, uint64_t* out, uint32_t n) {{
  const uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at < n) body_{seed}(inputs.in, out, at);
}}
#else
extern "C" void fuzz_{seed}(void const* const* in, uint64_t* out, uint32_t n) {{
  for (uint32_t at = 0; at < n; ++at) body_{seed}(in, out, at);
}}
#endif
""")
    return "\n".join(parts)
