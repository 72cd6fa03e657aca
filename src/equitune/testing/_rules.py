"""The weights of the papers' methods, written out for one sample, apart from the library's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from equitune.actions import Action
from equitune.functional import widened
from equitune.weightings import Best, Canonical, Learned, OrbitWeightNet, Uniform, tie_tolerance


def equal_weights(
    formula: Any, weighting: Any, inputs: list[Any], outputs: list[Any]
) -> list[float]:
    return [1 / len(outputs)] * len(outputs)


def _softmax(formula: Any, weighting: Any, inputs: list[Any], outputs: list[Any]) -> list[float]:
    logits = _logits(formula, weighting, inputs, outputs)
    factors = (logits - logits.max()).exp()
    return cast(list[float], (factors / factors.sum()).tolist())


def _argmax(formula: Any, weighting: Any, inputs: list[Any], outputs: list[Any]) -> list[float]:
    logits = _logits(formula, weighting, inputs, outputs).tolist()
    dtype = formula.seen("input", inputs[0], outputs[0]).dtype
    allowed = _tolerance(weighting, dtype) * max(map(abs, logits))
    ties = [max(logits) - logit <= allowed for logit in logits]
    return [tie / sum(ties) for tie in ties]


def _argmin(formula: Any, weighting: Any, inputs: list[Any], outputs: list[Any]) -> list[float]:
    def losses_of(raw: list[Any]) -> list[float]:
        return [float(weighting.proxy_loss(formula.stack_of_one(output))) for output in raw]

    dtypes = [leaf.dtype for _, leaf in formula.output_action.flatten(outputs[0])]
    losses, tolerance = losses_of(outputs), _tolerance(weighting, *dtypes)
    rounding = max((torch.finfo(d).eps for d in dtypes if d.is_floating_point), default=0.0)
    least, off = min(losses), min(1024 * rounding, tolerance / 4)
    moved = losses_of([_shaken(formula.output_action, output, off) for output in outputs])
    noise = [abs(a - b) if a - b == a - b else 0.0 for a, b in zip(losses, moved, strict=True)]
    upper = min(loss + off for loss, off in zip(losses, noise, strict=True))
    ties = [
        loss == least or loss - off <= upper + tolerance * abs(upper)
        for loss, off in zip(losses, noise, strict=True)
    ]
    return [tie / sum(ties) for tie in ties]


RULES: dict[type, Callable[..., list[float]]] = {
    Uniform: equal_weights, Learned: _softmax, Best: _argmin, Canonical: _argmax,
}  # fmt: skip
"""The weights of the papers' methods; those of other weightings are asked of themselves."""

NAMES: dict[type, str] = {
    Uniform: "EquiTuneFormula",
    Learned: "LambdaEquiTuneFormula",
    Best: "EquiZeroFormula",
    Canonical: "CanonicalizeFormula",
}


def _logits(formula: Any, weighting: Any, inputs: list[Any], outputs: list[Any]) -> Tensor:
    """What a weight network says of each copy of one sample, (|G|,) in float64."""
    pairs = zip(inputs, outputs, strict=True)
    net, seen = weighting.weight_net, [formula.seen(weighting.reads, x, y) for x, y in pairs]
    if isinstance(net, OrbitWeightNet):
        return cast(Tensor, net(torch.stack(seen))).flatten().double()
    return torch.cat([net(copy).flatten() for copy in seen]).double()


def _tolerance(weighting: Any, *dtypes: torch.dtype) -> float:
    given: float | None = weighting.tie_tolerance
    return tie_tolerance(*dtypes) if given is None else given


def _shaken(action: Action, output: Any, rounding: float) -> Any:
    """An output with its entries off by a rounding, one down and the next one up."""
    leaves = []
    for _, leaf in action.flatten(output):
        signs = torch.ones(leaf.shape[1:], dtype=widened(leaf).dtype).flatten()
        signs[::2] = -1
        off = widened(leaf) * (1 + rounding * signs.view(leaf.shape[1:]))
        leaves.append(off if leaf.is_floating_point() else leaf)
    return action.unflatten(output, leaves)
