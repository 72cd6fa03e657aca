"""The site: a page for each public name, links to it, and a search that knows its words."""

import collections
import re
from pathlib import Path

import pytest

import check_links
import equitune
import public_names

pytest.importorskip("sphinx", reason="Sphinx is not installed")

import linked_names
import search_words

DOCS = Path(__file__).resolve().parents[1] / "docs"
LISTED = re.compile(r"currentmodule:: (\S+)\n\n.. autosummary::\n(?:   :.*\n)+\n((?:   \w+\n)+)")


def listed(text):
    """The names of the tables of a page of the API."""
    return [f"{module}.{name}" for module, names in LISTED.findall(text) for name in names.split()]


def test_every_public_name_has_one_page():
    pages = sorted((DOCS / "api").glob("*.rst"))
    found = collections.Counter(name for page in pages for name in listed(page.read_text()))
    assert set(found) == set(public_names.pages())
    assert set(found.values()) == {1}
    index = (DOCS / "api" / "index.rst").read_text()
    assert {page.stem for page in pages} == set(re.findall(r"^   (\w+)$", index, re.MULTILINE)) | {
        "index"
    }


def test_names_are_documented_where_users_import_them_from():
    names = public_names.documented()
    assert names["equitune.wrappers.EquiTune"] == "equitune.EquiTune"
    assert names["equitune.weight_nets.OrbitWeightNet"] == "equitune.weightings.OrbitWeightNet"
    assert names["equitune.losses.entropy"] == "equitune.losses.entropy"
    assert "pytest_equitune.equivariant" in names


def test_members_are_those_that_the_package_documents():
    members = public_names.own_members("equitune.EquiTune")
    assert {"explain", "freeze_backbone", "unwrap"} <= set(members)
    assert "parameters" not in members
    assert public_names.own_members("equitune.Explanation") == []


def test_pages_name_the_guides_that_use_them():
    assert "/guides/text" in public_names.guides("equitune.text.EquiLM")
    assert "/guides/testing" in public_names.guides("equitune.testing.strategies.images")
    assert public_names.guides("equitune.losses.nothing") == []
    # A word in a sentence does not count as a use of `audit`, `Call` or `Table`.
    assert "/guides/testing" not in public_names.guides("equitune.audit.audit")
    assert "/guides/testing" not in public_names.guides("equitune.runners.Call")
    assert public_names.guides("equitune.audit.Table") == ["/guides/audit"]


def test_every_public_name_is_in_a_guide():
    assert [name for name in public_names.pages() if not public_names.guides(name)] == []


def test_a_name_that_no_guide_has_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "guides").mkdir()
    (tmp_path / "guides" / "one.md").write_text("Call `EquiTune`. The mean of an orbit.")
    monkeypatch.setattr(public_names, "DOCS", tmp_path)
    assert public_names.guides("equitune.EquiTune") == ["/guides/one"]
    missing = {"equitune.EquiZero", "equitune.functional.orbit", "equitune.runners.Call"}
    assert [name for name in missing if public_names.guides(name)] == []


def test_constants_have_a_docstring_below_them():
    constants = [name for name in public_names.pages() if not callable(public_names.load(name))]
    assert "equitune.vision.DEFAULT_TEMPLATES" in constants
    assert not [name for name in constants if not public_names.comment(name)]
    assert public_names.comment("equitune.audit.NOTHING") == ""


def test_literals_link_to_names_and_not_to_arguments():
    targets = linked_names.targets()
    assert targets["EquiTune"] == targets["equitune.EquiTune"] == "equitune.EquiTune"
    assert targets["assert_equivariant"] == "equitune.testing.assert_equivariant"
    # `images` and `tie_tolerance` are functions, but in most places arguments.
    assert not {"images", "tie_tolerance"} & set(targets)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("EquiTune", ["Equi", "Tune"]),
        ("REquiZeroLM", ["R", "Equi", "Zero", "LM"]),
        ("assert_equivariant", ["assert", "equivariant"]),
        ("d4", ["d", "4"]),
        ("group", []),
        ("Group", []),
    ],
)
def test_search_takes_names_apart(name, parts):
    assert search_words.parts(name) == parts
    words = search_words.SearchNames({}).split(f"the {name} of")
    assert words == ["the", name, "of", *parts]


def test_links_from_source_code_name_the_place_on_the_page():
    wrong = '"../api/generated/equitune.weightings.Copies.html#equitune.Copies.own"'
    right = '"../api/generated/equitune.weightings.Copies.html#equitune.weightings.Copies.own"'
    assert linked_names.mended(wrong) == linked_names.mended(right) == right
    other = '"../api/generated/equitune.losses.entropy.html#equitune.losses.entropy"'
    assert linked_names.mended(other) == other


def test_broken_links_are_noticed(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here"></a><a href="b.html#there"></a><a href="b.html#gone"></a>'
        '<a href="c.html"></a><a href="sub/"></a><img src="p.png"><a href="https://x.org/y"></a>'
    )
    (tmp_path / "b.html").write_text('<h1 id="there"></h1>')
    (tmp_path / "p.png").touch()
    assert check_links.broken(tmp_path) == ["a.html: b.html#gone", "a.html: c.html", "a.html: sub/"]


def test_the_version_of_the_site_is_that_of_the_package():
    assert "release = equitune.__version__" in (DOCS / "conf.py").read_text()
    assert re.fullmatch(r"\d+\.\d+\.\d+", equitune.__version__)
