"""The forms in which a word occurs: capital letters, plurals, and the tokens of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["forms", "token_ids"]

WITHOUT_PLURAL = frozenset(
    ("he", "him", "his", "himself", "she", "her", "hers", "herself", "they", "them", "their")
)
IRREGULAR = {"man": "men", "child": "children", "person": "people", "wife": "wives"}
HISSING = ("s", "x", "z", "ch", "sh")


def forms(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The forms of an equality list, each for all of its words: as given, plural, capital letters.

    Words that have no plural, such as pronouns, and names, which begin with a capital letter, have
    no plural form; names have no other either.
    """
    found = [words]
    named = any(word[:1].isupper() for word in words)
    if not named and not any(word.lower() in WITHOUT_PLURAL for word in words):
        found.append(tuple(map(_plural, words)))
    if not named:
        found += [tuple(word[:1].upper() + word[1:] for word in form) for form in list(found)]
    return found


def token_ids(tokenizer: Callable[..., Any], word: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of a word in the middle of a text, and at its beginning.

    What stands for the space before a word is the tokenizer's affair, so that the word is read
    off behind another one.
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


def _plural(word: str) -> str:
    for ending, plural in IRREGULAR.items():
        if word.endswith(ending) and not word.endswith("human"):
            return word.removesuffix(ending) + plural
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(HISSING) else "s")
