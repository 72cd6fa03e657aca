"""Settings of ``generate`` that name tokens: whether the group leaves them as they are."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from equitune.text._words import ResolvedWords

Entry = tuple[frozenset[tuple[int, ...]], float | None]
"""Phrases that are alternatives, and the number that belongs to them."""


def check_phrases(name: str, value: Any, words: ResolvedWords) -> None:
    """Refuses a setting that names an equality word, but not what it is exchanged for.

    Args:
        name: The setting.
        value: A token, or a list of tokens, of phrases (lists of tokens), or of alternatives
            (lists of phrases); or of pairs of a phrase and a number, also as a mapping. Their
            order, but that of tokens in a phrase, does not matter.
        words: The equality words.

    Raises:
        ValueError: If some group element makes another setting of it.
    """
    given = frozenset() if value is None else _entries(value)
    for row in words.action.permutations:
        moved = frozenset((_moved(phrases, row), number) for phrases, number in given)
        if moved == given:
            continue
        named, partners = (sorted(words.equality & _tokens(e)) for e in (given, moved - given))
        raise ValueError(
            f"`{name}` names the equality words {named}, but not in the same way {partners}, which "
            f"the group exchanges them for; leave them out of {name}, or name all of them alike"
        )


def _entries(value: Any) -> frozenset[Entry]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return frozenset((frozenset([_phrase(key)]), bias) for key, bias in value.items())
    return frozenset(map(_entry, [value] if isinstance(value, int) else value))


def _entry(entry: Any) -> Entry:
    parts = [entry] if isinstance(entry, int) else list(entry)
    if any(isinstance(part, float) for part in parts):
        phrase, number = parts
        return frozenset([_phrase(phrase)]), number
    alone = all(isinstance(part, int) for part in parts)
    return frozenset(map(_phrase, [parts] if alone else parts)), None


def _phrase(tokens: Any) -> tuple[int, ...]:
    return (tokens,) if isinstance(tokens, int) else tuple(map(int, tokens))


def _moved(phrases: frozenset[tuple[int, ...]], row: tuple[int, ...]) -> frozenset[tuple[int, ...]]:
    # Numbers outside of the vocabulary stand for no token.
    return frozenset(
        tuple([row[token] if 0 <= token < len(row) else token for token in phrase])
        for phrase in phrases
    )


def _tokens(entries: frozenset[Entry]) -> set[int]:
    phrases = itertools.chain.from_iterable(phrases for phrases, _ in entries)
    return set(itertools.chain.from_iterable(phrases))
