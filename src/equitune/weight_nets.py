"""Weight networks for LambdaEquiTune: log lambda of one copy, or of the whole orbit at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from equitune._checks import (
    require,
    require_counts,
    require_function,
    require_module,
    require_number,
    require_tensor,
    require_type,
)
from equitune._submodules import Reached, Reading, Watch
from equitune.weightings import OrbitWeightNet

__all__ = [
    "AttentionWeightNet",
    "ConvWeightNet",
    "FrozenFeatures",
    "MlpWeightNet",
    "OnFeatures",
    "OrbitWeightNet",
    "ProxyLogits",
]

GRID = 4
"""The side of the grid that a convolutional network keeps, so that it knows where things are."""


@final
class MlpWeightNet(nn.Module):
    """The papers' weight network: two linear layers on the features of one copy.

    A hidden layer of 100 units with ReLU, and one output (second paper, section 5.2.2 and
    appendix D.4, where the features are those of a frozen image encoder).

    Args:
        in_features: The number of features of one copy, all dimensions but the batch together.
        hidden_features: The width of the hidden layer.

    Shape:
        (N, ...) to (N, 1), floating-point.

    Raises:
        ValueError: If a width is below 1. Calls raise it for another number of features.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, LambdaEquiTune, c4
        >>> from equitune.weight_nets import MlpWeightNet
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = LambdaEquiTune(
        ...     backbone, ImageAction(c4()), weight_net=MlpWeightNet(10), weight_input="output"
        ... )
        >>> model.explain(torch.rand(2, 1, 8, 8)).weights.shape
        torch.Size([4, 2])
    """

    def __init__(self, in_features: int, hidden_features: int = 100) -> None:
        super().__init__()
        require_counts(in_features=in_features, hidden_features=hidden_features)
        self.in_features = in_features
        self.layers = _two_layers(in_features, hidden_features)

    def forward(self, copies: Tensor) -> Tensor:
        require_tensor("copies", copies, "(N, ...)", 2, floating=True)
        logits: Tensor = self.layers(_features("copies", copies, 1, self.in_features))
        return logits


@final
class ConvWeightNet(nn.Module):
    """A convolutional weight network, on images or on feature maps of one copy.

    Two strided convolutions with BatchNorm and ReLU, the mean over a grid of 4 x 4 cells, dropout,
    and a linear layer. The grid is what tells it which way is up.

    Args:
        in_channels: The number of channels.
        hidden_channels: The number of channels of both convolutions.
        dropout: The share of features that is dropped in training.

    Shape:
        (N, in_channels, H, W) to (N, 1), floating-point, of any height and width.

    Raises:
        ValueError: If a number of channels is below 1. Calls raise it for inputs of another shape.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 64, dropout: float = 0.3) -> None:
        super().__init__()
        require_counts(in_channels=in_channels, hidden_channels=hidden_channels)
        require_number("dropout", dropout, 0, 1)
        self.in_channels = in_channels
        self.layers = nn.Sequential(
            *_halved(in_channels, hidden_channels),
            *_halved(hidden_channels, hidden_channels),
            nn.AdaptiveAvgPool2d(GRID),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(hidden_channels * GRID**2, 1),
        )

    def forward(self, copies: Tensor) -> Tensor:
        require_tensor("copies", copies, f"(N, {self.in_channels}, H, W)", floating=True)
        if copies.dim() != 4 or copies.shape[1] != self.in_channels:
            use = f"(N, {self.in_channels}, H, W): check in_channels and weight_input"
            found = f"copies has shape {tuple(copies.shape)}"
            raise ValueError(f"{found}; this weight network takes {use}")
        logits: Tensor = self.layers(copies)
        return logits


