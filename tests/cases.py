"""The table of cases that drives the generic tests: a group, its actions, a random model, an input.

A new action or group is one more row; a new wrapper is one more entry of WRAPPERS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equitune import (
    Action,
    Canonicalize,
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    MatrixAction,
    PermutationAction,
    ProductAction,
    RegularAction,
    TokenAction,
    TreeAction,
    TrivialAction,
    VectorFieldAction,
    c4,
    cyclic,
    d4,
    dihedral,
    generate_permutations,
    symmetric,
)
from equitune.weight_nets import OrbitWeightNet

DTYPES = (torch.float64, torch.float32)


class ConvNet(nn.Module):
    """A random network of images, with BatchNorm, that knows where up is."""

    def __init__(self, channels: int, outputs: int, dense: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True)
        )
        self.head = nn.Conv2d(5, outputs, 3, padding=1)
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        rows = torch.linspace(0, 1, y.shape[-2], dtype=y.dtype, device=y.device)
        columns = torch.linspace(0, 2, y.shape[-1], dtype=y.dtype, device=y.device)
        y = self.head(y * torch.sin(3 * rows[:, None] + columns + 1))
        return y if self.dense else y.mean((-2, -1))


class Mlp(nn.Module):
    """A random network of vectors, with BatchNorm; flattens what it gets."""

    def __init__(self, inputs: int, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.Tanh()
        )
        self.head = nn.Linear(16, math.prod(outputs))
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)).unflatten(1, self.outputs)


class TokenModel(nn.Module):
    """A random causal model of token ids."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.features = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.features(self.embedding(ids)).cumsum(1))


class TwoHeads(nn.Module):
    """A random network with a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())
        self.dense = ConvNet(4, 2, dense=True)
        self.pooled = ConvNet(4, 5, dense=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.features(x)
        return {"logits": self.pooled(features), "map": self.dense(features)}


class AnyWeightNet(nn.Module):
    """One logit per copy, from an input of any shape and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, copies: Tensor) -> Tensor:
        flat = copies.flatten(1).to(self.scale.dtype)
        places = torch.arange(flat.shape[1], dtype=flat.dtype, device=flat.device)
        return self.scale * torch.tanh(flat * torch.cos(places + 0.3)).mean(1, keepdim=True)


