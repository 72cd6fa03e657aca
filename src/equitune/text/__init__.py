"""Kits for language models: equality words, fair models that generate, and measures of fairness."""

from equitune.text.averages import MeanOfLogits, MeanOfProbabilities, TokenAverage
from equitune.text.copies import OrbitCache
from equitune.text.equizero import EquiZeroLM, REquiZeroLM
from equitune.text.language_models import EquiLM, REquiLM
from equitune.text.measures import (
    fairness_gap,
    perplexity,
    regard_distribution,
    regard_gap,
    sequence_log_prob,
)
from equitune.text.noise import GumbelNoise
from equitune.text.orbit import OrbitLM
from equitune.text.scorers import ClassificationScorer
from equitune.text.words import EqualityWords, ResolvedWords, SkippedWords

__all__ = [
    "ClassificationScorer",
    "EqualityWords",
    "EquiLM",
    "EquiZeroLM",
    "GumbelNoise",
    "MeanOfLogits",
    "MeanOfProbabilities",
    "OrbitCache",
    "OrbitLM",
    "REquiLM",
    "REquiZeroLM",
    "ResolvedWords",
    "SkippedWords",
    "TokenAverage",
    "fairness_gap",
    "perplexity",
    "regard_distribution",
    "regard_gap",
    "sequence_log_prob",
]