@final
class AttentionWeightNet(OrbitWeightNet):
    """Attention over the orbit: the weight of each copy may look at all copies.

    A linear layer on each copy, self-attention over the group without positions, and a linear
    layer to one logit; equivariant to permutations of the copies, so that the wrapper stays
    equivariant.

    Args:
        in_features: The number of features of one copy, all dimensions but the group and the
            batch together.
        hidden_features: The width of the attention, a multiple of ``heads``.
        heads: The number of attention heads.

    Shape:
        (|G|, B, ...) to (|G|, B), floating-point.

    Raises:
        ValueError: If a width is below 1, or ``hidden_features`` is not a multiple of ``heads``.
            Calls raise it for another number of features.
    """

    def __init__(self, in_features: int, hidden_features: int = 64, heads: int = 4) -> None:
        super().__init__()
        require_counts(in_features=in_features, hidden_features=hidden_features, heads=heads)
        whole, got = hidden_features % heads == 0, f"{hidden_features} and {heads}"
        require(whole, "hidden_features", "be a multiple of `heads`", got, "64 and 4")
        self.in_features = in_features
        self.embed = nn.Linear(in_features, hidden_features)
        self.attention = nn.MultiheadAttention(hidden_features, heads)
        self.norm = nn.LayerNorm(hidden_features)
        self.score = _two_layers(hidden_features, hidden_features)

    def forward(self, stack: Tensor) -> Tensor:
        require_tensor("stack", stack, "(|G|, B, ...)", 2, floating=True)
        tokens = self.embed(_features("stack", stack, 2, self.in_features))
        seen, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        logits: Tensor = self.score(self.norm(tokens + seen)).squeeze(-1)
        return logits


