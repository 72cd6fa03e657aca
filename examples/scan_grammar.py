"""SCAN (Lake and Baroni, 2018): all commands of its grammar, what they mean, and two splits.

A command is one of 34 verb phrases ("jump", "walk left", "turn opposite right", ...), said once,
"twice" or "thrice", or two such clauses joined by "and" or "after": 20,910 in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

__all__ = [
    "ACTIONS",
    "VERBS",
    "WORDS",
    "Example",
    "add_jump",
    "around_right",
    "every_example",
    "meaning",
]

VERBS = ("jump", "look", "run", "walk")
DIRECTIONS = ("left", "right")
MANNERS = ("", "opposite", "around")
TIMES = {"": 1, "twice": 2, "thrice": 3}
JOINTS = ("and", "after")

WORDS = (*VERBS, "turn", *DIRECTIONS, "opposite", "around", "twice", "thrice", *JOINTS)
"""The words of commands."""

ACTIONS = ("I_JUMP", "I_LOOK", "I_RUN", "I_WALK", "I_TURN_LEFT", "I_TURN_RIGHT")
"""The tokens of action sequences."""

JUMP_SHARE = 1467
"""How often the training part of add-jump has the command "jump": a tenth of it."""

Example = tuple[str, str]
"""A command and its actions, words and tokens separated by spaces."""


@dataclass(frozen=True)
class Split:
    """Examples to learn from, and examples that hold out a combination."""

    train: tuple[Example, ...]
    test: tuple[Example, ...]


def meaning(command: str) -> str:
    """The actions of a command.

    Raises:
        ValueError: If it is not a command of the grammar.
    """
    words = command.split()
    try:
        return " ".join(_joined(words))
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(f"{command!r} is not a command of SCAN") from error


@cache
def every_example() -> tuple[Example, ...]:
    """All 20,910 examples, in the order of the grammar."""
    phrases = list(VERBS)
    for verb in (*VERBS, "turn"):
        phrases += [
            " ".join(word for word in (verb, manner, direction) if word)
            for manner in MANNERS
            for direction in DIRECTIONS
        ]
    clauses = [f"{phrase} {times}".strip() for phrase in phrases for times in TIMES]
    commands = clauses + [
        f"{first} {joint} {second}" for joint in JOINTS for first in clauses for second in clauses
    ]
    return tuple((command, meaning(command)) for command in commands)


def add_jump() -> Split:
    """Jump is learnt by itself, and tested in all compositions.

    A tenth of the training part is the command "jump", repeated.
    """
    primitive = ("jump", "I_JUMP")
    others = tuple(pair for pair in every_example() if "jump" not in pair[0])
    held_out = [pair for pair in every_example() if "jump" in pair[0] and pair != primitive]
    return Split(others + (primitive,) * JUMP_SHARE, tuple(held_out))


def around_right() -> Split:
    """The turn "around right" is tested with the four verbs, and everything else is learnt.

    As in the official files, commands that have "turn around right" are in neither part.
    """
    without = [pair for pair in every_example() if "around right" not in pair[0]]
    held_out = [
        pair
        for pair in every_example()
        if "around right" in pair[0] and "turn around right" not in pair[0]
    ]
    return Split(tuple(without), tuple(held_out))


def _joined(words: list[str]) -> list[str]:
    for joint in JOINTS:
        if joint in words:
            place = words.index(joint)
            first, second = _clause(words[:place]), _clause(words[place + 1 :])
            return first + second if joint == "and" else second + first
    return _clause(words)


def _clause(words: list[str]) -> list[str]:
    if words[-1] in ("twice", "thrice"):
        return _phrase(words[:-1]) * TIMES[words[-1]]
    return _phrase(words)


def _phrase(words: list[str]) -> list[str]:
    verb, *rest = words
    done = [] if verb == "turn" else [f"I_{verb.upper()}"]
    if (verb != "turn" and verb not in VERBS) or (verb == "turn" and not rest):
        raise KeyError(verb)
    if not rest:
        return done
    *manner, direction = rest
    turn = {"left": ["I_TURN_LEFT"], "right": ["I_TURN_RIGHT"]}[direction]
    return {
        (): turn + done,
        ("opposite",): turn * 2 + done,
        ("around",): (turn + done) * 4,
    }[tuple(manner)]
