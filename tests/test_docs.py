"""The pages of docs/ run as they are printed: every Python block of a page, one after another, in one namespace."""

import ast
import doctest
import re
from operator import attrgetter
from pathlib import Path

import pytest

import vijax as vj

DOCS = Path(__file__).parents[1] / "docs"
PACKAGE = Path(vj.__file__).parent
ERRORS = ("TypeError", "ValueError")
PAGES = ["start.md", "recipes.md", "fit.md", "migration.md", "unbiased.md", "fast.md"]
ELSEWHERE = ["after_a_two.md", "digits.md", "extend.md", "refusals.md"]  # in test_house.py
LINK = r"\](?:\(|: )(api/\w+\.md)#vijax\.([\w.]+)"  # to a name, in place or at the end of a page
CLAIMS = {  # numbers that a page states
    "recipes.md": "abs(jax.nn.softmax(results.bound[one_of_each])[0] - 0.7) < 0.01"
    " and abs(of_path.log_w.mean() + 319.1) < 0.3",
    "migration.md": "abs(value + 49.95) < 0.02 and apart['w'] < 0.02 and apart_tfp < 0.02"
    " and abs(posterior['w'][1] - theirs['loc']['w']).max() < 0.05",
}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(page, loose_ranks, unchecked):
    text, names = (DOCS / page).read_text(), {}
    blocks = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    assert blocks
    for block in blocks:
        line = text[: block.start()].count("\n") + 1
        if ">>>" in block[1]:
            answers(block[1], names, page, line)
        else:
            exec(compile("\n" * line + block[1], page, "exec"), names)
    assert eval(CLAIMS.get(page, "True"), names)


def answers(block, names, page, line):
    """Run a block with prompts, and compare its answers."""
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    test = doctest.DocTestParser().get_doctest(block, names, page, page, line)
    runner = doctest.DocTestRunner(optionflags=flags)
    runner.run(test)
    assert runner.failures == 0


def test_every_page_with_blocks_runs():
    for page in DOCS.glob("*.md"):
        runs = page.name in [*PAGES, *ELSEWHERE]
        assert runs or "```python" not in page.read_text(), page.name


def test_links_between_pages_lead_somewhere():
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]:
        for target in re.findall(r"\](?:\(|: )([^)#: ]+\.(?:md|png))", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    "record",
    [vj.fitting.Fit, vj.fitting.Restarts, vj.diagnostics.Summary],
    ids=lambda r: r.__name__,
)
def test_the_page_of_a_fit_names_every_field(record):
    page = (DOCS / "fit.md").read_text()
    section = page.split(f"\n## {record.__name__}\n")[1].split("\n## ")[0]
    missing = [field for field in record._fields if f"`{field}`" not in section]
    assert not missing or missing == ["verdict"]  # which has a section of its own


def test_links_to_names_lead_to_the_page_that_documents_them():
    for page in DOCS.glob("*.md"):
        for target, name in re.findall(LINK, page.read_text()):
            room, function = name.rsplit(".", 1)
            assert f"automodule:: vijax.{room}\n" in (DOCS / target).read_text(), page.name
            assert hasattr(attrgetter(room)(vj), function), f"{page.name}: {name}"


def text(node):
    """The words of a string, with * for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text, node.values))
    return text(node.left) + text(node.right) if isinstance(node, ast.BinOp) else "*"


def nodes(paths):
    return [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]


def index_of_refusals():
    page = (DOCS / "refusals.md").read_text().split("## From the words of the error\n")[1]
    rows = re.findall(r"(?m)^\| (.*?) \|", page.split("\nWords used here")[0])
    return [words for row in rows if "error says" not in row for words in row.split("; ")]


def test_the_index_of_refusals_holds_words_of_errors():
    strings = [text(node) for node in nodes(PACKAGE.rglob("*.py"))]
    for words in index_of_refusals():
        assert any(words in string for string in strings), words


def test_what_a_fit_is_said_to_say_it_says():
    section = (DOCS / "fit.md").read_text().split("### How it stopped\n")[1].split("\n## ")[0]
    strings = [text(node) for node in nodes((PACKAGE / "fitting").glob("*.py"))]
    for row in re.findall(r"(?m)^\| (.*?) \|", section)[1:]:
        for words in filter(None, re.split(r"; | ?\.\.\. ?", row)):
            assert any(words in string for string in strings), words


def test_the_index_of_refusals_has_every_general_refusal():
    """Those that any estimator may make; a target's or a family's own name their cure alone."""
    files = [
        "checks.py",
        "calls.py",
        "raised.py",
        "engine/_refusals.py",
        "engine/_member_refusals.py",
    ]
    for node in nodes(PACKAGE / file for file in files):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS:
            message = text(node.args[0])
            assert message == "*" or any(words in message for words in index_of_refusals()), message
