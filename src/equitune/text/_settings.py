"""What ``generate`` is asked for, read as transformers read it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from equitune._checks import require
from equitune.text._interfaces import context_length
from equitune.text._noise import GumbelNoise
from equitune.text._words import Ids, ResolvedWords, token_ids

Entry = tuple[frozenset[Ids], float | None]
"""Phrases that are alternatives, and the number that belongs to them."""

NAMES_ONE = ("pad_token_id", "forced_bos_token_id", "forced_eos_token_id")
"""Where of several tokens one is taken, whatever the model says."""

NAMES_TOKENS = (
    "eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids",
    "sequence_bias",
)  # fmt: skip

ACTIVATIONS = "reads activations, which are those of copies, and copies differ; leave it out"

REFUSED = {
    **dict.fromkeys(("output_attentions", "output_hidden_states", "penalty_alpha", "dola_layers",
                     "use_mtp", "speculation_type"), ACTIVATIONS),
    "constraints": "holds objects, in which equality words cannot be found; use force_words_ids",
    "assistant_ensemble_weight": "adds the probabilities of the assistant, on which the group does "
    "not act; leave it out, and the assistant makes proposals alone",
}  # fmt: skip
"""Settings that break the promise of equivariance, or need what copies do not have."""

NEW_TOKENS = 20
"""As many as transformers generate by default."""


def merged_settings(model: Any, given: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model's own settings, changed by a ``GenerationConfig`` and by keyword arguments.

    Returns:
        The settings, a copy, and the arguments that name no setting.
    """
    settings = copy.deepcopy(model.generation_config)
    if given is not None:
        changes = given.to_diff_dict().items()
        settings.update(**{name: value for name, value in changes if value is not None})
    if options.get("max_length") is None and settings.max_length == type(settings)().max_length:
        # In older releases a default, for prompts of any length.
        settings.max_length = None
    return settings, settings.update(**options)


def new_tokens(model: Any, settings: Any, length: int) -> int:
    """How many tokens follow a prompt at most."""
    if settings.max_new_tokens is not None:
        return int(settings.max_new_tokens)
    if settings.max_length is not None:
        return max(0, int(settings.max_length) - length)
    limit = context_length(model)
    return NEW_TOKENS if limit is None else max(0, min(NEW_TOKENS, limit - length))


def tokens_of(given: Any) -> list[int]:
    """The tokens of a setting that is one token, several, or None."""
    if given is None:
        return []
    return [given] if isinstance(given, int) else [int(token) for token in given]


def check_settings(settings: Any, options: dict[str, Any], words: ResolvedWords) -> None:
    """Refuses what would break the promise of equivariance, or what copies do not have.

    Args:
        settings: Those of ``generate``, merged.
        options: Its other arguments.
        words: The equality words.
    """
    for name, reason in REFUSED.items():
        if getattr(settings, name, None):
            raise ValueError(f"`{name}` {reason}")
    named = [(name, getattr(settings, name, None)) for name in NAMES_TOKENS]
    named += [(name, token) for name in NAMES_ONE
              for token in tokens_of(getattr(settings, name, None))]  # fmt: skip
    named += [("stop_strings", places) for places in _stop_strings(settings, options)]
    for name, value in named:
        check_phrases(name, value, words)
    if settings.pad_token_id is None and words.equality & set(tokens_of(settings.eos_token_id)[:1]):
        raise ValueError("an equality word of `eos_token_id` pads sentences; set `pad_token_id`")
    if settings.cache_implementation == "paged":
        raise ValueError("`cache_implementation` is 'paged', of a fixed size; leave it out")
    noisy = any(isinstance(p, GumbelNoise) for p in options.get("logits_processor") or ())
    twice, must = noisy and settings.do_sample, "be False where GumbelNoise has drawn already"
    require(not twice, "do_sample", must, settings.do_sample, "False")


def check_phrases(name: str, value: Any, words: ResolvedWords) -> None:
    """Refuses a setting that names an equality word, but not what it is exchanged for.

    Args:
        name: The setting.
        value: A token, or a list of tokens, of phrases (lists of tokens), or of alternatives
            (lists of phrases); or of pairs of a phrase and a number, also as a mapping. Their
            order, but that of tokens in a phrase, does not matter.
        words: The equality words.

    Raises:
        ValueError: If some group element makes another setting of it.
    """
    given = frozenset() if value is None else _entries(value)
    for row in words.action.permutations:
        moved = frozenset((_moved(phrases, row), number) for phrases, number in given)
        if moved != given:
            named, partners = (words.equality & _tokens(e) for e in (given, moved - given))
            raise ValueError(
                f"`{name}` names the equality words {sorted(named)}, but not in the same way "
                f"{sorted(partners)}, which the group exchanges them for; name all alike, or none"
            )


def _stop_strings(settings: Any, options: dict[str, Any]) -> list[Any]:
    """The tokens of strings that stop sentences, within a text and at its beginning."""
    given, tokenizer = settings.stop_strings, options.get("tokenizer")
    # Without a tokenizer they are refused by transformers.
    if given is None or tokenizer is None:
        return []
    texts = [given] if isinstance(given, str) else list(given)
    return [*zip(*(token_ids(tokenizer, text) for text in texts), strict=True)]


def _entries(value: Any) -> frozenset[Entry]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return frozenset((frozenset([_phrase(key)]), bias) for key, bias in value.items())
    return frozenset(map(_entry, [value] if isinstance(value, int) else value))


def _entry(entry: Any) -> Entry:
    parts = [entry] if isinstance(entry, int) else list(entry)
    if any(isinstance(part, float) for part in parts):
        phrase, number = parts
        return frozenset([_phrase(phrase)]), number
    alone = all(isinstance(part, int) for part in parts)
    return frozenset(map(_phrase, [parts] if alone else parts)), None


def _phrase(tokens: Any) -> Ids:
    return (tokens,) if isinstance(tokens, int) else tuple(map(int, tokens))


def _moved(phrases: frozenset[Ids], row: Ids) -> frozenset[Ids]:
    # Numbers outside of the vocabulary stand for no token.
    return frozenset(
        tuple([row[token] if 0 <= token < len(row) else token for token in phrase])
        for phrase in phrases
    )


def _tokens(entries: frozenset[Entry]) -> set[int]:
    return {token for phrases, _ in entries for phrase in phrases for token in phrase}
