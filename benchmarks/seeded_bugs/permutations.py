"""Bugs of words, sets, keypoints and products."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from equitune import (
    Action,
    ImageAction,
    MatrixAction,
    PermutationAction,
    ProductAction,
    RegularFeatureAction,
    TokenAction,
    TrivialAction,
    cyclic,
    generate_permutations,
    symmetric,
)
from seeded_bugs.mutant import C4, Function, Mutant, copies, network, symmetric_check, undone

SET = PermutationAction(symmetric(3), sorted(generate_permutations([(1, 0, 2), (0, 2, 1)])))
TOKENS = TokenAction.cyclic_swaps(12, [(1, 2, 3), (4, 7, 8)])
SWAP = PermutationAction(cyclic(2), [(0, 1), (1, 0)], dim=-3)
COLOURS = ProductAction(C4, SWAP)


def permutations() -> Iterator[Mutant]:
    """Bugs of words, sets, keypoints and products."""
    ids = torch.randint(0, 12, (5, 6))
    ids[:, 0] = torch.tensor([1, 2, 3, 4, 7])
    on_logits = TOKENS.on_logits()
    language = network(TOKENS, on_logits)
    check = symmetric_check(ids, TOKENS, on_logits)

    def average(output: Action, inputs: Action = TOKENS) -> Function:
        return lambda ids: undone(copies(language, ids, inputs), output).mean(0)

    right = average(on_logits)
    yield Mutant(
        "words moved by g instead of g^-1",
        right,
        lambda ids: torch.stack(
            [on_logits.transform(y, g) for g, y in enumerate(copies(language, ids, TOKENS))]
        ).mean(0),
        check,
    )
    yield Mutant(
        "two equality words exchanged",
        right,
        average(TokenAction.cyclic_swaps(12, [(1, 3, 2), (4, 7, 8)]).on_logits()),
        check,
    )
    yield Mutant(
        "an equality word left out",
        right,
        average(on_logits, TokenAction.cyclic_swaps(12, [(1, 2, 3)])),
        check,
    )
    yield Mutant(
        "off by one in the vocabulary",
        right,
        average(TokenAction.cyclic_swaps(12, [(2, 3, 4), (5, 8, 9)]).on_logits()),
        check,
    )
    yield Mutant(
        "probabilities of unmoved words",
        right,
        lambda ids: copies(language, ids, TOKENS).mean(0),
        check,
    )
    members, group = torch.randn(6, 3, dtype=torch.float64), symmetric(3)
    net = network(SET, SET)
    yield Mutant(
        "g instead of g^-1 on a set",
        lambda x: undone(copies(net, x, SET), SET).mean(0),
        lambda x: torch.stack(
            [SET.transform(y, g) for g, y in enumerate(copies(net, x, SET))]
        ).mean(0),
        symmetric_check(members, SET, SET),
    )
    scores = network(SET)
    features = RegularFeatureAction(TrivialAction(group))

    def regular(element: Callable[[int], int]) -> Function:
        return lambda x: torch.stack(
            [scores(SET.transform(x, element(g))) for g in group.elements], 1
        )

    yield Mutant(
        "left regular features for right ones",
        regular(lambda g: g),
        regular(group.inverse),
        symmetric_check(members, SET, features),
    )
    points = _keypoints(swap=True)
    image = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    flip = ImageAction.horizontal_flip()
    pose = nn.Sequential(network(flip), nn.Linear(4, 6).double())
    yield Mutant(
        "keypoints not swapped",
        lambda x: undone(copies(pose, x, flip), points).mean(0),
        lambda x: undone(copies(pose, x, flip), _keypoints(swap=False)).mean(0),
        symmetric_check(image, flip, points),
    )
    colours = network(COLOURS, COLOURS)
    coloured = torch.randn(5, 2, 6, 6, dtype=torch.float64)

    def product(x: Tensor) -> Tensor:
        raw = copies(colours, x, COLOURS)
        # Element (g, h) stands at 2 g + h, here read as g + 4 h.
        read = torch.stack([raw[i // 4 + 2 * (i % 4)] for i in range(8)])
        return undone(read, COLOURS).mean(0)

    yield Mutant("index of the product group read in the other order",
                 lambda x: undone(copies(colours, x, COLOURS), COLOURS).mean(0), product,
                 symmetric_check(coloured, COLOURS, COLOURS))  # fmt: skip


def _keypoints(swap: bool) -> MatrixAction:
    """Nose, left and right hand, (x, y) each, under a horizontal flip."""
    order = [0, 2, 1] if swap else [0, 1, 2]
    mirror = torch.kron(torch.eye(3)[order], torch.diag(torch.tensor([-1.0, 1.0])))
    return MatrixAction(cyclic(2), torch.stack([torch.eye(6), mirror]).double())
