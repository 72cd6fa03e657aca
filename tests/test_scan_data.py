"""SCAN as tensors: ids, splits, and groups that leave the meaning of commands as it is."""

import pytest
import torch

import scan_grammar
from equitune import cyclic, symmetric
from recurrent import EOS, PAD
from scan_data import COMMANDS, SEQUENCES, SPLITS, Examples, Symmetry, load_split

SYMMETRIES = [
    Symmetry.verb_swap,
    Symmetry.direction_swap,
    Symmetry.all_verbs,
    Symmetry.verbs_and_directions,
]


def test_ids():
    assert (len(COMMANDS), len(SEQUENCES)) == (16, 9)
    assert COMMANDS.encode("jump twice").tolist() == [3, 12, EOS]
    assert COMMANDS.decode([3, 12, EOS, 5, PAD]) == "jump twice"
    both = COMMANDS.encode_all(["jump", "walk left twice"])
    assert both.dtype == torch.int64
    assert both.tolist() == [[3, EOS, PAD, PAD], [6, 8, 12, EOS]]
    for command, actions in scan_grammar.every_example()[::97]:
        assert COMMANDS.decode(COMMANDS.encode(command)) == command
        assert SEQUENCES.decode(SEQUENCES.encode(actions)) == actions


def test_words_that_are_unknown():
    with pytest.raises(ValueError, match="'jump twise': 'twise' is not in the vocabulary; near it"):
        COMMANDS.encode("jump twise")
    with pytest.raises(ValueError, match="near it are twice"):
        COMMANDS.encode_all(["jump", "jump twise"])
    with pytest.raises(ValueError, match="'xyzzy' is not in the vocabulary; it has jump, look"):
        COMMANDS.id("xyzzy")


@pytest.mark.parametrize("name", SPLITS)
def test_splits(name):
    split, made = load_split(name), SPLITS[name][0]()
    sizes = [len(part) for part in (split.validation, split.train, split.test)]
    assert sizes == [len(made.train) // 10, len(made.train) - len(made.train) // 10, len(made.test)]
    assert torch.equal(load_split(name).train.commands, split.train.commands)
    for part, pairs in ((split.train, made.train), (split.validation, made.train),
                        (split.test, made.test)):  # fmt: skip
        known = dict(pairs)
        for commands, targets in zip(part.commands[::101], part.targets[::101], strict=True):
            assert known[COMMANDS.decode(commands)] == SEQUENCES.decode(targets)
        assert ((part.targets == EOS).sum(dim=1) == 1).all()
        assert ((part.commands == EOS).sum(dim=1) == 1).all()
    both = torch.cat([_padded(split.train.commands), _padded(split.validation.commands)])
    everything = Examples.of(made.train).commands
    assert torch.equal(_sorted(both), _sorted(_padded(everything)))
    few = load_split(name, limit=50)
    assert [len(few.validation), len(few.train), len(few.test)] == [5, 45, 50]


def _padded(commands):
    return torch.nn.functional.pad(commands, (0, 12 - commands.shape[1]))


def _sorted(commands):
    return commands[(commands * 16 ** torch.arange(12)).sum(dim=1).argsort()]


def test_rows_are_cut_to_their_longest():
    examples = Examples.of([("jump", "I_JUMP"), ("jump thrice", "I_JUMP I_JUMP I_JUMP"),
                            ("turn left", "I_TURN_LEFT")])  # fmt: skip
    some = examples[torch.tensor([2, 0])]
    assert (some.commands.shape, some.targets.shape) == ((2, 3), (2, 2))
    assert len(examples[:1].commands[0]) == 2
    lengths = (examples.by_length().targets != PAD).sum(dim=1)
    assert lengths.tolist() == [2, 2, 4]


@pytest.mark.parametrize("make", SYMMETRIES)
def test_commands_mean_the_same_when_words_are_exchanged(make):
    symmetry = make()
    examples = Examples.of(scan_grammar.every_example()[::53])
    for g in symmetry.words.group.elements:
        commands = symmetry.words.transform(examples.commands, g)
        targets = symmetry.tokens.transform(examples.targets, g)
        for row in range(len(commands)):
            meant = scan_grammar.meaning(COMMANDS.decode(commands[row]))
            assert meant == SEQUENCES.decode(targets[row])


def test_exchanges_that_do_not_fit_change_the_meaning():
    # What the test above must reject: words and tokens of different groups.
    command = COMMANDS.encode("jump left")[None]
    moved = Symmetry.verb_swap().words.transform(command, 1)[0]
    other = Symmetry.direction_swap().tokens.transform(
        SEQUENCES.encode(scan_grammar.meaning("jump left"))[None], 1
    )
    assert scan_grammar.meaning(COMMANDS.decode(moved)) != SEQUENCES.decode(other[0])


def test_groups():
    assert Symmetry.verb_swap().words.group == cyclic(2)
    assert Symmetry.all_verbs().words.group == symmetric(4)
    both = Symmetry.verbs_and_directions()
    assert both.words.group == symmetric(4) * cyclic(2) == both.tokens.group
    swapped = Symmetry.verb_swap().words.transform(COMMANDS.encode("jump and run left")[None], 1)
    assert COMMANDS.decode(swapped[0]) == "run and jump left"
    # Every verb goes to every verb, as often as to any other.
    jumps = COMMANDS.encode("jump")[None]
    found = [COMMANDS.decode(copy[0]) for copy in Symmetry.all_verbs().words.orbit(jumps)]
    assert sorted(found) == sorted(scan_grammar.VERBS * 6)