class Attention(OrbitWeightNet):
    """Logits that depend on the whole orbit, through its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.net = AnyWeightNet()

    def forward(self, stack: Tensor) -> Tensor:
        logits = self.net(stack.flatten(0, 1)).view(stack.shape[:2])
        return logits + torch.sin(5 * (logits - logits.mean(0)))


@dataclass(frozen=True)
class Case:
    """One row."""

    name: str
    input_action: Action
    output_action: Action | None
    backbone: Callable[[], nn.Module]
    input: Callable[[torch.dtype], Tensor]

    @property
    def square(self) -> bool:
        """Whether all copies have one shape."""
        return len(self.input_action.shape_classes(self.input(torch.float64))) == 1

    def __str__(self) -> str:
        return self.name


def images(*shape: int) -> Callable[[torch.dtype], Tensor]:
    return lambda dtype: torch.randn(*shape, dtype=dtype)


def turns(n: int) -> list[list[list[float]]]:
    """The matrices of the rotations of the plane by multiples of 360/n degrees."""
    angles = [2 * math.pi * k / n for k in range(n)]
    return [[[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]] for a in angles]


def rotations(n: int) -> MatrixAction:
    """The rotations of the plane by multiples of 360/n degrees."""
    return MatrixAction(cyclic(n), turns(n))


def corners(n: int, dim: int = -1) -> PermutationAction:
    """The dihedral group on the corners of a polygon."""
    rows = [[(i + k) % n for i in range(n)] for k in range(n)]
    rows += [[(-(i + k)) % n for i in range(n)] for k in range(n)]
    return PermutationAction(dihedral(n), rows, dim)


SHIFTS = generate_permutations([(1, 2, 0)])
ORDERS = generate_permutations([(1, 0, 2), (0, 2, 1)])
S3_INDEX = {p: g for g, p in enumerate(sorted(ORDERS))}
SWAP = PermutationAction(cyclic(2), [(0, 1), (1, 0)], dim=-3)
TOKENS = TokenAction.cyclic_swaps(12, [(1, 2, 3), (4, 7, 8)])


def _image_cases() -> list[Case]:
    named = {
        "horizontal flip": ImageAction.horizontal_flip(),
        "vertical flip": ImageAction.vertical_flip(),
        "rotation 180": ImageAction.rotation_180(),
        "c4": ImageAction(c4()),
        "d4": ImageAction(d4()),
    }
    cases = []
    for name, action in named.items():
        for shape in ((6, 6), (5, 7)):
            size = f"{shape[0]}x{shape[1]}"
            x = images(9, 3, *shape)
            cases += [
                Case(f"{name}, {size}, logits", action, None, lambda: ConvNet(3, 4, False), x),
                Case(f"{name}, {size}, dense", action, action, lambda: ConvNet(3, 4, True), x),
            ]
    square = d4()
    flow = VectorFieldAction(square)
    both = ProductAction(named["c4"], SWAP)
    still = ProductAction(named["c4"], TrivialAction(cyclic(2)))
    heads = TreeAction({"logits": TrivialAction(square), "map": named["d4"]})
    for shape in ((6, 6), (5, 7)):
        size = f"{shape[0]}x{shape[1]}"
        cases += [
            Case(f"d4, {size}, flow", named["d4"], flow, lambda: ConvNet(3, 4, True),
                 images(9, 3, *shape)),
            Case(f"d4, {size}, flow to flow", flow, flow, lambda: ConvNet(4, 2, True),
                 images(9, 4, *shape)),
            Case(f"c4 x cyclic(2), {size}, logits", both, None, lambda: ConvNet(2, 4, False),
                 images(9, 2, *shape)),
            Case(f"c4 x cyclic(2), {size}, dense", both, both, lambda: ConvNet(2, 2, True),
                 images(9, 2, *shape)),
            Case(f"c4 x cyclic(2), {size}, still", both, still, lambda: ConvNet(2, 3, True),
                 images(9, 2, *shape)),
            Case(f"d4, {size}, dict", named["d4"], heads, TwoHeads, images(9, 3, *shape)),
        ]  # fmt: skip
    return cases


CASES = [
    *_image_cases(),
    Case("cyclic(3), permutation", PermutationAction(cyclic(3), SHIFTS),
         PermutationAction(cyclic(3), SHIFTS), lambda: Mlp(3, (3,)), images(7, 3)),
    Case("cyclic(3), rotations", rotations(3), rotations(3), lambda: Mlp(2, (2,)), images(7, 2)),
    Case("cyclic(3), regular to permuted rows", RegularAction(cyclic(3)),
         PermutationAction(cyclic(3), SHIFTS, dim=1), lambda: Mlp(3, (3, 2)), images(7, 3)),
    Case("cyclic(3), tokens", TOKENS, TOKENS.on_logits(), lambda: TokenModel(12),
         lambda dtype: torch.randint(0, 12, (7, 5))),
    Case("symmetric(3), set", PermutationAction(symmetric(3), sorted(ORDERS), dim=-2),
         PermutationAction(symmetric(3), sorted(ORDERS)), lambda: Mlp(12, (3,)), images(7, 3, 4)),
    Case("symmetric(3), regular", RegularAction(symmetric(3)), RegularAction(symmetric(3)),
         lambda: Mlp(6, (6,)), images(7, 6)),
    Case("symmetric(3), invariant", RegularAction(symmetric(3)), None, lambda: Mlp(6, (4,)),
         images(7, 6)),
    Case("dihedral(5), polygon", corners(5), corners(5), lambda: Mlp(5, (5,)), images(11, 5)),
    Case("dihedral(5), regular", RegularAction(dihedral(5)), corners(5), lambda: Mlp(10, (5,)),
         images(11, 10)),
]  # fmt: skip


def first_logits(outputs: Any) -> Tensor:
    """The stack that a proxy loss of these cases looks at."""
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def proxy(outputs: Any) -> Tensor:
    """A proxy loss for outputs of any shape, without symmetry."""
    flat = first_logits(outputs).flatten(2)
    places = torch.arange(flat.shape[2], dtype=flat.dtype, device=flat.device)
    return (flat * torch.cos(places + 0.7)).sum(-1)


WRAPPERS: dict[str, Callable[..., nn.Module]] = {
    "EquiTune": EquiTune,
    "EquiTune in pieces": lambda *a: EquiTune(*a, chunk_size=5),
    "EquiZero": lambda *a: EquiZero(*a, proxy_loss=proxy),
    "LambdaEquiTune of the input": lambda *a: LambdaEquiTune(*a, weight_net=AnyWeightNet()),
    "LambdaEquiTune of the output": lambda *a: LambdaEquiTune(
        *a, weight_net=AnyWeightNet(), weight_input="output"
    ),
    "LambdaEquiTune of a tapped activation": lambda *a: LambdaEquiTune(
        *a, weight_net=AnyWeightNet(), weight_input="features"
    ),
    "Canonicalize": lambda *a: Canonicalize(*a, weight_net=AnyWeightNet()),
}
