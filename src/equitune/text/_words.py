"""Equality words: what a demographic group is called, and what another one is called instead."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
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
from equitune.text._variants import occurrences


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
        sizes = (self.action.vocabulary_size, other.action.vocabulary_size)
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"the words are of vocabularies of {sizes[0]} and {sizes[1]} tokens; resolve both "
                "with one tokenizer"
            )
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
        self,
        tokenizer: Any,
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
        require_function("tokenizer", tokenizer, "one of transformers")
        size, use = len(tokenizer), "model.config.vocab_size, with the tokenizer of the model"
        if vocabulary_size is not None:
            size = require_int("vocabulary_size", vocabulary_size, use, least=size)
        unknown = getattr(tokenizer, "unk_token_id", None)
        cycles, left_out, split = _exchanged(tokenizer, self.lists, unknown)
        equality = frozenset(itertools.chain.from_iterable(cycles))
        general, whole = _general_ids(tokenizer, self.general, unknown, equality)
        both = sorted(equality & set(general))
        if both:
            raise ValueError(f"the tokens {both} belong to general and to equality words")
        split += whole
        if split and not skip_split:
            raise ValueError(
                f"some words have several tokens: {', '.join(map(_listed, split))}; leave them "
                "out, or use skip_split=True to have them skipped and reported"
            )
        if not cycles:
            raise ValueError("none of the equality words is one token of the tokenizer; use others")
        skipped = {entry.words: entry for entry in (*left_out, *split)}
        return ResolvedWords(
            TokenAction.cyclic_swaps(size, cycles), general, tuple(cycles), tuple(skipped.values())
        )


def _exchanged(
    tokenizer: Callable[..., Any], lists: tuple[tuple[str, ...], ...], unknown: int | None
) -> tuple[list[tuple[int, ...]], list[SkippedWords], list[SkippedWords]]:
    """The cycles of tokens, the forms that are left out, and lists as given of several tokens."""
    cycles: list[tuple[int, tuple[int, ...]]] = []
    left_out: list[tuple[int, SkippedWords]] = []
    split: list[SkippedWords] = []
    taken: dict[int, tuple[str, ...]] = {}
    candidates = [
        (rank, number, form, tokens)
        for number, words in enumerate(lists)
        for rank, form, tokens in occurrences(tokenizer, words)
    ]
    # What was given comes before the forms of another list.
    for rank, number, form, tokens in sorted(candidates):
        cycle, given = tuple([ids[0] for ids in tokens if len(ids) == 1]), not any(rank)
        clashes = [token for token in cycle if token in taken or cycle.count(token) > 1]
        if given and len(cycle) < len(tokens):
            split.append(SkippedWords(form, tokens))
        elif given and unknown in cycle:
            word = form[cycle.index(unknown)]
            raise ValueError(f"the tokenizer does not know the word {word!r}; leave its list out")
        elif len(cycle) == len(tokens) and unknown not in cycle and not clashes:
            cycles.append((number, cycle))
            taken.update(dict.fromkeys(cycle, form))
        elif any(cycle == other for _, other in cycles):
            continue
        elif given:
            raise ValueError(
                f"the token {clashes[0]} would have to be exchanged within "
                f"{taken.get(clashes[0], form)} and within {form}; a token can be exchanged for "
                "one other only: leave one of them out"
            )
        else:
            left_out.append((number, SkippedWords(form, tokens)))
    return _by_list(cycles), _by_list(left_out), split


def _by_list(found: list[tuple[int, Any]]) -> list[Any]:
    return [entry for _, entry in sorted(found, key=operator.itemgetter(0))]


def _check_lists(lists: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    use = "lists such as [('man', 'woman')]"
    entries = require_entries("lists", lists, use)
    checked = tuple([require_strings(f"lists[{i}]", ws, use) for i, ws in enumerate(entries)])
    lengths = sorted({len(words) for words in checked})
    fits, got = len(lengths) == 1 and lengths[0] >= 2, f"the lengths {lengths}"
    use = "at least one list, with a word for each demographic group, 2 or more"
    require(fits, "lists", "be lists of one length", got, use)
    seen: dict[str, tuple[str, ...]] = {}
    for words in checked:
        for word in words:
            bare = word != "" and word == word.strip()
            require(bare, "lists", "have words", repr(word), "words without spaces around them")
            if word in seen:
                raise ValueError(
                    f"{word!r} stands in {seen[word]} and in {words}; it can be exchanged for one "
                    "word only: leave one of the lists out, or make it a general word"
                )
            seen[word] = words
    return checked


def _check_general(general: Iterable[str], lists: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    words = require_strings("general", general, "a list of words, such as ['his', 'her']")
    both = sorted(set(words) & set(itertools.chain.from_iterable(lists)))
    if both:
        raise ValueError(f"{both} are general and equality words; a word can be one of them")
    return words


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
        for rank, form, (ids,) in occurrences(tokenizer, (word,)):
            given = not any(rank)
            if given and unknown in ids:
                raise ValueError(f"the tokenizer does not know the general word {word!r}")
            if given and len(ids) > 1:
                split.append(SkippedWords(form, (ids,)))
            # Equality words are so in all forms, and not what follows from another word.
            elif len(ids) == 1 and ids[0] != unknown and (given or ids[0] not in equality):
                found.add(ids[0])
    return tuple(sorted(found)), split


def _listed(entry: SkippedWords) -> str:
    words = zip(entry.words, entry.tokens, strict=True)
    return ", ".join(f"{word!r} ({len(ids)})" for word, ids in words if len(ids) != 1)
