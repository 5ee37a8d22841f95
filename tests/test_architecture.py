"""What may import what, and what may be said only once: docs/architecture.md as assertions on the source.

Nothing is imported here; files are read and parsed. Each rule is also shown to catch what it forbids.
"""

import ast
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from headers import cpp_constants

ROOT = pathlib.Path(__file__).parents[1]
HOMES = {"fgd_kernels": ROOT, "fgd_distill": ROOT / "python", "devtools": ROOT, "bench": ROOT, "tests": ROOT}
MAY_IMPORT = {
    "fgd_kernels": {"fgd_kernels"},
    "fgd_distill": {"fgd_kernels", "fgd_distill"},
    "devtools": {"fgd_kernels", "devtools"},
    "bench": {"fgd_kernels", "fgd_distill", "devtools", "bench"},
    "tests": {"fgd_kernels", "fgd_distill", "devtools", "tests"},
}


class Import(NamedTuple):
    """A module of ours imports another one; `function` is the one it does so in, or None at the module's level."""

    importer: str
    imported: str
    line: int
    function: str | None

    def __str__(self) -> str:
        where = f"in {self.function}()" if self.function else "at the top"
        return f"{self.importer}:{self.line} imports {self.imported} {where}"


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_modules(homes: dict[str, pathlib.Path] = HOMES) -> dict[str, pathlib.Path]:
    """Every module of ours by its dotted name; a package goes by its own name and is its __init__.py."""
    found = {}
    for package, home in homes.items():
        for path in (home / package).rglob("*.py"):
            parts = path.relative_to(home).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def read_imports(name: str, path: pathlib.Path, modules, aliases=None) -> Iterator[Import]:
    """What a module imports of ours, at its top and in its functions; not what only type checkers see."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    yield from _walk(ast.parse(path.read_text()), None, name, package, modules, aliases or {})


def _walk(node, function, name, package, modules, aliases) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        inside = function
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = child.name
        for target in _targets(child, package):
            # `from a import b`: the module a.b if there is one, else a
            known = next((t for t in (target, target.rpartition(".")[0]) if aliases.get(t, t) in modules), None)
            if known:
                yield from (Import(name, m, child.lineno, inside) for m in _executed(aliases.get(known, known), name))
        yield from _walk(child, inside, name, package, modules, aliases)


def _executed(imported: str, importer: str) -> list[str]:
    """The module itself, and the packages around it whose __init__ runs first: not those that the importer is in."""
    parts = imported.split(".")
    around = [".".join(parts[:count]) for count in range(1, len(parts))]
    return [p for p in around if not f"{importer}.".startswith(f"{p}.")] + [imported] * (imported != importer)


def _targets(node, package: str) -> list[str]:
    """Dotted names that a statement imports: "a.b" for `import a.b` and for `from a import b`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*up, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
        target = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
        return [package + target if target.startswith(".") else target]
    return []


@pytest.fixture(scope="module")
def modules():
    return read_modules()


@pytest.fixture(scope="module")
def imports(modules, pytestconfig):
    """Of all of ours. Tests may import helpers beside them by their bare names: pytest's `pythonpath`."""
    folders = [f for f in pytestconfig.getini("pythonpath") if ROOT / "tests" in pathlib.Path(f).parents]
    names = {path: name for name, path in modules.items()}
    helpers = {path.stem: names[path] for folder in folders for path in pathlib.Path(folder).glob("*.py")}
    return [
        found
        for name, path in modules.items()
        for found in read_imports(name, path, modules, helpers if name.startswith("tests") else None)
    ]


def room(module: str) -> str:
    return module.partition(".")[0]


# ---- imports ---------------------------------------------------------------------------------------------------------


def circle(imports: list[Import]) -> list[Import]:
    """Imports that lead from a module back to itself, or none."""
    onward: dict[str, list[Import]] = {}
    for found in imports:
        onward.setdefault(found.importer, []).append(found)
    finished: set[str] = set()

    def search(module: str, path: list[Import]) -> list[Import]:
        started = [step.importer for step in path]
        if module in started:
            return path[started.index(module) :]
        if module not in finished:
            for step in onward.get(module, ()):
                if found := search(step.imported, [*path, step]):
                    return found
            finished.add(module)
        return []

    return next((found for module in onward if (found := search(module, []))), [])


@pytest.mark.parametrize("package", HOMES)
def test_no_import_circle(package, imports):
    """Imports inside functions count: one that is there to dodge a circle closes it here."""
    found = circle([i for i in imports if room(i.importer) == room(i.imported) == package])
    assert not found, "a circle:\n" + "\n".join(map(str, found))


def trespasses(imports: list[Import]) -> list[str]:
    return [str(i) for i in imports if room(i.imported) not in MAY_IMPORT[room(i.importer)]]


