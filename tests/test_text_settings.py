"""Every setting of ``generate``: the tokens of the plain model, or a refusal that names it."""

import inspect

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedTokenizerFast,
    WatermarkingConfig,
)

from equitune.spaces import Logits
from equitune.text import EquiLM, EquiZeroLM, REquiLM, ResolvedWords
from equitune.text._settings import check_phrases
from lm_cases import (
    EOS,
    PAD,
    WORDS,
    V,
    equizero,
    language_model,
    neutral,
    pair,
    prompts,
    refused,
)

WORD = WORDS["cyclic(3)"]
EQUALITY = sorted(WORD.equality)
# Nothing that moves can be said, and nothing that moves is read: EquiLM is the plain model.
BASE = {"do_sample": False, "max_new_tokens": 10, "suppress_tokens": EQUALITY}
SAMPLING = {"do_sample": True}
BEAMS = {"num_beams": 3}

PLAIN = {
    "assistant_confidence_threshold": {"assistant_confidence_threshold": 0.1, "assistant": True},
    "assistant_early_exit": {"assistant_early_exit": 1},
    "bad_words_ids": {"bad_words_ids": [[7, 2], [19]]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [2, 7, 17, 19]},
    "bos_token_id": {"bos_token_id": 17},
    "cache_implementation": {"cache_implementation": "dynamic"},
    "disable_compile": {"disable_compile": True},
    "do_sample": SAMPLING,
    "early_stopping": {**BEAMS, "early_stopping": True, "eos_token_id": 17},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.7},
    "eos_token_id": {"eos_token_id": [17, 18, 19, 20]},
    "epsilon_cutoff": {**SAMPLING, "epsilon_cutoff": 0.01},
    "eta_cutoff": {**SAMPLING, "eta_cutoff": 0.01},
    "exponential_decay_length_penalty": {
        "exponential_decay_length_penalty": (2, 1.5), "eos_token_id": 17,
    },
    "forced_bos_token_id": {"forced_bos_token_id": 17},
    "forced_eos_token_id": {"forced_eos_token_id": 17},
    "guidance_scale": {"guidance_scale": 1.7},
    "length_penalty": {**BEAMS, "length_penalty": 3.0, "eos_token_id": [17, 18, 19, 20]},
    "max_length": {"max_length": 13, "max_new_tokens": None},
    "max_matching_ngram_size": {
        "max_matching_ngram_size": 1, "prompt_lookup_num_tokens": 2, "eos_token_id": EOS,
    },
    "max_new_tokens": {"max_new_tokens": 3},
    "max_time": {"max_time": 1000.0},
    "min_length": {"min_length": 16, "eos_token_id": [17, 18, 19, 20]},
    "min_new_tokens": {"min_new_tokens": 6, "eos_token_id": [17, 18, 19, 20]},
    "min_p": {**SAMPLING, "min_p": 0.1},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "num_assistant_tokens": {"num_assistant_tokens": 3, "assistant": True},
    "num_beams": BEAMS,
    "num_return_sequences": {**BEAMS, "num_return_sequences": 3},
    "output_logits": {"output_logits": True, "return_dict_in_generate": True},
    "output_scores": {"output_scores": True, "return_dict_in_generate": True},
    "pad_token_id": {"pad_token_id": 18, "eos_token_id": [17, 19, 20]},
    "prefill_chunk_size": {"prefill_chunk_size": 2},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3, "eos_token_id": EOS},
    "remove_invalid_values": {"remove_invalid_values": True},
    "renormalize_logits": {"renormalize_logits": True},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "return_dict_in_generate": {"return_dict_in_generate": True},
    "sequence_bias": {"sequence_bias": {(13,): 300.0, (14, 15): -400.0}},
    "stop_strings": {"stop_strings": ["c", "t"], "tokenizer": True},
    "suppress_tokens": {"suppress_tokens": [2, 7, 17, 19, *EQUALITY]},
    "temperature": {**SAMPLING, "temperature": 30.0},
    "top_h": {**SAMPLING, "top_h": 0.4},
    "top_k": {**SAMPLING, "top_k": 3},
    "top_p": {**SAMPLING, "top_p": 0.7},
    "typical_p": {**SAMPLING, "typical_p": 0.4},
    "use_cache": {"use_cache": False},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=200.0)},
}  # fmt: skip

