"""Some elements, drawn by chance: for each step of training, or for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import require, require_int, require_type
from equitune.runners import Call, Mix, Orbit, Ran, Runner
from equitune.scaling._around import Around


@final
class Subset(Around):
    """Draws a few elements for each step of training; runs all of them otherwise.

    While a module of the backbone trains, each call draws its elements without replacement, all
    equally likely, for the whole batch. In eval mode it is exact. A frozen backbone is in eval
    mode.

    For equal weights, the mean over the subset and its gradients are right on average: that of all
    subsets is the mean over the group (first paper, equation 3). Other things are not:

    - The loss of such a mean is larger on average, if it is convex in the output, as cross-entropy
      is in logits. So training minimises an upper bound of the loss of the model.
    - Lambda is normalised over the elements drawn, and a ratio has another average than its parts
      (second paper, equation 4). ``Best`` selects among them. Both are biased.

    Args:
        count: The number of elements of each step.
        runner: What runs them; None for one batch.
        generator: Where they are drawn from; None for torch's default. It is copied and pickled
            with its state, and is in no ``state_dict``. Leave it None inside of a checkpoint, which
            would draw again.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If ``count`` is below 1, or the group of the model has fewer elements. Calls
            raise it in ``torch.compile(fullgraph=True)`` and ``torch.export`` of a model in train
            mode.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, Symmetrized, d4
        >>> from equitune.scaling import Subset
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = Symmetrized(backbone, ImageAction(d4()), runner=Subset(2))
        >>> x = torch.rand(3, 1, 8, 8)
        >>> model.train().explain(x).weights.shape, model.eval().explain(x).weights.shape
        (torch.Size([2, 3]), torch.Size([8, 3]))
    """

    def __init__(
        self, count: int, runner: Runner | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(runner)
        self.count = require_int("count", count, "the number of elements of each step", least=1)
        self.generator = _require_generator(generator)

    def __repr__(self) -> str:
        return f"Subset({self.count}, {self.runner})"

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        if call.training:
            self._require(len(elements))
            if torch.compiler.is_compiling():
                raise ValueError(
                    f"Subset({self.count}) draws elements in train mode, and which copies run "
                    "cannot depend on that in one graph; use eval mode, or compile without "
                    "fullgraph"
                )
            order = torch.randperm(len(elements), **_source(self.generator)).tolist()
            elements = [elements[k] for k in sorted(order[: self.count])]
        return self.runner.run(call, mix, elements)

    def bind(self, model: Any) -> None:
        self._require(model.group.order)
        super().bind(model)

    def _require(self, most: int) -> None:
        must, use = f"be at most {most}, the number of elements", "a smaller one"
        require(self.count <= most, "count", must, self.count, use)


@final
class OneDrawn(Runner):
    """Runs one copy of each sample, each by an element of its own that is drawn by chance.

    It costs what the plain model costs, in any mode. It is exact in distribution, and so for models
    that sample: if an action, a token or a point is drawn from what the model returns, g^-1 M(gx)
    for an element that is drawn first has the distribution of the mean over the group of those
    distributions, which is equivariant. So for a model that returns logits it is that of
    ``space=Probabilities()``. Single outputs are not equivariant, and their maximum, or a
    deterministic policy, is of no use. ``assert_equivariant`` refuses it.

    Elements are equally likely, so that only weightings that read nothing fit. Images that are not
    square need a group that keeps their shape.

    Args:
        generator: Where elements are drawn from, as in :class:`Subset`.

    Raises:
        TypeError: If ``generator`` is something else.
        ValueError: If the model stops at a submodule, or has a weighting that reads something.
            Calls raise it if copies have several shapes.

    Example:
        >>> import torch
        >>> from equitune import MatrixAction, PermutationAction, Symmetrized, cyclic
        >>> from equitune.scaling import OneDrawn
        >>> mirror = MatrixAction(cyclic(2), [[[1.0]], [[-1.0]]])
        >>> sides = PermutationAction(cyclic(2), [(0, 1), (1, 0)])
        >>> policy = Symmetrized(torch.nn.Linear(1, 2), mirror, sides, runner=OneDrawn())
        >>> torch.distributions.Categorical(logits=policy(torch.rand(5, 1))).sample().shape
        torch.Size([5])
    """

    offers = frozenset()
    in_distribution = True

    def __init__(self, *, generator: torch.Generator | None = None) -> None:
        self.generator = _require_generator(generator)

    def __repr__(self) -> str:
        return "OneDrawn()"

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        places = torch.randint(len(elements), (call.batch_size,), **_source(self.generator))
        drawn = torch.tensor(elements, device=places.device)[places]
        undo = torch.tensor(call.group.inverses, device=places.device)[drawn]
        copies = [action.transform(x, drawn.to(x.device)) for action, x in call.leaves]

        def combine(ran: list[Ran]) -> Any:
            leaves = [(action, _moved(action, y, undo)) for action, y in ran[0].leaves]
            # What is undone already is a copy of the identity.
            one = [[call.group.identity]]
            return mix(Orbit.of(call, one, [replace(ran[0], leaves=leaves)]))

        return call.evaluate([copies], combine)

    def bind(self, model: Any) -> None:
        must, use = "be None, since OneDrawn() has no mean there", "the whole backbone"
        require(model.submodule is None, "submodule", must, repr(model.submodule), use)


def _moved(action: Any, y: Tensor, g: Tensor) -> Tensor:
    moved: Tensor = action.transform(y, g.to(y.device))
    return moved


def _require_generator(generator: torch.Generator | None) -> torch.Generator | None:
    use = "torch.Generator().manual_seed(0), or None for torch's default"
    return None if generator is None else require_type("generator", generator, torch.Generator, use)


def _source(generator: torch.Generator | None) -> dict[str, Any]:
    """Where numbers are drawn: on the device of the generator, whatever the default device is."""
    device = torch.device("cpu") if generator is None else generator.device
    return {"generator": generator, "device": device}
