"""The table of what runs, family by family: every cell names tests that there are, or says no."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_cells_name_tests_or_say_no():
    page = (ROOT / "docs" / "guides" / "detectors.md").read_text()
    section = page.split("## What runs, family by family")[1].split("\n## ")[0]
    heading, _, *rows = (line.strip("|").split("|") for line in section.splitlines() if line.startswith("|"))
    assert len(heading) == 10 and len(rows) >= 13 and all(len(row) == len(heading) for row in rows)
    cells = [cell.strip() for row in rows for cell in row[1:]]
    named = [re.findall(r"`(test_\w+)`", cell) for cell in cells]
    assert all(names or re.fullmatch("no(: .+)?", cell) for names, cell in zip(named, cells, strict=True))
    assert all((ROOT / "tests" / "distill" / f"{name}.py").exists() for names in named for name in names)
