"""The fairness gap of EquiLM and of the plain model over random prompts, in float32.

max over g of |log P(gX2 | gX1) - log P(X2 | X1)| in nats per token of X2 (equation 4 of the first
paper), for two groups, three groups, and two demographics at once. Prompts and continuations are
random tokens, half of them equality words.

    EQUITUNE_DATA=... python benchmarks/fairness_gap.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import record
from equitune.spaces import Logits
from equitune.text import EquiLM, ResolvedWords, fairness_gap
from language_models import STORIES, Loaded, add_options, load, stored_in

NAME, SEED = "fairness_gap", 0
BATCH = 50
LENGTHS = (4, 64)
"""The shortest and the longest prompt and continuation."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--prompts", type=int, default=1000)
    return parser.parse_args(words)


def demographics(loaded: Loaded) -> dict[str, ResolvedWords]:
    """Words for two groups, for three, and for two demographics at once."""
    if loaded.name == STORIES:
        gender = loaded.resolve((("he", "she"), ("Tim", "Lily")))
        three = loaded.resolve((("he", "she", "they"), ("Tim", "Lily", "Timmy")))
        other = loaded.resolve((("big", "little"),))
    else:
        gender = loaded.resolve(loaded.demographics[0].lists)
        three = loaded.resolve((("Black", "White", "Asian"),))
        other = loaded.resolve((("gay", "straight"),))
    return {"two groups": gender, "three groups": three, "two demographics": gender * other}


def random_texts(
    loaded: Loaded, words: ResolvedWords, count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Prompts and continuations of random lengths, in batches; half of the tokens are exchanged."""
    generator = torch.Generator().manual_seed(SEED)
    exchanged = torch.tensor(sorted(words.equality))
    size = words.action.vocabulary_size
    for first in range(0, count, BATCH):
        parts = []
        for length in torch.randint(LENGTHS[0], LENGTHS[1] + 1, (2,), generator=generator).tolist():
            shape = (min(BATCH, count - first), length)
            any_token = torch.randint(size, shape, generator=generator)
            one_exchanged = torch.randint(len(exchanged), shape, generator=generator)
            half = torch.rand(shape, generator=generator) < 0.5
            tokens = torch.where(half, exchanged[one_exchanged], any_token)
            parts.append(tokens.to(loaded.device))
        yield parts[0], parts[1]


@torch.inference_mode()
def main(arguments_given: Sequence[str] | None = None) -> None:
    arguments = parse(arguments_given)
    loaded = load(arguments.model)
    rows: dict[str, Any] = {}
    told: dict[str, list[str]] = {}
    for name, words in demographics(loaded).items():
        told[name] = ["/".join(loaded.tokenizer.decode([i]).strip() for i in c)
                      for c in words.cycles]  # fmt: skip
        models = {
            "plain": loaded.model,
            "EquiLM": EquiLM(loaded.model, words),
            "EquiLM, mean of logits": EquiLM(loaded.model, words, space=Logits()),
        }
        for kind, model in models.items():
            batches = list(random_texts(loaded, words, arguments.prompts))
            gaps = torch.cat([
                fairness_gap(model, words, start, rest) / rest.shape[1]
                for start, rest in tqdm(batches, desc=f"{name}, {kind}", unit="batch", leave=False)
            ])  # fmt: skip
            rows[f"{name}, {kind}"] = {
                "words": name, "model": kind, "order": words.group.order,
                "largest": float(gaps.max()), "median": float(gaps.quantile(0.5)),
            }  # fmt: skip
            print(f"{name + ', ' + kind:<44} {gaps.max():.2g} {gaps.quantile(0.5):.2g}")
    numbers = {"model": loaded.name, "prompts": arguments.prompts, "words": told, "rows": rows}
    record.save(stored_in(NAME, arguments), record.command(), SEED, numbers)


if __name__ == "__main__":
    main()