def test_who_may_import_whom(imports):
    assert not trespasses(imports)


def digits_imported(imports: list[Import]) -> list[str]:
    """Imports of the digits experiment by others than the command line, the experiment itself and tests."""
    allowed = ("fgd_distill.digits", "fgd_distill.commands", "tests")
    return [
        str(i) for i in imports if i.imported.startswith("fgd_distill.digits") and not i.importer.startswith(allowed)
    ]


def test_the_digits_experiment_is_imported_by_commands_alone(imports):
    assert not digits_imported(imports)


# ---- families --------------------------------------------------------------------------------------------------------

# What only models of one family have. Code outside of adapters/ looks for none of it.
PARTS = {
    "bbox_head",
    "data_preprocessor",
    "fpn_blocks",
    "image_mean",
    "image_std",
    "pan_blocks",
    "prior_generator",
    "roi_head",
    "roi_heads",
    "rpn",
    "with_neck",
    "with_roi_head",
}
# These build detectors of torchvision's, by name and for the digits, and look into none.
BUILDERS = {"detectors/by_name.py", "detectors/fcos_start.py", "digits/detectors.py"}
MASKS = {"data/coco_folder.py", "data/datamodule.py", "data/evaluation.py"}  # those of annotations and of predictions
# The families' own trainers with a teacher; nothing imports them.
TRAINERS = {"huggingface.py", "mmdet.py", "ultralytics.py"}


def families() -> list[str]:
    """The packages that adapters/registry.py lists."""
    tree = ast.parse((ROOT / "python" / "fgd_distill" / "adapters" / "registry.py").read_text())
    (listed,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "FAMILIES")
    return [key.value for key in listed.keys]


def family_knowledge(text: str, path: str = "a.py") -> list[str]:
    """What a module outside of adapters/ says of one family of detectors, given its path in fgd_distill."""
    found: list[str] = []
    tree, packages = ast.parse(text), families()
    told = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for inner in ast.walk(node)}
    told |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.IfExp) for part in (node.body, node.orelse)}
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", None)
        is_name = isinstance(node, ast.Attribute | ast.Constant) and id(node) not in docstrings
        if is_name and name in PARTS:
            found.append(f"{path}:{node.lineno}: {name}")
        if is_name and name in ("__name__", "__class__") and isinstance(node, ast.Attribute) and id(node) not in told:
            # A message may tell a class's name; nothing may be decided by it, but of an error.
            owner = ast.unparse(node.value)
            if name == "__class__" or (owner.startswith("type(") and owner != "type(error)"):
                found.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Dict) and path not in MASKS:
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            found += [f"{path}:{node.lineno}: invented masks"] * ("masks" in keys)
        if path not in BUILDERS and isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
            modules = [f"{target}." for target in _targets(node, "")]
            found += [f"{path}:{node.lineno}: {m[:-1]}" for m in modules for p in packages if m.startswith(f"{p}.")]
    return found


def test_adapters_know_the_family_and_nobody_else():
    package = ROOT / "python" / "fgd_distill"
    paths = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    rooms = TRAINERS | {name for name in paths if name.startswith("adapters/")}
    elsewhere = {name: path for name, path in paths.items() if name not in rooms}
    assert elsewhere.keys() > BUILDERS | MASKS and "torchvision.models.detection" in families()
    assert not [told for name, path in elsewhere.items() for told in family_knowledge(path.read_text(), name)]
    assert all(family_knowledge(paths[f"adapters/{name}.py"].read_text()) for name in ("torchvision", "mmdet"))


# ---- sys.path --------------------------------------------------------------------------------------------------------

PATH_EDIT = re.compile(
    r"sys\.path\s*(?:\[[^\]]*\]\s*=(?!=)|\+?=(?!=)|\.(?:insert|append|extend|remove|pop|clear)\b)"
    r"|del sys\.path|from sys import .*\bpath\b|\baddsitedir\(|\bsyspath_prepend\("
)
WRITTEN_IN = {".py", ".md", ".toml", ".sh", ".yml", ".yaml", ".cmake", ".cfg"}


def path_edits(text: str) -> list[str]:
    """Lines that edit sys.path, code within strings among them. To read it is no edit."""
    return [line.strip() for line in text.splitlines() if PATH_EDIT.search(line)]


def test_no_edit_of_sys_path():
    """pyproject.toml says what tests may import, `python -m` what benchmarks may."""
    folders = ("fgd_kernels", "python", "devtools", "bench", "tests", "docs", "csrc", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in WRITTEN_IN]
    files += [
        path for path in ROOT.iterdir() if path.is_file() and (path.suffix in WRITTEN_IN or path.name == "Makefile")
    ]
    found = {
        str(path): edits for path in files if path != pathlib.Path(__file__) and (edits := path_edits(path.read_text()))
    }
    assert not found


