"""Equal copies are run once: those of inputs that some elements leave as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd import forward_ad

from equitune._checks import require
from equitune.runners import Call, Mix, Orbit, Part, Runner
from equitune.runners._orbit import early_weights, parts_of
from equitune.scaling._around import Around
from equitune.spaces import Values
from equitune.weightings import Copies


@final
class Distinct(Around):
    """Runs equal copies of an input once, for each sample its own.

    If s x = x, the copies gx and (gs)x are equal, so that one element of each left coset gS of the
    stabiliser S of x is enough: one pass in place of |G| for a constant image, or for a text
    without any of the words that the group exchanges. To find S, each gx is compared with x. The
    outputs are then handed on for all elements, so that weights, ``explain`` and the gradients of
    parameters are those of all copies. It is exact.

    It runs all copies where one copy cannot stand for others: while a module of the backbone trains
    (batch statistics and dropout), while the gradient of the input is asked for (each copy has a
    direction of its own), while a model is compiled or exported, and for images of two shapes. On
    an accelerator, looking at the input costs a synchronisation for each call.

    The runners of language models and decoders do the same by themselves.

    Args:
        runner: What runs the distinct copies; None for one batch.

    Raises:
        TypeError: If ``runner`` is not a runner.
        ValueError: If it makes several means of the copies, or draws them.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, Symmetrized, c4
        >>> from equitune.scaling import Distinct
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
        >>> model = Symmetrized(backbone, ImageAction(c4()), runner=Distinct())
        >>> passes = []
        >>> handle = backbone.register_forward_hook(lambda m, x, y: passes.append(len(y)))
        >>> y = model(torch.stack([torch.ones(1, 8, 8), torch.rand(1, 8, 8)]))
        >>> passes
        [5]
    """

    def __init__(self, runner: Runner | None = None) -> None:
        super().__init__(runner)
        inner = self.runner
        while isinstance(inner, Around):
            inner = inner.runner
        single = type(inner).literal is Runner.literal and not inner.in_distribution
        use = "that runner itself, or Distinct(Batches())"
        require(single, "runner", "make one mean of all copies", self.runner, use)

    def __repr__(self) -> str:
        return f"Distinct({self.runner})"

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        firsts = _first_equals(call, elements)
        if firsts is None:
            return self.runner.run(call, mix, elements)
        weights = None
        if mix.reads == "input":
            weights = early_weights(call, mix, parts_of(call, elements))
        counts = torch.ones_like(firsts) if weights is None else (weights != 0).to(firsts)
        needed = torch.zeros_like(firsts).scatter_add_(0, firsts, counts) > 0
        places, samples = needed.nonzero(as_tuple=True)
        chosen = torch.tensor(elements, device=places.device)[places]
        leaves = [(a, a.transform(x[samples], chosen)) for a, x in call.leaves]
        # Rows of copies that do not count are of any other copy.
        numbers = (needed.flatten().cumsum(0) - 1).clamp(min=0).view_as(firsts)
        rows = Repeated(call, mix, elements, numbers.gather(0, firsts))
        return self.runner.run(replace(call, leaves=leaves), rows, [call.group.identity])


@final
class Repeated:
    """What becomes of distinct copies: those of all elements, in a call of their samples.

    Args:
        call: The call of the samples.
        mix: What combines the copies of all elements.
        elements: The elements.
        rows: (K, B), which of the distinct copies is that of an element and a sample.
    """

    def __init__(self, call: Call, mix: Mix, elements: Sequence[int], rows: Tensor) -> None:
        self.call, self.mix, self.elements, self.rows = call, mix, elements, rows
        # What reads the input has been asked already.
        self.reads = None if mix.reads == "input" else mix.reads

    def ask(self, copies: Copies) -> Tensor | None:
        return None

    def __call__(self, copies: Copies) -> Any:
        call, rows = self.call, self.rows
        whole = torch.ones(1, copies.batch_size, device=rows.device)
        output = copies.rebuild([mean(whole) for mean in copies.means(Values())])
        leaves = [(a, y[rows.to(y.device)]) for a, y in call.output_action.flatten(output)]
        read = None
        if call.tap is not None:
            _, stack = copies.read(str(self.reads))[0]
            read = stack[0][rows.to(stack.device)]
        part = Part(range(len(rows)), self.elements, (), output, leaves, read)
        return self.mix(Orbit(call, [part]))


def _first_equals(call: Call, elements: Sequence[int]) -> Tensor | None:
    """(K, B), the first slot whose copy is equal; None if all copies have to run."""
    moving = [(a, x) for a, x in call.leaves if not a.trivial]
    if (
        torch.compiler.is_compiling()
        or call.training
        or not call.batch_size
        or any(_learns(x) for _, x in moving)
        or len(call.classes(call.group.elements)) > 1
    ):
        return None
    fixed = torch.ones(call.group.order, call.batch_size, dtype=torch.bool)
    fixed = fixed.to(call.leaves[0][1].device)
    for g in call.group.elements[1:]:
        for action, x in moving:
            fixed[g] &= (action.transform(x, g) == x).reshape(len(x), -1).all(1)
    if not fixed[1:].any():
        return None
    table, inverses = torch.tensor(call.group.cayley_table), call.group.inverses
    # gx and hx are equal where g^-1 h fixes x.
    pairs = table[[inverses[g] for g in elements]][:, [*elements]]
    return fixed[pairs.to(fixed.device)].byte().argmax(dim=1)


def _learns(x: Tensor) -> bool:
    """Whether a gradient of the input is asked for."""
    tangent = forward_ad.unpack_dual(x).tangent
    return tangent is not None or (x.requires_grad and torch.is_grad_enabled())
