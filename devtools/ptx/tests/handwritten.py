"""Small PTX kernels as text, so that the interpreter is tested without any compiler."""

import numpy as np

from devtools.ptx import GPU, parse

HEADER = ".version 8.4\n.target sm_90\n.address_size 64\n"
TILE = ".shared .align 16 .b8 tile[4096];"
ADDRESS = """mov.u32 %r0, %tid.x; ld.param.u64 %rd0, [out]; mad.wide.u32 %rd1, %r0, 4, %rd0;
             mov.u32 %r1, tile; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;"""  # %r3: own word of tile, %rd1: of out


def kernel(body: str, params: str = ".param .u64 out", shared: str = "", registers: str = "", outside: str = "") -> str:
    """A module with one kernel ``k``; the usual register names are declared."""
    return f"""{HEADER}{outside}
.visible .entry k({params})
{{
    .reg .pred %p<16>; .reg .b16 %h<32>; .reg .b32 %r<64>; .reg .b64 %rd<64>; .reg .f32 %f<32>; .reg .f64 %fd<16>;
    {registers}
    {shared}
    {body}
    ret;
}}
"""


def run(body, threads=64, words=None, gpu=None, **declarations):
    """Launch one block of ``body``; ``(out as uint32, counts)``."""
    gpu = gpu or GPU()
    out = gpu.empty(4 * (words or threads))
    counts = gpu.launch(parse(kernel(body, **declarations))["k"], 1, threads, [out])
    return gpu.get(out, words or threads, np.uint32), counts


def run_elementwise(text: str, result, *inputs: np.ndarray, setup: str = "") -> np.ndarray:
    """What ``text`` makes of registers %a, %b, %c, elementwise, in %d; ``result`` a dtype, or bool for .pred %d."""
    n, kinds = len(inputs[0]), [f".b{8 * x.dtype.itemsize}" for x in inputs]
    out = np.dtype(np.uint32) if result is bool else np.dtype(result)
    params = ", ".join([f".param .u64 in{k}" for k in range(len(inputs))] + [".param .u64 out"])
    registers = "".join(f".reg {kind} %{name};" for kind, name in zip(kinds, "abc", strict=False))
    registers += ".reg .pred %d; .reg .b32 %chosen;" if result is bool else f".reg .b{8 * out.itemsize} %d;"
    body = "mov.u32 %r0, %tid.x;\n mov.u32 %r1, %ctaid.x;\n mov.u32 %r2, %ntid.x;\n mad.lo.u32 %r0, %r1, %r2, %r0;\n"
    for k, (kind, name) in enumerate(zip(kinds, "abc", strict=False)):
        body += f"ld.param.u64 %rd0, [in{k}]; mad.wide.u32 %rd1, %r0, {inputs[k].dtype.itemsize}, %rd0;\n"
        body += f"ld.global{kind} %{name}, [%rd1];\n"
    body += setup + "\n" + text + "\n"
    body += f"ld.param.u64 %rd0, [out]; mad.wide.u32 %rd1, %r0, {out.itemsize}, %rd0;\n"
    if result is bool:
        body += "selp.b32 %chosen, 1, 0, %d; st.global.b32 [%rd1], %chosen;\n"
    else:
        body += f"st.global.b{8 * out.itemsize} [%rd1], %d;\n"
    gpu = GPU()
    pointers = [gpu.put(x) for x in inputs] + [gpu.empty(n * out.itemsize)]
    block = 128 if n % 128 == 0 else n
    gpu.launch(parse(kernel(body, params, registers=registers))["k"], n // block, block, pointers)
    values = gpu.get(pointers[-1], n, out)
    return values.astype(bool) if result is bool else values


N = 512
INT_EDGES = [0, 1, 2, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x0000FFFF, 0xFFFF0000]
FLOAT_EDGES = [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 2.0**-126, 2.0**-140, 3.4e38, 65504.0, 2.0**-24, 0.5, 2.5]


def random(dtype, seed: int) -> np.ndarray:
    """N values that fill the type, edge cases among them."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = (rng.standard_normal(N) * 10.0 ** rng.integers(-3, 4, N)).astype(dtype)
            edges = np.array(FLOAT_EDGES).astype(dtype)
    else:
        values = np.frombuffer(rng.bytes(N * dtype.itemsize), dtype).copy()
        edges = np.array(INT_EDGES, np.uint64).astype(f"u{dtype.itemsize}").view(dtype)
    values[rng.permutation(N)[: len(edges)]] = edges
    return values


def check(text, result, kinds, expected, tolerance=0.0, **options):
    inputs = [random(kind, seed) for seed, kind in enumerate(kinds)]
    got = run_elementwise(text, result, *inputs, **options)
    with np.errstate(all="ignore"):
        want = expected(*inputs)
    if tolerance:
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=1e-37)
    else:
        np.testing.assert_array_equal(got, want)


def names(rows):
    return [row[0].split(" %")[0] + ("" if row[0].count(";") == 1 else "...") for row in rows]