# ---- constants -------------------------------------------------------------------------------------------------------


def python_constants(text: str) -> dict[str, int]:
    """A module's names in capitals that are bound to a number, as they are or as tl.constexpr."""
    found = {}
    for node in ast.parse(text).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = node.value if targets else None
        if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("constexpr"):
            value = value.args[0]
        if isinstance(value, ast.Constant) and type(value.value) is int:
            found |= {ast.unparse(name): value.value for name in targets if ast.unparse(name).isupper()}
    return found


def python_name(name: str) -> str:
    """kGcBlockSize is GC_BLOCK_SIZE in Python."""
    return re.sub(r"(?<=[a-z\d])(?=[A-Z])", "_", name.removeprefix("k")).upper()


def stated_twice(cpp: dict[str, str], python: dict[str, str]) -> list[str]:
    """Names of constants with a second statement, given files by path: csrc/include/fgd is what backends share.

    A C++ constant of those headers has no other; no two rooms of csrc and no two Python modules state the same number
    by the same name; where Python needs a shared number it has the same value.
    """
    found, shared, places = [], {}, {}
    for path, text in cpp.items():
        for name, value in cpp_constants(text).items():
            if "include/fgd" in path:
                shared[name] = value
            places.setdefault(name, []).append((path, value))
    for name, stated in places.items():
        rooms = {path.rpartition("/")[0] for path, value in stated if value is not None}
        same = len({value for _, value in stated}) == 1 and len(rooms) > 1
        if len(stated) > 1 and (same or name in shared):
            found.append(f"{name}: {', '.join(path for path, _ in stated)}")
    numbers = {python_name(name): value for name, value in shared.items()}
    seen: dict[tuple[str, int], str] = {}
    for path, text in python.items():
        for name, value in python_constants(text).items():
            if (name, value) in seen:
                found.append(f"{name}: {seen[name, value]}, {path}")
            if name in numbers and numbers[name] != value:
                found.append(f"{name}: {value} in {path}, {numbers[name]} in csrc/include/fgd")
            seen[name, value] = path
    return found


def test_no_constant_of_the_kernels_is_stated_twice():
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cuh", ".cpp", ".cu")]
    cpp = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sources}
    python = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "fgd_kernels").rglob("*.py")}
    assert {"kMaps", "kStats", "kSums", "kGcTensors", "kMaxChannels"} <= {
        name for text in cpp.values() for name in cpp_constants(text)
    }
    assert not stated_twice(cpp, python)


# ---- errors ----------------------------------------------------------------------------------------------------------

BUILTIN = {"ValueError", "TypeError", "RuntimeError"}


def builtin_errors(text: str) -> list[int]:
    """Lines that raise Python's own errors for what a caller did: a command would show these with a traceback."""
    raised = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Raise) and node.exc is not None]
    return [node.lineno for node in raised if {n.id for n in ast.walk(node.exc) if isinstance(n, ast.Name)} & BUILTIN]


def test_the_loss_raises_errors_of_its_own():
    found = {str(path): builtin_errors(path.read_text()) for path in (ROOT / "fgd_kernels").rglob("*.py")}
    assert not {path: lines for path, lines in found.items() if lines}


# ---- the rules catch what they forbid --------------------------------------------------------------------------------


