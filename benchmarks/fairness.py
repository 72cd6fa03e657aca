"""How language models speak of demographic groups, before and after they are made fair.

The form of Figures 3 and 5 of the first paper and 3 and 9 of the second: for both tasks, the regard
of 500 generations (5 contexts, 100 seeds, 15 tokens, cut at a new line) for each model and group;
and samples as in their tables. The same noise is attached to the vocabulary for all groups and
moved with the words, so that a fair model says the same of all groups. Rows that are done with the
same settings are kept.

    EQUITUNE_DATA=... python benchmarks/fairness.py
    EQUITUNE_DATA=... python benchmarks/fairness.py --model gpt2
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import record
import regard
from cifar10 import data_folder
from equitune.text import GumbelNoise, ResolvedWords, regard_distribution, regard_gap
from language_models import (
    MODELS,
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

NAME, SEED = "fairness", 0
OTHER_SEEDS = 10_000
"""Where the seeds of a second, independent run of the plain model begin."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--seeds", type=int, default=100, help="for each context")
    parser.add_argument("--new-tokens", type=int, default=15)
    parser.add_argument("--fresh", action="store_true", help="do all rows again")
    return parser.parse_args(words)


def generations(
    model: nn.Module,
    loaded: Loaded,
    demographic: Demographic,
    words: ResolvedWords,
    contexts: Sequence[str],
    arguments: argparse.Namespace,
    first_seed: int = SEED,
) -> list[list[Tensor]]:
    """For each group and each context, tokens of shape (seeds, T)."""
    found: list[list[Tensor]] = [[] for _ in demographic.groups]
    for number, context in enumerate(contexts):
        # Other contexts get other seeds: 500 draws and not 100.
        first = first_seed + number * arguments.seeds
        noise = GumbelNoise(words.action, range(first, first + arguments.seeds))
        for g, prompt in enumerate(prompts(loaded, demographic, words, context)):
            found[g].append(
                generate(model, loaded, prompt, noise.moved(g), samples=arguments.seeds,
                         new_tokens=arguments.new_tokens)
            )  # fmt: skip
    return found


def in_words_of(
    group: int, found: list[list[Tensor]], words: ResolvedWords, loaded: Loaded
) -> list[list[str]]:
    """The texts of all groups, each group's one after the other, in the words of one group."""
    back = [words.group.compose(group, words.group.inverse(g)) for g in words.group.elements]
    return [
        [text for ids in own for text in loaded.texts(words.action.transform(ids, back[g]))]
        for g, own in enumerate(found)
    ]


def distribution(labels: list[int]) -> dict[str, float]:
    found = regard_distribution(labels, list(regard.LABELS))
    return {name: found[label] for label, name in regard.LABELS.items()}


def measured(
    found: list[list[Tensor]],
    demographic: Demographic,
    words: ResolvedWords,
    loaded: Loaded,
    classifier: regard.RegardClassifier,
) -> dict[str, Any]:
    """The regard of each group, the gap between them, and how much of it is the classifier's.

    ``translated_gap`` is the gap after all texts are put into the words of one group, the larger
    one of all choices. ``classifier_gap`` is the gap between the copies of the same texts, those of
    all groups, in the words of one group and in those of another, and ``relabelled`` is the share
    of texts whose copies do not have the same label. ``mean_regard`` is the mean of what the
    classifier expects, from -1 to 1.
    """
    own = [[text for ids in part for text in loaded.texts(ids)] for part in found]
    labels = [classifier.labels(texts) for texts in own]
    names = demographic.groups
    regards = {name: distribution(part) for name, part in zip(names, labels, strict=True)}
    translated = [
        [classifier.labels(texts) for texts in in_words_of(g, found, words, loaded)]
        for g in words.group.elements
    ]
    gaps = [
        regard_gap({n: distribution(part) for n, part in zip(names, frame, strict=True)})
        for frame in translated
    ]
    copies = [[label for part in frame for label in part] for frame in translated]
    return {
        "regard": regards,
        "mean_regard": {
            name: statistics.fmean(classifier(texts))
            for name, texts in zip(names, own, strict=True)
        },
        "gap": regard_gap(regards),
        "translated_gap": max(gaps),
        "classifier_gap": regard_gap(
            {n: distribution(c) for n, c in zip(names, copies, strict=True)}
        ),
        "relabelled": sum(len(set(each)) > 1 for each in zip(*copies, strict=True))
        / len(copies[0]),
        "own_labels": labels,
        "own_texts": own,
    }


