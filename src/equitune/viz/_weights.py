"""How the weights of a wrapper spread over a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from equitune._checks import require, require_counts, require_strings, require_tensor
from equitune.viz._canvas import new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


IN_A_ROW = 4


@styled
def draw_weights(weights: Tensor, *, names: Sequence[str] | None = None, bins: int = 20) -> Figure:
    """A histogram of the weight of each element over a batch, with its mean marked.

    The means are what Figure 12 of the second paper shows; the histograms distinguish a wrapper
    that is sure of one copy each time from one that weighs all copies alike.

    Args:
        weights: (|G|, B), as ``model.explain(x).weights`` returns them; those of several batches
            can be joined with ``torch.cat(..., dim=1)``.
        names: The names of the elements, such as ``model.group.names``. Default their numbers.
        bins: The number of bins between 0 and 1.

    Returns:
        A figure with one histogram per element, in the group's order; the heights are the numbers
        of samples.

    Raises:
        TypeError: If ``weights`` is not a floating-point tensor.
        ValueError: If it is not (|G|, B), or its columns are not weights with the sum 1; if
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
    numbers = tuple(map(str, range(order)))
    labels = numbers if names is None else require_strings("names", names, "one per element")
    got = f"{len(labels)} for {order}"
    require(len(labels) == order, "names", "have one name per element", got, "model.group.names")
    columns = min(order, IN_A_ROW)
    rows = math.ceil(order / columns)
    figure = new_figure(max(2.1 * columns, 4), 1.8 * rows + 0.3)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    values = weights.detach().cpu().double().clamp(0, 1)
    for axes, name, row in zip(grid, labels, values, strict=False):
        axes.hist(row.tolist(), bins=bins, range=(0, 1))
        mean = float(row.mean())
        axes.axvline(mean, color=axes.title.get_color(), linestyle="--", linewidth=1)
        axes.set_title(f"{name}: mean {mean:.2f}")
    for axes in grid[order:]:
        axes.remove()
    figure.supxlabel("weight", fontsize="medium")
    figure.supylabel(f"samples, of {batch_size}", fontsize="medium")
    return figure


def _check_weights(weights: Tensor) -> None:
    shape = "(|G|, B), one weight per element and sample, as model.explain(x).weights returns them"
    require_tensor("weights", weights, shape, floating=True)
    got = f"shape {tuple(weights.shape)}"
    require(weights.dim() == 2 and weights.numel() > 0, "weights", f"be {shape}", got, "these")
    sums, least = weights.detach().double().sum(0), float(weights.min())
    # In bfloat16 the sum of many weights is off by this much. NaN is refused too.
    fits = float((sums - 1).abs().max()) <= 0.02 and least >= 0
    must = "be 0 or more and have the sum 1 over the group"
    spans = f"sums from {float(sums.min()):.3g} to {float(sums.max()):.3g}"
    got = f"{spans} and a smallest entry of {least:.3g}"
    require(fits, "weights", must, got, "weights, not scores, and not transposed")
