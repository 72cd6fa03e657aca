"""What fairness costs in perplexity, the form of Table 6 of the first paper.

On the test text of WikiText-2, and on stories that the plain model itself has told with a fixed
seed; both are read through a window. Rows that are done with the same settings are kept.

    EQUITUNE_DATA=... python benchmarks/perplexity.py
    EQUITUNE_DATA=... python benchmarks/perplexity.py --model gpt2 --window 1024 --stride 512
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import record
from cifar10 import data_folder
from equitune.text import perplexity
from language_models import (
    PRONOUNS,
    STORIES,
    Demographic,
    Loaded,
    add_options,
    load,
    stored_in,
    symmetrised,
)

NAME, SEED = "perplexity", 0
TEXTS = ("WikiText-2", "stories")
BATCH = 64
NAMES = ("Tim", "Lily")
PRONOUNS_ONLY = Demographic(
    "pronouns", ("he", "she"), ("he", "she"), (("he", "she"),), (("he", "she"),), ("his", "her")
)
# "her" is one-to-one with "his", as long as "him" is not exchanged.
POSSESSIVES = Demographic(
    "gender and possessives", NAMES, NAMES,
    (("he", "she"), ("his", "her"), NAMES), (NAMES,), PRONOUNS[:4],
)  # fmt: skip


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--window", type=int, help="default the model's context")
    parser.add_argument("--stride", type=int, help="default three quarters of the window")
    parser.add_argument("--wikitext-tokens", type=int, help="the first ones; default all")
    parser.add_argument("--story-tokens", type=int, default=100_000)
    parser.add_argument("--fresh", action="store_true", help="do all rows again")
    return parser.parse_args(words)


def wikitext(loaded: Loaded, count: int | None) -> Tensor:
    """The tokens of the test text as it stands, with its marks for rare words."""
    folder = data_folder()
    if folder is None:
        raise SystemExit("Set EQUITUNE_DATA to the folder with wikitext2/.")
    with gzip.open(folder / "wikitext2" / "test.txt.gz", "rt", encoding="utf-8") as file:
        return loaded.read(file.read())[:count]


def stories(loaded: Loaded, count: int) -> Tensor:
    """Tokens of texts sampled from the plain model, one behind the other, each from its beginning.

    Each text goes on until the model ends it, or to the end of its context.
    """
    torch.manual_seed(SEED)
    start = loaded.tokenizer.bos_token_id
    ids = torch.full((BATCH, 1), start, device=loaded.device)
    told: list[int] = []
    with tqdm(total=count, desc="stories", unit="token", leave=False) as bar:
        while len(told) < count:
            output = loaded.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                max_new_tokens=loaded.context - 1,
                pad_token_id=loaded.tokenizer.eos_token_id,
                eos_token_id=loaded.stops,
            )
            before = len(told)
            for row in output.tolist():
                told += [start, *until(row[1:], loaded.stops)]
            bar.update(len(told) - before)
    return torch.tensor(told[:count], device=loaded.device)


def until(row: list[int], stops: list[int]) -> list[int]:
    """The tokens before the first that ends a text."""
    ends = [place for place, token in enumerate(row) if token in stops]
    return row[: ends[0]] if ends else row


def todo_for(loaded: Loaded) -> list[tuple[str, Demographic | None, str]]:
    """The rows: a name of word lists, the lists, and a model."""
    rows: list[tuple[str, Demographic | None, str]] = [("", None, "plain")]
    variants = (PRONOUNS_ONLY,) if loaded.name == STORIES else ()
    for demographic in (*loaded.demographics, *variants):
        rows += [(demographic.name, demographic, kind) for kind in ("REquiLM", "EquiLM")]
    if loaded.name == STORIES:
        rows.append((POSSESSIVES.name, POSSESSIVES, "EquiLM"))
    return rows


def told_words(demographic: Demographic | None, kind: str) -> dict[str, Any]:
    """The words of a row."""
    if demographic is None:
        return {}
    lists = demographic.relaxed if kind == "REquiLM" else demographic.lists
    general = demographic.general if kind == "REquiLM" else ()
    return {"exchanged": ["/".join(words) for words in lists], "general": list(general)}


@torch.inference_mode()
def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    loaded = load(arguments.model)
    window = arguments.window or loaded.context
    stride = arguments.stride or 3 * window // 4
    place = stored_in(NAME, arguments)
    rows: dict[str, Any] = {} if arguments.fresh else record.load(place).get("rows", {})
    texts = {
        "WikiText-2": wikitext(loaded, arguments.wikitext_tokens),
        "stories": stories(loaded, arguments.story_tokens),
    }
    tasks = [(text, *row) for text in TEXTS for row in todo_for(loaded)]
    for text, name, demographic, kind in tqdm(tasks, desc=loaded.name, unit="row"):
        settings = {"window": window, "stride": stride, "tokens": len(texts[text]),
                    **told_words(demographic, kind)}  # fmt: skip
        key = ", ".join(part for part in (text, name, kind) if part)
        if rows.get(key, {}).get("settings") == settings:
            continue
        if demographic is None:
            model, base = loaded.model, None
        else:
            model = symmetrised(kind, loaded, demographic)
            base = rows[f"{text}, plain"]["perplexity"]
        found = perplexity(model, texts[text], window=window, stride=stride)
        rows[key] = {
            "text": text,
            "words": name,
            "model": kind,
            "perplexity": found,
            "ratio": 1.0 if base is None else found / base,
            "settings": settings,
        }
        record.add(place, record.command(), SEED, {key: rows[key]}, model=loaded.name)
        tqdm.write(f"{key:<60} {found:9.3f} {rows[key]['ratio']:.4f}")


if __name__ == "__main__":
    main()
