"""Equality words: what a demographic group is called, and what another one is called instead."""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from equitune._checks import (
    require,
    require_entries,
    require_flag,
    require_function,
    require_int,
    require_ints,
    require_strings,
    require_type,
)
from equitune.actions import TokenAction
from equitune.groups import FiniteGroup

Words = tuple[str, ...]
Ids = tuple[int, ...]


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
        for i, entry in enumerate(require_entries("skipped", self.skipped, "SkippedWords")):
            require_type(f"skipped[{i}]", entry, SkippedWords, "SkippedWords(words, tokens)")
        identity = range(self.action.vocabulary_size)
        moved = sorted({i for row in self.action.permutations for i in identity if row[i] != i})
        found, use = sorted(self.equality), "the tokens that are exchanged"
        require(moved == found, "cycles", f"be what `action` moves, {moved}", found, use)
        still = {*self.general} <= {*identity} and not {*moved} & {*self.general}
        must, use = "be tokens that `action` does not move", f"others than {moved} of {identity}"
        require(still, "general", must, self.general, use)

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
        sizes = [words.action.vocabulary_size for words in (self, other)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"vocabularies of {sizes} tokens cannot be joined; use one tokenizer")
        both = {*self.equality, *self.general} & other.equality
        both |= self.equality & {*other.general}
        if both:
            raise ValueError(
                f"the tokens {sorted(both)} are equality words of one demographic, and equality or "
                "general words of the other; leave them out of one"
            )
        pairs = itertools.product(self.action.permutations, other.action.permutations)
        rows = [[first[token] for token in second] for first, second in pairs]
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
        TypeError: If a list is not a sequence of strings.
        ValueError: If ``lists`` is empty, lists differ in length or have fewer than two words, a
            word occurs twice, or a word is empty or has spaces around it.

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
        self, tokenizer: Any, vocabulary_size: int | None = None, *, skip_split: bool = False
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
        require_function("tokenizer", tokenizer, "one of transformers")
        size, use = len(tokenizer), "model.config.vocab_size, with the tokenizer of the model"
        if vocabulary_size is not None:
            size = require_int("vocabulary_size", vocabulary_size, use, least=size)
        taken: dict[int, Words] = {}
        cycles, left_out, split = _found(tokenizer, self.lists, taken)
        # General words are lists of one word, which is exchanged for no other.
        general, _, whole = _found(tokenizer, [(word,) for word in self.general], taken)
        split += whole
        if split and not skip_split:
            listed = ", ".join(map(_listed, split))
            raise ValueError(f"words of several tokens: {listed}; use others, or skip_split=True")
        if not cycles:
            raise ValueError("none of the equality words is one token of the tokenizer; use others")
        skipped = {entry.words: entry for entry in left_out + split}
        return ResolvedWords(
            TokenAction.cyclic_swaps(size, cycles),
            tuple(sorted(itertools.chain.from_iterable(general))),
            tuple(cycles),
            tuple(skipped.values()),
        )


def forms(words: Words) -> list[Words]:
    """The forms of an equality list, each for all of its words: as given, capitalised, upper case.

    Lists with names, which begin with a capital letter, are not capitalised: a name would stay as
    it is, next to another word.
    """
    found = [words, tuple(word.upper() for word in words)]
    if not any(word[:1].isupper() for word in words):
        found.insert(1, tuple(word[:1].upper() + word[1:] for word in words))
    return list(dict.fromkeys(found))


def token_ids(tokenizer: Callable[..., Any], word: str) -> tuple[Ids, Ids]:
    """The tokens of a word in the middle of a text, and at its beginning.

    What stands for the space before a word is up to the tokenizer, so the tokens are those that
    follow another word.
    """
    before, after, alone = [
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in ("a", f"a {word}", word)
    ]
    if after[: len(before)] != before:
        raise ValueError(f"the tokenizer does not keep the tokens before {word!r}; use another one")
    return after[len(before) :], alone


