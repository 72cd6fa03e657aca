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
    body = _body_of(input_action)
    actions = output.fields
    if actions is not None:
        passed = bool(actions) and not any(isinstance(key, int) for key in actions)
        must = "be one of a tensor, or of a dict with a name for every field"
        require(passed, "output_action", must, described(output), "TreeAction({name: action})")
        return lambda a: _Model(
            body(a), {str(k): _head(body, act, a) for k, act in actions.items()}
        )
    return lambda a: _Model(body(a), {"": _head(body, output, a)})


@final
class _Model(nn.Module):
    """A body, and a head or a dict of heads on it."""

    def __init__(self, body: nn.Module, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.body = body
        self.names = tuple(heads)
        self.heads = nn.ModuleList(heads.values())
        for module in self.modules():
            # As after training: the statistics of a fresh BatchNorm do nothing.
            for name, statistic in module.named_buffers(recurse=False):
                if name == "running_mean":
                    statistic.uniform_(-0.5, 0.5)
                elif name == "running_var":
                    statistic.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        features = self.body(x)
        outputs = {name: head(features) for name, head in zip(self.names, self.heads, strict=True)}
        single: Tensor | None = outputs.get("")
        return outputs if single is None else single


class _Body(nn.Module):
    """From an input of any size to ``width`` channels."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.width = a.width
        layers: list[nn.Module] = []
        for _ in range(a.depth):
            layers += [self._layer(a.width), *([self._norm(a.width)] if a.batch_norm else [])]
            layers.append(a.activation())
        self.layers = nn.Sequential(*layers)

    def _layer(self, width: int) -> nn.Module:
        return nn.Linear(width, width)

    def _norm(self, width: int) -> nn.Module:
        return nn.BatchNorm1d(width)

    def _lift(self, x: Tensor, channels: int) -> Tensor:
        """A fixed matrix (width, channels) without any symmetry."""
        places = torch.arange(1, channels + 1, dtype=x.dtype, device=x.device)
        rows = torch.arange(1, self.width + 1, dtype=x.dtype, device=x.device)
        return torch.cos(0.7 * rows[:, None] * places + rows[:, None]) / math.sqrt(channels)


@final
class _VectorBody(_Body):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        y: Tensor = self.layers(flat @ self._lift(flat, flat.shape[1]).T)
        return y


@final
class _TokenBody(_Body):
    def _norm(self, width: int) -> nn.Module:
        return nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        weight = next(self.parameters())
        frequencies = torch.arange(1, self.width + 1, dtype=weight.dtype, device=weight.device)
        features = torch.cos(0.9 * ids[..., None].to(weight.dtype) * frequencies + frequencies)
        # Causal, as language models are.
        y: Tensor = self.layers(features.cumsum(1))
        return y


@final
class _ImageBody(_Body):
    def _layer(self, width: int) -> nn.Module:
        return nn.Conv2d(width, width, 3, padding=1)

    def _norm(self, width: int) -> nn.Module:
        return nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), -1, *x.shape[-2:])
        x = torch.einsum("wc,bchv->bwhv", self._lift(x, x.shape[1]), x)
        # It knows where up is, also where the layers do not.
        rows, columns = (torch.arange(n, dtype=x.dtype, device=x.device) for n in x.shape[-2:])
        y: Tensor = self.layers(x * torch.sin(0.8 * rows[:, None] + 1.3 * columns + 1))
        return y


@final
class _VectorHead(nn.Module):
    """A linear layer to scores of a shape; pools images first."""

    def __init__(self, width: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.linear = nn.Linear(width, math.prod(shape))
        self.shape = shape

    def forward(self, features: Tensor) -> Tensor:
        pooled = features.flatten(2).mean(-1) if features.dim() == 4 else features
        y: Tensor = self.linear(pooled).unflatten(-1, self.shape)
        return y


@final
class _PooledTokensHead(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)

    def forward(self, features: Tensor) -> Tensor:
        y: Tensor = self.linear(features.mean(1))
        return y


@final
class _ImageHead(nn.Module):
    """A convolution to images whose channels are of a shape."""

    def __init__(self, width: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, math.prod(shape), 3, padding=1)
        self.shape = shape

    def forward(self, features: Tensor) -> Tensor:
        y: Tensor = self.conv(features).unflatten(1, self.shape)
        return y


def _body_of(action: Action) -> type[_Body]:
    if action.vocabulary_size is not None:
        return _TokenBody
    return _ImageBody if _acts_on_images(action) else _VectorBody


def _head(body: type[_Body], action: Action, a: Architecture) -> nn.Module:
    sizes, images = action.extent, _acts_on_images(action)
    known = sizes or action.trivial or action.vocabulary_size is not None
    passed = bool(known) and (images or None not in sizes.values())
    use = "a model of your own"
    require(passed, "output_action", "have a known size", described(action), use)
    if images:
        must = "act on images only where input_action does"
        require(body is _ImageBody, "output_action", must, described(action), use)
        passed, must = all(d < 0 for d in sizes), "act on dims that count from the end"
        require(passed, "output_action", must, sorted(sizes), "negative dims")
        channels = {d: 2 if size is None else size for d, size in sizes.items() if d < -2}
        depth = -min(channels, default=-3)
        return _ImageHead(
            a.width, tuple(channels.get(d, 1 if channels else a.outputs) for d in range(-depth, -2))
        )
    if not sizes and body is _TokenBody:
        return _PooledTokensHead(a.width, a.outputs)
    depth = max((abs(d) for d in sizes), default=1)
    dims = range(1, depth + 1) if any(d > 0 for d in sizes) else range(-depth, 0)
    return _VectorHead(a.width, tuple(sizes.get(d) or (1 if sizes else a.outputs) for d in dims))


def _acts_on_images(action: Action) -> bool:
    dims = action.image_dims
    require(dims in (None, IMAGE_DIMS), "dims", f"be {IMAGE_DIMS}", dims, "one such ImageAction")
    return dims is not None