REFUSED = {
    "assistant_ensemble_weight": 0.5,
    "cache_implementation": "paged",
    "constraints": [object()],
    "dola_layers": "low",
    "output_attentions": True,
    "output_hidden_states": True,
    "penalty_alpha": 0.6,
    "speculation_type": "dflash",
    "use_mtp": True,
}

# What names equality words; the first of two belongs to the second.
NAMED = {
    "bad_words_ids": ([[4]], [[4], [5], [6]]),
    "begin_suppress_tokens": ([4, 5], [4, 5, 6]),
    "eos_token_id": ([EOS, 4], [EOS, 4, 5, 6]),
    "force_words_ids": ([[[4, 7]]], [[[4, 7]], [[5, 7]], [[6, 7]]]),
    "forced_bos_token_id": (4, None),
    "forced_eos_token_id": ([4, 5, 6], None),
    "pad_token_id": (4, None),
    "sequence_bias": ({(4,): 1.0, (5,): 1.0}, {(4,): 1.0, (5,): 1.0, (6,): 1.0}),
    "suppress_tokens": ([4], [4, 5, 6]),
}

ELSEWHERE = {
    "_commit_hash": "no setting of the generation",
    "_from_model_config": "no setting of the generation",
    "assistant_lookbehind": "assistants with another tokenizer; their proposals are checked",
    "cache_config": "quantised caches, which are refused by their cache_implementation",
    "compile_config": "caches of a fixed size, which are refused",
    "continuous_batching_config": "continuous batching, which is refused",
    "decoder_start_token_id": "models with an encoder, which are refused",
    "diversity_penalty": "group beam search, which transformers do not have any more",
    "is_assistant": "set by transformers for a model that makes proposals",
    "low_memory": "searches that transformers do not have any more",
    "max_cache_len": "caches of a fixed size, which are refused",
    "num_assistant_tokens_schedule": "how many proposals an assistant makes; they are checked",
    "num_beam_groups": "group beam search, which transformers do not have any more",
    "return_legacy_cache": "a format of caches that transformers do not have any more",
    "target_lookbehind": "assistants with another tokenizer; their proposals are checked",
    "token_healing": "prompts, before they are read; its own generation is checked",
    "transformers_version": "no setting of the generation",
}

ARGUMENTS = {
    "self", "inputs", "generation_config", "logits_processor", "stopping_criteria",
    "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model", "streamer",
    "negative_prompt_ids", "negative_prompt_attention_mask", "use_model_defaults",
    "custom_generate", "kwargs",
}  # fmt: skip

SETTINGS = vars(GenerationConfig())


def test_every_setting_has_its_place():
    known = {*PLAIN, *REFUSED, *NAMED, *ELSEWHERE}
    assert SETTINGS.keys() <= known
    assert not ELSEWHERE.keys() & {*PLAIN, *REFUSED, *NAMED}
    assert set(inspect.signature(GenerationMixin.generate).parameters) <= ARGUMENTS


def letters():
    """A tokenizer of which token i is the i-th letter."""
    inner = Tokenizer(BPE({chr(97 + i): i for i in range(V)}, []))
    inner.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def generated(model, tokens, options):
    torch.manual_seed(5)
    options = {**BASE, **options}
    if options.pop("assistant", False):
        options["assistant_model"] = language_model()
    if options.pop("tokenizer", False):
        options["tokenizer"] = letters()
    return model.generate(tokens, **options)


