"""The page of messages quotes what its code raises."""

import re

import pytest

import troubleshooting

pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")
TEXT = troubleshooting.PAGE.read_text()
ENTRIES = list(troubleshooting.ENTRY.finditer(TEXT))
NUMBER = re.compile(r"\d[\d.]*(e[+-]\d+)?")


def words(message):
    """A message without the breaks of its lines, and without numbers, which machines round."""
    return NUMBER.sub("#", " ".join(message.split()))


def test_every_section_is_an_entry():
    assert len(ENTRIES) == len(re.findall("^## ", TEXT, re.MULTILINE)) >= 20


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["title"].strip("# \n"))
def test_messages_are_those_that_are_raised(entry):
    assert words(entry["message"]) == words(troubleshooting.raised(entry["code"]))


def test_code_that_raises_nothing_is_noticed():
    with pytest.raises(AssertionError, match="nothing is raised"):
        troubleshooting.raised("x = 1")
    assert troubleshooting.raised("raise ValueError('`x` must be 1')").startswith("ValueError: `x`")


def test_a_missing_module_can_be_imported_afterwards():
    troubleshooting.raised("import sys; sys.modules['json'] = None\nimport json")
    import json

    assert json.loads("1") == 1
