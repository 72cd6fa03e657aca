"""Rows of the table of cases that are models of kits: each takes any weighting of the library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equitune import (
    Action,
    Drop,
    ImageAction,
    Symmetrized,
    TokenAction,
    TreeAction,
    TrivialAction,
    Weighting,
    c4,
    d4,
)
from equitune.losses import entropy


@dataclass(frozen=True)
class Kit:
    """A model of a kit, in float64.

    Attributes:
        build: The symmetrised model under a weighting; its backbone is always the same.
        input_action: How the group acts on the input.
        output_action: How it acts on what ``read`` gives.
        input: A batch.
        loss: A proxy loss of the raw outputs.
        features: The last dimension of the first raw output.
        read: What moves, from what the model returns.
        call: Keyword arguments of each call.
    """

    name: str
    build: Callable[[Weighting | None], Symmetrized]
    input_action: Action
    output_action: Action
    input: Tensor
    loss: Callable[[Any], Tensor] = entropy
    features: int = 0
    read: Callable[[Any], Any] = lambda output: output
    call: dict[str, Any] | None = None

    def __str__(self) -> str:
        return self.name


def language_models() -> list[Kit]:
    from equitune.text import OrbitLM
    from lm_cases import WORDS, V, language_model, prompts

    return [
        Kit(
            f"language model, {name}",
            lambda weighting, words=words: OrbitLM(
                language_model("gpt2"), words, weighting=weighting
            ),
            words.action,
            words.action.on_logits(),
            prompts(4, 7),
            features=V,
            read=lambda output: output.logits,
            call={"use_cache": False},
        )
        for name, words in WORDS.items()
    ]


def decoders() -> list[Kit]:
    from equitune.seq2seq import SymmetrizedSeq2Seq, mean_entropy
    from seq2seq_cases import CASES

    def moved(tokens: TokenAction) -> Action:
        scores, mask = tokens.on_logits(), TrivialAction(tokens.group)
        return TreeAction({"tokens": tokens, "scores": scores, "mask": mask})

    return [
        Kit(
            f"decoder, {name}",
            lambda weighting, case=case: SymmetrizedSeq2Seq(
                case.decoder(), case.source, case.tokens, weighting=weighting
            ).eval(),
            case.source,
            moved(case.tokens),
            case.sources(),
            loss=mean_entropy,
            call={"length": 5},
        )
        for name, case in CASES.items()
        if not isinstance(case.inputs, dict) and not case.given(2)
    ]


def networks() -> list[Kit]:
    import gridworld
    from equitune.rl import SymmetricDQNPolicy, cartpole_mirror
    from equitune.runners import MatrixProducts

    mirror = cartpole_mirror()

    def build(weighting: Weighting | None) -> Symmetrized:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2)).double()
        return Symmetrized(network, mirror.on_observations, mirror.on_actions,
                           weighting=weighting, runner=MatrixProducts())  # fmt: skip

    turns, env = gridworld.rotations(), gridworld.CoordinateGridworld()

    def policy(weighting: Weighting | None) -> Symmetrized:
        torch.manual_seed(0)
        dqn = SymmetricDQNPolicy(
            env.observation_space, env.action_space, lambda _: 1e-3, net_arch=[16], symmetry=turns,
            method=lambda network, *acting: Symmetrized(network, *acting, weighting=weighting),
        )  # fmt: skip
        return dqn.q_net.q_net.double()

    states = torch.randn(6, 4, dtype=torch.float64)
    return [
        Kit("Q-network", build, mirror.on_observations, mirror.on_actions, states, features=2),
        Kit("DQN", policy, turns.on_observations, turns.on_actions, states, features=4),
    ]


class Encoder(nn.Module):
    """A random image encoder whose embeddings differ in length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 6 * 6, width)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return (self.linear(flat) + 0.5) * flat.sum(1, keepdim=True).tanh().exp()


class Detector(nn.Module):
    """A random detector: for each image three boxes in pixels, with labels and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 6 * 6, 3 * 5)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            numbers = self.linear(image.flatten()).view(3, 5).sigmoid()
            boxes = torch.cat([numbers[:, :2], numbers[:, :2] + numbers[:, 2:4] + 0.2], dim=1)
            labels = numbers[:, 4].argsort()
            found.append({"boxes": 6 * boxes / 2.2, "labels": labels, "scores": numbers[:, 4]})
        return found


def images() -> list[Kit]:
    from equitune.vision import BoxAction, PaddedDetections, ZeroShotClassifier

    torch.manual_seed(0)
    turned, mirrored = ImageAction(c4()), ImageAction(d4())
    pictures = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    classes = torch.randn(4, 5, dtype=torch.float64)

    def classifier() -> ZeroShotClassifier:
        torch.manual_seed(0)
        return ZeroShotClassifier(Encoder(5), classes, list("abcd"), logit_scale=7.0).double()

    def detector() -> PaddedDetections:
        torch.manual_seed(0)
        return PaddedDetections(Detector(), most=4).double()

    # Lists of labels have no mean.
    parts = {"boxes": BoxAction(turned), "labels": Drop(), "scores": TrivialAction(c4())}
    return [
        Kit(
            "zero-shot classifier",
            lambda weighting: Symmetrized(
                classifier(), mirrored, weighting=weighting, submodule="encoder"
            ).double(),
            mirrored,
            TrivialAction(d4()),
            pictures,
            loss=classifier().image_text_loss,
            features=5,
        ),
        Kit(
            "detector",
            lambda weighting: Symmetrized(
                detector(), turned, TreeAction(parts), weighting=weighting
            ),
            turned,
            TreeAction(parts),
            pictures,
            loss=lambda found: -found["scores"].amax(-1),
        ),
    ]


KITS = [*language_models(), *decoders(), *networks(), *images()]