def imports_of(files: dict[str, str], folder: pathlib.Path) -> list[Import]:
    """Of a made-up tree: its modules' texts by their paths."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    made = read_modules(dict.fromkeys(HOMES, folder))
    return [found for name, path in made.items() for found in read_imports(name, path, made)]


@pytest.mark.parametrize(
    "files",
    [
        {"a.py": "from . import b", "b.py": "from .a import x"},
        {"a.py": "import fgd_distill.b", "b.py": "def f():\n    from fgd_distill.a import x"},
        {"a.py": "from .room import b", "room/__init__.py": "", "room/b.py": "from ..a import x"},
        {"__init__.py": "from .a import x", "a.py": "from fgd_distill import y"},
        {"a.py": "import importlib\ndef f(): importlib.import_module('fgd_distill.b')", "b.py": "from . import a"},
        {
            "a.py": "class A:\n    def f(self):\n        from . import b",
            "b.py": "from . import c",
            "c.py": "from . import a",
        },
    ],
)
def test_a_circle_is_found(files, tmp_path):
    found = circle(imports_of({f"fgd_distill/{path}": text for path, text in files.items()}, tmp_path))
    assert len(found) >= 2 and found[0].importer == found[-1].imported


def test_no_circle_is_invented(tmp_path):
    files = {
        "fgd_distill/__init__.py": "from .a import x",
        "fgd_distill/a.py": "from . import b\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import c",
        "fgd_distill/b.py": "",
        "fgd_distill/c.py": "from . import a, b",
    }
    found = imports_of(files, tmp_path)
    assert not circle(found)
    assert {(i.importer, i.imported) for i in found} >= {
        ("fgd_distill", "fgd_distill.a"),
        ("fgd_distill.c", "fgd_distill.b"),
    }


@pytest.mark.parametrize(
    "importer, statement",
    [
        ("fgd_kernels/a.py", "def f():\n    import fgd_distill.b"),
        ("bench/a.py", "from tests.b import x"),
        ("devtools/a.py", "from tests import b"),
        ("tests/a.py", "from bench.b import x"),
        ("fgd_distill/a.py", "import devtools.b"),
    ],
)
def test_a_trespass_is_found(importer, statement, tmp_path):
    files = {f"{package}/b.py": "" for package in HOMES}
    assert not trespasses(imports_of(files, tmp_path))
    assert trespasses(imports_of(files | {importer: statement}, tmp_path))


def test_an_import_of_the_digits_is_found(tmp_path):
    files = {"fgd_distill/digits/__init__.py": "", "fgd_distill/digits/runs.py": "from . import demo"}
    files |= {"fgd_distill/digits/demo.py": "", "fgd_distill/commands/main.py": "from ..digits import runs"}
    assert not digits_imported(imports_of(files, tmp_path))
    assert digits_imported(imports_of(files | {"fgd_distill/data.py": "from .digits.runs import x"}, tmp_path))


@pytest.mark.parametrize(
    "line",
    [
        "if hasattr(student, 'roi_heads'): pass",
        "mean = model.transform.image_mean",
        "two = getattr(model, 'with_roi_head', False)",
        "if 'rcnn' in type(student).__name__.lower(): pass",
        "name = student.__class__.__name__",
        "target = {'boxes': boxes, 'masks': torch.ones(1)}",
        "def f():\n    from torchvision.models.detection import FCOS",
        "import ultralytics",
    ],
)
def test_knowledge_of_a_family_is_found(line):
    assert family_knowledge(line)
    allowed = (
        "raise TypeError(f'{role}: got {type(model).__name__}')\nfrom torchvision.ops import nms\nlog = x(__name__)"
    )
    assert not family_knowledge(f'"""Of roi_heads and masks."""\n{allowed}\nkeys = {{"boxes", "masks"}}\n')


@pytest.mark.parametrize(
    "line",
    [
        "sys.path.insert(0, here)",
        "sys.path[:0] = [here]",
        "sys.path = []",
        "sys.path += [here]",
        "    code = 'import sys; sys.path.append(0)'",
        "from sys import argv, path",
        "site.addsitedir(here)",
        "monkeypatch.syspath_prepend(here)",
    ],
)
def test_an_edit_of_sys_path_is_found(line):
    assert path_edits(f"import sys\n{line}\n") == [line.strip()]
    assert not path_edits("path = os.pathsep.join(sys.path)\nassert sys.path == sys.path[:]\n")


def test_a_constant_stated_twice_is_found():
    shared = (
        "enum Map : int {\n  kMapFocal,  // one\n  kMapContext = 5,\n  kMaps\n};\nconstexpr int kGcBlockSize = 16;\n"
    )
    cpp = {
        "csrc/include/fgd/layout.h": shared,
        "csrc/cuda/nchw.cuh": "constexpr int kRows = 4;\n",
        "csrc/cpu/tile.h": "",
    }
    python = {
        "layout.py": "MAPS: tl.constexpr = tl.constexpr(6)\nGC_BLOCK_SIZE = 16\nROWS = 3\n",
        "ops.py": "NAMES = 'x'",
    }
    assert cpp_constants(shared) == {"kMapFocal": 0, "kMapContext": 5, "kMaps": 6, "kGcBlockSize": 16}
    assert not stated_twice(cpp, python)
    for path, text in (("csrc/cpu/tile.h", "constexpr int64_t kRows = 4;"), ("csrc/arguments.h", "enum { kMaps };")):
        assert stated_twice(cpp | {path: text}, python)
    for text in ("MAPS = 6", "MAPS = 4", "GC_BLOCK_SIZE = 17"):
        assert stated_twice(cpp, python | {"ops.py": text})


@pytest.mark.parametrize("kind", ["ValueError", "(TypeError if x else KeyError)"])
def test_a_builtin_error_is_found(kind):
    assert builtin_errors(f"def f(x):\n    raise {kind}('x: expected a number, got none')\n") == [2]
    assert not builtin_errors("try:\n    f()\nexcept ValueError:\n    raise\nraise FGDValueError('x')\n")
