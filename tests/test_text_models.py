"""Models of transformers: caches of other kinds, training, checkpoints, and adapters."""

import copy
import pickle
import warnings

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    JambaConfig,
    Lfm2Config,
    MambaConfig,
    OpenAIGPTConfig,
    RwkvConfig,
    Trainer,
    TrainingArguments,
    XLMConfig,
    XLNetConfig,
)

from equitune.text import EquiLM, OrbitCache, perplexity, sequence_log_prob
from equitune.text._interfaces import CACHE_ARGUMENTS, GENERATE_CACHE, Interface
from lm_cases import (
    PAD,
    WORDS,
    V,
    cache_of,
    equizero,
    language_model,
    mean_of_copies,
    neutral,
    padded,
    prompts,
    refused,
)

EXACT = {"rtol": 0, "atol": 1e-12}
TINY = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": PAD,
}  # fmt: skip

CACHELESS = {
    "no cache at all": OpenAIGPTConfig(
        vocab_size=V, n_positions=64, n_embd=16, n_layer=2, n_head=2
    ),
    "convolutions": Lfm2Config(**TINY, layer_types=["conv", "full_attention"]),
    "state spaces": MambaConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=2, state_size=4, pad_token_id=PAD
    ),
    "state spaces and attention": JambaConfig(
        **TINY, num_experts=2, use_mamba_kernels=False, mamba_d_state=4, attn_layer_period=2,
        attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
    ),
    "a recurrent state": RwkvConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16,
        intermediate_size=24, context_length=64,
    ),
}  # fmt: skip


def built(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    # Some compute in float32 inside, or have no kernels in float64.
    if config.model_type not in ("jamba", "mamba"):
        model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


@pytest.mark.parametrize("name", CACHELESS)
def test_models_without_a_cache_to_split(name):
    model, words = built(CACHELESS[name]), WORDS["cyclic(3)"]
    fair = EquiLM(model, words)
    text = neutral(length=24)
    text[0, 18] = 4
    options = {"max_new_tokens": 3, "do_sample": False}
    refused(fair, TypeError, "use_cache=False", text, use_cache=True)
    refused(fair.generate, TypeError, "use_cache=False", text, **options)
    refused(equizero(words, model=model).generate, TypeError, "use_cache=False", text, **options)
    with torch.no_grad():
        found = fair(text, use_cache=False).logits.softmax(-1)
        expected = mean_of_copies(model, words, text)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        # Who asks for no cache gets none.
        assert torch.equal(fair(text).logits.softmax(-1), found)
        assert cache_of(fair(text)) is None
    model.train()
    fair(text, labels=text).loss.backward()
    model.eval()
    tokens = text
    for _ in range(3):
        best = mean_of_copies(model, words, tokens)[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, best], dim=1)
    assert torch.equal(fair.generate(text, use_cache=False, **options), tokens)


def test_an_argument_that_is_called_cache_and_is_something_else():
    config = XLMConfig(vocab_size=V, emb_dim=16, n_layers=2, n_heads=2, causal=True)
    model, words, text = built(config), WORDS["cyclic(3)"], prompts(2, 9)
    with torch.no_grad():
        found = EquiLM(model, words)(text).logits.softmax(-1)
        torch.testing.assert_close(found, mean_of_copies(model, words, text), **EXACT)


def test_models_without_a_context_length():
    model = built(XLNetConfig(vocab_size=V, d_model=16, n_layer=2, n_head=2, d_inner=24))
    fair, text = EquiLM(model, WORDS["cyclic(3)"]), prompts(2, 70)
    with torch.no_grad():
        found = fair(text).logits.softmax(-1)
        torch.testing.assert_close(found, mean_of_copies(model, WORDS["cyclic(3)"], text), **EXACT)
        assert perplexity(fair, text[0], window=30, stride=10) > 1
    # Its tensors for the next token cannot be exchanged.
    refused(fair.generate, TypeError, "no cache of keys and values", text, max_new_tokens=2)
    refused(fair.generate, TypeError, "perm_mask, target_mapping", text, max_new_tokens=2,
            use_cache=False)  # fmt: skip


