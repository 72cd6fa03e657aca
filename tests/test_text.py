"""Equality words: forms, tokens, one-to-one, and the group that exchanges them."""

import os
from pathlib import Path

import pytest
import torch

from equitune import TokenAction, cyclic
from equitune.testing import assert_action
from equitune.text import EqualityWords, ResolvedWords, SkippedWords
from equitune.text._words import forms


class Tokenizer:
    """Whole words, with or without the space before them as a part of the token."""

    unk_token_id = 0

    def __init__(self, words, spaces=True):
        pieces = [piece for word in words for piece in ((word, f" {word}") if spaces else (word,))]
        self.ids = {
            piece: i for i, piece in enumerate(["<unk>", *map(chr, range(97, 123)), *pieces])
        }
        self.spaces = spaces

    def __len__(self):
        return len(self.ids)

    def __call__(self, text, add_special_tokens=True):
        assert not add_special_tokens
        ids = []
        for number, word in enumerate(text.split(" ")):
            piece = f" {word}" if number and self.spaces else word
            if piece in self.ids:
                ids.append(self.ids[piece])
            else:
                ids += [self.ids.get(letter, 0) for letter in word]
        return {"input_ids": ids}


WORDS = ["man", "woman", "men", "women", "Man", "Woman", "he", "she", "He", "She", "his", "her",
         "black", "white", "asian", "Black", "White", "Asian", "Lily", "Tim"]  # fmt: skip


@pytest.fixture(params=[True, False], ids=["spaces", "no spaces"])
def tokenizer(request):
    return Tokenizer(WORDS, request.param)


def names(tokenizer, ids):
    pieces = list(tokenizer.ids)
    return tuple(pieces[i] for i in ids)


def test_all_forms_are_paired(tokenizer):
    found = EqualityWords([("man", "woman"), ("he", "she"), ("Tim", "Lily")]).resolve(tokenizer)
    pairs = {names(tokenizer, cycle) for cycle in found.cycles}
    plain = {("man", "woman"), ("Man", "Woman"), ("he", "she"), ("He", "She"), ("Tim", "Lily")}
    spaced = {(f" {a}", f" {b}") for a, b in plain} if tokenizer.spaces else set()
    assert pairs == plain | spaced
    assert found.group == cyclic(2)
    # No token is in upper case here, so that these forms are left out, and each is named once.
    left_out = [entry.words for entry in found.skipped]
    assert sorted(left_out) == [("HE", "SHE"), ("MAN", "WOMAN"), ("TIM", "LILY")]
    swaps = dict(enumerate(found.action.permutations[1]))
    for a, b in found.cycles:
        assert (swaps[a], swaps[b]) == (b, a)
    assert all(swaps[i] == i for i in range(len(tokenizer)) if i not in found.equality)


def test_forms():
    assert forms(("man", "woman")) == [("man", "woman"), ("Man", "Woman"), ("MAN", "WOMAN")]
    assert forms(("Tim", "Lily")) == [("Tim", "Lily"), ("TIM", "LILY")]
    assert forms(("he", "Lily")) == [("he", "Lily"), ("HE", "LILY")]
    assert forms(("x", "y")) == [("x", "y"), ("X", "Y")]
    assert forms(("他", "她")) == [("他", "她")]


@pytest.mark.parametrize(("given", "others"), [
    (("mr", "miss"), ("mrs", "misses")),
    (("hero", "heroine"), ("heros", "heroes", "heroines")),
    (("german", "french"), ("germen", "germans", "frenches")),
    (("Black", "White"), ("black", "white", "Blacks", "Whites")),
    (("person", "child"), ("people", "children", "persons", "childs")),
])  # fmt: skip
def test_no_form_is_invented(given, others):
    tokenizer = WholeWords(*given, *others, *(word.upper() for word in given))
    found = EqualityWords([given]).resolve(tokenizer)
    assert found.cycles == ((2, 3), tuple(len(others) + place for place in (4, 5)))
    told = [entry.words for entry in found.skipped]
    assert len(told) == len(set(told))
    assert set(told) <= {tuple(word.capitalize() for word in given)}
    # Plurals that are given are forms like any other.
    both = EqualityWords([given, others[:2]]).resolve(tokenizer)
    assert (4, 5) in both.cycles


