"""Symmetrised causal language models: EquiLM and REquiLM."""

from __future__ import annotations

from typing import final

from torch import nn

from equitune.spaces import Probabilities, Space
from equitune.text._orbit import OrbitLM
from equitune.text._words import ResolvedWords


class EquiLM(OrbitLM):
    """A language model that is fair in the sense of groups: P(gX2 | gX1) = P(X2 | X1).

    The mean over the group of the probabilities that a causal language model gives the next token,
    p(v | X) = 1/|G| sum_g p_M(gv | gX) (first paper, section 5.3, equation 4 and Figure 4). It is
    used like the model itself: with ``generate``, beams, padding, caches and labels.

    Args:
        model: A causal language model of transformers (Llama, GPT-2, GPT-NeoX, ...).
        words: The equality words, ``EqualityWords(...).resolve(tokenizer, vocab_size)``; general
            words are neutral here.
        space: ``Probabilities()``, as in the paper, or ``Logits()``.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If ``words`` are of another vocabulary.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from equitune import TokenAction
        >>> from equitune.text import EquiLM, ResolvedWords
        >>> config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2)
        >>> swap = TokenAction.cyclic_swaps(20, [(3, 4)])
        >>> model = EquiLM(GPT2LMHeadModel(config).eval(), ResolvedWords(swap, (), ((3, 4),), ()))
        >>> he, she = torch.tensor([[1, 3, 7]]), torch.tensor([[1, 4, 7]])
        >>> p, q = (model(x).logits[0, -1].softmax(-1) for x in (he, she))
        >>> torch.allclose(p[[3, 4, 5]], q[[4, 3, 5]], atol=1e-6)
        True
    """

    relaxed = False

    def __init__(
        self,
        model: nn.Module,
        words: ResolvedWords,
        *,
        space: Space = Probabilities(),  # noqa: B008
    ) -> None:
        super().__init__(model, words, space=space, relaxed=self.relaxed)


@final
class REquiLM(EquiLM):
    """EquiLM, relaxed: general words keep the probabilities of the plain model.

    Equality and neutral words are scored as by :class:`EquiLM`, general words by the model itself
    (first paper, section 5.3). These do not sum to 1 and are normalised; after that only the ratios
    within equality and neutral words are equivariant, and a sentence with general words has no
    guarantee.

    Args:
        model: A causal language model of transformers.
        words: The equality words with general words.
        space: ``Probabilities()``, as in the paper, or ``Logits()``.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If ``words`` are of another vocabulary or have no general words.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from equitune import TokenAction
        >>> from equitune.text import REquiLM, ResolvedWords
        >>> config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2)
        >>> swap = TokenAction.cyclic_swaps(20, [(3, 4)])
        >>> words = ResolvedWords(swap, (7,), ((3, 4),), ())
        >>> model = REquiLM(GPT2LMHeadModel(config).eval(), words)
        >>> p = model(torch.tensor([[1, 5, 9]])).logits[0, -1].softmax(-1)
        >>> bool((p[3] - p[4]).abs() < 1e-7), bool((p.sum() - 1).abs() < 1e-5)
        (True, True)
    """

    relaxed = True
