"""Pages of the site that lie outside of docs/, and the links that lead in and out. Run by mkdocs (mkdocs.yml: hooks).

Links are written as they work on a code host, relative to the page's file; here they are turned to the page's place in
the site. A link to a file that is not in the site is left alone, and the strict build then fails on it.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# file of the repository: its place in the site
PLACES = {
    "README.md": "index.md",
    "docs/README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE",
    "devtools/ptx/README.md": "ptx.md",
    "bench/results/README.md": "results/index.md",
}
PLACES |= {
    path.relative_to(ROOT).as_posix(): f"results/{path.name}"
    for path in sorted((ROOT / "bench" / "results").iterdir())
    if path.name != "README.md"
}
FILES = {place: file for file, place in PLACES.items() if not file.startswith("docs/")}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
FENCED = re.compile(r"(^```.*?^```)", re.M | re.S)


def on_files(files, config):
    for place, file in FILES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / file)))
    return files


def on_page_markdown(markdown, page, **_):
    here = page.file.src_uri
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # one entry, and it is the page itself
    source = FILES.get(here, f"docs/{here}")

    def in_the_site(match):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        place = PLACES.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        return match[1] if place is None else posixpath.relpath(place, posixpath.dirname(here) or ".")

    parts = FENCED.split(markdown)
    parts[::2] = [LINK.sub(in_the_site, part) for part in parts[::2]]
    return "".join(parts)
