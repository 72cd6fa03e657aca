"""What ``generate`` is asked for, read as transformers read it."""

from __future__ import annotations

import copy
from typing import Any

from equitune.text._interfaces import context_length
from equitune.text._noise import GumbelNoise
from equitune.text._phrases import check_phrases
from equitune.text._variants import token_ids
from equitune.text._words import ResolvedWords

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
        changes = given.to_diff_dict()
        changes.pop("transformers_version", None)
        settings.update(**{name: value for name, value in changes.items() if value is not None})
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
    for name in NAMES_ONE:
        for token in tokens_of(getattr(settings, name, None)):
            check_phrases(name, token, words)
    for name in NAMES_TOKENS:
        check_phrases(name, getattr(settings, name, None), words)
    for places in _stop_strings(settings, options):
        check_phrases("stop_strings", places, words)
    if settings.pad_token_id is None and words.equality & set(tokens_of(settings.eos_token_id)[:1]):
        raise ValueError(
            "`eos_token_id` names equality words, and the first of them pads sentences; use "
            "another token as pad_token_id"
        )
    if settings.cache_implementation == "paged":
        raise ValueError("`cache_implementation` is 'paged', of a fixed size; leave it out")
    processors = options.get("logits_processor") or ()
    if settings.do_sample and any(isinstance(p, GumbelNoise) for p in processors):
        raise ValueError(
            "do_sample=True draws tokens where GumbelNoise has drawn already; use do_sample=False"
        )


def _stop_strings(settings: Any, options: dict[str, Any]) -> list[Any]:
    """The tokens of strings that stop sentences, within a text and at its beginning."""
    given, tokenizer = settings.stop_strings, options.get("tokenizer")
    # Without a tokenizer they are refused by transformers.
    if given is None or tokenizer is None:
        return []
    texts = [given] if isinstance(given, str) else list(given)
    return [*zip(*(token_ids(tokenizer, text) for text in texts), strict=True)]
