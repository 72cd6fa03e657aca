"""A small regard classifier: does a sentence speak well of the person that it is about?

Word and character n-grams and a logistic regression (scikit-learn), in place of the papers' BERT.
It learns from the human labels of Sheng et al. (2019) and, if that helps on their development
sentences, from published GPT-2 generations that the papers' classifier has labelled; the settings
are chosen on the development sentences, and the test sentences are used once. The person is XYZ in
the labelled sentences, and XYZ is no feature; other words for people are read as they stand, so
that the classifier has a bias of its own, which is measured on sentences with swapped words.

    EQUITUNE_DATA=... python benchmarks/regard.py
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion
from tqdm import tqdm

import record
from cifar10 import data_folder

NAME, SEED = "regard", 0
LABELS = {-1: "negative", 0: "neutral", 1: "positive"}
"""The label "other" (2), of 23 sentences that say nothing of anybody, is left out."""
SWAPS = (("he", "she"), ("his", "her"), ("himself", "herself"), ("man", "woman"), ("men", "women"),
         ("boy", "girl"), ("father", "mother"), ("son", "daughter"), ("husband", "wife"),
         ("brother", "sister"))  # fmt: skip
PERSON = re.compile(r"^The (?:Black|White|Asian) person\b")


@dataclass(frozen=True)
class Sentences:
    """Texts with their labels."""

    texts: list[str]
    labels: list[int]

    def without(self, others: Sequence[Sentences]) -> Sentences:
        known = set(itertools.chain.from_iterable(other.texts for other in others))
        kept = [(t, y) for t, y in zip(self.texts, self.labels, strict=True) if t not in known]
        return Sentences([t for t, _ in kept], [y for _, y in kept])


@dataclass(frozen=True)
class Settings:
    """What is chosen on the development sentences.

    Attributes:
        words: The longest n-gram of words; 0 for none.
        characters: The longest n-gram of characters; 0 for none.
        strength: The inverse of the regularisation.
        published: The weight of a published generation, where that of a human label is 1.
    """

    words: int
    characters: int
    strength: float
    published: float


CANDIDATES = [
    Settings(words, characters, strength, published)
    for words, characters in ((1, 0), (2, 0), (0, 5), (1, 4), (2, 4))
    for strength in (1.0, 3.0, 10.0, 30.0)
    for published in (0.0, 0.2)
]


class RegardClassifier:
    """A scorer for EquiZeroLM: the expected regard of sentences, from -1 to 1."""

    def __init__(self, settings: Settings, human: Sentences, published: Sentences) -> None:
        parts: list[tuple[str, TfidfVectorizer]] = []
        common: dict[str, Any] = {"preprocessor": _without_the_person, "sublinear_tf": True}
        if settings.words:
            parts.append(("words", TfidfVectorizer(ngram_range=(1, settings.words), **common)))
        if settings.characters:
            sizes = (2, settings.characters)
            parts.append(
                ("characters", TfidfVectorizer(analyzer="char_wb", ngram_range=sizes, **common))
            )
        self.features = FeatureUnion(parts)
        self.classes = LogisticRegression(C=settings.strength, max_iter=2000)
        texts, labels = list(human.texts), list(human.labels)
        weights = [1.0] * len(texts)
        if settings.published:
            texts, labels = texts + published.texts, labels + published.labels
            weights += [settings.published] * len(published.texts)
        self.classes.fit(self.features.fit_transform(texts), labels, weights)

    def __call__(self, texts: list[str]) -> list[float]:
        """The probability of positive regard less that of negative regard."""
        values = list(self.classes.classes_)
        found = self.classes.predict_proba(self.features.transform(texts))
        return (found[:, values.index(1)] - found[:, values.index(-1)]).tolist()

    def labels(self, texts: list[str]) -> list[int]:
        """The most probable labels."""
        return [int(y) for y in self.classes.predict(self.features.transform(texts))]

    def accuracy(self, sentences: Sentences) -> float:
        right = zip(self.labels(sentences.texts), sentences.labels, strict=True)
        return sum(found == label for found, label in right) / len(sentences.labels)


def _without_the_person(text: str) -> str:
    return text.replace("XYZ", " ").lower()


def read(path: Path) -> Sentences:
    """The sentences of a file with a label, a tab and a text in each line."""
    texts, labels = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        label, tab, text = line.partition("\t")
        if tab and label.strip() in {"-1", "0", "1"}:
            texts.append(PERSON.sub("XYZ", text.strip()))
            labels.append(int(label))
    return Sentences(texts, labels)


def load(folder: Path) -> dict[str, Sentences]:
    """All sentences; those to learn from are not among those to choose and to test with."""
    parts = {name: read(folder / "regard" / f"{name}.tsv") for name in ("train", "dev", "test")}
    parts["train"] = parts["train"].without([parts["dev"], parts["test"]])
    files = sorted((folder / "regard" / "gpt2_generations").glob("*_preds.tsv"))
    found = [read(path) for path in files]
    texts, labels = ([x for part in found for x in getattr(part, name)] for name in
                     ("texts", "labels"))  # fmt: skip
    parts["published"] = Sentences(texts, labels).without([parts["dev"], parts["test"]])
    return parts


def chosen(folder: Path) -> RegardClassifier:
    """The classifier with the settings that results/regard.json names; chosen now if there is none.

    Raises:
        SystemExit: If the folder has no sentences.
    """
    if not (folder / "regard" / "train.tsv").exists():
        raise SystemExit(
            f"{folder} has no regard/train.tsv; set EQUITUNE_DATA to the data's folder."
        )
    parts = load(folder)
    stored = record.load(NAME).get("settings")
    settings = Settings(**stored) if stored else choose(parts)[0]
    return RegardClassifier(settings, parts["train"], parts["published"])


def choose(parts: dict[str, Sentences]) -> tuple[Settings, list[dict[str, Any]]]:
    """The settings that are best on the development sentences, the first of several."""
    tried = []
    for settings in tqdm(CANDIDATES, desc=NAME, unit="setting", leave=False):
        model = RegardClassifier(settings, parts["train"], parts["published"])
        tried.append({**asdict(settings), "dev": model.accuracy(parts["dev"])})
    best = max(range(len(tried)), key=lambda place: tried[place]["dev"])
    return CANDIDATES[best], tried


def swapped(text: str) -> str:
    """A sentence with the gendered words of ``SWAPS`` exchanged, capital letters kept."""
    other = {a: b for pair in SWAPS for a, b in (pair, pair[::-1])}

    def exchanged(found: re.Match[str]) -> str:
        word = other[found[0].lower()]
        return word.capitalize() if found[0][0].isupper() else word

    return re.sub(rf"\b({'|'.join(other)})\b", exchanged, text, flags=re.IGNORECASE)


def own_bias(model: RegardClassifier, texts: list[str]) -> dict[str, Any]:
    """How many labels change when words are swapped, of the sentences with such a word."""
    pairs = [(text, swapped(text)) for text in texts if swapped(text) != text]
    before, after = (model.labels(list(side)) for side in zip(*pairs, strict=True))
    changed = sum(a != b for a, b in zip(before, after, strict=True))
    return {"sentences": len(pairs), "changed": changed}


def main() -> None:
    folder = data_folder()
    if folder is None:
        raise SystemExit("Set EQUITUNE_DATA to the folder with regard/.")
    parts = load(folder)
    settings, tried = choose(parts)
    model = RegardClassifier(settings, parts["train"], parts["published"])
    rows = {}
    for name in ("dev", "test"):
        counts = Counter(parts[name].labels)
        rows[name] = {
            "sentences": len(parts[name].texts),
            "accuracy": model.accuracy(parts[name]),
            "most_frequent_label": max(counts.values()) / len(parts[name].texts),
        }
        print(f"{name}: {rows[name]}")
    numbers = {
        "settings": asdict(settings),
        "learned_from": {name: len(parts[name].texts) for name in ("train", "published")},
        "rows": rows,
        "swapped_words": own_bias(model, parts["dev"].texts + parts["test"].texts),
        "tried": tried,
    }
    record.save(NAME, record.command(), SEED, numbers)
    print(settings, numbers["swapped_words"])


if __name__ == "__main__":
    main()
