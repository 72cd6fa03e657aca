"""Kits for language models: equality words and the group that exchanges them."""

from equitune.text.words import EqualityWords, ResolvedWords, SkippedWords

__all__ = ["EqualityWords", "ResolvedWords", "SkippedWords"]
