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
from equitune.weightings._base import Mean

__all__ = ["MatrixProducts"]


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
        copies = torch.mm(x, tables.before).view(-1, x.shape[1])
        rows = Rows(tables, None, None)
        if mix.reads == "input":
            rows.inputs = copies.clone()
            if mix.ask(rows) is not None:
                return self._others.run(call, mix, elements)
        rows.raw = tables.checked(call.run([copies]), len(copies))
        return mix(rows)

    def bind(self, model: Any) -> Callable[[Any], Tensor | None] | None:
        if not isinstance(model.input_action, Action):
            return None
        known: dict[tuple[torch.device, torch.dtype], Tables] = {}
        action, output_action, space = model.input_action, model.output_action, model.space
        # Around so small a network each look-up of a submodule would count.
        modules, averages_values = model._modules, space == Values()

        def fast(x: Any) -> Tensor | None:
            weighting = modules["weighting"]
            reads = weighting.reads
            if (
                type(x) is not Tensor
                or reads not in DIRECT
                or (weighting.sparse and reads == "input")
                or model.space is not space
                or model.output_action is not output_action
            ):
                return None
            tables = known.get((x.device, x.dtype))
            if (
                tables is None
                or torch.is_autocast_enabled(tables.device_type)
                or x.dim() != 2
                or x.shape[1] != tables.size
            ):
                tables = self._tables(action, output_action, model.group.elements, x)
                if tables is None:
                    return None
                if not torch.compiler.is_compiling():
                    known[x.device, x.dtype] = tables
            copies = torch.mm(x, tables.before).view(-1, tables.size)
            inputs = copies.clone() if reads == "input" else None
            raw = tables.checked(modules["backbone"](copies), copies.shape[0])
            if weighting.equal and averages_values:
                return torch.mm(raw.reshape(-1, tables.width), tables.mean)
            rows = Rows(tables, inputs, raw)
            weights, _ = weighting(rows)
            return weighting.combine(rows.means(space)[0], weights)

        return fast

    def _tables(
        self, action: Action, output_action: Action, elements: Sequence[int], x: Tensor
    ) -> Tables | None:
        """The tables for a dtype and a device; None where only all copies themselves are exact."""
        kind = x.device.type
        if not (action.linear and output_action.linear):
            return None
        if x.dim() != 2 or x.dtype not in (torch.float32, torch.float64):
            return None
        if torch.is_autocast_enabled(kind) or (
            kind != "cpu" and torch.get_float32_matmul_precision() != "highest"
        ):
            return None
        key = (action, output_action, tuple(elements), x.shape[1], x.device, x.dtype)
        tables = self._known.get(key)
        if tables is None:
            tables = Tables(action, output_action, elements, x)
            # What a tracer makes here is not a real tensor and must not outlive the trace.
            if type(tables.before) is Tensor and not torch.compiler.is_compiling():
                self._known[key] = tables
        return tables


@final
class Tables:
    """What vectors are multiplied by, for one device and one dtype.

    Attributes:
        before: (n, K n), makes the copies, one after the other.
        undone: (K m, K m), undoes the action on each copy.
        mean: (K m, m), the mean of that.
    """

    def __init__(
        self, action: Action, output_action: Action, elements: Sequence[int], x: Tensor
    ) -> None:
        self.device_type, self.size, self.count = x.device.type, x.shape[1], len(elements)
        self._output_action, self._elements, self._like = output_action, [*elements], x.new_empty(0)
        self.width = 0
        self.before = self._put(
            matrices(action, self.size)[self._elements].permute(2, 0, 1).flatten(1)
        )

    def checked(self, raw: Any, rows: int) -> Tensor:
        """What the network returned; refuses anything but one vector for each row."""
        if not isinstance(raw, Tensor) or raw.dim() != 2 or raw.shape[0] != rows:
            raise ValueError(
                f"the backbone must return a tensor of shape ({rows}, m), got {described(raw)}; "
                "use the runner Batches()"
            )
        if raw.shape[1] * self.count != self.width:
            self._prepare(raw.shape[1])
        return raw

    def _prepare(self, size: int) -> None:
        """Makes the tables for a size of outputs."""
        inverses = [self._output_action.group.inverses[g] for g in self._elements]
        undone = matrices(self._output_action, size)[inverses].mT
        self.undone = self._put(torch.block_diag(*undone))
        self.mean = self._put(undone.flatten(0, 1) / self.count)
        self.width = size * self.count

    def _put(self, table: Tensor) -> Tensor:
        with torch.inference_mode(False):
            # Products with transposed tables would take longer.
            return table.to(self._like).contiguous()


@final
class Rows(Copies):
    """Copies as (B K, n), those of each sample one after the other."""

    def __init__(self, tables: Tables, inputs: Tensor | None, raw: Tensor | None) -> None:
        self.tables, self.inputs, self.raw = tables, inputs, raw
        self.count = tables.count

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:  # type: ignore[override]
        return (self.tables.before.dtype if self.raw is None else self.raw.dtype,)

    def read(self, what: str) -> list[tuple[Sequence[int], Tensor]]:
        return [(range(self.count), self._stack(self.inputs if what == "input" else self.raw))]

    def outputs(self) -> list[tuple[Sequence[int], Any]]:
        return [(slots, widened(stack)) for slots, stack in self.read("output")]

    def means(self, space: Space) -> list[Mean]:
        tables, rows = self.tables, self.raw.reshape(-1, self.tables.width)
        undone: list[Tensor] = []

        def mean(weights: Tensor | None) -> Tensor:
            if weights is None and space == Values():
                return torch.mm(rows, tables.mean)
            if not undone:
                stack = self._stack(torch.mm(rows, tables.undone).view(self.raw.shape))
                undone.append(space.enter(stack))
            return space.mean(undone[0], weights)

        return [mean]

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        return tensors[0]

    def _stack(self, rows: Tensor) -> Tensor:
        """(B K, n) as (K, B, n)."""
        return rows.reshape(-1, self.count, rows.shape[1]).transpose(0, 1)
