"""How many generations for swapped prompts are swapped copies of each other.

For every context of both tasks, which begins with an equality word: 500 seeds, each for the prompt
of one demographic group and for that of the other, with noise that is attached to the vocabulary
and moved with the words. Beside it the plain model, and EquiLM with torch's generator set to the
same seed for both prompts, which draws numbers that do not move. Rows that are done with the same
settings are kept.

    EQUITUNE_DATA=... python benchmarks/swapped_generations.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import record
import regard
from cifar10 import data_folder
from equitune.text import GumbelNoise, ResolvedWords
from language_models import (
    TASKS,
    Demographic,
    Loaded,
    add_options,
    generate,
    load,
    prompts,
    stored_in,
    symmetrised,
)

NAME, SEED = "swapped_generations", 0
NOISY = ("plain", "EquiLM", "EquiZeroLM")
MULTINOMIAL = "EquiLM, torch.multinomial"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--seeds", type=int, default=500, help="pairs for each context")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=15)
    parser.add_argument("--fresh", action="store_true", help="do all rows again")
    return parser.parse_args(words)


def copies(
    model: nn.Module,
    loaded: Loaded,
    found: list[Tensor],
    words: ResolvedWords,
    seeds: range,
    new_tokens: int,
    *,
    moved: bool,
) -> tuple[int, int]:
    """How many pairs are swapped copies, and how many of those differ behind the prompt as well."""
    outputs = []
    for g, prompt in enumerate(found):
        noise = GumbelNoise(words.action, seeds).moved(g) if moved else None
        torch.manual_seed(seeds.start)
        outputs.append(
            generate(model, loaded, prompt, noise, samples=len(seeds), new_tokens=new_tokens)
        )
    first, start = outputs[0], found[0].shape[0]
    same = torch.ones(len(seeds), dtype=torch.bool, device=first.device)
    swapped = torch.zeros_like(same)
    for g, other in enumerate(outputs[1:], 1):
        expected = words.action.transform(first, g)
        same &= equal(expected, other, loaded)
        swapped |= (expected[:, start:] != first[:, start:]).any(dim=1)
    return int(same.sum()), int((same & swapped).sum())


def equal(first: Tensor, second: Tensor, loaded: Loaded) -> Tensor:
    """Which rows are equal; a batch that has ended sooner is padded to the length of the other."""
    length = max(first.shape[1], second.shape[1])
    pad = loaded.tokenizer.eos_token_id
    padded = [nn.functional.pad(part, (0, length - part.shape[1]), value=pad)
              for part in (first, second)]  # fmt: skip
    return (padded[0] == padded[1]).all(dim=1)


def row_of(
    kind: str,
    loaded: Loaded,
    demographic: Demographic,
    context: str,
    scorer: regard.RegardClassifier,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    words = loaded.resolve(demographic.lists)
    plain_kind = "EquiLM" if kind == MULTINOMIAL else kind
    model = symmetrised(plain_kind, loaded, demographic, scorer)
    found = prompts(loaded, demographic, words, context)
    same = swapped = 0
    for first in range(SEED, SEED + arguments.seeds, arguments.batch_size):
        seeds = range(first, min(first + arguments.batch_size, SEED + arguments.seeds))
        counts = copies(model, loaded, found, words, seeds, arguments.new_tokens,
                        moved=kind != MULTINOMIAL)  # fmt: skip
        same, swapped = same + counts[0], swapped + counts[1]
    return {"demographic": demographic.name, "context": context, "model": kind,
            "copies": same, "copies_with_swapped_words": swapped}  # fmt: skip


@torch.inference_mode()
def main(arguments_given: Sequence[str] | None = None) -> None:
    arguments = parse(arguments_given)
    loaded = load(arguments.model)
    folder = data_folder()
    if folder is None:
        raise SystemExit("Set EQUITUNE_DATA to the folder with regard/.")
    scorer = regard.chosen(folder)
    place = stored_in(NAME, arguments)
    rows: dict[str, Any] = {} if arguments.fresh else record.load(place).get("rows", {})
    settings = {"pairs": arguments.seeds, "new_tokens": arguments.new_tokens,
                "batch_size": arguments.batch_size}  # fmt: skip
    todo = [
        (demographic, context, kind)
        for demographic in loaded.demographics
        for contexts in TASKS.values()
        for context in contexts
        for kind in (*NOISY, MULTINOMIAL)
    ]
    for demographic, context, kind in tqdm(todo, desc=loaded.name, unit="row"):
        key = f"{demographic.name}, {context}, {kind}"
        if rows.get(key, {}).get("settings") == settings:
            continue
        row = row_of(kind, loaded, demographic, context, scorer, arguments)
        rows[key] = {**row, "settings": settings}
        record.add(place, record.command(), SEED, {key: rows[key]}, model=loaded.name)
        tqdm.write(f"{key:<60} {row['copies']} of {arguments.seeds}")


if __name__ == "__main__":
    main()