def test_what_was_given_comes_before_what_follows_from_it():
    tokenizer = WholeWords("mr", "miss", "MR", "MS", "MISS")
    for lists in ([("mr", "miss"), ("MR", "MS")], [("MR", "MS"), ("mr", "miss")]):
        found = EqualityWords(lists).resolve(tokenizer)
        assert set(found.cycles) == {(2, 3), (4, 5)}
        assert ("MR", "MISS") in {entry.words for entry in found.skipped}
    # Of two lists of which one form follows, it is that of the first.
    tokenizer = WholeWords("i", "we", "I", "us", "US", "WE", "Us", "We")
    found = EqualityWords([("i", "we"), ("us", "I")]).resolve(tokenizer)
    assert set(found.cycles) == {(2, 3), (5, 4)}
    assert ("I", "We") in {entry.words for entry in found.skipped}
    # Nor does a form of a general word take an equality word away.
    tokenizer = WholeWords("May", "June", "may")
    found = EqualityWords([("May", "June")], general=["may"]).resolve(tokenizer)
    assert (found.cycles, found.general) == (((2, 3),), (4,))
    twins = WholeWords("he", "she")
    twins.ids["she"] = twins.ids["he"]
    with pytest.raises(ValueError, match=r"exchanged within \('he', 'she'\)"):
        EqualityWords([("he", "she")]).resolve(twins)


def test_three_groups_are_shifted_to_the_next_word(tokenizer):
    found = EqualityWords([("black", "white", "asian")]).resolve(tokenizer)
    assert found.group == cyclic(3)
    (cycle, *_) = found.cycles
    ids = torch.tensor([[*cycle]])
    assert found.action.transform(ids, 1).tolist() == [[cycle[1], cycle[2], cycle[0]]]
    assert_action(found.action, torch.randint(0, len(tokenizer), (9, 5)))
    # Scores move with the words: the score of black becomes that of white.
    scores = torch.arange(len(tokenizer)).view(1, -1).double()
    moved = found.action.on_logits().transform(scores, 1)
    assert float(moved[0, cycle[1]]) == cycle[0]


def test_general_words(tokenizer):
    found = EqualityWords([("he", "she")], general=["his", "her"]).resolve(tokenizer)
    pieces = set(names(tokenizer, found.general))
    assert {"his", "her"} <= pieces
    assert not set(found.general) & found.equality


def test_several_demographics(tokenizer):
    gender = EqualityWords([("man", "woman"), ("he", "she")], ["his"]).resolve(tokenizer)
    colour = EqualityWords([("black", "white", "asian")], ["her"]).resolve(tokenizer)
    both = gender * colour
    assert both.group == cyclic(2) * cyclic(3)
    assert both.general == tuple(sorted({*gender.general, *colour.general}))
    ids = torch.tensor([[gender.cycles[0][0], colour.cycles[0][0], 5]])
    moved = both.action.transform(ids, 1 * 3 + 2)  # (swap, two steps)
    assert moved.tolist() == [[gender.cycles[0][1], colour.cycles[0][2], 5]]
    assert_action(both.action, torch.randint(0, len(tokenizer), (9, 5)))


def test_words_of_several_tokens(tokenizer):
    words = EqualityWords([("man", "woman"), ("boy", "girl")])
    with pytest.raises(ValueError, match=r"'boy' \(3\), 'girl' \(4\)"):
        words.resolve(tokenizer)
    found = words.resolve(tokenizer, skip_split=True)
    assert found.cycles == EqualityWords([("man", "woman")]).resolve(tokenizer).cycles
    skipped = {entry.words for entry in found.skipped}
    assert {("boy", "girl"), ("Boy", "Girl"), ("BOY", "GIRL")} <= skipped
    assert len(skipped) == len(found.skipped)
    assert all(isinstance(entry, SkippedWords) for entry in found.skipped)


def test_a_model_may_know_more_tokens_but_not_fewer(tokenizer):
    words = EqualityWords([("man", "woman")])
    assert words.resolve(tokenizer, 128).action.vocabulary_size == 128
    with pytest.raises(ValueError, match=r"`vocabulary_size` must be .* or more, got 30"):
        words.resolve(tokenizer, 30)


def test_values():
    words = EqualityWords([["man", "woman"]])
    assert words == EqualityWords((("man", "woman"),))
    assert hash(words) == hash(EqualityWords([("man", "woman")]))
    assert words != EqualityWords([("woman", "man")])


