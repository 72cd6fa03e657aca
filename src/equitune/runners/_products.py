"""Small networks on vectors: one product of matrices makes all copies, another one undoes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import described, require
from equitune.actions import Action
from equitune.functional import matrices, widened
from equitune.runners._base import Mix, Runner, weighed
from equitune.runners._batches import Batches
from equitune.runners._call import Call
from equitune.spaces import Space, Values
from equitune.weightings import Copies
from equitune.weightings._base import Mean, logits_of, scored, shaking

DIRECT = (None, "input", "output")
"""What a weighting may read of a call that is made fast."""


@final
class MatrixProducts(Runner):
    """Makes the copies of vectors by one product of matrices, and undoes the action by another one.

    Around a network of a few small layers, such as a Q-network, the tables of actions and the
    checks of each call would take longer than the network; this runner is made for such networks.
    It has the values, weights and gradients of :class:`Batches`. Other calls go through that
    runner: half precision, autocast, inputs that are not (B, n), a submodule that is read or
    replaced, weightings that choose copies before the network runs, actions that are not linear,
    and while a model is compiled or exported that has never been called.

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
            tables = self.tables(action, call.output_action, elements, x)
        if tables is None:
            return self._others.run(call, mix, elements)
        copies = torch.mm(x, tables.before).view(-1, tables.size)
        seen = copies.clone() if mix.reads == "input" else None
        if seen is not None and mix.ask(Rows(tables, None, seen, None)) is not None:
            return self._others.run(call, mix, elements)
        raw = call.run([copies])
        return mix(Rows(tables, tables.after(raw, copies), seen, raw))

    def bind(self, model: Any) -> Callable[[Any], Any] | None:
        weighting = model.weighting
        chooses_before = weighting.sparse and weighting.reads == "input"
        direct = weighting.reads in DIRECT and not chooses_before and model.submodule is None
        # A bound method takes less time to call than an object.
        return Fast(self, model).run if direct and isinstance(model.input_action, Action) else None

    def tables(
        self, action: Action, output_action: Action, elements: Sequence[int], x: Tensor
    ) -> Tables | None:
        """The tables for a dtype and a device; None where only the copies themselves are exact."""
        kind = x.device.type
        if (
            torch.compiler.is_compiling()
            or x.dim() != 2
            or x.dtype not in (torch.float32, torch.float64)
            or not (action.linear and output_action.linear)
            or torch.is_autocast_enabled(kind)
            or (kind != "cpu" and torch.get_float32_matmul_precision() != "highest")
        ):
            return None
        # The tables hold their actions, so that no other object has these ids.
        key = (id(action), id(output_action), tuple(elements), x.shape[1], x.device, x.dtype)
        tables = self._known.get(key)
        # What a tracer makes is not a real tensor, and must not outlive the trace.
        if tables is None and type(torch.empty(0)) is Tensor:
            with torch.inference_mode(False):
                tables = self._known[key] = Tables(action, output_action, elements, x)
        return tables


@final
class Fast:
    """What a model does with one tensor of the usual kind, without the checks of a call.

    Args:
        runner: What makes the tables.
        model: The model.
    """

    def __init__(self, runner: MatrixProducts, model: Any) -> None:
        self._runner, self._weighting, self._space = runner, model.weighting, model.space
        self._acting = model.input_action, model.output_action, model.group.elements
        self._equal = model.weighting.equal and type(model.space) is Values
        self._reads_inputs = model.weighting.reads == "input"
        # Around so small a network each look-up of a submodule would count.
        self._modules = model._modules
        self._known: dict[tuple[torch.device, torch.dtype], Tables] = {}

    def run(self, x: Any) -> Any:
        """The output; None for what it is not made for."""
        if type(x) is not Tensor:
            return None
        tables = self._known.get((x.device, x.dtype))
        if (
            tables is None
            or x.dim() != 2
            or x.shape[1] != tables.size
            or torch.is_autocast_enabled(tables.device_type)
        ):
            tables = self._runner.tables(*self._acting, x)
            if tables is None:
                return None
            self._known[x.device, x.dtype] = tables
        copies = torch.mm(x, tables.before).view(-1, tables.size)
        inputs = copies.clone() if self._reads_inputs else None
        raw = self._modules["backbone"](copies)
        after = tables.after(raw, copies)
        if self._equal:
            return torch.mm(raw.reshape(-1, after.width), after.mean)
        rows = Rows(tables, after, inputs, raw)
        weights, _ = weighed(self._weighting, rows)
        return self._weighting.combine(partial(rows.mean, self._space), weights)


