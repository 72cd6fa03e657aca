"""The generator of SCAN against the official files, example by example."""

import gzip
import os
from collections import Counter
from pathlib import Path

import pytest

import scan_grammar


def official(name):
    folder = os.environ.get("EQUITUNE_DATA")
    if not folder:
        pytest.skip("EQUITUNE_DATA is not set")
    with gzip.open(Path(folder) / "scan" / f"tasks_{name}.txt.gz", "rt") as file:
        return [
            tuple(line.removeprefix("IN: ").split(" OUT: ")) for line in file.read().splitlines()
        ]


def test_the_number_of_examples():
    examples = scan_grammar.every_example()
    assert len(examples) == len(set(examples)) == 20910
    assert {word for command, _ in examples for word in command.split()} == set(scan_grammar.WORDS)
    assert {a for _, actions in examples for a in actions.split()} == set(scan_grammar.ACTIONS)


@pytest.mark.parametrize(
    ("command", "actions"),
    [
        ("jump", "I_JUMP"),
        ("turn left", "I_TURN_LEFT"),
        ("walk opposite right twice", "I_TURN_RIGHT I_TURN_RIGHT I_WALK " * 2),
        ("turn around left", "I_TURN_LEFT " * 4),
        ("look after run around right", "I_TURN_RIGHT I_RUN " * 4 + "I_LOOK"),
        ("run left and walk thrice", "I_TURN_LEFT I_RUN I_WALK I_WALK I_WALK"),
    ],
)
def test_meanings(command, actions):
    assert scan_grammar.meaning(command) == actions.strip()


@pytest.mark.parametrize(
    "command",
    ["", "turn", "turn twice", "jump up", "jump left opposite", "and jump", "jump and", "fly left",
     "jump around", "twice", "jump twice thrice"],
)  # fmt: skip
def test_what_is_no_command(command):
    with pytest.raises(ValueError, match="not a command of SCAN"):
        scan_grammar.meaning(command)


def test_all_examples_are_the_official_ones():
    files = official("train_simple") + official("test_simple")
    assert Counter(files) == Counter(scan_grammar.every_example())


@pytest.mark.parametrize(
    ("split", "name"),
    [
        (scan_grammar.add_jump, "addprim_jump"),
        (scan_grammar.around_right, "template_around_right"),
    ],
)
def test_splits_are_the_official_ones(split, name):
    made = split()
    assert Counter(made.train) == Counter(official(f"train_{name}"))
    assert Counter(made.test) == Counter(official(f"test_{name}"))


def test_the_sizes_of_splits():
    for split, sizes in ((scan_grammar.add_jump, (14670, 7706)),
                         (scan_grammar.around_right, (15225, 4476))):  # fmt: skip
        made = split()
        assert (len(made.train), len(made.test)) == sizes
        assert not set(made.train) & set(made.test)
