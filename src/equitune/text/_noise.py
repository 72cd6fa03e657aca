"""Randomness that is carried along with the words, so that generations can be compared."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import require, require_ints, require_type
from equitune.actions import Action
from equitune.text._interfaces import transformers

LogitsProcessor: Any = transformers.LogitsProcessor


@final
class GumbelNoise(LogitsProcessor):  # type: ignore[misc]
    """Gumbel noise on every entry of the vocabulary, a draw for each sequence and position.

    The most probable token under the noise is a sample of the model, so that greedy decoding with
    it is sampling. Unlike the numbers behind ``torch.multinomial``, the noise belongs to
    the words and moves with them: a fair model that is given the moved prompt and the moved noise
    generates the moved text, token for token.

    Pass it to ``generate`` as the last of ``logits_processor``, with ``do_sample=False``;
    temperature and top-k come before it in that list.

    Args:
        action: The action on token ids, ``words.action``.
        seeds: One whole number for each sequence. What is drawn for a seed depends on the column
            in the batch, padding included, and neither on the other sequences nor on the device.

    Raises:
        TypeError: If ``action`` does not act on token ids, or a seed is not a whole number.

    Example:
        >>> import torch
        >>> from equitune import TokenAction
        >>> from equitune.text import GumbelNoise
        >>> noise = GumbelNoise(TokenAction.cyclic_swaps(5, [(1, 2)]), seeds=[7])
        >>> ids, scores = torch.tensor([[0, 3]]), torch.zeros(1, 5)
        >>> torch.equal(noise(ids, scores)[0, [2, 1]], noise.moved(1)(ids, scores)[0, [1, 2]])
        True
    """

    def __init__(self, action: Action, seeds: Iterable[int]) -> None:
        self.action: Action = require_type("action", action, Action, "words.action")
        self.seeds = require_ints("seeds", seeds, "one whole number for each sequence")
        self.elements: tuple[int, ...] = (0,) * len(self.seeds)
        self._on_scores = action.on_logits()

    def moved(self, g: int) -> GumbelNoise:
        """The noise that the group element g has moved, as it moves the words."""
        group = self.action.group
        group.check_element(g)
        return self._with(self.seeds, [group.compose(g, h) for h in self.elements])

    def take(self, sequences: Iterable[int]) -> GumbelNoise:
        """The noise of these sequences, in this order; each can be taken several times."""
        kept = list(sequences)
        return self._with([self.seeds[s] for s in kept], [self.elements[s] for s in kept])

    def ties(self, length: int) -> Tensor:
        """(S, |G|), numbers to break ties between copies with, carried along like the noise.

        The number of copy h of a sequence X is that of copy h g^-1 of gX.
        """
        group = self.action.group
        drawn = self._draw(length, group.order, stream=1)
        moved = [[group.compose(h, g) for h in group.elements] for g in self.elements]
        inverses = torch.tensor(group.inverses, device="cpu")
        return drawn.gather(1, inverses[torch.tensor(moved, dtype=torch.int64, device="cpu")])

    def require_sequences(self, count: int) -> None:
        """Refuses another number of sequences than that of the seeds."""
        use = "one for each prompt, times num_return_sequences, and no beams"
        must = f"be one for each of {count} sequences"
        require(len(self.seeds) == count, "seeds", must, len(self.seeds), use)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores (S, V) with the noise of the next position, that of ``input_ids.shape[1]``."""
        self.require_sequences(len(scores))
        drawn = self._draw(input_ids.shape[1], scores.shape[1], stream=0)
        elements = torch.tensor(self.elements, dtype=torch.int64, device="cpu")
        moved: Tensor = self._on_scores.transform(drawn, elements)
        return scores + moved.to(scores)

    def _draw(self, length: int, size: int, stream: int) -> Tensor:
        generator, rows = torch.Generator("cpu"), []
        for seed in self.seeds:
            generator.manual_seed(_mixed(seed, length, stream))
            rows.append(torch.empty(size, dtype=torch.float64).exponential_(generator=generator))
        return -torch.stack(rows).log()

    def _with(self, seeds: Iterable[int], elements: Iterable[int]) -> GumbelNoise:
        # A copy, so that the action on scores is validated once.
        noise = copy.copy(self)
        noise.seeds, noise.elements = tuple(seeds), tuple(elements)
        return noise


def _mixed(*numbers: int) -> int:
    """A seed of 32 bits, all that torch's CPU generator reads, without patterns."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
