"""What ``generate`` is asked for, read as transformers read it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from equitune.text.checks import context_length
from equitune.text.noise import GumbelNoise
from equitune.text.words import ResolvedWords

__all__ = ["check_settings", "ends", "merged_settings", "new_tokens"]

NEW_TOKENS = 20
"""As many as transformers generate by default."""


def merged_settings(model: Any, given: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model's own settings, changed by a ``GenerationConfig`` and by keyword arguments.

    Returns:
        The settings, a copy, and the arguments that are no settings.
    """
    settings = copy.deepcopy(model.generation_config)
    if given is not None:
        changes = given.to_diff_dict()
        changes.pop("transformers_version", None)
        settings.update(**{name: value for name, value in changes.items() if value is not None})
    return settings, settings.update(**options)


def new_tokens(model: Any, settings: Any, length: int) -> int:
    """How many tokens follow a prompt at most."""
    if settings.max_new_tokens is not None:
        return int(settings.max_new_tokens)
    if settings.max_length is not None:
        return max(0, int(settings.max_length) - length)
    limit = context_length(model)
    return NEW_TOKENS if limit is None else max(0, min(NEW_TOKENS, limit - length))


def ends(settings: Any) -> list[int]:
    """The tokens that end a sequence."""
    eos = settings.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else [int(token) for token in eos]


def check_settings(settings: Any, processors: Iterable[Any] | None, words: ResolvedWords) -> None:
    """Refuses what would break the promise of equivariance without a word."""
    special = {*ends(settings), settings.pad_token_id}
    both = sorted(special & words.equality)
    if both:
        raise ValueError(
            f"the tokens {both} end or pad sentences, and are equality words; give others as "
            "eos_token_id and pad_token_id"
        )
    if settings.do_sample and any(isinstance(p, GumbelNoise) for p in processors or ()):
        raise ValueError(
            "do_sample=True draws tokens where GumbelNoise has drawn already; give do_sample=False"
        )