@pytest.mark.parametrize("name", [name for name in PLAIN if name in SETTINGS])
def test_where_nothing_moves_it_is_the_plain_model(name):
    model, options = language_model(), PLAIN[name]
    alone = {"assistant", "prompt_lookup_num_tokens", "assistant_early_exit"} & options.keys()
    tokens = neutral(1 if alone else 3, 1 if name == "forced_bos_token_id" else 6)
    if "prompt_lookup_num_tokens" in options:
        tokens = torch.cat([tokens, tokens], dim=1)
    try:
        expected = generated(model, tokens, options)
    except Exception as error:  # Some settings are broken in some releases of transformers.
        with pytest.raises(type(error)):
            generated(EquiLM(model, WORD), tokens, options)
        return
    fair = [EquiLM(model, WORD)]
    # A mean of logits has another sum over the vocabulary, by which beams are normalised.
    if "num_beams" not in options:
        fair.append(EquiLM(model, WORD, space=Logits()))
    for found in (generated(one, tokens, options) for one in fair):
        if "return_dict_in_generate" in options:
            for part in ("scores", "logits"):
                for one, other in zip(found.get(part) or (), expected.get(part) or (), strict=True):
                    kept = [v for v in range(V) if v not in WORD.equality]
                    assert torch.equal(one[:, kept], other[:, kept])
            assert torch.equal(found.sequences, expected.sequences)
        else:
            assert torch.equal(found, expected)


# Settings that change nothing by themselves in a test above would pass whatever they did.
@pytest.mark.parametrize("name", [
    "bad_words_ids", "begin_suppress_tokens", "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty", "eos_token_id", "exponential_decay_length_penalty",
    "forced_eos_token_id", "length_penalty", "no_repeat_ngram_size", "repetition_penalty",
    "sequence_bias", "suppress_tokens", "watermarking_config", "stop_strings",
])  # fmt: skip
def test_the_settings_do_something(name):
    model, tokens = language_model(), neutral(3, 6)
    without = {k: v for k, v in PLAIN[name].items() if k != name}
    if name == "length_penalty":
        without["length_penalty"] = -3.0
    found = generated(model, tokens, PLAIN[name])
    other = generated(model, tokens, without)
    assert found.shape != other.shape or not torch.equal(found, other)


def test_scores_of_another_scale_would_be_found():
    class Normalised(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args):
            return self.inner(*args).log_softmax(-1)

    model, tokens = language_model(), neutral(3, 6)
    expected = {name: generated(model, tokens, PLAIN[name])
                for name in ("repetition_penalty", "encoder_repetition_penalty")}  # fmt: skip
    model.lm_head = Normalised(model.lm_head)
    for name, text in expected.items():
        assert not torch.equal(generated(model, tokens, PLAIN[name]), text)


@pytest.mark.parametrize("name", [name for name in REFUSED if name in SETTINGS])
def test_what_is_refused_is_named(name):
    model = language_model()
    refused(EquiLM(model, WORD).generate, ValueError, name, prompts(1), max_new_tokens=2,
            **{name: REFUSED[name]})  # fmt: skip
    with pytest.raises(TypeError, match="continuous batching"):
        EquiLM(model, WORD).generate_batch([[13, 14]])


@pytest.mark.parametrize("name", [name for name in NAMED if name in SETTINGS])
def test_settings_that_name_a_word_name_its_partners(name):
    one, all_of_them = NAMED[name]
    model = language_model()
    for fair in (EquiLM(model, WORD), REquiLM(model, WORD), equizero(WORD, model=model)):
        refused(fair.generate, ValueError, rf"`{name}` names the equality words \[4", prompts(2),
                max_new_tokens=4, **{name: one})  # fmt: skip
        # As defaults of the model, or in a GenerationConfig.
        settings = GenerationConfig(max_new_tokens=4, **{name: one})
        refused(fair.generate, ValueError, name, prompts(2), settings)
    if all_of_them is None or name == "force_words_ids":
        check_phrases(name, all_of_them, WORD)
        return
    fair, options = EquiLM(model, WORD), {"do_sample": False, "max_new_tokens": 8}
    options[name] = all_of_them
    text = fair.generate(prompts(), **options)
    for g in WORD.group.elements:
        moved = fair.generate(WORD.action.transform(prompts(), g), **options)
        assert torch.equal(moved, WORD.action.transform(text, g))