def _occurrences(
    tokenizer: Callable[..., Any], words: Words
) -> Iterator[tuple[tuple[int, int], Words, tuple[Ids, ...]]]:
    """All forms of an equality list, in the middle of a text and at its beginning.

    Yields:
        The numbers of the form and of the place, (0, 0) for the words as they are given; the
        form; and the tokens of each of its words.
    """
    for rank, form in enumerate(forms(words)):
        places = zip(*(token_ids(tokenizer, word) for word in form), strict=True)
        for place, tokens in enumerate(places):
            yield (rank, place), form, tokens


def _found(
    tokenizer: Callable[..., Any], lists: Sequence[Words], taken: dict[int, Words]
) -> list[list[Any]]:
    """The tokens of words, in all of their forms.

    Args:
        tokenizer: One of transformers.
        lists: The words.
        taken: The form to which each token belongs already; what is found is added.

    Returns:
        The tokens of each form, the forms that are left out, and the lists as given of which a
        word has several tokens, as ``SkippedWords``.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    cycles: list[tuple[int, Any]] = []
    left_out: list[tuple[int, Any]] = []
    split: list[tuple[int, Any]] = []
    candidates = [
        (rank, number, form, tokens)
        for number, words in enumerate(lists)
        for rank, form, tokens in _occurrences(tokenizer, words)
    ]
    # What was given comes before the forms of another list.
    for rank, number, form, tokens in sorted(candidates):
        cycle, given = tuple([ids[0] for ids in tokens if len(ids) == 1]), not any(rank)
        clashes = [token for token in cycle if token in taken or cycle.count(token) > 1]
        if given and len(cycle) < len(tokens):
            split.append((number, SkippedWords(form, tokens)))
        elif given and unknown in cycle:
            word = form[cycle.index(unknown)]
            raise ValueError(f"the tokenizer does not know the word {word!r}; leave it out")
        elif len(cycle) == len(tokens) and unknown not in cycle and not clashes:
            cycles.append((number, cycle))
            taken.update(dict.fromkeys(cycle, form))
        elif any(cycle == other for _, other in cycles):
            continue
        elif given:
            raise ValueError(
                f"the token {clashes[0]} is exchanged within {taken.get(clashes[0], form)} and "
                f"cannot serve {form} as well; leave one of them out"
            )
        else:
            left_out.append((number, SkippedWords(form, tokens)))
    ordered = [sorted(part, key=operator.itemgetter(0)) for part in (cycles, left_out, split)]
    return [[entry for _, entry in part] for part in ordered]


def _listed(entry: SkippedWords) -> str:
    words = zip(entry.words, entry.tokens, strict=True)
    return ", ".join(f"{word!r} ({len(ids)})" for word, ids in words if len(ids) != 1)


def _check_lists(lists: Iterable[Sequence[str]]) -> tuple[Words, ...]:
    use = "lists such as [('man', 'woman')]"
    entries = require_entries("lists", lists, use)
    checked = tuple([require_strings(f"lists[{i}]", ws, use) for i, ws in enumerate(entries)])
    lengths = sorted({len(words) for words in checked})
    fits, got = len(lengths) == 1 and lengths[0] >= 2, f"the lengths {lengths}"
    use = "at least one list, with a word for each demographic group, 2 or more"
    require(fits, "lists", "be lists of one length", got, use)
    for word, count in Counter(itertools.chain.from_iterable(checked)).items():
        bare = word != "" and word == word.strip()
        require(bare, "lists", "have words", repr(word), "words without spaces around them")
        if count > 1:
            raise ValueError(f"{word!r} stands in `lists` {count} times; leave all but one out")
    return checked


def _check_general(general: Iterable[str], lists: tuple[Words, ...]) -> Words:
    words = require_strings("general", general, "a list of words, such as ['his', 'her']")
    both = sorted(set(words) & set(itertools.chain.from_iterable(lists)))
    if both:
        raise ValueError(f"{both} are general and equality words; a word can be one of them")
    return words
