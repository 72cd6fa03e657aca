"""Settings of ``generate`` that name tokens: whether the group leaves them as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from equitune.text._words import ResolvedWords

__all__ = ["check_phrases"]


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
    if value is None:
        return
    given = _entries(value)
    for row in words.action.permutations:
        moved = frozenset(_moved(entry, row) for entry in given)
        if moved == given:
            continue
        named = sorted(words.equality & set(_tokens(given)))
        partners = sorted(words.equality & set(_tokens(moved - given)))
        raise ValueError(
            f"{name} names the equality words {named}, but not in the same way {partners}, which "
            f"the group exchanges them for; leave them out of {name}, or name all of them alike"
        )


def _entries(value: Any) -> frozenset[Any]:
    """What is named, in no order: tokens, phrases, alternatives, and phrases with a number."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return frozenset((_phrase(phrase), bias) for phrase, bias in value.items())
    if isinstance(value, int):
        return frozenset([value])
    return frozenset(map(_entry, value))


def _entry(entry: Any) -> Any:
    if isinstance(entry, int):
        return entry
    parts = list(entry)
    if any(isinstance(part, float) for part in parts):
        phrase, bias = parts
        return (_phrase(phrase), bias)
    if all(isinstance(part, int) for part in parts):
        return tuple(parts)
    return frozenset(map(_phrase, parts))


def _phrase(tokens: Any) -> tuple[int, ...]:
    return (tokens,) if isinstance(tokens, int) else tuple(map(int, tokens))


def _moved(entry: Any, row: tuple[int, ...]) -> Any:
    if isinstance(entry, int):
        # Numbers that are no tokens stand for none.
        return row[entry] if 0 <= entry < len(row) else entry
    if isinstance(entry, float):
        return entry
    return type(entry)(_moved(part, row) for part in entry)


def _tokens(entry: Any) -> Iterable[int]:
    if isinstance(entry, int):
        yield entry
    elif not isinstance(entry, float):
        for part in entry:
            yield from _tokens(part)
