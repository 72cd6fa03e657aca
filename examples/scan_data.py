"""SCAN as tensors: vocabularies, splits, and the groups that exchange its words."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import scan_grammar
from equitune import FiniteGroup, TokenAction, cyclic, symmetric
from recurrent import BOS, EOS, PAD
from scan_grammar import ACTIONS, DIRECTIONS, VERBS, WORDS, Example

__all__ = [
    "COMMANDS",
    "SEQUENCES",
    "SPLITS",
    "Examples",
    "Split",
    "Symmetry",
    "Vocabulary",
    "load_split",
]

SHUFFLE_SEED = 0
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Vocabulary:
    """Words and their ids: 0 is padding, 1 starts a sequence, 2 ends it, the words follow.

    Attributes:
        words: All words, without the three that are none.
    """

    words: tuple[str, ...]

    def __len__(self) -> int:
        return EOS + 1 + len(self.words)

    def id(self, word: str) -> int:
        """The id of a word.

        Raises:
            ValueError: If the vocabulary does not have it.
        """
        if word not in self.words:
            near = difflib.get_close_matches(word, self.words, n=3, cutoff=0.5)
            hint = f"; near it are {', '.join(near)}" if near else ""
            raise ValueError(
                f"{word!r} is not in the vocabulary{hint}; it has {', '.join(self.words)}"
            )
        return EOS + 1 + self.words.index(word)

    def encode(self, sentence: str) -> Tensor:
        """The ids (T,) int64 of a sentence, its words separated by spaces, and EOS.

        Raises:
            ValueError: If a word is not in the vocabulary.
        """
        try:
            ids = [self.id(word) for word in sentence.split()]
        except ValueError as error:
            raise ValueError(f"the sentence {sentence!r}: {error}") from error
        return torch.tensor([*ids, EOS])

    def encode_all(self, sentences: Iterable[str]) -> Tensor:
        """The ids (N, T) of sentences, padded at their right."""
        rows = [self.encode(sentence) for sentence in sentences]
        return pad_sequence(rows, batch_first=True, padding_value=PAD)

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The sentence of ids, up to EOS."""
        found = []
        for i in torch.as_tensor(ids).tolist():
            if i == EOS:
                break
            if i not in (PAD, BOS):
                found.append(self.words[i - EOS - 1])
        return " ".join(found)


COMMANDS, SEQUENCES = Vocabulary(WORDS), Vocabulary(ACTIONS)
"""The vocabularies of commands and of action sequences."""

ACTION_OF = {
    **{verb: f"I_{verb.upper()}" for verb in VERBS},
    **{direction: f"I_TURN_{direction.upper()}" for direction in DIRECTIONS},
}
"""The token that belongs to a word."""


@dataclass(frozen=True)
class Examples:
    """N commands and what they mean, each padded after its EOS.

    Attributes:
        commands: (N, T) int64 ids of commands.
        targets: (N, L) int64 ids of action sequences.
    """

    commands: Tensor
    targets: Tensor

    @classmethod
    def of(cls, pairs: Sequence[Example]) -> Examples:
        """The tensors of pairs of a command and its actions."""
        commands, actions = zip(*pairs, strict=True)
        return cls(COMMANDS.encode_all(commands), SEQUENCES.encode_all(actions))

    def __len__(self) -> int:
        return len(self.commands)

    def __getitem__(self, rows: Tensor | slice) -> Examples:
        """Some of them, cut to the longest."""
        commands, targets = self.commands[rows], self.targets[rows]
        return Examples(commands[:, : _longest(commands)], targets[:, : _longest(targets)])

    def by_length(self) -> Examples:
        """The same, the shortest sequences first, so that batches of them waste little."""
        return self[(self.targets != PAD).sum(dim=1).argsort(stable=True)]


@dataclass(frozen=True)
class Split:
    """What to learn from, what to choose settings on, and the combinations that are held out."""

    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class Symmetry:
    """One group that acts on commands and on action sequences.

    Attributes:
        words: How it acts on the ids of commands.
        tokens: How it acts on the ids of action sequences.
    """

    words: TokenAction
    tokens: TokenAction

    @classmethod
    def verb_swap(cls) -> Symmetry:
        """The papers' group for add-jump: exchanges jump and run."""
        return cls._of(cyclic(2), [{}, {"jump": "run", "run": "jump"}])

    @classmethod
    def direction_swap(cls) -> Symmetry:
        """The papers' group for around-right: exchanges left and right."""
        return cls._of(cyclic(2), [{}, {"left": "right", "right": "left"}])

    @classmethod
    def all_verbs(cls) -> Symmetry:
        """All permutations of the four verbs."""
        group = symmetric(len(VERBS))
        # Elements are named by where they send 0, 1, 2 and 3.
        moves = [{VERBS[i]: VERBS[int(j)] for i, j in enumerate(name)} for name in group.names]
        return cls._of(group, moves)

    @classmethod
    def verbs_and_directions(cls) -> Symmetry:
        """All permutations of the verbs, with and without left and right exchanged."""
        verbs, directions = cls.all_verbs(), cls.direction_swap()
        group = verbs.words.group * directions.words.group
        return cls(
            *(
                TokenAction(
                    group,
                    [[a[i] for i in b] for a in first.permutations for b in second.permutations],
                )
                for first, second in (
                    (verbs.words, directions.words),
                    (verbs.tokens, directions.tokens),
                )
            )
        )

    @classmethod
    def _of(cls, group: FiniteGroup, moves: Sequence[Mapping[str, str]]) -> Symmetry:
        """The group whose elements exchange words, and the tokens that belong to them."""
        tokens = [{ACTION_OF[a]: ACTION_OF[b] for a, b in move.items()} for move in moves]
        return cls(
            TokenAction(group, [_permutation(COMMANDS, move) for move in moves]),
            TokenAction(group, [_permutation(SEQUENCES, move) for move in tokens]),
        )


SPLITS: dict[str, tuple[Callable[[], scan_grammar.Split], Callable[[], Symmetry]]] = {
    "add_jump": (scan_grammar.add_jump, Symmetry.verb_swap),
    "around_right": (scan_grammar.around_right, Symmetry.direction_swap),
}
"""The examples of each split, and the group that the papers use for it."""


def load_split(name: str, *, limit: int | None = None) -> Split:
    """A split as tensors; a tenth of its training part, shuffled, is for validation.

    Which examples these are does not depend on the seed of a run.

    Args:
        name: One of :data:`SPLITS`.
        limit: Only so many examples of the training and of the test part, for trials.
    """
    made = SPLITS[name][0]()
    train, test = _shuffled(made.train)[:limit], _shuffled(made.test)[:limit]
    count = int(VALIDATION_SHARE * len(train))
    return Split(Examples.of(train[count:]), Examples.of(train[:count]), Examples.of(test))


def _shuffled(pairs: Sequence[Example]) -> list[Example]:
    generator = torch.Generator().manual_seed(SHUFFLE_SEED)
    return [pairs[i] for i in torch.randperm(len(pairs), generator=generator).tolist()]


def _permutation(vocabulary: Vocabulary, move: Mapping[str, str]) -> list[int]:
    moved = [vocabulary.id(move.get(word, word)) for word in vocabulary.words]
    return [*range(EOS + 1), *moved]


def _longest(ids: Tensor) -> int:
    return int((ids != PAD).sum(dim=1).max())
