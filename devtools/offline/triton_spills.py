"""Whether a Triton kernel spills registers: every kind of features and every target, with any version of Triton.

    python -m devtools.offline.triton_spills                          with the Triton that is installed
    python -m devtools.offline.triton_spills --triton 3.6.0 3.7.1     with these, installed into build/triton/<version>

Another Triton compiles with the torch that is installed: what torch brings makes no difference to a compiler. It takes
up to 1 GB and is left where it is for the next time. Rows are written as they come to
build/triton/spills-<version>.csv; what is there is not compiled again, unless --again is given or a kernel has changed.
The last line counts kernels and those that spill, with the most bytes. No GPU is needed. Ends with 1 where any spills.
"""

import argparse
import concurrent.futures
import csv
import dataclasses
import hashlib
import itertools
import os
import pathlib
import subprocess
import sys

import torch

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "build" / "triton"
KERNELS = ROOT / "fgd_kernels" / "triton_kernels"
COLUMNS = ("kernels", "target", "kind", "kernel", "registers", "spilled")
TARGETS = ("75", "80", "90", "100", "120", "gfx942", "gfx1100")
TWO_LEVELS = ((32, 32), (5, 5))  # rows that allow 128-bit loads, and rows that do not


@dataclasses.dataclass(frozen=True)
class Kind:
    """Features as a user may have them: arguments of `triton_build.launches`, and what is known of pointers."""

    arguments: dict
    aligned: bool = True
    every_kernel: bool = False  # or the passes over the features alone

    def compiled(self, target: str, disassemble: bool = False) -> list[dict]:
        """What `triton_build.resources` finds of each kernel."""
        from devtools.offline import triton_build

        found = []
        for launch in triton_build.launches(**self.arguments, sizes=TWO_LEVELS, target=target):
            name = launch.kernel.fn.__name__
            if self.every_kernel or name.endswith("_pass"):
                compiled = triton_build.compile_for(launch, triton_build.TARGETS[target], self.aligned)
                row = triton_build.resources(compiled, triton_build.TARGETS[target], disassemble)
                found.append({"kernel": name, "warps": launch.options["num_warps"]} | row)
        return found


def kinds() -> dict[str, Kind]:
    """By name: first what most users have, 256 channels of one type, then each that compiles to something else."""
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    found = {}
    for (name, dtype), last in itertools.product(types.items(), (False, True)):
        layout = "channels_last" if last else "NCHW"
        common = {"student_dtype": dtype, "channels_last": last}
        found[f"{name}, {layout}"] = Kind(common)
        if name == "float16":
            continue
        for channels in (16, 48, 62, 128, 248, 250, 320, 384, 512, 640, 768, 1024, 1280, 2048):
            found[f"{name}, {layout}, {channels} channels"] = Kind(common | {"channels": channels})
        found[f"{name}, {layout}, sliced"] = Kind(common | {"sliced": True})
        found[f"{name}, {layout}, no GcBlocks"] = Kind(common | {"gc": False})
        found[f"{name}, {layout}, pointers not aligned"] = Kind(common, aligned=False)
        found[f"{name}, {layout}, offsets of 64 bits"] = Kind(common | {"wide": True})
        other = "bfloat16" if name == "float32" else "float32"
        found[f"{name} and {other}, {layout}"] = Kind(common | {"teacher_dtype": types[other]})
    wide = {"student_dtype": types["float32"], "channels": 1024}
    found["every kernel, 1024 channels"] = Kind(wide, every_kernel=True)
    return dict(sorted(found.items(), key=lambda item: item[0].count(",")))


def named(parts: list[str]) -> list[str]:
    """The kinds of these names; a part that is no whole name means all kinds that have it in theirs."""
    every = kinds()
    return [kind for kind in every if any(part == kind or (part not in every and part in kind) for part in parts)]


def one(target: str, name: str) -> list[dict]:
    """Rows of a kind on a target: a task of a process."""
    rows = [{"target": target, "kind": name} | row for row in kinds()[name].compiled(target)]
    return [{column: row[column] for column in COLUMNS if column in row} for row in rows]


def state_of_the_kernels() -> str:
    """Changes with any of their files."""
    files = sorted(KERNELS.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def measure(asked: argparse.Namespace) -> bool:
    """With the Triton that is installed; whether nothing spills."""
    import triton

    FOLDER.mkdir(parents=True, exist_ok=True)
    path, state, rows = FOLDER / f"spills-{triton.__version__}.csv", state_of_the_kernels(), []
    if path.exists() and not asked.again:
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["kernels"] == state]
    done = {(row["target"], row["kind"]) for row in rows}
    tasks = [(t, k) for k in named(asked.kinds) for t in asked.targets if (t, k) not in done]
    with path.open("w", newline="") as file, concurrent.futures.ProcessPoolExecutor(asked.jobs) as pool:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        for found in concurrent.futures.as_completed([pool.submit(one, *task) for task in tasks]):
            for row in found.result():
                writer.writerow({"kernels": state} | row)
                rows.append({name: str(value) for name, value in row.items()})
                if row["spilled"]:
                    print("spills:", *(f"{name}={value}" for name, value in row.items()), flush=True)
            file.flush()
    spilling = [row for row in rows if int(row["spilled"])]
    most = max((int(row["spilled"]) for row in spilling), default=0)
    print(f"| {triton.__version__} | {len(rows)} | {len(spilling)} | {most} |", flush=True)
    return not spilling


def with_version(version: str, asked: argparse.Namespace) -> bool:
    """In a process that finds that Triton first."""
    folder = FOLDER / version
    if not (folder / "triton").exists():
        install = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            folder,
            f"triton=={version}",
        ]
        subprocess.run([str(part) for part in install], check=True)
    rest = ["--jobs", str(asked.jobs), "--targets", *asked.targets, "--kinds", *asked.kinds, *["--again"] * asked.again]
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "devtools.offline.triton_spills", *rest]
    return not subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", nargs="+", metavar="VERSION", help="instead of the one that is installed")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument(
        "--kinds", nargs="+", default=[""], metavar="NAME", help="those of these names, or with such a part in theirs"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--again", action="store_true", help="compile what is in the file, too")
    asked = parser.parse_args()
    # A list, not a generator: each version runs, whatever the others do.
    passed = [with_version(version, asked) for version in asked.triton] if asked.triton else [measure(asked)]
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