@final
class Tables:
    """What vectors are multiplied by, for one device and one dtype.

    Attributes:
        before: (n, K n), makes the K copies of a vector, one after the other.
    """

    def __init__(
        self, action: Action, output_action: Action, elements: Sequence[int], x: Tensor
    ) -> None:
        self.size, self.count = x.shape[1], len(elements)
        self.device_type, self.dtypes = x.device.type, (x.dtype,)
        self.before = _put(matrices(action, self.size)[[*elements]].permute(2, 0, 1).flatten(1), x)
        self.actions = action, output_action
        self._inverses = [action.group.inverses[g] for g in elements]
        self._after: dict[int, After] = {}

    def after(self, raw: Any, copies: Tensor) -> After:
        """What outputs are multiplied by; refuses anything but one vector for each copy."""
        right = isinstance(raw, Tensor) and raw.dim() == 2 and raw.shape[0] == copies.shape[0]
        if not right or raw.dtype != copies.dtype:
            must = f"return a tensor of shape ({copies.shape[0]}, m) and of dtype {copies.dtype}"
            require(False, "backbone", must, described(raw), "the runner Batches()")
        after = self._after.get(raw.shape[1])
        if after is None:
            with torch.inference_mode(False):
                undone = matrices(self.actions[1], raw.shape[1])[self._inverses].mT
                after = self._after[raw.shape[1]] = After(undone, copies)
        return after


@final
class After:
    """What outputs of one size are multiplied by.

    Args:
        undone: (K, m, m), the transposed matrices of the inverse elements.
        like: A tensor of the dtype and on the device of the products.

    Attributes:
        width: K m.
        undone: (K m, K m), undoes the action on each copy.
        total: (K m, m), the sum of that.
        mean: (K m, m), the mean of that.
        signs: (3, 1, m), 0 and which way a rounding moves each entry.
    """

    def __init__(self, undone: Tensor, like: Tensor) -> None:
        self.width = len(undone) * undone.shape[1]
        self.undone = _put(torch.block_diag(*undone), like)
        self.total = _put(undone.flatten(0, 1), like)
        self.mean = _put(undone.flatten(0, 1) / len(undone), like)
        # One up and the next one down, and the other way around.
        signs = shaking(undone, 1.0) - 1
        self.signs = _put(torch.stack([0 * signs, signs, -signs])[:, None], like)


@final
class Rows(Copies):
    """Copies of vectors, from one product of matrices.

    Args:
        tables: What made them.
        after: What undoes them, once the model has run.
        inputs: The copies of the input, (B K, n), if the weighting reads them; else None.
        raw: The raw outputs, (B K, m); None until the model has run.
    """

    def __init__(self, tables: Tables, after: Any, inputs: Any, raw: Any) -> None:
        self.count, self.dtypes = tables.count, tables.dtypes
        self._after, self._rows = after, {"input": inputs, "output": raw}

    def read(self, what: str) -> list[tuple[Sequence[int], Tensor]]:
        return [(range(self.count), self._stack(self._rows[what]))]

    def outputs(self) -> list[tuple[Sequence[int], Any]]:
        return self.read("output")

    def logits(self, net: Callable[[Tensor], Tensor], what: str) -> Tensor:
        return logits_of(net, self._rows[what], what).reshape(-1, self.count).t()

    def noisy_scores(
        self, function: Callable[[Any], Tensor], rounding: float
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        raw = self._rows["output"]
        # All at once: a function costs more than what it reads.
        shaken = torch.addcmul(raw, raw, self._after.signs, value=rounding)
        scores = widened(scored(function, shaken, shaken)).reshape(3, -1, self.count).mT
        return scores[0], (scores.amin(0), scores.amax(0))

    def means(self, space: Space) -> list[Mean]:
        return [partial(self.mean, space)]

    def mean(self, space: Space, weights: Tensor | None) -> Tensor:
        """The mean of what is undone, (B, m)."""
        after, raw = self._after, self._rows["output"]
        if type(space) is Values:
            if weights is None:
                return torch.mm(raw.reshape(-1, after.width), after.mean)
            shape = self.count, raw.shape[0] // self.count
            if weights.shape == shape and weights.dtype == raw.dtype:
                # All entries are finite, and weights of 0 need no care.
                rows = weights.t().reshape(-1, 1) * raw
                return torch.mm(rows.reshape(-1, after.width), after.total)
        undone = torch.mm(raw.reshape(-1, after.width), after.undone).view_as(raw)
        return space.mean(space.enter(self._stack(undone)), weights)

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        return tensors[0]

    def _stack(self, rows: Tensor) -> Tensor:
        """(B K, n), the copies of each sample one after the other, as (K, B, n)."""
        return rows.reshape(-1, self.count, rows.shape[1]).transpose(0, 1)


def _put(table: Tensor, like: Tensor) -> Tensor:
    """A table where it is used; products with transposed tables would take longer."""
    return table.to(like.device, like.dtype).contiguous()
