"""The methods of the papers: EquiLM and EquiZeroLM, each of them relaxed as well."""

from __future__ import annotations

from typing import Any, cast, final

import torch
from torch import Tensor, nn

from equitune._checks import described, require, require_int
from equitune.runners._base import Mixing
from equitune.spaces import Probabilities, Space
from equitune.text._blocks import BestSentence, Scorer, Search
from equitune.text._interfaces import require_tokens
from equitune.text._orbit import OrbitLM
from equitune.text._settings import check_settings, merged_settings
from equitune.text._words import ResolvedWords
from equitune.weightings import Uniform
from equitune.wrappers import Explanation

REFUSED = (
    "streamer", "stopping_criteria", "assistant_model", "cache", "past_key_values", "stop_strings",
    "max_time", "prefix_allowed_tokens_fn", "guidance_scale", "prompt_lookup_num_tokens",
    "output_scores", "output_logits", "output_attentions", "output_hidden_states",
)  # fmt: skip


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
        self, model: nn.Module, words: ResolvedWords, *, space: Space = Probabilities()
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


class EquiZeroLM(OrbitLM):
    """Generates from all copies of a prompt and keeps what a scorer likes best, mapped back.

    Fair like :class:`EquiLM`, and more positive where the scorer is one of regard (second paper,
    section 4.1 and appendix C.2). Everything is in the frame of the prompt: copy g of a prompt X
    gives the next token v the probability p_M(gv | gX), so that its tokens are mapped back already,
    and only the scorer reads gX and what follows.

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

    relaxed: bool = False

    def __init__(
        self,
        model: nn.Module,
        words: ResolvedWords,
        *,
        tokenizer: Any,
        scorer: Scorer,
        beam_length: int = 5,
    ) -> None:
        super().__init__(model, words, weighting=BestSentence(scorer), relaxed=self.relaxed)
        decodes, use = hasattr(tokenizer, "decode"), "that of the model, which makes sentences"
        must = "have a method decode"
        require(decodes, "tokenizer", must, described(tokenizer), use, TypeError)
        self.tokenizer = tokenizer
        self.beam_length = require_int("beam_length", beam_length, "a number of tokens", least=1)

    def _mixing(self) -> Mixing:
        # Each copy has a distribution of its own.
        return Mixing(Uniform(), self.space)

    def _elements(self, elements: Tensor | None, input_ids: Tensor) -> Tensor:
        batch, given = len(input_ids), described(elements)
        fits = isinstance(elements, Tensor) and tuple(elements.shape) == (batch,)
        use = "one for each sequence, since copies are chosen in generate alone, or use EquiLM"
        require(fits, "elements", f"be of shape ({batch},)", given, use)
        return cast("Tensor", elements)[:, None]

    @torch.no_grad()
    def generate(
        self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any
    ) -> Any:
        """Generates ``beam_length`` tokens from each copy, keeps the best, and goes on from it.

        The copy with the best score of its whole sentence is kept; of several, that with the higher
        sum of its new tokens' probabilities; of several still, one by chance: by the noise of a
        :class:`GumbelNoise` among ``logits_processor``, by torch's generator otherwise (second
        paper, appendix C.2).

        Args:
            inputs: (B, T), the prompts.
            generation_config: The settings of transformers' ``generate``.
            **kwargs: The arguments of transformers' ``generate``: greedy, sampling and beams within
                the ``beam_length`` tokens, ``attention_mask``, ``max_new_tokens``, ...

        Returns:
            The sequences, or a ``GenerateDecoderOnlyOutput`` of them, as transformers do.

        Raises:
            ValueError: If something is asked for that has no meaning here, the scorer does not
                return a number for each sentence, or the context of the model is too short.
        """
        return self._search(inputs, generation_config, kwargs).run()

    @torch.no_grad()
    def explain(
        self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any
    ) -> Explanation:
        """Generates as :meth:`generate` does, and says which copies were kept.

        Returns:
            The output of ``generate``, with the weights and scores of each block, (|G|, B, blocks),
            and the elements whose copies were kept, (B, blocks). Once a sentence has ended, its
            scores are NaN and its weights are equal.
        """
        search = self._search(inputs, generation_config, kwargs)
        output = search.run()
        weights, scores = (torch.stack(each, dim=2) for each in zip(*search.blocks, strict=True))
        return Explanation(output, weights, scores, weights.argmax(dim=0))

    def _search(self, inputs: Any, generation_config: Any, kwargs: dict[str, Any]) -> Search:
        prompts = kwargs.pop("input_ids", None) if inputs is None else inputs
        require_tokens("inputs", prompts)
        mask = kwargs.pop("attention_mask", None)
        settings, options = merged_settings(self, generation_config, kwargs)
        for name in REFUSED:
            if getattr(settings, name, None) or options.get(name) is not None:
                raise ValueError(f"`{name}` has no meaning for generation in blocks; leave it out")
        check_settings(settings, options, self.words)
        return Search(self, prompts, mask, settings, options)

    def generate_block(self, inputs: Tensor, **kwargs: Any) -> Any:
        """The ``generate`` of transformers, of the copies that ``elements`` names.

        Args:
            inputs: (B, T), the prompts.
            **kwargs: The arguments of transformers' ``generate``, and ``elements`` of shape (B,).
        """
        # Past the checks of OrbitLM, which were made for the whole.
        return super(OrbitLM, self).generate(inputs, **kwargs)


@final
class REquiZeroLM(EquiZeroLM):
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
