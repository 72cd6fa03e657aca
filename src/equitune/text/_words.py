"""Equality words: what a demographic group is called, and what another one is called instead."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

from equitune._checks import (
    require_entries,
    require_flag,
    require_int,
    require_ints,
    require_strings,
    require_type,
)
from equitune.actions import TokenAction
from equitune.groups import FiniteGroup
from equitune.text._variants import capitalised, forms, token_ids

__all__ = ["EqualityWords", "ResolvedWords", "SkippedWords"]


@final
@dataclass(frozen=True)
class SkippedWords:
    """A form of an equality list that could not be resolved.

    Attributes:
        words: The form, one word for each demographic group.
        tokens: The tokens of each word.
    """

    words: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]


@final
@dataclass(frozen=True)
class ResolvedWords:
    """Equality words as tokens of one vocabulary.

    ``first * second`` are two demographics at once, by the direct product of their groups.

    Attributes:
        action: How the group acts on token ids; ``action.on_logits()`` is that on scores.
        general: The ids of the general words, which the group does not act on.
        cycles: The token ids that are exchanged, one tuple for each form of a list.
        skipped: The forms that are left out, each once, because a word of them is unknown or has
            several tokens, or is exchanged for another one already.

    Raises:
        ValueError: If ``cycles`` are not what the action moves, or a general word is moved.
    """

    action: TokenAction
    general: tuple[int, ...]
    cycles: tuple[tuple[int, ...], ...]
    skipped: tuple[SkippedWords, ...]

    def __post_init__(self) -> None:
        require_type("action", self.action, TokenAction, "the action on token ids")
        require_ints("general", self.general, "the ids of the general words")
        for i, cycle in enumerate(require_entries("cycles", self.cycles, "tuples of token ids")):
            require_ints(f"cycles[{i}]", cycle, "the token ids that are exchanged")
        for i, entry in enumerate(
            require_entries("skipped", self.skipped, "a tuple of SkippedWords")
        ):
            require_type(f"skipped[{i}]", entry, SkippedWords, "SkippedWords(words, tokens)")
        identity = range(self.action.vocabulary_size)
        moved = {i for row in self.action.permutations for i in identity if row[i] != i}
        if moved != self.equality:
            raise ValueError(
                f"cycles has the tokens {sorted(self.equality)}, but action moves {sorted(moved)}"
            )
        if not set(self.general) <= set(identity) or moved & set(self.general):
            raise ValueError(
                f"general is {self.general}; use tokens of the vocabulary of {len(identity)} that "
                f"action does not move, none of {sorted(moved)}"
            )

    @property
    def group(self) -> FiniteGroup:
        """The group that exchanges the words."""
        return self.action.group

    @property
    def equality(self) -> frozenset[int]:
        """The ids of all equality words."""
        return frozenset(itertools.chain.from_iterable(self.cycles))

    def __mul__(self, other: ResolvedWords) -> ResolvedWords:
        if not isinstance(other, ResolvedWords):
            return NotImplemented
        sizes = (self.action.vocabulary_size, other.action.vocabulary_size)
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"the words are of vocabularies of {sizes[0]} and {sizes[1]} tokens; resolve both "
                "with one tokenizer"
            )
        shared = sorted(self.equality & other.equality)
        if shared:
            raise ValueError(
                f"both demographics exchange the tokens {shared}; each token may belong to one"
            )
        for words, general in ((self, other.general), (other, self.general)):
            both = sorted(words.equality & set(general))
            if both:
                raise ValueError(
                    f"the tokens {both} are general words of one demographic and equality words "
                    "of the other"
                )
        rows = [
            [first[second[token]] for token in range(sizes[0])]
            for first in self.action.permutations
            for second in other.action.permutations
        ]
        return ResolvedWords(
            TokenAction(self.group * other.group, rows, self.action.ignore_index),
            tuple(sorted({*self.general, *other.general})),
            self.cycles + other.cycles,
            self.skipped + other.skipped,
        )


@final
@dataclass(frozen=True)
class EqualityWords:
    """Lists of equality words for d demographic groups (first paper, section 5.3).

    The group is cyclic of order d. Its generator turns each word into the next one of its list, and
    the last into the first: ``("man", "woman")`` exchanges the two, ``("a", "b", "c")`` turns a
    into b. The two papers shift in opposite directions; the outputs are shifted back in either.

    Args:
        lists: The equality words, one list for each meaning, with the word of each demographic
            group in the same order.
        general: General words, on which the group does not act and which keep the plain model's
            probabilities in the relaxed models.

    Raises:
        TypeError: If a list is one string, or something else than strings stands in it.
        ValueError: If there is no list, lists differ in length or have fewer than two words, or a
            word occurs twice.

    Example:
        >>> from equitune.text import EqualityWords
        >>> EqualityWords([("man", "woman"), ("he", "she")], general=["his", "her"]).order
        2
    """

    lists: tuple[tuple[str, ...], ...]
    general: tuple[str, ...]

    def __init__(self, lists: Iterable[Sequence[str]], general: Iterable[str] = ()) -> None:
        object.__setattr__(self, "lists", _check_lists(lists))
        object.__setattr__(self, "general", _check_general(general, self.lists))

    @property
    def order(self) -> int:
        """The number d of demographic groups."""
        return len(self.lists[0])

    def resolve(
        self,
        tokenizer: Callable[..., Any],
        vocabulary_size: int | None = None,
        *,
        skip_split: bool = False,
    ) -> ResolvedWords:
        """Finds the tokens of all words, in all forms that exist as one token each.

        Each list is looked up as it was given, capitalised and in upper case, in the middle of a
        text and at its beginning. Other forms, such as plurals, are lists of their own. A form that
        was not given is left out and reported if a word of it is unknown or has several tokens, or
        if a token of it is exchanged for another one already.

        Args:
            tokenizer: One of transformers: a text and ``add_special_tokens=False`` to
                ``input_ids``.
            vocabulary_size: The number of tokens that the model knows,
                ``model.config.vocab_size``; it may be larger than the tokenizer's. Default the
                tokenizer's.
            skip_split: Whether words as given that have several tokens are left out and reported as
                well, instead of refused.

        Raises:
            ValueError: If a word is unknown or has several tokens, if a token would have to be
                exchanged for two others, or if the model knows fewer tokens than the tokenizer.
        """
        require_flag("skip_split", skip_split)
        size = _vocabulary(tokenizer, vocabulary_size)
        unknown = getattr(tokenizer, "unk_token_id", None)
        found = _Cycles(unknown)
        candidates = [
            (rank, place, words, form, tokens)
            for words in self.lists
            for rank, form in enumerate(forms(words))
            for place, tokens in enumerate(
                zip(*(token_ids(tokenizer, word) for word in form), strict=True)
            )
        ]
        # What was given comes before the forms of another list.
        for rank, place, words, form, tokens in sorted(candidates, key=lambda c: c[:2]):
            found.add(words, form, tokens, given=rank == place == 0)
        cycles = [cycle for words in self.lists for cycle in found.cycles.get(words, ())]
        equality = frozenset(itertools.chain.from_iterable(cycles))
        general, whole = _general_ids(tokenizer, self.general, unknown, equality)
        both = sorted(equality & set(general))
        if both:
            raise ValueError(f"the tokens {both} belong to general and to equality words")
        split = [*found.split, *whole]
        if split and not skip_split:
            raise ValueError(
                "some words have several tokens: "
                + ", ".join(_listed(entry) for entry in split)
                + "; leave them out, or give skip_split=True to have them skipped and reported"
            )
        if not cycles:
            raise ValueError("no equality word is one token of this tokenizer; use others")
        left_out = [entry for words in self.lists for entry in found.skipped.get(words, ())]
        skipped = {entry.words: entry for entry in (*left_out, *split)}
        return ResolvedWords(
            TokenAction.cyclic_swaps(size, cycles), general, tuple(cycles), tuple(skipped.values())
        )


class _Cycles:
    """The tokens that are exchanged, and the forms that are left out."""

    def __init__(self, unknown: int | None) -> None:
        self.unknown = unknown
        self.cycles: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
        self.split: list[SkippedWords] = []
        self.skipped: dict[tuple[str, ...], list[SkippedWords]] = {}
        self._taken: dict[int, tuple[tuple[int, ...], tuple[str, ...]]] = {}

    def add(
        self,
        words: tuple[str, ...],
        form: tuple[str, ...],
        tokens: tuple[tuple[int, ...], ...],
        *,
        given: bool,
    ) -> None:
        """Takes a form of a list, or reports it; one that was given must not contradict another."""
        cycle = tuple(ids[0] for ids in tokens if len(ids) == 1)
        entry = SkippedWords(form, tokens)
        skipped = self.skipped.setdefault(words, [])
        if len(cycle) < len(tokens):
            (self.split if given else skipped).append(entry)
            return
        if self.unknown in cycle:
            if given:
                word = form[cycle.index(self.unknown)]
                raise ValueError(
                    f"the tokenizer does not know the word {word!r}; leave its list out"
                )
            skipped.append(entry)
            return
        others = [self._taken[token] for token in cycle if token in self._taken]
        if len(set(cycle)) == len(cycle) and not others:
            self.cycles.setdefault(words, []).append(cycle)
            self._taken.update(dict.fromkeys(cycle, (cycle, form)))
        elif len(others) < len(cycle) or any(other != cycle for other, _ in others):
            if given:
                _raise_twice(cycle, form, others)
            skipped.append(entry)


def _raise_twice(cycle: tuple[int, ...], form: tuple[str, ...], others: list[Any]) -> None:
    other_cycle, other = others[0] if others else (cycle, form)
    token = next(t for t in cycle if t in other_cycle and (others or cycle.count(t) > 1))
    raise ValueError(
        f"the token {token} would have to be exchanged within {other} and within {form}; a token "
        "can be exchanged for one other only: leave one of them out"
    )


def _check_lists(lists: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    checked: list[tuple[str, ...]] = []
    for words in require_entries("lists", lists, "lists such as [('man', 'woman')]"):
        if isinstance(words, str):
            raise TypeError(f"lists has the string {words!r}; use lists such as ('man', 'woman')")
        require_entries("lists", words, "lists such as ('man', 'woman')")
        if not all(isinstance(word, str) and word.strip() == word and word for word in words):
            raise TypeError(f"lists has {list(words)}; use words without spaces around them")
        checked.append(tuple(words))
    lengths = sorted({len(words) for words in checked})
    if len(lengths) != 1 or lengths[0] < 2:
        raise ValueError(
            f"lists have the lengths {lengths}; use at least one list, all of the same length, "
            "the number of demographic groups, 2 or more"
        )
    seen: dict[str, tuple[str, ...]] = {}
    for words in checked:
        for word in words:
            if word in seen:
                raise ValueError(
                    f"{word!r} stands in {seen[word]} and in {words}; it can be exchanged for one "
                    "word only: leave one of the lists out, or make it a general word"
                )
            seen[word] = words
    return tuple(checked)


def _check_general(general: Iterable[str], lists: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    if isinstance(general, str):
        raise TypeError(f"general is the string {general!r}; use a list, [{general!r}]")
    words = require_strings("general", general, "a list of words")
    both = sorted(set(words) & set(itertools.chain.from_iterable(lists)))
    if both:
        raise ValueError(f"{both} are general and equality words; a word can be one of them")
    return words


def _vocabulary(tokenizer: Any, vocabulary_size: int | None) -> int:
    if not callable(tokenizer):
        raise TypeError(f"tokenizer is a {type(tokenizer).__name__}; use one of transformers")
    own = len(tokenizer)
    if vocabulary_size is None:
        return own
    require_int("vocabulary_size", vocabulary_size, "model.config.vocab_size, or None")
    if vocabulary_size < own:
        raise ValueError(
            f"vocabulary_size is {vocabulary_size}, but the tokenizer has {own} tokens; use the "
            "tokenizer of the model"
        )
    return vocabulary_size


def _general_ids(
    tokenizer: Callable[..., Any],
    words: tuple[str, ...],
    unknown: int | None,
    equality: frozenset[int],
) -> tuple[tuple[int, ...], list[SkippedWords]]:
    """The tokens of general words, in all forms; and the words that have several."""
    found: set[int] = set()
    split: list[SkippedWords] = []
    for word in words:
        for form in dict.fromkeys((word, capitalised(word), word.upper())):
            for place, ids in enumerate(token_ids(tokenizer, form)):
                given = form == word and place == 0
                if given and unknown in ids:
                    raise ValueError(f"the tokenizer does not know the general word {word!r}")
                if len(ids) == 1 and ids[0] != unknown:
                    # Equality words are so in all forms, and not what follows from another word.
                    if given or ids[0] not in equality:
                        found.add(ids[0])
                elif given:
                    split.append(SkippedWords((word,), (ids,)))
    return tuple(sorted(found)), split


def _listed(entry: SkippedWords) -> str:
    words = zip(entry.words, entry.tokens, strict=True)
    return ", ".join(f"{word!r} ({len(ids)})" for word, ids in words if len(ids) != 1)
