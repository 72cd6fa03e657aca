"""Whether the parts of a wrapper keep their promises: its weighting and its runner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from equitune.actions import Action
from equitune.actions._tree import mapped
from equitune.runners import Runner
from equitune.spaces import Space, Values
from equitune.testing._batches import copied
from equitune.testing._comparison import RELATIVE_TOLERANCES, Gap, Tolerance
from equitune.testing._formulas import Formula, Orbit
from equitune.testing._layers import Layers
from equitune.weightings import Copies, Weighting
from equitune.wrappers import Symmetrized

SLACK = 10.0
"""How many times the tolerance of a dtype weights may be off: batches round differently."""

MOST_ALONE = 8
"""As many samples of a batch are weighed alone; more would only make it slow."""


def faults_of_weighting(fn: object, x: Any) -> tuple[str, ...]:
    """What is wrong with the weighting of a wrapper; nothing for other functions."""
    if not isinstance(fn, Symmetrized) or fn.weighting.reads == "likelihood":
        return ()
    action = fn.input_action
    if fn.weighting.equal or not isinstance(action, Action):
        return ()
    mix = AskedWeighting(fn.weighting)
    with torch.no_grad():
        fn.run(mix, copied(action, x), (), {})
    return tuple(mix.faults)


def fault_of_runner(fn: Any, x: Any, formula: Formula, tolerance: Tolerance) -> tuple[str, ...]:
    """What is wrong with the copies that a runner hands on; nothing if they are of several means.

    Args:
        fn: The wrapper.
        x: A batch, or a structure of batches.
        formula: The formula of the wrapper.
        tolerance: How far copies of other batches may be off.
    """
    if type(fn.runner).literal is not Runner.literal:
        return ()
    # For each element g the tensors of g^-1 M(gx).
    columns = zip(*[Orbit(formula, sample).leaves for sample in formula.samples(x)], strict=True)
    literal = [[torch.cat(leaf) for leaf in zip(*column, strict=True)] for column in columns]
    mix = TakenCopies(len(literal[0][0]))
    fn.run(mix, copied(fn.input_action, x), (), {})
    same = [[_same(slot, copy, tolerance) for copy in literal] for slot in mix.slots]
    count, names = len(literal), fn.group.names
    if len(same) == count and all(same[g][g] for g in range(count)):
        return ()
    held = [sum(row[g] for row in same) for g in range(count)]
    alike = [sum(_same(copy, other, tolerance) for other in literal) for copy in literal]
    # Equal copies may be run once for all of them.
    shares = [n / m for n, m in zip(held, alike, strict=True)]
    missing = [names[g] for g in range(count) if not held[g]]
    most = [names[g] for g in range(count) if shares[g] > min(shares)]
    if missing:
        got = f"no copy g^-1 M(gx) of {', '.join(missing)}"
    elif not all(map(any, same)):
        got = "copies that are of no element"
    elif most:
        got = f"more copies of {', '.join(most)} than of others"
    elif len(same) == count:
        got = "copies in another order"
    else:
        return ()
    kind = type(fn.runner).__name__
    return (
        "`runner` must hand the copy of each element to `mix` once, in the order of `elements`, "
        f"got {got} from {kind}; use Batches(), or mend {kind}.run",
    )


@final
class AskedWeighting:
    """Looks at what a weighting makes of the copies; their mean comes out.

    Attributes:
        faults: What is wrong with the weights.
    """

    def __init__(self, weighting: Weighting) -> None:
        self.weighting, self.reads = weighting, weighting.reads
        self.faults: list[str] = []
        self._weights: Tensor | None = None
        self._asked = False

    def ask(self, copies: Copies) -> Tensor | None:
        if self.reads in (None, "input"):
            self._ask(copies)
        return None

    def __call__(self, copies: Copies) -> Any:
        if not self._asked:
            self._ask(copies)
        return copies.rebuild([mean(self._weights) for mean in copies.means(Values())])

    def _ask(self, copies: Copies) -> None:
        self._asked, kind = True, type(self.weighting).__name__
        self._weights = weights = self.weighting(copies)[0]
        if weights is None:
            return
        allowed = SLACK * RELATIVE_TOLERANCES.get(weights.dtype, 0.0)
        sums = weights.sum(0)
        if not bool(((sums - 1).abs() <= len(weights) * allowed).all()):
            self.faults.append(
                "`weighting` must return weights whose sum over the copies is 1, got sums from "
                f"{float(sums.min()):.6g} to {float(sums.max()):.6g} by {kind}; use "
                f"weights / weights.sum(0) in {kind}.weigh"
            )
        mixing = Layers.of(self.weighting).training_batch_norms()
        again = self.weighting(copies)[0]
        if mixing or not torch.equal(weights, again):
            # What is random, or mixes samples while it trains, is said by others.
            return
        for i in range(min(weights.shape[1], MOST_ALONE)):
            alone = self.weighting(OneSample(copies, i))[0]
            off = (alone[:, 0] - weights[:, i]).abs().max()
            if not bool(off <= allowed):
                self.faults.append(
                    "`weighting` must weigh each sample by itself, got weights by "
                    f"{kind} that change by {float(off):.3g} at sample {i} where the others of "
                    f"the batch are left out; use operations over dim 0, the copies, in {kind}"
                )
                return


@final
class TakenCopies:
    """Takes every copy g^-1 M(gx) that a runner hands on, and returns the first.

    Attributes:
        slots: The tensors of the copy in each slot.
    """

    reads = None

    def __init__(self, batch: int) -> None:
        self.slots: list[list[Tensor]] = []
        self._batch = batch

    def ask(self, copies: Copies) -> Tensor | None:
        return None

    def __call__(self, copies: Copies) -> Any:
        means = copies.means(Values())
        eye = torch.eye(copies.count, dtype=torch.float64).to(copies.read("output")[0][1].device)
        ones = [row[:, None].expand(-1, self._batch) for row in eye]
        self.slots = [[mean(one) for mean in means] for one in ones]
        return copies.rebuild(self.slots[0])


@final
class OneSample(Copies):
    """The copies of one sample of a batch."""

    def __init__(self, copies: Copies, sample: int) -> None:
        self._copies, self._rows = copies, slice(sample, sample + 1)
        self.count, self.dtypes, self.sums = copies.count, copies.dtypes, copies.sums

    def read(self, what: str) -> list[tuple[Sequence[int], Tensor]]:
        return [(slots, stack[:, self._rows]) for slots, stack in self._copies.read(what)]

    def outputs(self) -> list[tuple[Sequence[int], Any]]:
        rows = self._rows
        return [(s, mapped(y, lambda leaf: leaf[:, rows])) for s, y in self._copies.outputs()]

    def means(self, space: Space) -> list[Any]:
        return self._copies.means(space)

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        return self._copies.rebuild(tensors)

    def gathered(self, scores: Tensor) -> Tensor:
        return self._copies.gathered(scores)


def _same(one: Sequence[Tensor], other: Sequence[Tensor], tolerance: Tolerance) -> bool:
    found = [a.to(b.dtype) for a, b in zip(one, other, strict=True)]
    return Gap.between(found, other, tolerance).within
