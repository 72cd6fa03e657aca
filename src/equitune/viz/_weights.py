"""How the weights of a wrapper spread over a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from equitune._checks import require_counts, require_strings
from equitune.viz._canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_weights"]

IN_A_ROW = 4


def draw_weights(weights: Tensor, *, names: Sequence[str] | None = None, bins: int = 20) -> Figure:
    """A histogram of the weight of each element over a batch, with its mean marked.

    The means are what Figure 12 of the second paper shows; the histograms tell a wrapper that is
    sure of one copy each time from one that weighs all copies alike.

    Args:
        weights: (|G|, B), as ``model.explain(x).weights`` returns them; those of several batches
            can be joined with ``torch.cat(..., dim=1)``.
        names: The names of the elements, such as ``model.group.names``. Default their numbers.
        bins: The number of bins between 0 and 1.

    Returns:
        A figure with one histogram per element, in the group's order; the heights are the numbers
        of samples.

    Raises:
        TypeError: If ``weights`` is no floating-point tensor.
        ValueError: If it is not (|G|, B), or its columns are no weights with the sum 1; if
            ``names`` is of another length, or ``bins`` is below 1.
        ImportError: If matplotlib is missing.

    Example:
        >>> import torch
        >>> from equitune import EquiZero, ImageAction, c4
        >>> from equitune.losses import entropy
        >>> from equitune.viz import draw_weights
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = EquiZero(backbone, ImageAction(c4()), proxy_loss=entropy)
        >>> figure = draw_weights(model.explain(torch.rand(9, 1, 8, 8)).weights)
        >>> len(figure.axes)
        4
    """
    require_counts(bins=bins)
    _check_weights(weights)
    order, batch_size = weights.shape
    if names is not None:
        names = require_strings("names", names, "one name for each element")
    if names is not None and len(names) != order:
        raise ValueError(
            f"names has {len(names)} entries for the weights of {order} elements; use one each"
        )
    values = weights.detach().cpu().double().clamp(0, 1)
    labels = list(names) if names is not None else [str(g) for g in range(order)]
    columns = min(order, IN_A_ROW)
    rows = math.ceil(order / columns)
    figure = new_figure(max(2.1 * columns, 4), 1.8 * rows + 0.3)
    first = None
    for g in range(order):
        axes = figure.add_subplot(rows, columns, g + 1, sharex=first, sharey=first)
        first = first or axes
        axes.hist(values[g].tolist(), bins=bins, range=(0, 1))
        mean = float(values[g].mean())
        axes.axvline(mean, color="black", linestyle="--", linewidth=1)
        axes.set_title(f"{labels[g]}: mean {mean:.2f}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.label_outer()
    figure.supxlabel("weight", fontsize=8)
    figure.supylabel(f"samples, of {batch_size}", fontsize=8)
    return figure


def _check_weights(weights: object) -> None:
    if not isinstance(weights, Tensor):
        raise TypeError(
            f"weights is a {type(weights).__name__}; use the tensor model.explain(x).weights"
        )
    if not weights.is_floating_point():
        raise TypeError(f"weights has dtype {weights.dtype}; use floating-point weights")
    if weights.dim() != 2 or not weights.numel():
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}; use (|G|, B), one weight per element and "
            "sample, as model.explain(x).weights returns them"
        )
    sums = weights.detach().double().sum(0)
    off = float((sums - 1).abs().max())
    # In bfloat16 the sum of many weights is off by this much. Written so that NaN is refused.
    if not (off <= 0.02 and float(weights.min()) >= 0):
        raise ValueError(
            f"weights has columns with sums from {float(sums.min()):.3g} to "
            f"{float(sums.max()):.3g} and a smallest entry of {float(weights.min()):.3g}; use "
            "weights of 0 or more with the sum 1 over the group, not scores, and not transposed"
        )