@final
class FrozenFeatures(nn.Module):
    """What a network says or shows inside, from a frozen copy of it in eval mode.

    In front of a weight network it keeps the weights steady while the network itself is
    fine-tuned (second paper, section 5.2.1 and appendix D.4). See
    :func:`equitune.training.with_frozen_features`.

    Args:
        network: The network; it is copied and not changed.
        submodule: The dotted name of the submodule whose activation is read, or ``"output"`` for
            what the network returns. A pass ends at the submodule, the first time that it runs,
            so that the first stages of a network cost what they cost alone; while it is compiled,
            a pass goes to its end.
        chunk_size: The most copies in one pass; None for no limit.

    Shape:
        (N, ...), what the network takes, to (N, ...), one tensor.

    Raises:
        TypeError: If the network is not a module. Calls raise it if what is read is not a tensor.
        ValueError: If no submodule has that name, or ``chunk_size`` is below 1.

    Example:
        >>> import torch
        >>> from equitune.weight_nets import FrozenFeatures, MlpWeightNet
        >>> network = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU())
        >>> weight_net = torch.nn.Sequential(FrozenFeatures(network, "0"), MlpWeightNet(5))
        >>> weight_net(torch.rand(3, 6)).shape
        torch.Size([3, 1])
    """

    def __init__(
        self, network: nn.Module, submodule: str = "output", *, chunk_size: int | None = None
    ) -> None:
        super().__init__()
        require_module("network", network)
        require_type("submodule", submodule, str, "the dotted name of a submodule, or 'output'")
        if chunk_size is not None:
            require_counts(chunk_size=chunk_size)
        self.submodule = submodule
        self.chunk_size = chunk_size
        self.extractor = copy.deepcopy(network).requires_grad_(False).eval()
        self._watch: Watch | None = None
        if submodule != "output":
            self._watch = Watch(self, self.extractor, submodule, "submodule")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self._watch is not None:
            self._watch = self._watch.of_copy(self, self.extractor)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; the copy stays in eval mode."""
        super().train(mode)
        self.extractor.eval()
        return self

    def forward(self, copies: Tensor) -> Tensor:
        require_tensor("copies", copies, "(N, ...)", dims=1)
        size = self.chunk_size
        if size is None or len(copies) <= size:
            return self._read(copies)
        return torch.cat([self._read(piece) for piece in copies.split(size)])

    def _read(self, copies: Tensor) -> Tensor:
        if self._watch is not None:
            self._watch.follow(self.extractor)
            return _read_until(self._watch, lambda: self.extractor(copies))
        features = self.extractor(copies)
        if not isinstance(features, Tensor):
            use = "use the name of a submodule that returns a tensor"
            raise TypeError(f"the network returns a {type(features).__name__}; {use}")
        return features


@final
class OnFeatures(OrbitWeightNet):
    """A weight network that sees the whole orbit at once, on features of each copy.

    Args:
        extractor: Maps copies (N, ...) to features (N, ...), such as :class:`FrozenFeatures`.
        weight_net: What reads the features, (|G|, B, ...), such as :class:`AttentionWeightNet`.

    Shape:
        (|G|, B, ...) to (|G|, B).

    Raises:
        TypeError: If ``weight_net`` sees single copies; put these two into an ``nn.Sequential``.
    """

    def __init__(self, extractor: nn.Module, weight_net: OrbitWeightNet) -> None:
        super().__init__()
        require_module("extractor", extractor)
        use = "nn.Sequential(extractor, weight_net) where it sees single copies"
        require_type("weight_net", weight_net, OrbitWeightNet, use)
        self.extractor = extractor
        self.weight_net = weight_net

    def forward(self, stack: Tensor) -> Tensor:
        require_tensor("stack", stack, "(|G|, B, ...)", dims=2)
        features: Tensor = self.extractor(stack.flatten(0, 1))
        logits: Tensor = self.weight_net(features.unflatten(0, stack.shape[:2]))
        return logits


@final
class ProxyLogits(nn.Module):
    """Negated proxy losses as logits, so that a model scores copies without any training.

    Where :class:`equitune.EquiZero` chooses by the outputs of the model itself, this chooses by
    those of a cheaper one, such as the model on shrunken copies.

    Args:
        proxy_loss: As in :class:`equitune.EquiZero`: maps (1, N, C, ...) to losses (1, N); see
            :mod:`equitune.losses`.

    Shape:
        (N, C, ...), floating-point outputs for single copies, to (N,).

    Raises:
        TypeError: If ``proxy_loss`` is not a function.

    Example:
        >>> import torch
        >>> from equitune import Canonicalize, ImageAction, c4
        >>> from equitune.losses import entropy
        >>> from equitune.weight_nets import FrozenFeatures, ProxyLogits
        >>> network = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(),
        ...     torch.nn.Linear(128, 10),
        ... )
        >>> shrunken = torch.nn.AdaptiveAvgPool2d(16), FrozenFeatures(network)
        >>> weight_net = torch.nn.Sequential(*shrunken, ProxyLogits(entropy))
        >>> model = Canonicalize(network, ImageAction(c4()), weight_net=weight_net)
        >>> x = torch.rand(2, 3, 64, 64)
        >>> torch.allclose(model(x), model(x.rot90(1, (-2, -1))), atol=1e-6)
        True
    """

    def __init__(self, proxy_loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        use = "one of the raw outputs, such as equitune.losses.entropy"
        self.proxy_loss = require_function("proxy_loss", proxy_loss, use)

    def forward(self, outputs: Tensor) -> Tensor:
        require_tensor("outputs", outputs, "(N, C, ...)", dims=2, floating=True)
        return -self.proxy_loss(outputs.unsqueeze(0))[0]


def _features(name: str, copies: Tensor, start: int, expected: int) -> Tensor:
    """The features of each copy, flattened; refuses another number of them."""
    features = copies.flatten(start)
    if features.shape[-1] != expected:
        found = f"the copies have {features.shape[-1]} features each in `{name}`"
        use = "check in_features and weight_input"
        raise ValueError(f"{found}, but in_features is {expected}; {use}")
    return features


def _read_until(watch: Watch, run: Callable[[], Any]) -> Tensor:
    """The one tensor that a submodule returns when it first runs in a pass, which ends there.

    While it is compiled, a pass goes on to its end.

    Raises:
        ValueError: If the submodule does not run.
        TypeError: If it does not return a tensor.
    """
    reading = Reading(watch)

    def see(output: Any) -> None:
        if not reading.seen:
            reading.see(output)
        if not torch.compiler.is_compiling():
            raise Reached

    try:
        with watch.opened(see):
            run()
    except Reached:
        pass
    return reading.tensor()


def _two_layers(inputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def _halved(inputs: int, outputs: int) -> list[nn.Module]:
    """A convolution that halves the height and the width."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