@pytest.mark.parametrize(("call", "error", "said"), [
    (lambda t: EqualityWords([]), ValueError, "at least one list"),
    (lambda t: EqualityWords([("man",)]), ValueError, "2 or more"),
    (lambda t: EqualityWords([("man", "woman"), ("a", "b", "c")]), ValueError, r"\[2, 3\]"),
    (lambda t: EqualityWords([("his", "her"), ("him", "her")]), ValueError, "'her' stands in"),
    (lambda t: EqualityWords([("man", "man")]), ValueError, "'man' stands in"),
    (lambda t: EqualityWords(["man", "woman"]), TypeError,
     r"`lists\[0\]` must be a sequence, got 'man'"),
    (lambda t: EqualityWords([("man", 3)]), TypeError,
     r"`lists\[0\]\[1\]` must be a string, got 3"),
    (lambda t: EqualityWords([("man", " woman")]), ValueError,
     "' woman'; use words without spaces"),
    (lambda t: EqualityWords([("man", "")]), ValueError, "use words without spaces"),
    (lambda t: EqualityWords([("man", "woman")], "his"), TypeError,
     r"`general` must be a sequence, got 'his'; use .*\['his', 'her'\]"),
    (lambda t: EqualityWords([("man", "woman")], ["man"]), ValueError, "general and equality"),
    (lambda t: EqualityWords([("boy", "girl")]).resolve(t, skip_split=True), ValueError,
     "none of the equality words is one token"),
    (lambda t: EqualityWords([("man", "!")]).resolve(t), ValueError, "does not know the word '!'"),
    (lambda t: EqualityWords([("man", "woman")], ["!"]).resolve(t), ValueError, "the word '!'"),
    (lambda t: EqualityWords([("man", "woman")], ["Man"]).resolve(t), ValueError,
     r"exchanged within \('Man', 'Woman'\) and cannot serve \('Man',\)"),
    (lambda t: EqualityWords([("man", "woman")]).resolve("gpt2"), TypeError, "transformers"),
    (lambda t: EqualityWords([("man", "woman")]).resolve(t)
     * EqualityWords([("he", "she"), ("woman", "man")]).resolve(t), ValueError,
     "are equality words of one"),
    (lambda t: EqualityWords([("man", "woman")]).resolve(t)
     * EqualityWords([("he", "she")]).resolve(t, 200), ValueError, "vocabularies of"),
    (lambda t: EqualityWords([("man", "woman")], ["he"]).resolve(t)
     * EqualityWords([("he", "she")]).resolve(t), ValueError,
     "equality or general words of the other"),
    (lambda t: EqualityWords([("man", "woman")]).resolve(t) * 2, TypeError, "unsupported operand"),
])  # fmt: skip
def test_bad_input(call, error, said, tokenizer):
    with pytest.raises(error, match=said):
        call(tokenizer)


def test_a_tokenizer_that_merges_words_is_refused():
    class Merging(Tokenizer):
        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [len(text)]}

    with pytest.raises(ValueError, match="does not keep the tokens"):
        EqualityWords([("man", "woman")]).resolve(Merging(WORDS))


DATA = os.environ.get("EQUITUNE_DATA")


@pytest.mark.skipif(not DATA, reason="EQUITUNE_DATA is not set")
def test_a_real_tokenizer():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    # Its configuration names a class that older releases do not have.
    kind = transformers.PreTrainedTokenizerFast
    tokenizer = kind.from_pretrained(Path(DATA) / "weights" / "stories260k")
    words = EqualityWords([("he", "she"), ("Tim", "Lily")], general=["his", "her"])
    found = words.resolve(tokenizer, 512)
    assert isinstance(found, ResolvedWords)
    ids = tokenizer("He said that Tim and his dog like what he likes.")["input_ids"]
    swapped = found.action.transform(torch.tensor([ids]), 1)[0]
    said = "She said that Lily and his dog like what she likes."
    assert tokenizer.decode(swapped, skip_special_tokens=True) == said
    with pytest.raises(ValueError, match=r"'man' \(2\), 'woman' \(3\)"):
        EqualityWords([("man", "woman")]).resolve(tokenizer)
    assert isinstance(found.action, TokenAction)


class WholeWords:
    """A vocabulary of words, and one token for all others."""

    unk_token_id = 0

    def __init__(self, *words):
        self.ids = {word: i for i, word in enumerate(["<unk>", "a", *words])}

    def __len__(self):
        return len(self.ids)

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [self.ids.get(word, 0) for word in text.split()]}


def test_forms_that_the_tokenizer_does_not_know_are_skipped():
    tokenizer = WholeWords("doctor", "nurse", "Nurse")
    found = EqualityWords([("doctor", "nurse")]).resolve(tokenizer)
    assert found.cycles == ((2, 3),)
    assert ("Doctor", "Nurse") in {entry.words for entry in found.skipped}
    with pytest.raises(ValueError, match="does not know the word 'Doctor'"):
        EqualityWords([("Doctor", "Nurse")]).resolve(tokenizer)


def test_general_words_of_several_tokens_are_reported(tokenizer):
    words = EqualityWords([("he", "she")], general=["his", "hers"])
    with pytest.raises(ValueError, match=r"several tokens: 'hers' \(4\)"):
        words.resolve(tokenizer)
    found = words.resolve(tokenizer, skip_split=True)
    assert set(names(tokenizer, found.general)) == {"his", " his"} & set(tokenizer.ids)
    assert [entry.words for entry in found.skipped if len(entry.words) == 1] == [("hers",)]
