"""One image, its copies, and what the models make of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from equitune._checks import described, require, require_module, require_strings
from equitune._modes import evaluating
from equitune.viz._canvas import new_figure, orbit_of, show, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


IN_A_ROW = 8


@styled
def draw_orbit(
    model: nn.Module,
    image: Tensor,
    *,
    plain: nn.Module | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Figure:
    """The copies of an image, what a plain model says of each, and how a wrapper weighs them.

    The bars are the weights w_g(x) of the copies gx, and the title is the wrapper's answer, which
    is the same for every copy (second paper, equations 2 and 4). The models run in eval mode and
    without gradients, and are left as they were.

    Args:
        model: A wrapper of one image that returns class scores (B, classes): EquiTune, EquiZero,
            LambdaEquiTune, or another :class:`equitune.wrappers.Symmetrized`.
        image: (C, H, W) as the models take it, with 1 or 3 channels; floating-point or uint8, on
            their device. It need not be square.
        plain: A model whose answers stand above the copies, such as ``model.backbone``.
        classes: The names of the classes. Default their numbers.
        mean: The mean of each channel that the image was normalised with, to show it without;
            None if its values are in [0, 1].
        std: Likewise, what it was divided by.

    Returns:
        A figure with one picture per element, in the group's order, and then the bars.

    Raises:
        TypeError: If ``model`` is not a wrapper, ``plain`` not a module, or ``image`` not a tensor.
        ValueError: If the image is not (C, H, W) or out of range, a model does not return class
            scores, or ``classes``, ``mean`` or ``std`` are of the wrong length.
        ImportError: If matplotlib is missing.

    Example:
        >>> import torch
        >>> from equitune import EquiTune, ImageAction, c4
        >>> from equitune.viz import draw_orbit
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> model = EquiTune(backbone, ImageAction(c4()))
        >>> figure = draw_orbit(model, torch.rand(1, 8, 8), plain=backbone, classes=["cat", "dog"])
        >>> len(figure.axes)
        5
    """
    wrapper, _, copies, pictures = orbit_of(model, image, mean, std)
    if classes is not None:
        classes = require_strings("classes", classes, "the names of the classes")
    models = [wrapper] if plain is None else [wrapper, require_module("plain", plain)]
    with evaluating(*models), torch.no_grad():
        explanation = wrapper.explain(image.unsqueeze(0))
        answers = [] if plain is None else [_answer(plain(x), classes, "plain") for x in copies]
    names = wrapper.group.names
    titles = ["\n".join(lines) for lines in zip(names, answers, strict=True)] if answers else names

    columns = min(len(copies), IN_A_ROW)
    rows = math.ceil(len(copies) / columns)
    figure = new_figure(max(1.6 * columns, 4), 2 * rows + 1.7)
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[*[1.5] * rows, 1])
    for k, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        axes = figure.add_subplot(grid[divmod(k, columns)])
        show(axes, picture[0].movedim(0, -1), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize="medium")
    # Without ticks on its left, so that each bar stands below its copy.
    axes = figure.add_subplot(grid[rows, :])
    weights = explanation.weights[:, 0].double().tolist()
    bars = axes.bar(range(len(weights)), weights, width=0.6)
    axes.bar_label(bars, [f"{weight:.2f}" for weight in weights])
    axes.set_xticks(range(len(weights)), names)
    axes.set(xlim=(-0.5, len(weights) - 0.5), ylim=(0, 1.25), yticks=[])
    axes.spines.left.set_visible(False)
    axes.set_title("weights of the copies", fontsize="medium")
    answer = _answer(explanation.output, classes, "model")
    figure.suptitle(f"{type(wrapper).__name__} says {answer}")
    return figure


def _answer(scores: object, classes: Sequence[str] | None, name: str) -> str:
    """The class with the largest score, and its probability."""
    if not isinstance(scores, Tensor) or scores.dim() != 2 or not scores.is_floating_point():
        got = f"{described(scores)}; use draw_feature_maps for dense outputs"
        must = "class scores, floating-point of shape (B, classes)"
        raise ValueError(f"`{name}` must return {must}, got {got}")
    count = scores.shape[1]
    names = [f"class {k}" for k in range(count)] if classes is None else classes
    got = f"{len(names)} for the {count} scores of `{name}`"
    require(len(names) == count, "classes", "have one name per score", got, "all names")
    probability, best = scores[0].to(torch.float64).softmax(0).max(0)
    return f"{names[int(best)]} {float(probability):.0%}"
