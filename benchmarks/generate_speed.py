"""The speed of ``generate`` against the plain model: 64 tokens after a prompt of 128.

GPT-2 small's shape with random weights, two demographic groups, greedy, on a CPU. In turns: each
run of a model stands between two of the plain model, its ratio is of tokens per second to their
mean, and the median is over rounds. Beside the ratios how many copies the cache held at the end.

    python benchmarks/generate_speed.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

import record
from equitune import TokenAction
from equitune.text import EquiLM, ResolvedWords

NAME, SEED = "generate_speed", 0
PROMPT, NEW = 128, 64
PAIRS = ((100, 101), (200, 201))
NEUTRAL = "EquiLM, no equality word"
MIDDLE = "EquiLM, an equality word in the middle of the prompt"
FIRST = "EquiLM, the prompt begins with an equality word"
TWO = "plain, two prompts at once"
NO_CACHE = "EquiLM, an equality word in the middle, without a cache"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--without-cache", type=int, default=1, help="runs without a cache")
    parser.add_argument("--tiny", action="store_true", help="one small layer: a test")
    return parser.parse_args(words)


def made(tiny: bool) -> GPT2LMHeadModel:
    """GPT-2 with random weights, that never ends a text."""
    torch.manual_seed(SEED)
    size = {"n_embd": 32, "n_layer": 1, "n_head": 2} if tiny else {}
    model = GPT2LMHeadModel(GPT2Config(**size)).eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model


def run(model: nn.Module, prompt: Tensor, **options: Any) -> tuple[float, Any]:
    """The seconds of one call, and what it returned."""
    start = time.perf_counter()
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        **options,
    )
    return time.perf_counter() - start, output


def contestants(plain: nn.Module) -> dict[str, tuple[nn.Module, Tensor, dict[str, Any]]]:
    """Models with their prompts; equality words stand where a name says so, and nowhere else."""
    words = ResolvedWords(TokenAction.cyclic_swaps(plain.config.vocab_size, PAIRS), (), PAIRS, ())
    fair = EquiLM(plain, words)
    generator = torch.Generator().manual_seed(SEED)
    neutral = torch.randint(1000, plain.config.vocab_size, (1, PROMPT), generator=generator)
    middle, first = neutral.clone(), neutral.clone()
    middle[0, PROMPT // 2] = first[0, 0] = PAIRS[0][0]
    return {
        NEUTRAL: (fair, neutral, {}),
        MIDDLE: (fair, middle, {}),
        FIRST: (fair, first, {}),
        TWO: (plain, torch.cat([neutral, middle]), {}),
        NO_CACHE: (fair, middle, {"use_cache": False}),
    }


def warmed(found: dict[str, tuple[nn.Module, Tensor, dict[str, Any]]]) -> dict[str, int]:
    """Runs all models once; how many copies their caches hold at the end.

    Raises:
        SystemExit: If the model has generated an equality word by itself.
    """
    held = {}
    exchanged = torch.tensor(PAIRS).flatten()
    for name, (model, prompt, options) in found.items():
        if name == NO_CACHE:
            continue
        _, output = run(model, prompt, **options)
        if torch.isin(output.sequences[:, PROMPT:], exchanged).any():
            raise SystemExit(f"{name}: an equality word was generated; take another seed.")
        held[name] = getattr(output.past_key_values, "held", len(prompt))
    return held


@torch.inference_mode()
def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    plain = made(arguments.tiny)
    found = contestants(plain)
    prompt = found[NEUTRAL][1]
    run(plain, prompt)
    held = warmed(found)
    ratios: dict[str, list[float]] = {name: [] for name in found}
    speeds = []
    before, _ = run(plain, prompt)
    for number in tqdm(range(arguments.rounds), desc=NAME, unit="round"):
        names = [n for n in found if n != NO_CACHE or number < arguments.without_cache]
        # The order turns, so that no model always follows the same one.
        start = number % len(names)
        for name in names[start:] + names[:start]:
            model, given, options = found[name]
            taken, _ = run(model, given, **options)
            after, _ = run(plain, prompt)
            ratios[name].append((before + after) / 2 / taken)
            speeds.append(NEW / after)
            before = after
    rows = {
        name: {"ratio": statistics.median(values), "each": [round(v, 3) for v in values],
               "cached_copies": held.get(name)}
        for name, values in ratios.items() if values
    }  # fmt: skip
    for name, row in rows.items():
        print(f"{name:<56} {row['ratio']:.3f}  {row['cached_copies']}")
    if arguments.tiny:
        return
    numbers = {
        "model": "GPT-2 small, random weights",
        "prompt": PROMPT,
        "new_tokens": NEW,
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
        "plain_tokens_per_second": statistics.median(speeds),
        "rows": rows,
    }
    record.save(NAME, record.command(), SEED, numbers)


if __name__ == "__main__":
    main()
