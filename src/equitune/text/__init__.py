"""Kits for language models: equality words, fair models that generate, and measures of fairness."""

from equitune.text._branches import OrbitCache
from equitune.text._measures import (
    ClassificationScorer,
    fairness_gap,
    perplexity,
    regard_distribution,
    regard_gap,
    sequence_log_prob,
)
from equitune.text._methods import EquiLM, EquiZeroLM, REquiLM, REquiZeroLM
from equitune.text._noise import GumbelNoise
from equitune.text._orbit import OrbitLM
from equitune.text._prefixes import Prefixes
from equitune.text._words import EqualityWords, ResolvedWords, SkippedWords

__all__ = [
    "ClassificationScorer",
    "EqualityWords",
    "EquiLM",
    "EquiZeroLM",
    "GumbelNoise",
    "OrbitCache",
    "OrbitLM",
    "Prefixes",
    "REquiLM",
    "REquiZeroLM",
    "ResolvedWords",
    "SkippedWords",
    "fairness_gap",
    "perplexity",
    "regard_distribution",
    "regard_gap",
    "sequence_log_prob",
]
