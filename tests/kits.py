"""Rows of the table of cases that are models of kits: each takes any weighting of the library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equitune import Action, Symmetrized, TokenAction, TreeAction, TrivialAction, Weighting
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
    from equitune.rl import cartpole_mirror
    from equitune.runners import MatrixProducts

    mirror = cartpole_mirror()

    def build(weighting: Weighting | None) -> Symmetrized:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2)).double()
        return Symmetrized(network, mirror.on_observations, mirror.on_actions,
                           weighting=weighting, runner=MatrixProducts())  # fmt: skip

    states = torch.randn(6, 4, dtype=torch.float64)
    return [Kit("Q-network", build, mirror.on_observations, mirror.on_actions, states, features=2)]


KITS = [*language_models(), *decoders(), *networks()]
