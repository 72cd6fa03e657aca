"""The forms in which a word occurs, with capital letters, and the tokens of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["capitalised", "forms", "token_ids"]


def forms(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The forms of an equality list, each for all of its words: as given, capitalised, upper case.

    Lists with names, which begin with a capital letter, are not capitalised: a name would stay as
    it is, next to another word.
    """
    found = [words]
    if not any(word[:1].isupper() for word in words):
        found.append(tuple(map(capitalised, words)))
    found.append(tuple(word.upper() for word in words))
    return list(dict.fromkeys(found))


def capitalised(word: str) -> str:
    """A word with a capital first letter, the others as they are."""
    return word[:1].upper() + word[1:]


def token_ids(tokenizer: Callable[..., Any], word: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of a word in the middle of a text, and at its beginning.

    What stands for the space before a word is the tokenizer's affair, so that the word is read
    off after another one.
    """
    before, after = _encoded(tokenizer, "a"), _encoded(tokenizer, f"a {word}")
    if after[: len(before)] != before:
        raise ValueError(
            f"the tokenizer does not keep the tokens of 'a' before {word!r}; words cannot be told "
            "apart in its texts"
        )
    return after[len(before) :], _encoded(tokenizer, word)


def _encoded(tokenizer: Callable[..., Any], text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
