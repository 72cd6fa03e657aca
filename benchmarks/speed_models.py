"""The models whose wrappers are timed: their inputs, their groups, and what weights read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from equitune import (
    Action,
    ImageAction,
    PermutationAction,
    SignedPermutationAction,
    TokenAction,
    c4,
    cyclic,
    d4,
)
from equitune.losses import negative_log_max_probability
from equitune.weight_nets import ConvWeightNet, MlpWeightNet

VOCABULARY, WIDTH = 2000, 256


@dataclass(frozen=True)
class Subject:
    """A model, and how it is wrapped.

    Attributes:
        make: The model, with random weights, in eval mode.
        inputs: A batch of so many samples of that size.
        action: How a group of that order moves inputs of that size.
        output_action: How it moves the output, from the action on the input; None for not at all.
        tap: The activation that LambdaEquiTune reads.
        weight_net: What reads it, for inputs of that size.
        scorer: What Canonicalize asks about copies of the input.
        proxy_loss: What EquiZero minimises.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], Tensor]
    action: Callable[[int, int], Action]
    tap: str
    weight_net: Callable[[int], nn.Module]
    scorer: Callable[[int], nn.Module]
    output_action: Callable[[Action], Action | None] = lambda action: None
    proxy_loss: Callable[[Tensor], Tensor] = negative_log_max_probability


class UNet(nn.Module):
    """A small U-Net: three levels, from three channels to two."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.middle, self.low = _convs(3, 32), _convs(32, 64), _convs(64, 128)
        self.down, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.up_middle, self.up_high = _convs(192, 64), _convs(96, 32)
        self.head = nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.high(x)
        middle = self.middle(self.down(high))
        y = self.up(self.low(self.down(middle)))
        y = self.up(self.up_middle(torch.cat([y, middle], dim=1)))
        y = self.up_high(torch.cat([y, high], dim=1))
        return self.head(y)


def _convs(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


class Llama(nn.Module):
    """A Llama of four layers: from tokens (B, T) to logits (B, T, V)."""

    def __init__(self) -> None:
        super().__init__()
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4 * WIDTH,
                num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
            )
        )  # fmt: skip

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, use_cache=False).logits


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def q_network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )


def images(batch: int, side: int) -> Tensor:
    return torch.randn(batch, 3, side, side)


def of_images(order: int, side: int) -> Action:
    """Flips for two elements, c4 for four, d4 for eight."""
    return {
        2: ImageAction.horizontal_flip(), 4: ImageAction(c4()), 8: ImageAction(d4())
    }[order]  # fmt: skip


def shifts(order: int, side: int) -> Action:
    """Images are shifted round, by a share of their width: groups of many orders."""
    step = side // order
    rows = [[(i + g * step) % side for i in range(side)] for g in range(order)]
    return PermutationAction(cyclic(order), rows, dim=-1)


def word_sets(order: int) -> tuple[tuple[int, ...], ...]:
    """Two sets of tokens that are exchanged in a circle."""
    return tuple(tuple(range(first, first + order)) for first in (100, 200))


def sentences(batch: int, length: int) -> Tensor:
    """They begin with an exchanged word, so that no two copies are equal."""
    tokens = torch.randint(1000, VOCABULARY, (batch, length))
    tokens[:, 0] = word_sets(2)[0][0]
    return tokens


def unsure_words(logits: Tensor) -> Tensor:
    """The proxy loss of sentences: the mean over their words."""
    return -logits.log_softmax(-1).amax(-1).mean(-1)


def unsure_pixels(logits: Tensor) -> Tensor:
    """The proxy loss of dense predictions: the mean over their pixels."""
    return -logits.log_softmax(-3).amax(-3).mean((-2, -1))


SUBJECTS = {
    "resnet18": Subject(
        torchvision.models.resnet18, images, of_images, "avgpool",
        lambda side: MlpWeightNet(512), lambda side: ConvWeightNet(3, 16),
    ),
    "vit_b_32": Subject(
        torchvision.models.vit_b_32, images, of_images, "encoder",
        lambda side: MlpWeightNet(768 * (1 + (side // 32) ** 2)), lambda side: ConvWeightNet(3, 16),
    ),
    "unet": Subject(
        UNet, images, of_images, "low", lambda side: ConvWeightNet(128, 16),
        lambda side: ConvWeightNet(3, 16), lambda action: action, unsure_pixels,
    ),
    "llama": Subject(
        Llama, sentences,
        lambda order, length: TokenAction.cyclic_swaps(VOCABULARY, word_sets(order)),
        "model.model.norm", lambda length: MlpWeightNet(WIDTH * length),
        lambda length: nn.Sequential(nn.Embedding(VOCABULARY, 8), MlpWeightNet(8 * length)),
        lambda action: action.on_logits(), unsure_words,
    ),
    "small_cnn": Subject(
        small_cnn, images, shifts, "8",
        lambda side: MlpWeightNet(512), lambda side: ConvWeightNet(3, 16),
    ),
    "q_network": Subject(
        q_network, torch.randn,
        lambda order, size: SignedPermutationAction(
            cyclic(2), [range(size), range(size)], [[1] * size, [-1] * size]
        ),
        "2", lambda size: MlpWeightNet(64), MlpWeightNet,
        lambda action: PermutationAction(cyclic(2), [[0, 1], [1, 0]]),
    ),
}  # fmt: skip
