"""Small random networks that know nothing of a symmetry, for what an action acts on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from equitune._checks import described, require, require_type
from equitune.actions import Action, TrivialAction

IMAGE_DIMS = (-2, -1)


@final
@dataclass(frozen=True)
class Architecture:
    """The sizes of a small network.

    Attributes:
        width: The number of hidden channels.
        depth: The number of hidden layers.
        batch_norm: Whether each of them has BatchNorm.
        activation: The activation after it.
        outputs: The number of scores or channels, where the output action leaves it open.
    """

    width: int
    depth: int
    batch_norm: bool
    activation: Callable[[], nn.Module]
    outputs: int


def model_family(
    input_action: Action, output_action: Action | None
) -> Callable[[Architecture], nn.Module]:
    """Builds models from what an input action acts on to what an output action acts on.

    Raises:
        ValueError: If there is none between these two.
    """
    require_type("input_action", input_action, Action, "one such as ImageAction(d4())")
    got, use = described(input_action), "the action of one tensor"
    require(input_action.fields is None, "input_action", "be one of a tensor", got, use)
    output = output_action or TrivialAction(input_action.group)
    kind = _kind_of(input_action)
    actions = {"": output} if output.fields is None else output.fields
    passed = bool(actions) and not any(isinstance(key, int) for key in actions)
    must = "be one of a tensor, or of a dict with a name for every field"
    require(passed, "output_action", must, described(output), "TreeAction({name: action})")
    return lambda a: _Model(
        _Body(kind, a), {str(key): _head(kind, action, a) for key, action in actions.items()}
    )


@final
class _Model(nn.Module):
    """A body, and a head or a dict of heads on it."""

    def __init__(self, body: nn.Module, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.body, self.names = body, tuple(heads)
        self.heads = nn.ModuleList(heads.values())
        for module in self.modules():
            # As after training: the statistics of a fresh BatchNorm do nothing.
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(module.get_buffer("running_mean"), -0.5, 0.5)
                nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        features = self.body(x)
        outputs = {name: head(features) for name, head in zip(self.names, self.heads, strict=True)}
        single: Tensor | None = outputs.get("")
        return outputs if single is None else single


@final
@dataclass(frozen=True)
class _Kind:
    """What models take: from an input of any size to channels, and the layers on these."""

    lift: Callable[[Tensor, Tensor], Tensor]
    layer: Callable[[int], nn.Module]
    norm: Callable[[int], nn.Module]


@final
class _Body(nn.Module):
    """From an input of any size to ``width`` channels."""

    def __init__(self, kind: _Kind, a: Architecture) -> None:
        super().__init__()
        self.kind, self.width = kind, a.width
        layers: list[nn.Module] = []
        for _ in range(a.depth):
            layers += [kind.layer(a.width), *([kind.norm(a.width)] if a.batch_norm else [])]
            layers.append(a.activation())
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        numbers = torch.arange(1, self.width + 1).to(next(self.parameters()))
        y: Tensor = self.layers(self.kind.lift(x, numbers))
        return y


def _mixed(channels: int, numbers: Tensor) -> Tensor:
    """A fixed matrix (width, channels) without any symmetry."""
    places = torch.arange(1, channels + 1).to(numbers)
    return torch.cos(0.7 * numbers[:, None] * places + numbers[:, None]) / math.sqrt(channels)


def _of_vectors(x: Tensor, numbers: Tensor) -> Tensor:
    flat = x.flatten(1)
    return flat @ _mixed(flat.shape[1], numbers).T


def _of_tokens(ids: Tensor, numbers: Tensor) -> Tensor:
    # Causal, as language models are.
    return torch.cos(0.9 * ids[..., None].to(numbers.dtype) * numbers + numbers).cumsum(1)


def _of_images(x: Tensor, numbers: Tensor) -> Tensor:
    x = x.reshape(len(x), -1, *x.shape[-2:])
    x = torch.einsum("wc,bchv->bwhv", _mixed(x.shape[1], numbers), x)
    # It knows where up is, also where the layers do not.
    rows, columns = (torch.arange(n).to(numbers) for n in x.shape[-2:])
    return x * torch.sin(0.8 * rows[:, None] + 1.3 * columns + 1)


def _linear(width: int) -> nn.Module:
    return nn.Linear(width, width)


def _convolution(width: int) -> nn.Module:
    return nn.Conv2d(width, width, 3, padding=1)


_VECTORS = _Kind(_of_vectors, _linear, nn.BatchNorm1d)
_TOKENS = _Kind(_of_tokens, _linear, nn.LayerNorm)
_IMAGES = _Kind(_of_images, _convolution, nn.BatchNorm2d)


@final
class _Head(nn.Module):
    """A layer to scores or images whose channels, dim ``dim``, are of a shape.

    Args:
        layer: The layer.
        shape: The shape of its channels.
        dim: The dimension of the channels.
        pooled: The dimensions that are averaged before.
    """

    def __init__(
        self, layer: nn.Module, shape: tuple[int, ...], dim: int, pooled: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.layer, self.shape, self.dim, self.pooled = layer, shape, dim, pooled

    def forward(self, features: Tensor) -> Tensor:
        y = self.layer(features.mean(self.pooled) if self.pooled else features)
        scores: Tensor = y.unflatten(self.dim, self.shape)
        return scores


def _kind_of(action: Action) -> _Kind:
    if action.vocabulary_size is not None:
        return _TOKENS
    return _IMAGES if _acts_on_images(action) else _VECTORS


def _head(kind: _Kind, action: Action, a: Architecture) -> nn.Module:
    sizes, images = action.extent, _acts_on_images(action)
    known = sizes or action.trivial or action.vocabulary_size is not None
    passed = bool(known) and (images or None not in sizes.values())
    use = "a model of your own"
    require(passed, "output_action", "have a known size", described(action), use)
    if images:
        must = "act on images only where input_action does"
        require(kind is _IMAGES, "output_action", must, described(action), use)
        passed, must = all(d < 0 for d in sizes), "act on dims that count from the end"
        require(passed, "output_action", must, sorted(sizes), "negative dims")
        channels = {d: 2 if size is None else size for d, size in sizes.items() if d < -2}
        dims, others = range(min(channels, default=-3), -2), 1 if channels else a.outputs
        shape = tuple(channels.get(d, others) for d in dims)
        return _Head(nn.Conv2d(a.width, math.prod(shape), 3, padding=1), shape, 1)
    depth = max((abs(d) for d in sizes), default=1)
    dims = range(1, depth + 1) if any(d > 0 for d in sizes) else range(-depth, 0)
    shape = tuple(sizes.get(d) or (1 if sizes else a.outputs) for d in dims)
    # Scores of whole texts and images; those of a vocabulary are for each token.
    pooled = (-2, -1) if kind is _IMAGES else (1,) if kind is _TOKENS and not sizes else ()
    return _Head(nn.Linear(a.width, math.prod(shape)), shape, -1, pooled)


def _acts_on_images(action: Action) -> bool:
    dims = action.image_dims
    require(dims in (None, IMAGE_DIMS), "dims", f"be {IMAGE_DIMS}", dims, "one such ImageAction")
    return dims is not None
