"""The README's and the docs' code runs, and their numbers are those of results/*.json."""

import re
from pathlib import Path

import pytest

import render

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
# The hub is out of reach of the tests: the same code, with random weights.
OFFLINE = ('weights="DEFAULT"', "weights=None")


@pytest.mark.parametrize(
    "page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda p: p.name
)
def test_code_blocks_run(page, capsys):
    namespace = {}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block.replace(*OFFLINE), str(page), "exec"), namespace)


@pytest.mark.parametrize("page", render.PAGES, ids=lambda p: p.name)
def test_tables_are_rendered_from_the_results(page):
    text = page.read_text()
    assert render.PLACE.search(text)
    assert render.rendered(text) == text


def test_a_changed_number_is_noticed():
    text = render.PAGES[0].read_text()
    place = render.PLACE.search(text)
    number = re.search(r"\d\d\.\d%", place[0])[0]
    assert render.rendered(text.replace(number, "99.9%")) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