def test_models_without_positions():
    model = built(BloomConfig(vocab_size=V, hidden_size=16, n_layer=2, n_head=2))
    words = WORDS["cyclic(3)"]
    fair = EquiLM(model, words)
    # Padding gives NaN in Bloom itself.
    tokens, positions = prompts(3), torch.arange(9).expand(3, -1)
    mask = torch.ones_like(tokens)
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": mask}
    plain = fair.generate(tokens, use_cache=False, **options)
    assert torch.equal(fair.generate(tokens, **options), plain)
    assert equizero(words, model=model).generate(tokens, **options).shape == plain.shape
    for one in (model, fair):
        found = sequence_log_prob(one, tokens[:, :6], tokens[:, 6:], mask)
        expected = sequence_log_prob(one, tokens[:, :6], tokens[:, 6:])
        torch.testing.assert_close(found, expected, **EXACT)
    refused(fair, ValueError, "BloomForCausalLM takes none", tokens, position_ids=positions)


def test_the_cache_has_two_names():
    fair, tokens = EquiLM(language_model(), WORDS["cyclic(3)"]), prompts(2)
    with torch.no_grad():
        whole, first = fair(tokens), fair(tokens[:, :5])
        assert isinstance(first[1], OrbitCache)
        for name in CACHE_ARGUMENTS:
            past = {name: copy.deepcopy(cache_of(first))}
            rest = fair(tokens[:, 5:], **past)
            torch.testing.assert_close(rest.logits, whole.logits[:, 5:], **EXACT)
            past = {name: copy.deepcopy(cache_of(first))}
            generated = fair.generate(tokens, max_new_tokens=3, do_sample=False, **past)
            assert torch.equal(generated, fair.generate(tokens, max_new_tokens=3, do_sample=False))
        both = {name: cache_of(first) for name in CACHE_ARGUMENTS}
        for call in (fair, fair.generate):
            refused(call, ValueError, "cache and past_key_values are two names", tokens, **both)
    assert GENERATE_CACHE in CACHE_ARGUMENTS
    for name in CACHE_ARGUMENTS:
        refused(equizero(WORDS["cyclic(3)"]).generate, ValueError, f"`{name}` has no meaning",
                tokens, **{name: cache_of(first)})  # fmt: skip


def test_names_are_read_off_signatures():
    class Newer(torch.nn.Module):
        def forward(self, input_ids, cache=None, use_cache=None, position_ids=None):
            pass

    class Older(torch.nn.Module):
        def forward(self, input_ids, past_key_values=None, use_cache=None, logits_to_keep=0):
            pass

    class Other(torch.nn.Module):
        def forward(self, input_ids, mems=None, use_mems=None, **kwargs):
            pass

    class Around(torch.nn.Module):
        def forward(self, *args, **kwargs):
            pass

    full, empty = object(), None
    older, other, around = (Interface(kind()) for kind in (Older, Other, Around))
    assert older.with_cache(full) == {"past_key_values": full, "use_cache": True}
    assert older.with_cache(empty) == {"use_cache": False}
    assert older.keeps_logits
    assert not older.takes("position_ids")
    assert other.cache is None
    assert other.with_cache(empty) == {}
    assert around.with_cache(full) == {GENERATE_CACHE: full, "use_cache": True}
    assert around.takes("position_ids")
    newer = Interface(Newer())
    assert newer.takes("position_ids")
    # In older releases an argument of this name is something else.
    assert newer.cache == ("cache" if GENERATE_CACHE == "cache" else None)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_(en|dis)able:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_checkpoints(family):
    model, words = language_model(family), WORDS["cyclic(3)"]
    fair, text = EquiLM(model, words), prompts()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    fair.train()

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    plain = fair(text, labels=text)
    expected = gradients(plain.loss)
    model.gradient_checkpointing_enable()
    for options in ({}, {"use_cache": True}, {"use_cache": False}):
        output = fair(text, labels=text, **options)
        assert cache_of(output) is None
        torch.testing.assert_close(output.loss, plain.loss)
        torch.testing.assert_close(gradients(output.loss), expected)
    options = {"max_new_tokens": 3, "do_sample": False}
    refused(fair.generate, TypeError, r"gradient checkpoints; call eval\(\)", text, **options)
    fair.eval()
    slow = fair.generate(text, use_cache=False, **options)
    assert torch.equal(fair.generate(text, **options), slow)
    assert cache_of(fair(text)) is not None


