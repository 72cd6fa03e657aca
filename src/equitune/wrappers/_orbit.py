"""The one forward machinery: build the orbit, run the backbone, undo the output action."""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from equitune._checks import require_int, require_mean, require_module, require_type
from equitune._cut import Cut
from equitune.actions import Action, TrivialAction
from equitune.functional import can_be_averaged, weighted_mean
from equitune.wrappers._attributes import Around
from equitune.wrappers._calls import InputActions, MovedCall
from equitune.wrappers._stacks import in_group_order
from equitune.wrappers._tap import Tap

__all__ = ["Explanation", "OrbitModule", "OrbitPass", "Symmetrizer"]


@final
@dataclass
class OrbitPass:
    """What the backbone read and returned for the elements whose copies have one shape.

    Attributes:
        elements: The elements, in the order of the stacks.
        inputs: The copies of the moved tensors, stacks of shape (E, B, ...) for E elements; none
            unless the weighting declares ``reads_inputs``.
        template: An output of the backbone, for its structure.
        outputs: The tensors of the raw outputs M(gx), with the action of each, as such stacks.
        tapped: The tapped activation, as such a stack.
    """

    elements: tuple[int, ...]
    inputs: list[Tensor]
    template: Any
    outputs: list[tuple[Action, Tensor]]
    tapped: Tensor | None


@final
@dataclass
class Explanation:
    """How a wrapper came to its output.

    Attributes:
        output: What ``forward`` returns.
        weights: (|G|, B), the weight of each copy; their sum over the group is 1.
        scores: (|G|, B), what the weights were made from: the logits of lambda, the proxy
            losses of EquiZero; None for EquiTune.
        elements: (B,) int64, the element with the largest weight, the first of several.
    """

    output: Any
    weights: Tensor
    scores: Tensor | None
    elements: Tensor


