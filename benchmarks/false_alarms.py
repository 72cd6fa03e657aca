"""Random equivariant models, built by the wrappers, float32: does assert_equivariant ever object?

python benchmarks/false_alarms.py
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

import record
from equitune import (
    Action,
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
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
from equitune.losses import entropy, negative_log_max_probability
from equitune.testing import equivariance_report
from equitune.testing._models import Architecture, model_family

SEED = 0
MODELS = 200

C4, D4, FLIP = ImageAction(c4()), ImageAction(d4()), ImageAction.horizontal_flip()
SET = PermutationAction(symmetric(3), sorted(generate_permutations([(1, 0, 2), (0, 2, 1)])))
TOKENS = TokenAction.cyclic_swaps(20, [(1, 2, 3), (4, 7, 8)])
COLOURS = ProductAction(C4, PermutationAction(cyclic(2), [(0, 1), (1, 0)], dim=-3))
HEADS = TreeAction({"logits": TrivialAction(d4()), "map": D4})

# An input action, output actions, and the sizes of a sample.
Family = tuple[Action, tuple[Action | None, ...], Callable[[random.Random], tuple[int, ...]]]


def sides(rng: random.Random) -> tuple[int, ...]:
    return (rng.randint(1, 3), rng.randint(4, 12), rng.randint(4, 12))


FAMILIES: tuple[Family, ...] = (
    (C4, (None, C4), sides),
    (D4, (None, D4, VectorFieldAction(d4()), HEADS), sides),
    (FLIP, (None, FLIP), sides),
    (COLOURS, (None, COLOURS), lambda rng: (2, *sides(rng)[1:])),
    (SET, (None, SET), lambda rng: (rng.randint(1, 5), 3)),
    (RegularAction(dihedral(5)), (None, RegularAction(dihedral(5))), lambda rng: (10,)),
    (TOKENS, (None, TOKENS.on_logits()), lambda rng: (rng.randint(2, 9),)),
)


class Scorer(nn.Module):
    """One logit per copy, from its output."""

    def forward(self, outputs: Tensor) -> Tensor:
        flat = outputs.flatten(1)
        return torch.tanh(flat * torch.cos(torch.arange(flat.shape[1]) + 0.3)).sum(1)


def loss_on(proxy: Callable[[Tensor], Tensor]) -> Callable[[Tensor | dict[str, Tensor]], Tensor]:
    """A proxy loss of the logits, also where they are one of several outputs."""
    return lambda y: proxy(y["logits"] if isinstance(y, dict) else y)


def draw(seed: int) -> tuple[nn.Module, Tensor, Action, Action | None]:
    """A random wrapped model, a batch for it, and its actions."""
    rng = random.Random(seed)
    input_action, outputs, sample = rng.choice(FAMILIES)
    output_action = rng.choice(outputs)
    activation = rng.choice((nn.Tanh, nn.ReLU, nn.GELU))
    architecture = Architecture(
        rng.randint(2, 48), rng.randint(1, 4), rng.random() < 0.5, activation, rng.randint(2, 10)
    )
    torch.manual_seed(seed)
    backbone = model_family(input_action, output_action)(architecture)
    size = (rng.randint(2, 8), *sample(rng))
    x = torch.randn(size) if input_action is not TOKENS else torch.randint(0, 20, size)
    chunk_size = rng.choice((None, None, rng.randint(1, 20)))
    wrappers = (
        lambda: EquiTune(backbone, input_action, output_action, chunk_size=chunk_size),
        lambda: EquiZero(
            backbone,
            input_action,
            output_action,
            proxy_loss=loss_on(rng.choice((entropy, negative_log_max_probability))),
            chunk_size=chunk_size,
        ),
        lambda: LambdaEquiTune(
            backbone,
            input_action,
            output_action,
            weight_net=Scorer(),
            weight_input="output",
            chunk_size=chunk_size,
        ),
    )
    model = rng.choice(wrappers)()
    # Batch statistics are those of the pieces in train mode, by design.
    training = chunk_size is None and rng.random() < 0.3
    return model.train(training), x, input_action, output_action


def main() -> None:
    worst, alarms = 0.0, []
    for seed in range(MODELS):
        report = equivariance_report(*draw(seed))
        ratios = [row.absolute / row.allowed for row in report.errors if row.allowed]
        worst = max(worst, *ratios)
        if not report.passed:
            alarms.append(seed)
            print(f"model {seed}: {report.message()}")
    print(f"{len(alarms)} alarms for {MODELS} equivariant models; the largest difference is")
    print(f"{worst:.2g} of what is allowed")
    record.save(
        "false_alarms",
        "python benchmarks/false_alarms.py",
        SEED,
        {"models": MODELS, "alarms": len(alarms), "largest_share_of_allowed": worst},
    )


if __name__ == "__main__":
    main()
