"""The pages hang together: links lead somewhere, snippets are Python, lists that repeat the code repeat all of it."""

import inspect
import re
from pathlib import Path

import pytest
from docstring_parser import parse

import fgd_distill
import fgd_kernels
from fgd_distill.commands import main as commands

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/results/README.md")
PAGES = sorted([*(ROOT / page for page in OUTSIDE), *DOCS.rglob("*.md")])
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.S)
# An environment variable where it is read: os.environ, getenv in C++, ENV{} in CMake.
READ = re.compile(r"""(?:environ(?:\.get\(|\[)|getenv\(|ENV\{)["']?([A-Z][A-Z0-9_]+)""")
SOURCES = ("fgd_kernels", "python", "csrc", "setup.py", "CMakeLists.txt")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{page.name} links to {target}, which does not exist"
        if anchor and "." not in anchor:  # with a dot: an object of the API reference, which the site's build looks for
            heads = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            assert anchor in [slug(head) for head in heads], f"{page.name} links to {target}: no such heading"


def slug(heading):
    """A heading's anchor as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_snippets_are_python(page):
    for language, content in FENCE.findall(page.read_text()):
        if language == "python":
            compile(content, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paragraphs_of_a_list_are_indented_by_four(page):
    """With less, the site ends the list before them, though code hosts do not."""
    text = re.sub(r"^ *```.*?```", "", page.read_text(), flags=re.S | re.M)
    assert not re.findall(r"(?<=\n\n) {1,3}\S.*", text)


def test_every_page_is_in_the_list_and_in_the_site():
    listed = {(DOCS / target).resolve() for target in re.findall(r"\]\((\S+\.md)\)", (DOCS / "README.md").read_text())}
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in sorted(DOCS.rglob("*.md")):
        if page != DOCS / "README.md":
            assert page in listed, f"docs/README.md does not list {name_of(page)}"
            assert f": {page.relative_to(DOCS).as_posix()}\n" in navigation, f"mkdocs.yml's nav lacks {name_of(page)}"


@pytest.mark.parametrize("package", [fgd_kernels, fgd_distill], ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name(package):
    page = (DOCS / "reference" / f"{package.__name__}.md").read_text()
    described = set(re.findall(rf"^::: {package.__name__}\.(\w+)$", page, re.M))
    assert described == set(package.__all__) - {"__version__"}
    for name in described:
        value = getattr(package, name)
        assert not callable(value) or value.__doc__, f"{package.__name__}.{name} has no docstring"


@pytest.mark.parametrize(
    "public",
    [getattr(package, name) for package in (fgd_kernels, fgd_distill) for name in package.__all__],
    ids=lambda public: getattr(public, "__name__", type(public).__name__),
)
def test_docstrings_describe_the_arguments(public):
    """All of them and no others, where a docstring has a section for them. One entry may describe several."""
    functions = [public, public.forward] if hasattr(public, "forward") else [public] if callable(public) else []
    for function in functions:
        entries = parse(function.__doc__ or "").params
        described = [name.strip(" `") for entry in entries for name in entry.arg_name.split(",")]
        taken = set(inspect.signature(function).parameters) - {"self"}
        assert not described or (len(described) == len(taken) and set(described) == taken)


def test_the_table_of_commands(capsys):
    commands.main(["--help"])
    table = re.findall(r"^\| `([\w-]+)` \| ([^:|]+)", (DOCS / "reference" / "command-line.md").read_text(), re.M)
    usage = re.findall(r"^  ([\w-]+) {2,}(\S.*)$", capsys.readouterr().out, re.M)
    assert [(name, summary.strip()) for name, summary in table] == usage


def test_the_version_is_the_same_everywhere():
    version = fgd_kernels.__version__
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == version
    assert re.search(r"version = \{(.*)\}", (ROOT / "README.md").read_text())[1] == version


def test_the_table_of_environment_variables():
    read = set()
    for source in (ROOT / name for name in SOURCES):
        for file in [source] if source.is_file() else source.rglob("*"):
            if file.suffix in {".py", ".cpp", ".h", ".cu", ".cuh", ".cmake", ".txt"}:
                read |= set(READ.findall(file.read_text()))
    table = re.findall(r"^\| `([A-Z_]+)` \|", (DOCS / "reference" / "environment.md").read_text(), re.M)
    assert sorted(table) == sorted(read)