class OrbitModule(Around, ABC):
    """Runs a backbone on the whole orbit of its input and undoes the output action.

    Subclasses say how the copies g^-1 M(gx) are combined.

    Args:
        backbone: The module M. It is registered and never modified.
        input_action: How the group acts on the first argument of the backbone, or a mapping from
            argument names to actions.
        output_action: How it acts on the output; None means that the output is one tensor that
            shall be invariant. Structured outputs need a ``TreeAction``.
        chunk_size: The most copies in one pass of the backbone; None for no limit. While a module
            of the backbone trains, a piece holds whole orbits, at least one, so that batch
            statistics are those of whole orbits, but of the piece and not of the batch.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the actions are of different groups, or ``chunk_size`` is below 1.
    """

    reads_inputs: bool = False
    """Whether the copies of the input are needed after the pass through the backbone."""

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Action | Mapping[str, Action],
        output_action: Action | None = None,
        *,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        self._inputs = InputActions(require_module("backbone", backbone), input_action)
        self.group = self._inputs.group
        self.input_action = input_action
        self.output_action = _check_output_action(output_action, self._inputs)
        if chunk_size is not None:
            chunk_size = require_int(
                "chunk_size", chunk_size, "the most copies in one pass, or None", least=1
            )
        self.chunk_size = chunk_size
        self.backbone = backbone
        self._tap: Tap | None = None
        self._cut: Cut | None = None
        # The parameters to give their gradients back to; None while nothing is frozen.
        self._thawed: tuple[str, ...] | None = None
        self._prepare_actions()

    # The first argument is by itself, so that torch.export takes dynamic_shapes=({0: batch},).
    @abstractmethod
    def forward(self, x: Any = None, /, *args: Any, **kwargs: Any) -> Any:
        """Calls the symmetrised backbone with the backbone's own arguments."""

    def unwrap(self) -> nn.Module:
        """The backbone itself, with the weights and flags that it has now.

        A plain checkpoint loads through ``model.unwrap().load_state_dict(...)``. After
        :meth:`freeze_backbone`, call :meth:`unfreeze_backbone` first to have the flags back.
        """
        return self.backbone

    def freeze_backbone(self) -> Self:
        """Keeps the backbone in eval mode, also under ``train()``, and its weights fixed.

        Returns:
            The wrapper itself.
        """
        if self._thawed is None:
            named = self.backbone.named_parameters()
            self._thawed = tuple(name for name, p in named if p.requires_grad)
        self.backbone.requires_grad_(False).eval()
        self._prepare_cut()
        return self

    def unfreeze_backbone(self) -> Self:
        """Undoes :meth:`freeze_backbone`: what had gradients before has them again, and no other.

        Returns:
            The wrapper itself.
        """
        if self._thawed is not None:
            for name, parameter in self.backbone.named_parameters():
                parameter.requires_grad_(name in self._thawed)
        self._thawed = None
        self.backbone.train(self.training)
        self._prepare_cut()
        return self

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; a frozen backbone stays in eval mode."""
        super().train(mode)
        if self._thawed is not None:
            self.backbone.eval()
        self._prepare_cut()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._prepare_cut()

    def _prepare_cut(self) -> None:
        # Compiled code cannot trace.
        if self._cut is not None:
            self._cut.prepare(self.backbone)

    def extra_repr(self) -> str:
        cut = "" if self._cut is None else f", at={self._cut.name!r}"
        return f"group of order {self.group.order}, chunk_size={self.chunk_size}{cut}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._prepare_actions()
        return self

    def _prepare_actions(self) -> None:
        """Puts the actions' tables where the backbone is."""
        tensors = itertools.chain(self.backbone.parameters(), self.backbone.buffers())
        device = next((t.device for t in tensors), torch.device("cpu"))
        for action in [*self._inputs.actions(), self.output_action]:
            action.prepare(device)

    def _bind(self, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> MovedCall:
        return self._inputs.bind(() if x is None and not args else (x, *args), kwargs)

    def _run_orbit(self, call: MovedCall) -> list[OrbitPass]:
        """Runs the backbone on all copies: one batch per shape."""
        if self.chunk_size is not None and torch.compiler.is_exporting():
            raise ValueError(
                f"chunk_size is {self.chunk_size}, but the number of pieces cannot depend on a "
                "dynamic batch in torch.export; export with chunk_size=None"
            )
        return [self._run_elements(call, elements) for elements in call.shape_classes()]

    def _run_elements(self, call: MovedCall, elements: tuple[int, ...]) -> OrbitPass:
        stacks = call.orbits(elements)
        # The backbone may work in place on what it gets.
        inputs = [stack.clone() for stack in stacks] if self.reads_inputs else []
        pieces, join = self._split(stacks, len(elements), call.batch_size)
        ran = [self._run_piece(call, piece) for piece in pieces]
        template, first, tapped = ran[0]
        outputs = [
            (action, join([leaves[k][1] for _, leaves, _ in ran]))
            for k, (action, _) in enumerate(first)
        ]
        return OrbitPass(
            elements,
            inputs,
            template,
            outputs,
            None if tapped is None else join([t for _, _, t in ran if t is not None]),
        )

    def _run_piece(
        self, call: MovedCall, copies: list[Tensor]
    ) -> tuple[Any, list[tuple[Action, Tensor]], Tensor | None]:
        tapped = None
        part: Callable[..., Any] = self.backbone
        if self._cut is not None:
            part = functools.partial(self._cut.first, self.backbone)
        try:
            if self._tap is None:
                output = call.run(part, copies)
            else:
                output, tapped = self._tap.read(lambda: call.run(part, copies))
        except RuntimeError as error:
            shapes = [tuple(leaf.shape) for _, leaf in call.leaves]
            error.add_note(
                f"The wrapper was called with {shapes} and gave the backbone copies of the shapes "
                f"{[tuple(c.shape) for c in copies]}. The first dimension is the batch: images are "
                "(B, C, H, W)."
            )
            raise
        leaves = self.output_action.flatten(output, "the backbone's output")
        for tensor in [leaf for _, leaf in leaves] + ([] if tapped is None else [tapped]):
            if tensor.shape[:1] != copies[0].shape[:1]:
                raise ValueError(
                    f"the backbone returned a tensor of shape {tuple(tensor.shape)} for a batch of "
                    f"{copies[0].shape[0]}; its first dimension must be the batch (give Drop() to "
                    "a field that has none, such as a loss)"
                )
        return output, leaves, tapped

    def _split(
        self, stacks: list[Tensor], rows: int, batch_size: int
    ) -> tuple[list[list[Tensor]], Callable[[list[Tensor]], Tensor]]:
        """The flat batches to run, and how to join what comes back to stacks (rows, B, ...)."""
        size = self.chunk_size
        if size is None or rows * batch_size <= size:
            return [[s.flatten(0, 1) for s in stacks]], lambda ys: _unflat(ys[0], rows, batch_size)
        # Copied, because a backbone that works in place would reach the other pieces.
        if any(module.training for module in self.backbone.modules()):
            step = max(1, size // rows)
            whole = [
                [s[:, i : i + step].flatten(0, 1).clone() for s in stacks]
                for i in range(0, batch_size, step)
            ]
            return whole, lambda ys: torch.cat(
                [_unflat(y, rows, y.shape[0] // rows) for y in ys], dim=1
            )
        flat = [s.flatten(0, 1) for s in stacks]
        any_copies = [
            [s[i : i + size].clone() for s in flat] for i in range(0, rows * batch_size, size)
        ]
        return any_copies, lambda ys: _unflat(torch.cat(ys), rows, batch_size)

    def _combine_copies(self, passes: list[OrbitPass], combine: Callable[[Tensor], Tensor]) -> Any:
        """Undoes the output action, combines the copies of each tensor, restores the structure."""
        combined = []
        for k, (action, _) in enumerate(passes[0].outputs):
            try:
                parts = [action.inverse_orbit(p.outputs[k][1], p.elements) for p in passes]
            except ValueError as error:
                if self._cut is None:
                    raise
                raise ValueError(
                    f"at is {self._cut.name!r}, whose activation output_action cannot move: "
                    f"{error}; use the action of that activation, or None where it shall be "
                    "invariant"
                ) from error
            combined.append(
                combine(in_group_order(parts, [p.elements for p in passes], "the output"))
            )
        return self.output_action.unflatten(passes[0].template, combined)


class Symmetrizer(OrbitModule):
    """A weighted Reynolds operator over the orbit: f(x) = sum_g w_g(x) g^-1 M(gx).

    Subclasses say how they weigh.

    Args:
        backbone: As for :class:`OrbitModule`.
        input_action: As for :class:`OrbitModule`.
        output_action: As for :class:`OrbitModule`; with ``at``, how the group acts on the
            activation there.
        chunk_size: As for :class:`OrbitModule`.
        at: The dotted name of a submodule of the backbone, up to whose output it is symmetrised;
            the rest then runs once, on the result. None for the whole backbone. An invariant
            activation is always exact; one that moves is exact where the rest is invariant or
            equivariant itself, which ``equitune.testing.assert_equivariant`` tells.

    Raises:
        TypeError: As :class:`OrbitModule`.
        ValueError: As :class:`OrbitModule`, and where the backbone cannot be cut at ``at``.
    """

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Action | Mapping[str, Action],
        output_action: Action | None = None,
        *,
        chunk_size: int | None = None,
        at: str | None = None,
    ) -> None:
        super().__init__(backbone, input_action, output_action, chunk_size=chunk_size)
        self._cut = None if at is None else Cut(backbone, at)

    @property
    def at(self) -> str | None:
        """The submodule up to which the backbone is symmetrised; None for the whole of it."""
        return None if self._cut is None else self._cut.name

    def forward(self, x: Any = None, /, *args: Any, **kwargs: Any) -> Any:
        call = self._bind(x, args, kwargs)
        return self._finish(call, self._evaluate(call)[0])

    def explain(self, x: Any = None, /, *args: Any, **kwargs: Any) -> Explanation:
        """Calls the wrapper as ``forward`` does, and says how it came to its output.

        Returns:
            The output, with the weights, scores and elements of each sample.
        """
        call = self._bind(x, args, kwargs)
        output, weights, scores = self._evaluate(call)
        if weights is None:
            order = self.group.order
            leaves = [leaf for _, leaf in self.output_action.flatten(output)]
            dtypes = (leaf.real.dtype for leaf in leaves if can_be_averaged(leaf))
            dtype = next(dtypes, torch.float32)
            weights = call.leaves[0][1].new_full((order, call.batch_size), 1 / order, dtype=dtype)
        return Explanation(self._finish(call, output), weights, scores, weights.argmax(dim=0))

    @abstractmethod
    def weigh(self, passes: list[OrbitPass]) -> tuple[Tensor | None, Tensor | None]:
        """The weights (|G|, B), or None for equal ones, and the scores that they come from."""

    def combine(self, stack: Tensor, weights: Tensor | None) -> Tensor:
        """The combination of the copies g^-1 M(gx), (|G|, B, ...) to (B, ...)."""
        require_mean(stack)
        return weighted_mean(stack, weights)

    def _evaluate(self, call: MovedCall) -> tuple[Any, Tensor | None, Tensor | None]:
        passes = self._run_orbit(call)
        weights, scores = self.weigh(passes)
        output = self._combine_copies(passes, lambda stack: self.combine(stack, weights))
        return output, weights, scores

    def _finish(self, call: MovedCall, output: Any) -> Any:
        if self._cut is not None:
            output = self._cut.rest(self.backbone, output)
        return call.annotations.on(output)


def _unflat(y: Tensor, rows: int, batch_size: int) -> Tensor:
    stack: Tensor = y.unflatten(0, (rows, batch_size))
    return stack


def _check_output_action(action: Action | None, inputs: InputActions) -> Action:
    if action is None:
        return TrivialAction(inputs.group)
    require_type("output_action", action, Action, "an action, or None for one invariant tensor")
    if action.group != inputs.group:
        raise ValueError(
            f"output_action is one of a group of order {action.group.order} {action.group.names}, "
            f"but input_action is one of a group of order {inputs.group.order} "
            f"{inputs.group.names}; use two actions of one group"
        )
    return action
