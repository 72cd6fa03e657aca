"""Learned weights: LambdaEquiTune."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self, final

from torch import Tensor, nn

from equitune._checks import require_type
from equitune.actions import Action
from equitune.functional import widened
from equitune.wrappers._orbit import OrbitPass, Symmetrizer
from equitune.wrappers._stacks import in_group_order
from equitune.wrappers._tap import Tap

__all__ = [
    "LambdaEquiTune",
    "LambdaSymmetrizer",
    "OrbitWeightNet",
    "check_weight_net",
    "orbit_logits",
]


class OrbitWeightNet(nn.Module, ABC):
    """A weight network that sees the whole orbit at once.

    For the wrapper to be equivariant it has to be equivariant to permutations of the first
    dimension, as attention without positions is.
    """

    @abstractmethod
    def forward(self, stack: Tensor) -> Tensor:
        """One logit per copy.

        Args:
            stack: (|G|, B, ...), what ``weight_input`` names, entry g of the copy gx.

        Returns:
            The logits, (|G|, B).
        """


class LambdaSymmetrizer(Symmetrizer):
    """A symmetrizer whose weights a network learns, however it runs the copies."""

    weight_net: nn.Module
    weight_input: str
    # The parameters of the weight network that learn; None while nothing is frozen.
    _thawed_weights: tuple[str, ...] | None = None

    def freeze_weight_net(self) -> Self:
        """Keeps the weight network in eval mode, also under ``train()``, and its weights fixed.

        Returns:
            The wrapper itself.
        """
        if self._thawed_weights is None:
            named = self.weight_net.named_parameters()
            self._thawed_weights = tuple(name for name, p in named if p.requires_grad)
        self.weight_net.requires_grad_(False).eval()
        return self

    def unfreeze_weight_net(self) -> Self:
        """Undoes :meth:`freeze_weight_net`: what had gradients before has them again.

        Returns:
            The wrapper itself.
        """
        if self._thawed_weights is not None:
            for name, parameter in self.weight_net.named_parameters():
                parameter.requires_grad_(name in self._thawed_weights)
        self._thawed_weights = None
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; a weight network whose weights are all fixed stays in eval mode."""
        super().train(mode)
        weights = list(self.weight_net.parameters())
        if weights and not any(w.requires_grad for w in weights):
            self.weight_net.eval()
        return self

    def _weigh_by(self, weight_net: nn.Module, weight_input: str, fixed: tuple[str, ...]) -> None:
        """Takes the network and what it reads: one of some fixed names, or a submodule."""
        check_weight_net(weight_net)
        choices = ", ".join(map(repr, fixed))
        use = f"{choices} or the dotted name of a submodule of the backbone"
        require_type("weight_input", weight_input, str, use)
        self.weight_net = weight_net
        self.weight_input = weight_input
        self.reads_inputs = weight_input == "input"
        if weight_input not in fixed:
            self._tap = Tap(self.backbone, weight_input, others=f"{choices} or ")
            if self._cut is not None and not self._cut.runs_first(self.backbone, weight_input):
                raise ValueError(
                    f"weight_input is {weight_input!r}, which does not run before the cut at "
                    f"{self.at!r}; use a submodule of the part that is symmetrised"
                )
            self._tap.attach(self)


@final
class LambdaEquiTune(LambdaSymmetrizer):
    """Weights learned by a network, lambda-equitune (second paper, equation 4).

    f(x) = sum_g lambda(gx) g^-1 M(gx) / sum_h lambda(hx), where log lambda is what the weight
    network returns: the weights are the softmax of its logits over the group.

    Args:
        backbone: The module M.
        input_action: How the group acts on the first argument of the backbone, or a mapping from
            argument names to actions.
        output_action: How it acts on the output; None means one invariant tensor.
        weight_net: A module that sees single copies as a flat batch (N, ...) and returns one
            logit each, (N,) or (N, 1); or an :class:`OrbitWeightNet`.
        weight_input: What the network sees: ``"input"``, the copies gx of the first moved tensor
            of the backbone's signature (the paper's lambda(gx)); ``"output"``, the first tensor of
            the raw outputs M(gx); or the dotted name of a submodule of the backbone, whose
            activation is then read in the pass that runs anyway.
        chunk_size: The most copies in one pass of the backbone; None for no limit.
        at: As for :class:`EquiTune`; ``"output"`` is then the activation there.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: As :class:`EquiTune`, and if no submodule has the name ``weight_input``. Calls
            raise it if the weight network returns another shape.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, LambdaEquiTune, c4
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> weight_net = torch.nn.Linear(10, 1)
        >>> model = LambdaEquiTune(
        ...     backbone, ImageAction(c4()), weight_net=weight_net, weight_input="output"
        ... )
        >>> model.explain(torch.rand(2, 1, 8, 8)).weights.shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Action | Mapping[str, Action],
        output_action: Action | None = None,
        *,
        weight_net: nn.Module,
        weight_input: str = "input",
        chunk_size: int | None = None,
        at: str | None = None,
    ) -> None:
        super().__init__(backbone, input_action, output_action, chunk_size=chunk_size, at=at)
        self._weigh_by(weight_net, weight_input, ("input", "output"))

    def weigh(self, passes: list[OrbitPass]) -> tuple[Tensor | None, Tensor | None]:
        seen = [self._seen(p) for p in passes]
        logits = orbit_logits(
            self.weight_net,
            seen,
            [p.elements for p in passes],
            f"weight_input {self.weight_input!r}",
        )
        return logits.softmax(dim=0), logits

    def _seen(self, orbit: OrbitPass) -> Tensor:
        if self.weight_input == "input":
            return orbit.inputs[0]
        if orbit.tapped is not None:
            return orbit.tapped
        return orbit.outputs[0][1]


def orbit_logits(
    weight_net: nn.Module, seen: list[Tensor], classes: list[tuple[int, ...]], name: str
) -> Tensor:
    """The logits (|G|, B) of what a weight network sees, in float32 or higher.

    One stack (E, B, ...) for each class of elements whose copies have one shape.
    """
    if isinstance(weight_net, OrbitWeightNet):
        stack = in_group_order(seen, classes, name)
        logits = weight_net(stack)
        _check_logits(logits, stack, (stack.shape[:2],))
    else:
        logits = in_group_order([_score(weight_net, s) for s in seen], classes, "weight_net")
    # Whatever autocast or the backbone work in.
    return widened(logits)


def check_weight_net(weight_net: object) -> None:
    """Refuses what is no module."""
    require_type("weight_net", weight_net, nn.Module, "one that returns one logit per copy")


def _score(weight_net: nn.Module, stack: Tensor) -> Tensor:
    copies = stack.flatten(0, 1)
    logits: Tensor = weight_net(copies)
    _check_logits(logits, copies, (copies.shape[:1], (copies.shape[0], 1)))
    return logits.reshape(stack.shape[:2])


def _check_logits(logits: Tensor, seen: Tensor, shapes: tuple[tuple[int, ...], ...]) -> None:
    if not isinstance(logits, Tensor) or logits.shape not in shapes:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"weight_net returned {given} for copies of shape {tuple(seen.shape)}; it must "
            f"return one logit per copy, {' or '.join(str(tuple(s)) for s in shapes)}"
        )
