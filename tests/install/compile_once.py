"""Stands before a C++ compiler, as ccache does: `compile_once.py FOLDER COMPILER ARGUMENTS...`

The tests of this folder build the library from half a dozen copies of the tree. An object is compiled once for each
content of csrc and each set of arguments, and then copied from FOLDER; a copy's own path does not count.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys


def key(command: list[str], source: pathlib.Path, tree: pathlib.Path) -> str:
    digest = hashlib.sha256("\0".join(argument.replace(str(tree), "") for argument in command).encode())
    for path in (source, *sorted(path for path in (tree / "csrc").rglob("*") if path.is_file())):
        digest.update(f"\0{path.relative_to(tree)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def main() -> int:
    folder, *command = sys.argv[1:]
    tree = next((folder for folder in pathlib.Path.cwd().parents if (folder / "csrc").is_dir()), None)
    if tree is None or "-c" not in command or "-o" not in command:
        return subprocess.call(command)
    target, source = (pathlib.Path.cwd() / command[command.index(option) + 1] for option in ("-o", "-c"))
    kept = pathlib.Path(folder, key(command, source, tree))
    if kept.exists():
        shutil.copyfile(kept, target)
        return 0
    status = subprocess.call(command)
    if status == 0:
        fresh = kept.with_suffix(f".{os.getpid()}")
        shutil.copyfile(target, fresh)
        os.replace(fresh, kept)
    return status


if __name__ == "__main__":
    sys.exit(main())