def test_phrases():
    for value in (
        None,
        7,
        torch.tensor([4, 5, 6]),
        [],
        [[4, 10], [5, 12], [6, 11]],
        [[[4], [5], [6]]],
        [[[4, 13], [7]], [[7], [5, 13]], [[6, 13], [7]]],
        [[[4], 2.0], [[5], 2.0], [[6], 2.0]],
        {(4, 4): 1.0, (5, 5): 1.0, (6, 6): 1.0},
        [-100, V + 3],
    ):
        check_phrases("these", value, WORD)
    for value in (
        4,
        [4, 5],
        [[4, 10], [5, 11], [6, 12]],
        [[[4], [5]]],
        [[[4], 2.0], [[5], 2.0], [[6], 1.0]],
        {(4, 4): 1.0, (5, 5): 1.0, (6, 4): 1.0},
    ):
        refused(check_phrases, ValueError, "`these` names the equality words", "these", value, WORD)


def test_ends_that_are_equality_words_need_padding_that_is_none():
    fair = EquiLM(language_model(), WORD)
    fair.generation_config.pad_token_id = None
    refused(fair.generate, ValueError, "pad_token_id", prompts(2), eos_token_id=[4, 5, 6],
            max_new_tokens=3)  # fmt: skip


def test_words_that_stop_sentences():
    fair, words = EquiLM(language_model(), WORD), letters()
    options = {"tokenizer": words, "max_new_tokens": 3, "do_sample": False}
    for strings in ("e", ["ne"], ["e", "f"]):
        refused(fair.generate, ValueError, r"`stop_strings` names the equality words \[4",
                prompts(2), stop_strings=strings, **options)  # fmt: skip
    text = fair.generate(prompts(2), stop_strings=["e", "f", "g"], **options)
    assert text.shape[0] == 2


def test_prompts_that_are_an_equality_word():
    fair = EquiLM(language_model(), WORD)
    refused(fair.generate, ValueError, "`bos_token_id` names", bos_token_id=4, max_new_tokens=2)
    assert fair.generate(bos_token_id=13, max_new_tokens=2, do_sample=False).shape == (1, 3)
    # Where there is a prompt nothing begins with it.
    fair.generate(prompts(1), bos_token_id=4, max_new_tokens=2, do_sample=False)


def test_an_assistant_that_is_fair_itself():
    fair, other = EquiLM(language_model(), WORD), EquiLM(language_model("gpt2"), WORD)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": EOS}
    expected = fair.generate(prompts(1), **options)
    assert torch.equal(fair.generate(prompts(1), assistant_model=other, **options), expected)


@pytest.mark.parametrize("family", ["mistral", "llama"])
@pytest.mark.parametrize("own", [{"prompt_lookup_num_tokens": 3}, {"assistant": True}])
def test_proposals_that_are_dropped(family, own):
    model, words = language_model(family), WORDS["cyclic(3)"]
    fair = EquiLM(model, words)
    # Longer than the window of the model, with repetitions to look up.
    tokens = prompts(1, 6).repeat(1, 3)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": EOS, "pad_token_id": PAD}
    expected = fair.generate(tokens, **options)
    if own.get("assistant"):
        own = {"assistant_model": language_model("llama")}
    try:
        model.generate(tokens, **options, **own)
    except ValueError as error:
        # Some releases cannot take back what a sliding window has read.
        refused(fair.generate, ValueError, str(error)[:30].replace("`", "."), tokens, **options,
                **own)  # fmt: skip
        return
    assert torch.equal(fair.generate(tokens, **options, **own), expected)


def test_chosen_copies_have_the_scale_of_the_model():
    model = language_model()
    still = ResolvedWords(pair((4, 5)).action, (), ((4, 5),), ())
    options = {"max_new_tokens": 9, "do_sample": False, "repetition_penalty": 1.7,
               "suppress_tokens": [4, 5]}  # fmt: skip
    chosen = equizero(still, kind=EquiZeroLM, model=model, beam_length=20)
    found = chosen.generate(neutral(3, 6), **options)
    assert torch.equal(found, model.generate(neutral(3, 6), **options))
