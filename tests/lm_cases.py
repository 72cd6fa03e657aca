"""Tiny language models, word groups, and the formulas that the symmetrised ones are held to."""

import copy
import itertools

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)

from equitune import TokenAction, Weighting, cyclic, symmetric
from equitune.losses import entropy
from equitune.text import EquiZeroLM, ResolvedWords
from equitune.text._interfaces import GENERATE_CACHE

V = 24
EOS, PAD = 1, 0

CONFIGS = {
    "gpt2": GPT2Config(
        vocab_size=V, n_positions=64, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD,
    ),
    "llama": LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD,
    ),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, bos_token_id=EOS, eos_token_id=EOS,
        pad_token_id=PAD,
    ),
    # A cache of sliding windows, which has layers of its own.
    "mistral": MistralConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        sliding_window=8, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD,
    ),
}  # fmt: skip


def language_model(family="llama", dtype=torch.float64):
    """A random model of a family, far from equivariant, in eval mode."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family])).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5)
    # Random models end sentences too soon; tests that need ends ask for them.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def resolved(action, general=()):
    moved = [v for v in range(V) if any(row[v] != v for row in action.permutations)]
    return ResolvedWords(action, tuple(general), (tuple(moved),), ())


def pair(*cycles, general=()):
    action = TokenAction.cyclic_swaps(V, list(cycles))
    return ResolvedWords(action, tuple(general), tuple(cycles), ())


def three_letters():
    """All permutations of three words, in two forms: no abelian group."""
    group = symmetric(3)
    rows = []
    for g in group.elements:
        row = list(range(V))
        images = symmetric_images(group)[g]
        for first in (4, 10):
            for i, image in enumerate(images):
                row[first + i] = first + image
        rows.append(row)
    return resolved(TokenAction(group, rows))


def symmetric_images(group):
    """Where each element of symmetric(3) sends 0, 1, 2, found by brute force from its table."""
    for images in itertools.permutations(itertools.permutations(range(3))):
        if images[0] == (0, 1, 2) and all(
            tuple(images[g][images[h][i]] for i in range(3)) == images[group.compose(g, h)]
            for g in group.elements
            for h in group.elements
        ):
            return images
    raise AssertionError("no action on three letters")


WORDS = {
    "cyclic(2)": pair((4, 5), (10, 11), general=[7]),
    "cyclic(3)": pair((4, 5, 6), (10, 12, 11), general=[7, 8]),
    "cyclic(2) x cyclic(3)": pair((4, 5), general=[7]) * pair((10, 11, 12)),
    "symmetric(3)": three_letters(),
}
assert WORDS["cyclic(3)"].group == cyclic(3)


def prompts(batch=5, length=9, seed=0):
    """Random tokens, many of them equality words; no special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, V, (batch, length), generator=generator)


def padded(batch=4, length=9):
    """Prompts with padding at their left, as decoders have it."""
    tokens = prompts(batch, length)
    mask = torch.ones_like(tokens)
    for row in range(batch):
        tokens[row, :row] = PAD
        mask[row, :row] = 0
    return tokens, mask, (mask.cumsum(1) - 1).clamp(min=0)


def neutral(batch=1, length=9, seed=0):
    """Tokens that no group above moves."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(13, V, (batch, length), generator=generator)


def table(words):
    return torch.tensor(words.action.permutations)


def mean_of_copies(model, words, tokens, **options):
    """1/|G| sum_g g^-1 p_M(. | gX), the formula of the paper, copy by copy."""
    copies = []
    for g in words.group.elements:
        logits = model(words.action.transform(tokens, g), **options).logits
        copies.append(logits.softmax(dim=-1)[..., table(words)[g]])
    return torch.stack(copies).mean(dim=0)


def relaxed_mean(model, words, tokens, **options):
    """The scores of section 5.3, normalised."""
    scores = mean_of_copies(model, words, tokens, **options).clone()
    plain = model(tokens, **options).logits.softmax(dim=-1)
    general = list(words.general)
    scores[..., general] = plain[..., general]
    return scores / scores.sum(dim=-1, keepdim=True)


def cache_of(output):
    """The cache in a model's output, whose name depends on the version of transformers."""
    return getattr(output, GENERATE_CACHE)


def tokenizer():
    """Word by word; token i is the word w<i>."""
    words = {f"w{i}": i for i in range(V)}
    inner = Tokenizer(WordLevel(words, unk_token="w2"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="w0", eos_token="w1", unk_token="w2"
    )


class Scores(torch.nn.Module):
    """The logits alone, as the library's checks take them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens, use_cache=False).logits


class TopK(Weighting):
    """The k surest copies, a weighting of a user's own."""

    reads = "output"

    def __init__(self, k):
        super().__init__()
        self.k = k

    def score(self, copies):
        return -copies.scores(entropy)

    def weigh(self, scores, copies):
        least = scores.topk(self.k, dim=0).values[-1]
        return scores.masked_fill(scores < least, -torch.inf).softmax(0)


class Recorder:
    """The shapes of the token batches that a model is given."""

    def __init__(self, model):
        self.shapes = []
        self.handle = model.register_forward_pre_hook(self._record)

    def _record(self, module, args):
        self.shapes.append(tuple(args[0].shape))


def refused(kind, error, match, *args, **options):
    with pytest.raises(error, match=match):
        kind(*args, **options)


def liking(texts):
    """Scores that differ between the words of a cycle, and between most sentences."""
    return [sum(int(word[1:]) ** 2 % 7 for word in text.split()) for text in texts]


def equizero(words, scorer=liking, kind=EquiZeroLM, model=None, beam_length=3):
    model = language_model() if model is None else model
    return kind(model, words, tokenizer=tokenizer(), scorer=scorer, beam_length=beam_length)
