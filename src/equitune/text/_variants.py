"""The forms in which a word occurs, with capital letters, and the tokens of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def forms(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The forms of an equality list, each for all of its words: as given, capitalised, upper case.

    Lists with names, which begin with a capital letter, are not capitalised: a name would stay as
    it is, next to another word.
    """
    found = [words, tuple(word.upper() for word in words)]
    if not any(word[:1].isupper() for word in words):
        found.insert(1, tuple(word[:1].upper() + word[1:] for word in words))
    return list(dict.fromkeys(found))


def occurrences(
    tokenizer: Callable[..., Any], words: tuple[str, ...]
) -> Iterator[tuple[tuple[int, int], tuple[str, ...], tuple[tuple[int, ...], ...]]]:
    """All forms of an equality list, in the middle of a text and at its beginning.

    Yields:
        The numbers of the form and of the place, (0, 0) for the words as they are given; the
        form; and the tokens of each of its words.
    """
    for rank, form in enumerate(forms(words)):
        places = zip(*(token_ids(tokenizer, word) for word in form), strict=True)
        for place, tokens in enumerate(places):
            yield (rank, place), form, tokens


def token_ids(tokenizer: Callable[..., Any], word: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of a word in the middle of a text, and at its beginning.

    What stands for the space before a word is up to the tokenizer, so the tokens are those that
    follow another word.
    """
    before, after, alone = [
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in ("a", f"a {word}", word)
    ]
    if after[: len(before)] != before:
        raise ValueError(
            f"the tokenizer does not keep the tokens of 'a' before {word!r}, so words cannot be "
            "distinguished in its texts; use another tokenizer"
        )
    return after[len(before) :], alone
