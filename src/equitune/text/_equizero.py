"""EquiZeroLM and REquiZeroLM: fair generation that prefers what a scorer likes best."""

from __future__ import annotations

from typing import final

from equitune.text._choosing import ChoosingLM


@final
class EquiZeroLM(ChoosingLM):
    """Generates from all copies of a prompt and keeps what a scorer likes best, mapped back.

    Fair like :class:`EquiLM`, and more positive where the scorer is one of regard (second paper,
    section 4.1 and appendix C.2).

    Args:
        model: A causal language model of transformers.
        words: The equality words, resolved for its vocabulary.
        tokenizer: That of the model, to make sentences of tokens.
        scorer: A function of a list of sentences, prompts included, that returns a number for each;
            the largest is the best. Sentences are not scored twice.
        beam_length: The number m of tokens that are generated before the copies are compared.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If ``words`` are of another vocabulary, or ``beam_length`` is below 1.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from equitune import TokenAction
        >>> from equitune.text import EquiZeroLM, ResolvedWords
        >>> config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2)
        >>> class Letters:
        ...     def decode(self, ids, skip_special_tokens):
        ...         return "".join(chr(97 + i) for i in ids)
        >>> swap = TokenAction.cyclic_swaps(20, [(3, 4)])
        >>> model = EquiZeroLM(
        ...     GPT2LMHeadModel(config).eval(),
        ...     ResolvedWords(swap, (), ((3, 4),), ()),
        ...     tokenizer=Letters(),
        ...     scorer=lambda sentences: [sentence.count("b") for sentence in sentences],
        ... )
        >>> model.generate(torch.tensor([[1, 3]]), max_new_tokens=5, eos_token_id=None).shape
        torch.Size([1, 7])
    """

    relaxed = False


@final
class REquiZeroLM(ChoosingLM):
    """EquiZeroLM, relaxed: in every copy, general words keep the plain model's probabilities.

    Equality and neutral words of copy g have the scores p_M(gv | gX), general words p_M(v | X); the
    scores are normalised (first paper, section 5.3, for one copy instead of their mean).

    Args:
        model: A causal language model of transformers.
        words: The equality words with general words.
        tokenizer: That of the model, to make sentences of tokens.
        scorer: A function of a list of sentences, prompts included, that returns a number for each;
            the largest is the best.
        beam_length: The number m of tokens that are generated before the copies are compared.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If ``words`` are of another vocabulary or have no general words, or
            ``beam_length`` is below 1.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from equitune import TokenAction
        >>> from equitune.text import REquiZeroLM, ResolvedWords
        >>> config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2)
        >>> class Letters:
        ...     def decode(self, ids, skip_special_tokens):
        ...         return "".join(chr(97 + i) for i in ids)
        >>> swap = TokenAction.cyclic_swaps(20, [(3, 4)])
        >>> model = REquiZeroLM(
        ...     GPT2LMHeadModel(config).eval(),
        ...     ResolvedWords(swap, (7,), ((3, 4),), ()),
        ...     tokenizer=Letters(),
        ...     scorer=lambda sentences: [sentence.count("b") for sentence in sentences],
        ... )
        >>> model.generate(torch.tensor([[1, 3]]), max_new_tokens=5, eos_token_id=None).shape
        torch.Size([1, 7])
    """

    relaxed = True
