"""One pass through the backbone: Canonicalize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from equitune._checks import optional_tolerance
from equitune._modes import evaluating
from equitune.actions import Action
from equitune.actions._table import Table
from equitune.functional import can_be_averaged, select_minimum
from equitune.wrappers._calls import MovedCall
from equitune.wrappers._lambda_equitune import check_weight_net, orbit_logits
from equitune.wrappers._orbit import OrbitPass, Symmetrizer
from equitune.wrappers._selection import TIE_TOLERANCES
from equitune.wrappers._stacks import two_shapes

__all__ = ["Canonicalize"]


@final
class Canonicalize(Symmetrizer):
    """Turns the input to the copy that a weight network prefers, and runs the backbone once.

    f(x) = g*^-1 M(g* x), where g* maximises the logit of gx. The network sees all copies, the
    backbone only the chosen one; where several are equally good, as for inputs that are symmetric
    themselves, it sees these and takes their mean. A weight network that was trained in
    :class:`LambdaEquiTune` with ``weight_input="input"`` fits; the choice has no gradient, so that
    it does not learn here, and it runs in eval mode. The backbone can be fine-tuned.

    The number of copies depends on the data: ``torch.compile`` breaks its graph there.

    Args:
        backbone: The module M.
        input_action: How the group acts on the first argument of the backbone, or a mapping from
            argument names to actions.
        output_action: How it acts on the output; None means one invariant tensor.
        weight_net: As for :class:`LambdaEquiTune`: the copies gx of the first moved tensor as a
            flat batch (N, ...) to one logit each; or an :class:`OrbitWeightNet`.
        tie_tolerance: Logits closer than this to the largest, relative to the largest in size,
            count as ties. Default by the dtype of the input, as for :class:`EquiZero`.
        chunk_size: The most copies in one pass of the backbone; None for no limit.
        at: As for :class:`EquiTune`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: As :class:`EquiTune`, and for a negative ``tie_tolerance``. Calls raise it if
            the weight network returns another shape.

    Example:
        >>> import torch
        >>> from equitune import Canonicalize, ImageAction, c4
        >>> from equitune.weights import MlpWeightNet
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = Canonicalize(backbone, ImageAction(c4()), weight_net=MlpWeightNet(64))
        >>> x = torch.rand(2, 1, 8, 8)
        >>> torch.allclose(model(x), model(x.rot90(1, (-2, -1))), atol=1e-6)
        True
    """

    weight_net: nn.Module

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Action | Mapping[str, Action],
        output_action: Action | None = None,
        *,
        weight_net: nn.Module,
        tie_tolerance: float | None = None,
        chunk_size: int | None = None,
        at: str | None = None,
    ) -> None:
        super().__init__(backbone, input_action, output_action, chunk_size=chunk_size, at=at)
        check_weight_net(weight_net)
        self.tie_tolerance = optional_tolerance(tie_tolerance)
        self._inverses = Table(torch.tensor(self.group.inverses, device="cpu"))
        self.weight_net = weight_net

    def weigh(self, passes: list[OrbitPass]) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), evaluating(self.weight_net):
            # The network may work in place on what it gets.
            seen = [p.inputs[0].clone() for p in passes]
            classes = [p.elements for p in passes]
            logits = orbit_logits(self.weight_net, seen, classes, "the first moved argument")
            tolerance = self.tie_tolerance
            if tolerance is None:
                tolerance = TIE_TOLERANCES.get(seen[0].dtype, TIE_TOLERANCES[torch.float32])
            # Relative to the largest logit in size: a common shift of all logits means nothing,
            # so that their maximum may be next to 0.
            size = logits.abs().amax(dim=0)
            return select_minimum(size + logits.amax(dim=0) - logits, tolerance), logits

    def _evaluate(self, call: MovedCall) -> tuple[Any, Tensor, Tensor]:
        passes = [
            OrbitPass(elements, call.orbits(elements), None, [], None)
            for elements in call.shape_classes()
        ]
        weights, scores = self.weigh(passes)
        inverses = self._inverses.on(weights.device)
        template: Any = None
        sums: list[Tensor] = []
        for p in passes:
            # By sample, so that each piece holds whole samples whatever their orientation.
            chosen = torch.stack([weights[g] for g in p.elements], dim=1)
            samples, rows = chosen.nonzero(as_tuple=True)
            if not len(rows) and (call.batch_size or sums):
                continue
            undo = torch.stack([inverses[g] for g in p.elements])[rows]
            share = chosen[samples, rows]
            first = undo == inverses[weights.argmax(dim=0)][samples]
            template, leaves = self._run_pieces(call, [s[rows, samples] for s in p.inputs], samples)
            undone = [action.transform(leaf, undo) for action, leaf in leaves]
            sums = sums or [y.new_zeros(call.batch_size, *y.shape[1:]) for y in undone]
            for total, y in zip(sums, undone, strict=True):
                if total.shape[1:] != y.shape[1:]:
                    raise ValueError(two_shapes("the output", total.shape[1:], y.shape[1:]))
            # Out of place, for autograd. Decisions cannot be shared: the first one counts.
            sums = [
                total.index_add(0, samples, _times(y, share))
                if can_be_averaged(y)
                else total.index_copy(0, samples[first], y[first])
                for total, y in zip(sums, undone, strict=True)
            ]
        return self.output_action.unflatten(template, sums), weights, scores

    def _run_pieces(
        self, call: MovedCall, copies: list[Tensor], samples: Tensor
    ) -> tuple[Any, list[tuple[Action, Tensor]]]:
        sizes = self._sizes(samples)
        pieces = zip(*[c.split(sizes) for c in copies], strict=True)
        ran = [self._run_piece(call, list(piece)) for piece in pieces]
        template, first, _ = ran[0]
        return template, [
            (action, torch.cat([leaves[k][1] for _, leaves, _ in ran]))
            for k, (action, _) in enumerate(first)
        ]

    def _sizes(self, samples: Tensor) -> list[int]:
        """How many copies are in each piece: whole samples, while the backbone trains."""
        count = len(samples)
        if self.chunk_size is None or count <= self.chunk_size:
            return [count]
        if not any(module.training for module in self.backbone.modules()):
            whole, rest = divmod(count, self.chunk_size)
            return [self.chunk_size] * whole + [rest] * bool(rest)
        sizes: list[int] = []
        for own in samples.unique_consecutive(return_counts=True)[1].tolist():
            if sizes and sizes[-1] + own <= self.chunk_size:
                sizes[-1] += own
            else:
                sizes.append(own)
        return sizes


def _times(y: Tensor, share: Tensor) -> Tensor:
    factors = share.view(-1, *[1] * (y.dim() - 1))
    # A share of 1 leaves infinities and the last bit alone.
    product: Tensor = torch.where(factors == 1, y, (factors * y).to(y.dtype))
    return product
