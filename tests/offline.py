"""What stands in the docs' code for weights of a hub, which the tests cannot reach."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = "<unk> <end> . the a man woman he she his her doctor nurse said that was tired worked as"

REPLACEMENTS = {
    'weights="DEFAULT"': "weights=None",
    'AutoTokenizer.from_pretrained("gpt2")': "offline.tokenizer()",
    'AutoModelForCausalLM.from_pretrained("gpt2")': "offline.language_model()",
}


def without_hub(code):
    """The same code with random weights."""
    for line, replacement in REPLACEMENTS.items():
        code = code.replace(line, replacement)
    return code


def tokenizer():
    """One token for each word."""
    pieces = {word: number for number, word in enumerate(WORDS.split())}
    words_only = Tokenizer(WordLevel(pieces, unk_token="<unk>"))
    words_only.normalizer, words_only.pre_tokenizer = Lowercase(), Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words_only,
        unk_token="<unk>",
        eos_token="<end>",
        pad_token="<end>",
        model_input_names=["input_ids", "attention_mask"],
    )


def language_model():
    """A small GPT-2 with random weights that prefers some words by far."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS.split()),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=1,
    )
    return GPT2LMHeadModel(config)
