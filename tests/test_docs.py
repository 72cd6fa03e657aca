"""The README's and the docs' code runs, and their numbers are those of results/*.json."""

import re
from pathlib import Path

import matplotlib
import pytest

import offline
import render

ROOT = Path(__file__).resolve().parents[1]
# What Sphinx generates, in folders that git ignores, is not a page of ours.
GENERATED = {"_build", "gallery", "generated"}
PAGES = [
    ROOT / "README.md",
    *sorted(
        page
        for page in (ROOT / "docs").rglob("*.md")
        if not GENERATED & set(page.relative_to(ROOT).parts)
    ),
]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=name_of)
def test_code_blocks_run(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"offline": offline}
    # A page may choose a style of matplotlib, for itself alone.
    with matplotlib.rc_context():
        for block in BLOCK.findall(page.read_text()):
            exec(compile(offline.without_hub(block), str(page), "exec"), namespace)


def test_the_message_that_the_guide_shows_is_the_one_that_is_printed(capsys):
    text = (ROOT / "docs" / "guides" / "testing.md").read_text()
    (shown,) = re.findall(r"prints\n\n```text\n(.*?)```", text, re.DOTALL)
    namespace = {}
    for block in BLOCK.findall(text):
        exec(compile(block, "docs/guides/testing.md", "exec"), namespace)
        printed = capsys.readouterr().out
        if "report.message()" in block:
            break
    assert printed.split() == shown.split()


def test_the_report_that_the_page_shows_is_the_one_that_is_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "guides" / "rl.md").read_text()
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    namespace = {}
    for block in BLOCK.findall(text[: text.index(shown)]):
        exec(compile(block, "docs/guides/rl.md", "exec"), namespace)
    assert " ".join(capsys.readouterr().out.split()).endswith(" ".join(shown.split()))


@pytest.mark.parametrize("page", render.PAGES, ids=name_of)
def test_tables_are_rendered_from_the_results(page):
    text = page.read_text()
    assert render.PLACE.search(text)
    assert render.rendered(text) == text


def test_a_changed_number_is_noticed():
    text = render.PAGES[0].read_text()
    place = render.PLACE.search(text)
    number = re.search(r"\d\d\.\d%", place[0])[0]
    assert render.rendered(text.replace(number, "99.9%")) == text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    # The badges lead to the site that hosts the repository.
    for target in re.findall(r"\]\((?!http|#|\.\./\.\./actions/)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
