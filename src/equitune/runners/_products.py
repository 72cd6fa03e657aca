"""Small networks on vectors: one product of matrices makes all copies, another one undoes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import described
from equitune.actions import Action
from equitune.functional import matrices, widened
from equitune.runners._base import Mix, Runner
from equitune.runners._batches import Batches
from equitune.runners._call import Call
from equitune.spaces import Space, Values
from equitune.weightings import Copies
from equitune.weightings._base import Mean, scored, shaking

__all__ = ["MatrixProducts"]


VALUES = Values()

DIRECT = (None, "input", "output")
"""What a weighting may read of a call that is made fast."""


@final
class MatrixProducts(Runner):
    """Makes the copies of vectors by one product of matrices, and undoes the action by another one.

    Around a network of a few small layers, such as a Q-network, the tables of actions and the
    checks of each call would take longer than the network; this runner is made for such networks.
    It has the values, weights and gradients of :class:`Batches`. Other calls go through that
    runner: half precision, autocast, inputs that are not (B, n), a submodule that is read or
    replaced, and weightings that choose copies before the network runs.

    Observations and outputs of the network must be finite: products of 0 and infinity are NaN. For
    a network that returns -inf for masked actions, use ``Batches()``.

    Shape:
        (B, n) to (B, m), with linear actions on both.

    Raises:
        ValueError: Calls raise it if an action does not act on vectors of that size, or not
            linearly, or if the network returns something else than (B, m).

    Example:
        >>> import torch
        >>> from equitune import EquiTune, MatrixAction, Symmetrized, cyclic
        >>> from equitune.runners import MatrixProducts
        >>> mirror = MatrixAction(cyclic(2), [[[1, 0], [0, 1]], [[-1, 0], [0, -1]]])
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU())
        >>> model = Symmetrized(network, mirror, runner=MatrixProducts())
        >>> x = torch.rand(3, 2)
        >>> torch.allclose(model(x), EquiTune(network, mirror)(x), atol=1e-6)
        True
    """

    def __init__(self) -> None:
        self._others = Batches()
        self._known: dict[Any, Tables] = {}

    def __repr__(self) -> str:
        return "MatrixProducts()"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_known": {}}

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        (action, x), *others = call.leaves
        tables = None
        if not (others or call.tap or call.cut):
            tables = self._tables(action, call.output_action, elements, x)
        if tables is None:
            return self._others.run(call, mix, elements)
        copies = torch.mm(x, tables.before).view(-1, tables.size)
        seen = copies.clone() if mix.reads == "input" else None
        if seen is not None and mix.ask(Rows(tables, seen, None)) is not None:
            return self._others.run(call, mix, elements)
        return mix(Rows(tables, seen, tables.checked(call.run([copies]), copies)))

    def bind(self, model: Any) -> Callable[[Any], Tensor | None] | None:
        if not isinstance(model.input_action, Action):
            return None
        weighting = model.weighting
        if weighting.reads not in DIRECT or (weighting.sparse and weighting.reads == "input"):
            return None
        known: dict[tuple[torch.device, torch.dtype], Tables] = {}
        action, output_action, space = model.input_action, model.output_action, model.space
        equal, reads_inputs = weighting.equal and space == VALUES, weighting.reads == "input"
        # Around so small a network each look-up of a submodule would count.
        modules = model._modules

        def fast(x: Any) -> Any:
            if type(x) is not Tensor:
                return None
            tables = known.get((x.device, x.dtype))
            if (
                tables is None
                or x.dim() != 2
                or x.shape[1] != tables.size
                or torch.is_autocast_enabled(tables.device_type)
            ):
                tables = self._tables(action, output_action, model.group.elements, x)
                if tables is None:
                    return None
                if _outlasts(tables.before):
                    known[x.device, x.dtype] = tables
            copies = torch.mm(x, tables.before).view(-1, tables.size)
            inputs = copies.clone() if reads_inputs else None
            raw = tables.checked(modules["backbone"](copies), copies)
            if equal:
                return torch.mm(raw.reshape(-1, tables.width), tables.mean)
            rows = Rows(tables, inputs, raw)
            weights, _ = weighting(rows)
            return weighting.combine(rows.means(space)[0], weights)

        return fast

    def _tables(
        self, action: Action, output_action: Action, elements: Sequence[int], x: Tensor
    ) -> Tables | None:
        """The tables for a dtype and a device; None where only the copies themselves are exact."""
        kind = x.device.type
        if (
            x.dim() != 2
            or x.dtype not in (torch.float32, torch.float64)
            or not (action.linear and output_action.linear)
            or torch.is_autocast_enabled(kind)
            or (kind != "cpu" and torch.get_float32_matmul_precision() != "highest")
        ):
            return None
        key = (action, output_action, tuple(elements), x.shape[1], x.device, x.dtype)
        tables = self._known.get(key)
        if tables is None:
            tables = Tables(action, output_action, elements, x)
            if _outlasts(tables.before):
                self._known[key] = tables
        return tables


@final
class Tables:
    """What vectors are multiplied by, for one device and one dtype.

    Attributes:
        before: (n, K n), makes the K copies of a vector, one after the other.
        undone: (K m, K m), undoes the action on each of K outputs.
        total: (K m, m), the sum of that.
        mean: (K m, m), the mean of that.
    """

    def __init__(
        self, action: Action, output_action: Action, elements: Sequence[int], x: Tensor
    ) -> None:
        self.size, self.count, self.width = x.shape[1], len(elements), 0
        self.device_type = x.device.type
        self._factors: dict[float, Tensor] = {}
        self.dtypes = (x.dtype,)
        self._like, self._inverses = x.new_empty(0), [action.group.inverses[g] for g in elements]
        self._output_action = output_action
        moved = matrices(action, self.size)[[*elements]]
        self.before = self._put(moved.permute(2, 0, 1).flatten(1))
        self.undone = self.total = self.mean = self.before

    def checked(self, raw: Any, copies: Tensor) -> Tensor:
        """What the network returned; refuses anything but one vector for each copy."""
        if not isinstance(raw, Tensor) or raw.dim() != 2 or raw.shape[0] != copies.shape[0]:
            raise ValueError(
                f"the backbone must return a tensor of shape ({copies.shape[0]}, m), got "
                f"{described(raw)}; use the runner Batches()"
            )
        if raw.shape[1] * self.count != self.width:
            undone = matrices(self._output_action, raw.shape[1])[self._inverses].mT
            self.undone = self._put(torch.block_diag(*undone))
            self.total = self._put(undone.flatten(0, 1))
            self.mean = self._put(undone.flatten(0, 1) / self.count)
            self.width = raw.shape[1] * self.count
            self._factors.clear()
        return raw

    def shaking(self, outputs: Tensor, rounding: float) -> Tensor:
        """Factors (2, 1, 1, m): 1, and those of a rounding."""
        factors = self._factors.get(rounding)
        if factors is None:
            moved = shaking(outputs, rounding)
            factors = torch.stack([torch.ones_like(moved), moved])[:, None, None]
            if _outlasts(factors):
                self._factors[rounding] = factors
        return factors

    def stack(self, rows: Tensor) -> Tensor:
        """(B K, n), the copies of each sample one after the other, as (K, B, n)."""
        return rows.reshape(-1, self.count, rows.shape[1]).transpose(0, 1)

    def _put(self, table: Tensor) -> Tensor:
        with torch.inference_mode(False):
            # Products with transposed tables would take longer.
            return table.to(self._like).contiguous()


@final
class Rows(Copies):
    """Copies of vectors, from one product of matrices.

    Args:
        tables: The tables.
        inputs: The copies of the input, (B K, n), if the weighting reads them.
        raw: The raw outputs, (B K, m), once the model has run.
    """

    def __init__(self, tables: Tables, inputs: Tensor | None, raw: Tensor | None) -> None:
        self.tables, self.raw = tables, raw
        self.count, self.dtypes = tables.count, tables.dtypes
        self._stacks = {
            name: tables.stack(rows)
            for name, rows in (("input", inputs), ("output", raw))
            if rows is not None
        }

    def read(self, what: str) -> list[tuple[Sequence[int], Tensor]]:
        return [(range(self.count), self._stacks[what])]

    def outputs(self) -> list[tuple[Sequence[int], Any]]:
        return [(range(self.count), widened(self._stacks["output"]))]

    def noisy_scores(
        self, function: Callable[[Any], Tensor], rounding: float
    ) -> tuple[Tensor, Tensor]:
        outputs = widened(self._stacks["output"])
        # Both at once: a function costs more than what it reads.
        both = (outputs * self.tables.shaking(outputs, rounding)).flatten(0, 1)
        scores, moved = widened(scored(function, both, both.shape)).split(self.count)
        return scores, (moved - scores).abs().nan_to_num(0.0, 0.0)

    def means(self, space: Space) -> list[Mean]:
        tables, raw, values = self.tables, self._stacks["output"], space == VALUES
        rows = self.raw.reshape(-1, tables.width)

        def mean(weights: Tensor | None) -> Tensor:
            if not values or (weights is not None and weights.shape != raw.shape[:2]):
                undone = tables.stack(torch.mm(rows, tables.undone).view(-1, raw.shape[2]))
                return space.mean(space.enter(undone), weights)
            if weights is None:
                return torch.mm(rows, tables.mean)
            # All entries are finite, and weights of 0 need no care.
            weighed = (weights.unsqueeze(2) * raw).transpose(0, 1).reshape(-1, tables.width)
            return torch.mm(weighed.to(raw.dtype), tables.total)

        return [mean]

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        return tensors[0]


def _outlasts(table: Tensor) -> bool:
    """Whether it may be kept: what a tracer makes is not a real tensor, and ends with the trace."""
    return type(table) is Tensor and not torch.compiler.is_compiling()