def test_a_cache_that_is_not_filled():
    class Forgetful(torch.nn.Module):
        """Drops the cache on its way to the model."""

        def __init__(self, model):
            super().__init__()
            self.model, self.config = model, model.config

        def forward(self, input_ids, attention_mask=None, return_dict=True, **kwargs):
            return self.model(input_ids, attention_mask=attention_mask, use_cache=False)

    class Open(Forgetful):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    words, text = WORDS["cyclic(2)"], prompts()
    fair = EquiLM(Open(language_model()), words)
    with torch.no_grad():
        refused(fair, TypeError, "did not fill the cache", text)
        assert fair(text, use_cache=False).logits.shape == (5, 9, V)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_tied_weights_are_saved_once(tmp_path):
    model, words = language_model("gpt2"), WORDS["cyclic(2)"]
    assert model.lm_head.weight is model.transformer.wte.weight
    fair = EquiLM(model, words)
    plain, saved = model.state_dict(), fair.state_dict()
    assert saved.keys() == {f"backbone.{n}" for n in plain} - {"backbone.lm_head.weight"}
    assert "lm_head.weight" in plain
    # It loads with the other name and without it, alone and within a larger module.
    for outer in (lambda m: m, lambda m: torch.nn.Sequential(m)):
        for state in (saved, {f"backbone.{n}": v for n, v in plain.items()}):
            other = EquiLM(language_model("gpt2"), words)
            with torch.no_grad():
                other.unwrap().transformer.wte.weight.zero_()
            module = outer(other)
            prefix = "" if module is other else "0."
            module.load_state_dict({prefix + n: v for n, v in state.items()})
            assert same(other.state_dict(), saved)
            assert same(module.state_dict(), {prefix + n: v for n, v in saved.items()})
    for again in (copy.deepcopy(fair), pickle.loads(pickle.dumps(fair))):
        assert same(again.state_dict(), saved)
    bad = {n: v for n, v in saved.items() if "wte" not in n}
    refused(fair.load_state_dict, RuntimeError, "Missing key", bad)
    assert len(EquiLM(language_model("llama"), words).state_dict()) == len(
        language_model("llama").state_dict()
    )


class Texts(torch.utils.data.Dataset):
    def __init__(self):
        self.tokens = prompts(8)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_trainers(tmp_path, family):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    words = WORDS["cyclic(2)"]

    def trainer(steps, folder):
        model = language_model(family, torch.float32)
        arguments = TrainingArguments(
            str(tmp_path / folder), max_steps=steps, per_device_train_batch_size=4, use_cpu=True,
            save_steps=2, report_to=[], disable_tqdm=True, learning_rate=1e-2, seed=1,
            logging_strategy="no",
        )  # fmt: skip
        texts = Texts()
        return Trainer(
            EquiLM(model, words),
            arguments,
            train_dataset=texts,
            eval_dataset=texts,
            compute_metrics=lambda found: {"scores": found.predictions.shape},
        )

    whole = trainer(4, "whole")
    begun = whole.model.state_dict()
    begun = {name: value.clone() for name, value in begun.items()}
    measured = whole.evaluate()
    assert measured["eval_scores"] == (8, 9, V)
    loss = measured["eval_loss"]
    whole.train()
    assert whole.evaluate()["eval_loss"] < loss
    assert not same(whole.model.state_dict(), begun)
    # From the checkpoint in the middle it goes on as if it had not been interrupted.
    again = trainer(4, "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, value in again.model.state_dict().items():
        torch.testing.assert_close(value, whole.model.state_dict()[name], rtol=0, atol=1e-6)
    # What is learned is saved as a plain checkpoint.
    again.model.save_pretrained(tmp_path / "plain")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    again.model.eval()
    with torch.no_grad():
        found = EquiLM(loaded, words)(prompts()).logits
        torch.testing.assert_close(found, again.model(prompts()).logits)


def test_adapters():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    inner, words = language_model("gpt2"), WORDS["cyclic(3)"]
    settings = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM",
                               fan_in_fan_out=True)  # fmt: skip
    with warnings.catch_warnings():
        # It reads what transformers have renamed.
        warnings.simplefilter("ignore", FutureWarning)
        model = peft.get_peft_model(inner, settings).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    fair = EquiLM(model, words)
    tokens, mask, positions = padded()
    options = {"attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        found = fair(tokens, **options).logits.softmax(-1)
        expected = mean_of_copies(model, words, tokens, **options)
        torch.testing.assert_close(found[:, 3:], expected[:, 3:], rtol=0, atol=1e-6)
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    slow = fair.generate(tokens, use_cache=False, **options)
    assert torch.equal(fair.generate(tokens, **options), slow)
