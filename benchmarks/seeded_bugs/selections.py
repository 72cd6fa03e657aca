"""Bugs of EquiZero and of learned weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from equitune.losses import negative_log_max_probability
from equitune.testing import EquiZeroFormula, LambdaEquiTuneFormula
from seeded_bugs.mutant import (
    C4,
    IMAGE,
    Function,
    Mutant,
    copies,
    formula_check,
    invariance_check,
    network,
    symmetric_check,
    undone,
)


def selections() -> Iterator[Mutant]:
    """Bugs of EquiZero and of learned weights."""
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    dense, logits, scorer = network(C4, C4), network(C4), network(C4)
    rows = torch.arange(5)

    def losses(raw: Tensor) -> Tensor:
        return raw.flatten(2).sin().sum(-1)

    def select(
        pick: Callable[[Tensor], Tensor], undo: Callable[[Tensor, Tensor], Tensor]
    ) -> Function:
        def fn(x: Tensor) -> Tensor:
            raw = copies(dense, x, C4)
            best = pick(losses(raw))
            return undo(raw[best, rows], best)

        return fn

    def inverse(y: Tensor, g: Tensor) -> Tensor:
        return C4.transform(y, -g % 4)

    right = select(lambda loss: loss.argmin(0), inverse)
    turned = symmetric_check(x, C4, C4)
    yield Mutant(
        "one element for the whole batch",
        right,
        select(lambda loss: loss.sum(1).argmin().expand(5), inverse),
        turned,
    )
    yield Mutant(
        "the element of the first sample for all",
        right,
        select(lambda loss: loss.argmin(0)[:1].expand(5), inverse),
        turned,
    )
    yield Mutant(
        "the selected copy moved by g* instead of back",
        right,
        select(lambda loss: loss.argmin(0), C4.transform),
        turned,
    )
    yield Mutant(
        "the selected copy not moved back",
        right,
        select(lambda loss: loss.argmin(0), lambda y, g: y),
        turned,
    )
    proxy = functools.partial(negative_log_max_probability)

    def choose(pick: Callable[[Tensor], Tensor]) -> Function:
        def fn(x: Tensor) -> Tensor:
            raw = copies(logits, x, C4)
            return raw[pick(proxy(raw)), rows]

        return fn

    best = formula_check(x, EquiZeroFormula(logits, C4, proxy_loss=proxy))
    yield Mutant(
        "argmax for argmin",
        choose(lambda loss: loss.argmin(0)),
        choose(lambda loss: loss.argmax(0)),
        best,
    )
    yield Mutant(
        "per-class maximum for one element",
        choose(lambda loss: loss.argmin(0)),
        lambda x: copies(logits, x, C4).amax(0),
        best,
    )
    same_inside = x[:1] + sum(x[:1].rot90(k, IMAGE) for k in (1, 2, 3))
    tied = torch.cat(
        [x[:4], torch.cat([same_inside[..., :3], same_inside[..., :3].flip(IMAGE)], -1)]
    )

    def shared(x: Tensor) -> Tensor:
        raw = copies(dense, x, C4)
        loss = losses(raw)
        ties = (loss - loss.amin(0) <= 1e-9 * loss.amin(0).abs()).double()
        weights = (ties / ties.sum(0))[:, :, None, None, None]
        return (weights * undone(raw, C4)).sum(0)

    yield Mutant(
        "the first of several equally good copies", shared, right, symmetric_check(tied, C4, C4)
    )

    def weigh(weights: Callable[[Tensor], Tensor]) -> Function:
        return lambda x: (weights(x)[..., None] * copies(logits, x, C4)).sum(0)

    net = nn.Sequential(scorer, nn.Linear(4, 1).double()).eval()

    def scores(x: Tensor) -> Tensor:
        return copies(net, x, C4).squeeze(-1)

    learned, same = weigh(lambda x: scores(x).softmax(0)), invariance_check(x, C4)
    yield Mutant(
        "lambda of x instead of gx", learned, weigh(lambda x: scorer(x).T.softmax(0)), same
    )
    yield Mutant(
        "weights of g given to g^-1",
        learned,
        weigh(lambda x: scores(x)[[0, 3, 2, 1]].softmax(0)),
        same,
    )
    yield Mutant(
        "softmax over the batch instead of the group",
        learned,
        weigh(lambda x: scores(x).softmax(1)),
        same,
    )
    yield Mutant(
        "repeat for repeat_interleave",
        learned,
        weigh(lambda x: scores(x).T.reshape(-1).view(4, 5).softmax(0)),
        same,
    )
    literal = formula_check(x, LambdaEquiTuneFormula(logits, C4, weight_net=net))
    yield Mutant("lambda not normalised", learned, weigh(lambda x: scores(x).exp()), literal)
    yield Mutant("1/lambda for lambda", learned, weigh(lambda x: (-scores(x)).softmax(0)), literal)
