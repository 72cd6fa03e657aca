"""Symmetrised encoder-decoders, and the methods of the papers on top of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, final

from torch import Tensor, nn

from equitune._checks import described, require, require_function, require_type
from equitune.actions import Action, TreeAction, TrivialAction
from equitune.runners import Runner
from equitune.runners._base import Mixing
from equitune.seq2seq._decoding import Decoded, GreedyDecoder
from equitune.seq2seq._runners import Alone, Lockstep, Start
from equitune.spaces import Logits, Probabilities, Space, Sums
from equitune.weightings import Best, Learned, Weighting
from equitune.weightings._best import Gradient
from equitune.wrappers import Symmetrized

Actions = Action | Mapping[str, Action]


class SymmetrizedSeq2Seq(Symmetrized):
    """An encoder-decoder whose decoded sequences are equivariant as a whole, with any weighting.

    Calls take the arguments of the decoder and return its output, :class:`Decoded`. Its scores
    are log-probabilities.

    If the weights are known before the first step, the model is itself a step model, in lockstep:
    another search can start from the state that :meth:`encode` returns, and
    ``GreedyDecoder(model, ...)`` can be wrapped once more for a second group.

    Args:
        backbone: The decoder of an encoder-decoder. Neither it nor its model is modified.
        input_action: How the group acts on the source, such as a ``TokenAction``, or a mapping
            from the names of arguments, ``"source"`` and those of the model's ``encode``, to
            actions.
        token_action: How the group acts on the ids of output tokens. It has to fix the decoder's
            ``bos``, ``eos`` and ``pad``.
        weighting: How much each copy counts. Default equal weights.
        runner: How the copies are decoded: :class:`Lockstep`, :class:`Independent` or
            :class:`Alone`. Default ``Alone()`` for a weighting that reads ``"output"``, the decoded
            sequences, else ``Lockstep()``.
        space: The space in which copies are averaged. Default their probabilities; the gradient of
            a weighting that chooses is then that of the mean of the log-probabilities.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the actions are of different groups, ``token_action`` moves ``bos``, ``eos``
            or ``pad``, the runner does not offer what the weighting reads, or the space is not one
            of log-probabilities. Calls raise it for tensors without an action.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from equitune import Best, TokenAction
        >>> from equitune.seq2seq import GreedyDecoder, SymmetrizedSeq2Seq, mean_entropy
        >>> class Bigram(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.words, self.tokens = nn.Embedding(9, 16), nn.Embedding(7, 16)
        ...         self.scores = nn.Linear(16, 7)
        ...
        ...     def encode(self, source):
        ...         return self.words(source).mean(dim=1)
        ...
        ...     def step(self, tokens, state):
        ...         return self.scores(state + self.tokens(tokens)), state
        >>> decoder = GreedyDecoder(Bigram(), bos=1, eos=2, pad=0, max_length=20)
        >>> words = TokenAction.cyclic_swaps(9, [(5, 6)])
        >>> tokens = TokenAction.cyclic_swaps(7, [(3, 4)])
        >>> model = SymmetrizedSeq2Seq(decoder, words, tokens, weighting=Best(mean_entropy))
        >>> model.explain(torch.tensor([[5, 7, 8], [8, 8, 6]])).weights.shape
        torch.Size([2, 2])
    """

    backbone: GreedyDecoder

    def __init__(
        self,
        backbone: GreedyDecoder,
        input_action: Actions,
        token_action: Action,
        *,
        weighting: Weighting | None = None,
        runner: Runner | None = None,
        space: Space | None = None,
    ) -> None:
        use = "GreedyDecoder(model, bos=..., eos=..., max_length=...)"
        require_type("backbone", backbone, GreedyDecoder, use)
        _check_tokens(backbone, token_action)
        if isinstance(input_action, Mapping):
            _check_names(backbone, input_action)
        inputs = _named(input_action, token_action)
        scores, mask = token_action.on_logits(), TrivialAction(token_action.group)
        outputs = TreeAction({"tokens": token_action, "scores": scores, "mask": mask})
        reads, chooses = [getattr(weighting, name, None) for name in ("reads", "chooses")]
        if runner is None:
            runner = Alone() if reads == "output" else Lockstep()
        require_type("runner", runner, Runner, "Lockstep(), Independent() or Alone()")
        if space is None:
            space = Chances() if chooses else Probabilities()
        use = "Probabilities() or Logits()"
        logarithmic = require_type("space", space, Space, use).logarithmic
        require(logarithmic, "space", "be one of log-probabilities", space, use)
        super().__init__(backbone, inputs, outputs, weighting=weighting, runner=runner, space=space)
        self.token_action, self.input_action = token_action, input_action

    def moved_arguments(self) -> Actions:
        return _named(self.input_action, self.token_action)

    def encode(self, source: Tensor, **options: Any) -> Any:
        """Encodes all copies of each source.

        Args:
            source: (B, ...), the input of the model's ``encode``.
            **options: The other arguments of the model's ``encode``.

        Returns:
            The state for :meth:`step` and :meth:`steps`, opaque.

        Raises:
            ValueError: If the weighting reads decoded sequences.
        """
        early, use = self.weighting.reads != "output", "one that reads 'input', or call the model"
        require(early, "weighting", "be known before the first step", "one of sequences", use)
        mix = Mixing(self.weighting, self.space)
        return self.run(mix, source, (), options, Start())

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The mean log-probabilities (B, V) after tokens (B,), and the next state."""
        encoded, inner = state
        scores, inner = encoded.step(tokens, inner)
        return scores, (encoded, inner)

    def steps(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The mean log-probabilities (B, L, V) after each of (B, L) tokens, and the next state."""
        encoded, inner = state
        scores, inner = encoded.steps(tokens, inner)
        return scores, (encoded, inner)


@final
class EquiSeq2Seq(SymmetrizedSeq2Seq):
    """The mean over the group of the distributions of each next token (first paper, section 5.2).

    Args:
        backbone: The decoder of an encoder-decoder.
        input_action: How the group acts on the source, or a mapping from argument names to actions.
        token_action: How the group acts on the ids of output tokens. It has to fix the decoder's
            ``bos``, ``eos`` and ``pad``.
        runner: How the copies are decoded: :class:`Lockstep` or :class:`Independent`.

    Shape:
        As :class:`GreedyDecoder`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the actions are of different groups, or ``token_action`` moves ``bos``,
            ``eos`` or ``pad``. Calls raise it for tensors without an action.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from equitune import TokenAction
        >>> from equitune.seq2seq import EquiSeq2Seq, GreedyDecoder
        >>> class BagOfWords(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.words, self.tokens = nn.Embedding(9, 16), nn.Embedding(7, 16)
        ...         self.cell, self.scores = nn.GRUCell(16, 16), nn.Linear(16, 7)
        ...
        ...     def encode(self, source):
        ...         return self.words(source).mean(dim=1)
        ...
        ...     def step(self, tokens, hidden):
        ...         hidden = self.cell(self.tokens(tokens), hidden)
        ...         return self.scores(hidden), hidden
        >>> decoder = GreedyDecoder(BagOfWords(), bos=1, eos=2, pad=0, max_length=20)
        >>> words = TokenAction.cyclic_swaps(9, [(5, 6)])
        >>> tokens = TokenAction.cyclic_swaps(7, [(3, 4)])
        >>> model = EquiSeq2Seq(decoder, words, tokens).eval()
        >>> commands = torch.tensor([[5, 7, 8], [8, 8, 6]])
        >>> swapped = model(words.transform(commands, 1)).tokens
        >>> torch.equal(tokens.transform(swapped, 1), model(commands).tokens)
        True
    """

    def __init__(
        self,
        backbone: GreedyDecoder,
        input_action: Actions,
        token_action: Action,
        *,
        runner: Runner | None = None,
    ) -> None:
        super().__init__(backbone, input_action, token_action, runner=runner)


@final
class LambdaSeq2Seq(SymmetrizedSeq2Seq):
    """Learned weights of the copies, one for each copy and source (second paper, equation 4).

    p(y | x) = sum_g lambda(gx) p(gy | gx) / sum_h lambda(hx) at each step, where log lambda is
    what the weight network returns. ``equitune.training`` trains it in phases.

    Args:
        backbone: The decoder of an encoder-decoder.
        input_action: How the group acts on the source, or a mapping from argument names to actions.
        token_action: How the group acts on the ids of output tokens, as in :class:`EquiSeq2Seq`.
        weight_net: A module that sees single copies as a flat batch (N, ...) and returns one
            logit each, (N,) or (N, 1); or an :class:`equitune.weightings.OrbitWeightNet`.
        weight_input: What the network sees: ``"input"``, the copies of the source; or the dotted
            name of a submodule of the backbone that runs once while a source is encoded, such as
            ``"model.encoder"``, and returns a tensor (N, ...).
        runner: How the copies are decoded: :class:`Lockstep` or :class:`Independent`.

    Shape:
        As :class:`GreedyDecoder`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: As :class:`EquiSeq2Seq`, and if no submodule has the name ``weight_input``.
            Calls raise it if the weight network returns another shape.
    """

    def __init__(
        self,
        backbone: GreedyDecoder,
        input_action: Actions,
        token_action: Action,
        *,
        weight_net: nn.Module,
        weight_input: str = "input",
        runner: Runner | None = None,
    ) -> None:
        super().__init__(
            backbone, input_action, token_action, weighting=Learned(weight_net, weight_input),
            runner=Lockstep() if runner is None else runner,
        )  # fmt: skip


@final
class EquiZeroSeq2Seq(SymmetrizedSeq2Seq):
    """The copy of each source with the smallest proxy loss (second paper, section 5.1.3).

    Each copy is decoded by itself, and the output is the whole sequence of the best copy. With
    targets, the best copy is the surest along them. Several best copies share their probabilities.

    Fine-tune it with ``nll_loss`` on the scores, not with ``cross_entropy``. That would normalise
    the scores once more, and the gradient would vanish where the best copy is sure.

    Args:
        backbone: The decoder of an encoder-decoder.
        input_action: How the group acts on the source, or a mapping from argument names to actions.
        token_action: How the group acts on the ids of output tokens, as in :class:`EquiSeq2Seq`.
        proxy_loss: Maps the decoded copies, a :class:`Decoded` of stacks (|G|, B, ...), to losses
            (|G|, B); the smallest wins. See ``equitune.seq2seq``: ``mean_error_probability``,
            ``mean_entropy``, ``negative_log_probability``, ``negative_log_min_probability``. A
            module becomes a submodule, and is kept in eval mode.
        gradient: Whose gradient the chosen scores have: ``"equitune"``, that of the mean of the
            log-probabilities of all copies; ``"identity"``, that of the first copy;
            ``"selected"``, their own; None for no gradient.
        tie_tolerance: Losses closer than this to the minimum, relative to it, count as ties.
            Default by the dtype of the scores.

    Shape:
        As :class:`GreedyDecoder`; the scores are those of the chosen copy.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: As :class:`EquiSeq2Seq`, and for another ``gradient`` or a negative
            ``tie_tolerance``. Calls raise it if the proxy loss returns another shape.
    """

    def __init__(
        self,
        backbone: GreedyDecoder,
        input_action: Actions,
        token_action: Action,
        *,
        proxy_loss: Callable[[Decoded], Tensor],
        gradient: Gradient | None = "equitune",
        tie_tolerance: float | None = None,
    ) -> None:
        use = "one of the decoded copies, such as equitune.seq2seq.mean_error_probability"
        require_function("proxy_loss", proxy_loss, use)
        weighting = Best(proxy_loss, gradient, tie_tolerance)
        super().__init__(backbone, input_action, token_action, weighting=weighting)


@final
class Chances(Space):
    """The mean of the probabilities; with equal weights, the mean of the log-probabilities.

    Chosen copies share their probabilities. Equal weights occur only in the gradient of a choice.
    It is the gradient of the mean loss of all copies, independent of how sure each copy is.
    """

    logarithmic = True

    def enter(self, stack: Tensor) -> Tensor:
        return Probabilities().enter(stack)

    def average(self, stack: Tensor, weights: Tensor | None, sums: Sums) -> Tensor:
        return (Logits() if weights is None else Probabilities()).average(stack, weights, sums)

    def leave(self, mean: Tensor) -> Tensor:
        return mean


def _named(input_action: Actions, token_action: Action) -> Mapping[str, Action]:
    """The actions of the source and of the targets, by name."""
    named = input_action if isinstance(input_action, Mapping) else {"source": input_action}
    return {**named, "targets": token_action}


def _check_names(decoder: GreedyDecoder, inputs: Mapping[str, Action]) -> None:
    """Refuses actions on arguments that the model's ``encode`` does not take."""
    parameters = [*inspect.signature(decoder.model.encode).parameters.values()]
    # The first argument is the source under any name.
    names = ["source", *(p.name for p in parameters[1:])]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    use = "'source' and the other names of the model's encode; `token_action` moves targets"
    for name in inputs:
        known = name in names or (open_ended and name != "targets")
        require(known, "input_action", f"have names out of {names}", repr(name), use)


def _check_tokens(decoder: GreedyDecoder, action: Action) -> None:
    use = "a TokenAction of the whole vocabulary, which fixes bos, eos and pad"
    size = require_type("token_action", action, Action, use).vocabulary_size
    require(size is not None, "token_action", "act on ids", described(action), use, TypeError)
    rows = action.on_logits().permutations
    for name in ("bos", "eos", "pad"):
        token = getattr(decoder, name)
        known = token < len(rows[0])
        fixed = known and all(row[token] == token for row in rows)
        got = "one that moves it" if known else f"an action on {size} ids"
        require(fixed, "token_action", f"fix the decoder's {name}, {token}", got, use)