def samples(row: dict[str, Any], demographic: Demographic, contexts: Sequence[str],
            seeds: int) -> list[dict[str, str]]:  # fmt: skip
    """The text of the first seed for each context and group, as in the papers' tables."""
    return [
        {
            "group": name,
            "context": context,
            "regard": regard.LABELS[row["own_labels"][g][number * seeds]],
            "text": row["own_texts"][g][number * seeds],
        }
        for number, context in enumerate(contexts)
        for g, name in enumerate(demographic.groups)
    ]


def by_chance(
    loaded: Loaded,
    demographic: Demographic,
    words: ResolvedWords,
    task: str,
    classifier: regard.RegardClassifier,
    arguments: argparse.Namespace,
) -> float:
    """The gap between two runs of the plain model for the same groups, with other seeds."""
    gaps = []
    runs = [
        generations(loaded.model, loaded, demographic, words, TASKS[task], arguments, first)
        for first in (SEED, OTHER_SEEDS)
    ]
    for first, second in zip(*runs, strict=True):
        both = [[t for ids in part for t in loaded.texts(ids)] for part in (first, second)]
        gaps.append(regard_gap({n: distribution(classifier.labels(t)) for n, t in enumerate(both)}))
    return max(gaps)


def main(arguments_given: Sequence[str] | None = None) -> None:
    arguments = parse(arguments_given)
    loaded = load(arguments.model)
    folder = data_folder()
    if folder is None:
        raise SystemExit("Set EQUITUNE_DATA to the folder with regard/.")
    classifier = regard.chosen(folder)
    place = stored_in(NAME, arguments)
    stored = {} if arguments.fresh else record.load(place)
    rows: dict[str, Any] = stored.get("rows", {})
    settings = {"seeds": arguments.seeds, "new_tokens": arguments.new_tokens}
    todo = [(d, t, k) for d in loaded.demographics for t in TASKS for k in MODELS]
    for demographic, task, kind in tqdm(todo, desc=loaded.name, unit="row"):
        name = f"{demographic.name}, {task}, {kind}"
        if rows.get(name, {}).get("settings") == settings:
            continue
        words = loaded.resolve(demographic.lists)
        model = symmetrised(kind, loaded, demographic, classifier)
        found = generations(model, loaded, demographic, words, TASKS[task], arguments)
        row = measured(found, demographic, words, loaded, classifier)
        shown = samples(row, demographic, TASKS[task], arguments.seeds)
        kept = {key: value for key, value in row.items() if not key.startswith("own_")}
        rows[name] = {"demographic": demographic.name, "task": task, "model": kind, **kept,
                      "samples": shown, "settings": settings}  # fmt: skip
        if kind == "plain":
            rows[name]["chance"] = by_chance(
                loaded, demographic, words, task, classifier, arguments
            )
        record.add(place, record.command(), SEED, {name: rows[name]},
                   model=loaded.name, words=_words(loaded), contexts=TASKS)  # fmt: skip
        tqdm.write(f"{name:<40} gap {row['gap']:.3f}, translated {row['translated_gap']:.3f}, "
                   f"of the classifier {row['classifier_gap']:.3f}")  # fmt: skip


def _words(loaded: Loaded) -> dict[str, Any]:
    """The words that were exchanged, as the tokenizer knows them."""
    told = {}
    for demographic in loaded.demographics:
        words = loaded.resolve(demographic.lists)
        told[demographic.name] = {
            "exchanged": [[loaded.tokenizer.decode([i]) for i in c] for c in words.cycles],
            "relaxed": demographic.relaxed,
            "general": demographic.general,
        }
    return told


if __name__ == "__main__":
    with torch.inference_mode():
        main()
