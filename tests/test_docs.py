"""The pages of docs/ run as they are printed: every Python block of a page, one after another, in one namespace."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["start.md", "recipes.md", "migration.md"]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(page, loose_ranks, unchecked):
    text, names = (DOCS / page).read_text(), {}
    blocks = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    assert blocks
    for block in blocks:
        line = text[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block[1], page, "exec"), names)


def test_links_between_pages_lead_somewhere():
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+\.(?:md|png))[^)]*\)", page.read_text()):
            if not target.startswith("../out/"):  # figures that the notebooks leave
                assert (page.parent / target).exists(), f"{page.name}: {target}"
