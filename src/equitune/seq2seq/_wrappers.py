"""EquiTune, LambdaEquiTune and EquiZero of encoder-decoders."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from equitune.actions import Action, TokenAction, TreeAction, TrivialAction
from equitune.actions._table import Table
from equitune.seq2seq._copies import CopySearch, Feedback, Lockstep, first_equal
from equitune.seq2seq._decoding import Decoded, GreedyDecoder, Search
from equitune.wrappers import Symmetrizer
from equitune.wrappers._calls import MovedCall
from equitune.wrappers._lambda_equitune import LambdaSymmetrizer, orbit_logits
from equitune.wrappers._orbit import OrbitPass
from equitune.wrappers._selection import Gradient, SelectingSymmetrizer

__all__ = ["EquiSeq2Seq", "EquiZeroSeq2Seq", "LambdaSeq2Seq", "OrbitSeq2Seq"]


class OrbitSeq2Seq(Symmetrizer):
    """Decodes all copies of each source in one batch, so that whole sequences are equivariant.

    Subclasses say how the copies are put together. Calls take what the decoder takes and return
    what it returns, :class:`Decoded`.

    Args:
        backbone: The decoder of an encoder-decoder. Neither it nor its model is modified.
        input_action: How the group acts on the source, such as a ``TokenAction``, or a mapping
            from the names of arguments, ``"source"`` and what else the model's ``encode`` takes,
            to actions.
        symbol_action: How the group acts on the ids of symbols. It has to keep those that start,
            end and pad sequences where they are.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the actions are of different groups, or ``symbol_action`` moves a symbol
            that starts, ends or pads.
    """

    backbone: GreedyDecoder

    def __init__(
        self,
        backbone: GreedyDecoder,
        input_action: Action | Mapping[str, Action],
        symbol_action: TokenAction,
    ) -> None:
        if not isinstance(backbone, GreedyDecoder):
            raise TypeError(
                f"backbone is a {type(backbone).__name__}; use GreedyDecoder(model, start=..., "
                "end=..., limit=...)"
            )
        _check_symbols(backbone, symbol_action)
        inputs = {"source": input_action} if isinstance(input_action, Action) else input_action
        if isinstance(inputs, Mapping):
            _check_names(backbone, inputs)
            inputs = {**inputs, "targets": symbol_action}
        fields = {
            "symbols": symbol_action,
            "scores": symbol_action.on_logits(),
            "mask": TrivialAction(symbol_action.group),
        }
        super().__init__(backbone, inputs, TreeAction(fields))
        self.input_action = input_action
        self.symbol_action = symbol_action
        self._score_action = fields["scores"]
        self._inverses = Table(torch.tensor(self.group.inverses, device="cpu"))

    def extra_repr(self) -> str:
        return f"group of order {self.group.order}"

    def _begin(self, call: MovedCall) -> tuple[CopySearch, list[OrbitPass]]:
        """Encodes all copies: one batch per shape."""
        searches: list[Search] = []
        passes: list[OrbitPass] = []
        same: list[Tensor] = []
        for elements in call.shape_classes():
            stacks = call.orbits(elements)
            same.append(_equal_copies(call, elements, stacks))
            # The model may work in place on what it gets.
            inputs = [stack.clone() for stack in stacks] if self.reads_inputs else []
            flat, tapped = [stack.flatten(0, 1) for stack in stacks], None
            begin = functools.partial(call.run, self.backbone.begin, flat)
            if self._tap is None:
                search = begin()
            else:
                search, seen = self._tap.read(begin)
                tapped = self._unflat(seen, len(elements), call.batch_size)
            searches.append(search)
            passes.append(OrbitPass(elements, inputs, None, [], tapped))
        classes = tuple(orbit.elements for orbit in passes)
        copies = CopySearch.of(
            self.backbone,
            self.symbol_action,
            self._score_action,
            classes,
            searches,
            same,
            self._inverses,
        )
        return copies, passes

    def _unflat(self, activation: Tensor, rows: int, batch_size: int) -> Tensor:
        if activation.shape[0] != rows * batch_size:
            raise ValueError(
                f"weight_input returned a tensor of shape {tuple(activation.shape)} for a batch of "
                f"{rows * batch_size}; use a submodule whose first dimension is the batch"
            )
        stack: Tensor = activation.unflatten(0, (rows, batch_size))
        return stack


class AveragingSeq2Seq(OrbitSeq2Seq):
    """The distributions of the copies are averaged, with weights that are known before.

    It is a step model itself, in lockstep: another search may go on from what :meth:`encode`
    returns, and ``GreedyDecoder(wrapper, ...)`` may be wrapped once more for a second group.
    """

    feedback: Feedback

    def encode(self, source: Tensor, **options: Any) -> Any:
        """Encodes all copies of each source.

        Args:
            source: (B, ...), what the model encodes.
            **options: What else the model's ``encode`` takes.

        Returns:
            The state to go on from, opaque.
        """
        copies, passes = self._begin(self._bind(source, (), options))
        return copies.together(copies.shared(self.weigh(passes)[0])), copies.search.state

    def step(self, symbols: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The averaged log-probabilities (B, V) of what follows symbols (B,); the next state."""
        return self._go_on(state[0].step, symbols, state)

    def steps(self, symbols: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Those of all steps of known symbols (B, L), as (B, L, V); the next state."""
        return self._go_on(state[0].steps, symbols, state)

    def _go_on(self, run: Any, symbols: Tensor, state: Any) -> tuple[Tensor, Any]:
        scores, states = run(symbols, state[1])
        return scores, (state[0], states)

    def _evaluate(self, call: MovedCall) -> tuple[Any, Tensor | None, Tensor | None]:
        copies, passes = self._begin(call)
        weights, scores = self.weigh(passes)
        weights = copies.shared(weights)
        return self.feedback.average(copies, weights), weights, scores


@final
class EquiSeq2Seq(AveragingSeq2Seq):
    """The mean over the group of the distributions of each next symbol (first paper, section 5.2).

    The scores of what is decoded are log-probabilities.

    Args:
        backbone: The decoder of an encoder-decoder.
        input_action: How the group acts on the source, such as a ``TokenAction``, or a mapping
            from the names of arguments, ``"source"`` and what else the model's ``encode`` takes,
            to actions.
        symbol_action: How the group acts on the ids of symbols. It has to keep those that start,
            end and pad sequences where they are.
        feedback: What each copy is fed next: :class:`Lockstep` or :class:`Independent`.

    Shape:
        As :class:`GreedyDecoder`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the actions are of different groups, or ``symbol_action`` moves a symbol
            that starts, ends or pads. Calls raise it for tensors without an action.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from equitune import TokenAction
        >>> from equitune.seq2seq import EquiSeq2Seq, GreedyDecoder
        >>> class BagOfWords(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.words, self.symbols = nn.Embedding(9, 16), nn.Embedding(7, 16)
        ...         self.cell, self.scores = nn.GRUCell(16, 16), nn.Linear(16, 7)
        ...
        ...     def encode(self, tokens):
        ...         return self.words(tokens).mean(dim=1)
        ...
        ...     def step(self, symbols, hidden):
        ...         hidden = self.cell(self.symbols(symbols), hidden)
        ...         return self.scores(hidden), hidden
        >>> decoder = GreedyDecoder(BagOfWords(), start=1, end=2, pad=0, limit=20)
        >>> words = TokenAction.cyclic_swaps(9, [(5, 6)])
        >>> symbols = TokenAction.cyclic_swaps(7, [(3, 4)])
        >>> model = EquiSeq2Seq(decoder, words, symbols).eval()
        >>> commands = torch.tensor([[5, 7, 8], [8, 8, 6]])
        >>> swapped = model(words.transform(commands, 1)).symbols
        >>> torch.equal(symbols.transform(swapped, 1), model(commands).symbols)
        True
    """

    def __init__(
        self,
        backbone: GreedyDecoder,
        input_action: Action | Mapping[str, Action],
        symbol_action: TokenAction,
        *,
        feedback: Feedback | None = None,
    ) -> None:
        super().__init__(backbone, input_action, symbol_action)
        self.feedback = _checked_feedback(feedback)

    def weigh(self, passes: list[OrbitPass]) -> tuple[Tensor | None, Tensor | None]:
        return None, None


@final
class LambdaSeq2Seq(AveragingSeq2Seq, LambdaSymmetrizer):
    """Learned weights of the copies, one for each copy and source (second paper, equation 4).

    p(y | x) = sum_g lambda(gx) p(gy | gx) / sum_h lambda(hx) at each step, where log lambda is
    what the weight network returns. ``equitune.training`` trains it in phases.

    Args:
        backbone: As for :class:`EquiSeq2Seq`.
        input_action: As for :class:`EquiSeq2Seq`.
        symbol_action: As for :class:`EquiSeq2Seq`.
        weight_net: A module that sees single copies as a flat batch (N, ...) and returns one
            logit each, (N,) or (N, 1); or an :class:`equitune.weights.OrbitWeightNet`.
        weight_input: What the network sees: ``"input"``, the copies of the source; or the dotted
            name of a submodule of the backbone that runs once while a source is encoded, such as
            ``"model.encoder"``, and returns a tensor (N, ...).
        feedback: As for :class:`EquiSeq2Seq`.

    Shape:
        As :class:`GreedyDecoder`.

    Raises:
        TypeError: As :class:`EquiSeq2Seq`.
        ValueError: As :class:`EquiSeq2Seq`, and if no submodule has the name ``weight_input``.
            Calls raise it if the weight network returns another shape.
    """

    def __init__(
        self,
        backbone: GreedyDecoder,
        input_action: Action | Mapping[str, Action],
        symbol_action: TokenAction,
        *,
        weight_net: nn.Module,
        weight_input: str = "input",
        feedback: Feedback | None = None,
    ) -> None:
        super().__init__(backbone, input_action, symbol_action)
        self._weigh_by(weight_net, weight_input, ("input",))
        self.feedback = _checked_feedback(feedback)

    def weigh(self, passes: list[OrbitPass]) -> tuple[Tensor | None, Tensor | None]:
        seen = [orbit.inputs[0] if orbit.tapped is None else orbit.tapped for orbit in passes]
        name = f"weight_input {self.weight_input!r}"
        logits = orbit_logits(self.weight_net, seen, [p.elements for p in passes], name)
        return logits.softmax(dim=0), logits


@final
class EquiZeroSeq2Seq(OrbitSeq2Seq, SelectingSymmetrizer):
    """The copy of each source with the smallest proxy loss (second paper, section 5.1.3).

    Each copy is decoded by itself; the whole sequence is that of the best one. With targets, the
    best one is that which is surest along them. Several best copies share their probabilities.

    Fine-tune it with ``nll_loss`` on the scores, not with ``cross_entropy``: normalised once more,
    the gradient of the mean would be weighed by what the best copy gets wrong, and vanish where
    that copy is sure.

    Args:
        backbone: As for :class:`EquiSeq2Seq`.
        input_action: As for :class:`EquiSeq2Seq`.
        symbol_action: As for :class:`EquiSeq2Seq`.
        proxy_loss: Maps the decoded copies, a :class:`Decoded` of stacks (|G|, B, ...), to losses
            (|G|, B); the smallest wins. See ``equitune.seq2seq``: ``negative_max_probability``,
            ``entropy``, ``negative_log_probability``, ``negative_least_probability``. A module
            becomes a submodule, and is kept in eval mode.
        gradient: As for :class:`equitune.EquiZero`: whose gradient the chosen scores have.
        tie_tolerance: As for :class:`equitune.EquiZero`.

    Shape:
        As :class:`GreedyDecoder`; the scores are those of the chosen copy.

    Raises:
        TypeError: As :class:`EquiSeq2Seq`.
        ValueError: As :class:`EquiSeq2Seq`, and for another ``gradient`` or a negative
            ``tie_tolerance``. Calls raise it if the proxy loss returns another shape.
    """

    def __init__(
        self,
        backbone: GreedyDecoder,
        input_action: Action | Mapping[str, Action],
        symbol_action: TokenAction,
        *,
        proxy_loss: Callable[[Decoded], Tensor],
        gradient: Gradient | None = "equitune",
        tie_tolerance: float | None = None,
    ) -> None:
        super().__init__(backbone, input_action, symbol_action)
        example = "equitune.seq2seq.negative_max_probability"
        self._select_by(proxy_loss, gradient, tie_tolerance, example)

    def _evaluate(self, call: MovedCall) -> tuple[Any, Tensor | None, Tensor | None]:
        copies, _ = self._begin(call)
        scores = copies.alone()
        raw, elements = copies.read(scores), tuple(self.group.elements)
        orbit = OrbitPass(elements, [], raw, [(self._score_action, scores)], None)
        weights, losses = self.weigh([orbit])
        stack = self._score_action.inverse_orbit(raw.scores)
        # Copies that tie share their probabilities, which are read again. A copy that does not
        # count is impossible, and not nearly so.
        logs = weights.log()
        chosen = self.combine(stack, weights, lambda scores, _: copies.mixture(scores, logs))
        return self.backbone.read(chosen, copies.targets), weights, losses

    def weigh(self, passes: list[OrbitPass]) -> tuple[Tensor, Tensor]:
        (orbit,) = passes
        # The choice is piecewise constant.
        with torch.no_grad():
            losses = self._losses(orbit.template, orbit.template.scores.shape)
            return self._weights(losses, [scores.dtype for _, scores in orbit.outputs]), losses


def _equal_copies(call: MovedCall, elements: tuple[int, ...], stacks: list[Tensor]) -> Tensor:
    """(E, B) int64, the first element whose copy of the source, options included, is equal."""
    # Targets are compared where they are fed, symbol by symbol. The first tensor is the source.
    targets = call.kwargs.get("targets", call.args[1] if len(call.args) > 1 else None)
    leaves = [leaf for _, leaf in call.leaves]
    sources = [s for i, s in enumerate(stacks) if i == 0 or leaves[i] is not targets]
    return torch.tensor(elements, device=sources[0].device)[first_equal(*sources)]


def _checked_feedback(feedback: object) -> Feedback:
    if feedback is None:
        return Lockstep()
    if not isinstance(feedback, Feedback):
        given = f"the class {feedback.__name__}" if isinstance(feedback, type) else repr(feedback)
        raise TypeError(f"feedback is {given}; use Lockstep() or Independent()")
    return feedback


def _check_names(decoder: GreedyDecoder, inputs: Mapping[str, Action]) -> None:
    """Refuses actions on arguments that the model's ``encode`` does not take."""
    if "targets" in inputs:
        raise ValueError(
            "input_action has an action for 'targets', which symbol_action moves; leave it out"
        )
    parameters = [*inspect.signature(decoder.model.encode).parameters.values()]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    # The first one is the source, whatever the model calls it.
    names = ["source", *(p.name for p in parameters[1:])]
    for name in inputs:
        if name not in names:
            raise ValueError(
                f"input_action has an action for {name!r}, but the arguments are {names}; the "
                "first one is called 'source', the others as the model's encode calls them"
            )


def _check_symbols(decoder: GreedyDecoder, action: object) -> None:
    if not isinstance(action, Action) or action.vocabulary_size is None:
        raise TypeError(
            f"symbol_action is a {type(action).__name__}; use a TokenAction, how the group acts "
            "on the ids of symbols"
        )
    for name in ("start", "end", "pad"):
        symbol = getattr(decoder, name)
        if symbol >= action.vocabulary_size:
            raise ValueError(
                f"symbol_action has {action.vocabulary_size} symbols, but the decoder's {name} is "
                f"{symbol}; use the action of all symbols"
            )
        if any(row[symbol] != symbol for row in action.on_logits().permutations):
            raise ValueError(
                f"symbol_action moves {symbol}, but the decoder's {name} is {symbol}; use an "
                "action that keeps it where it is"
            )
