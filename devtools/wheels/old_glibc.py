"""Link against this machine's C library as if it were an older one, so that a wheel runs on older systems, too.

The linker takes a symbol's newest version: dlsym of glibc 2.34, which moved it into libc and changed nothing else. The
older versions are still in the library, for programs that were built then. A stand-in for the library, which has the
newest version up to OLDEST of each symbol, is linked in its place, after all that uses it. At run time there is no
stand-in, only glibc; where dlsym lies in libdl.so.2 (before 2.34), torch has loaded that.
"""

import pathlib
import re
import shlex
import subprocess

OLDEST = (2, 28)  # torch's own wheels ask for it
LIBRARIES = ("libc.so.6", "libm.so.6")
# A hint of glibc 2.32, "this process has one thread", which spares std::shared_ptr its atomic counting. It has no older
# version. The library has its own, which says that there may be more.
ONE_THREAD = 'char __libc_single_threaded __attribute__((visibility("hidden"))) = 0;\n'


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def versions_as_of_then(table: str) -> dict[str, tuple[str, int, str]]:
    """Of `objdump -T`: each symbol that can be linked, its kind and size, and its newest version up to OLDEST.

    What came into being later keeps its version, and the wheel then asks for that.
    """
    row = r"^[0-9a-f]+ (.{7}) \.\S+\t([0-9a-f]+) +(\(?)GLIBC_([\d.]+)\)? +(\w+)$"
    linked: dict[str, tuple[str, int]] = {}
    versions: dict[str, list[str]] = {}
    for flags, size, hidden, version, symbol in re.findall(row, table, re.M):
        versions.setdefault(symbol, []).append(version)
        if not hidden:
            linked[symbol] = ("object" if flags.endswith("O") else "function", int(size, 16))
    found = {}
    for symbol, (kind, size) in linked.items():
        then = [version for version in versions[symbol] if numbers(version) <= OLDEST]
        found[symbol] = (kind, size, max(then or versions[symbol], key=numbers))
    return found


def stand_in(library: str, folder: pathlib.Path, compiler: list[str]) -> pathlib.Path:
    """A library of that name, for the linker alone."""

    def output(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    symbols = versions_as_of_then(output("objdump", "-T", output(*compiler, f"-print-file-name={library}").strip()))
    code, script, path = (folder / f"{library}{suffix}" for suffix in (".s", ".map", ""))
    lines = []
    for symbol, (kind, size, version) in symbols.items():
        lines += [f".globl old_{symbol}", f".type old_{symbol}, %{kind}", f"old_{symbol}: .zero {max(size, 1)}"]
        lines += [f".size old_{symbol}, {max(size, 1)}", f".symver old_{symbol}, {symbol}@@GLIBC_{version}"]
    code.write_text("\n".join([".data", *lines, ""]))
    names = sorted({version for _, _, version in symbols.values()})
    script.write_text("".join(f"GLIBC_{name} {{}};\n" for name in names))
    link = ["-shared", "-nostdlib", f"-Wl,-soname,{library}", f"-Wl,--version-script={script}"]
    output(*compiler, *link, str(code), "-o", str(path))
    return path


def stand_ins(folder: pathlib.Path, compiler: str) -> str:
    """Makes them in a folder, and says what to link last."""
    command = shlex.split(compiler)
    made = [stand_in(library, folder, command) for library in LIBRARIES]
    source, compiled = folder / "one_thread.c", folder / "one_thread.o"
    source.write_text(ONE_THREAD)
    subprocess.run([*command, "-x", "c", "-c", "-fPIC", str(source), "-o", str(compiled)], check=True)
    return " ".join(map(str, [compiled, *made]))
