"""
A fairer language model
=======================

A language model goes on differently after "he" than after "she". ``EquiLM`` makes the two
exchangeable: exchange the words in the prompt, and the same words are exchanged in what the model
says, with the same probabilities. Nothing is trained, and the checkpoint stays as it is.
"""

# %%
# A model with habits
# -------------------
#
# With ``EQUITUNE_DATA`` set, this is a small Llama that was trained on children's stories.
# Without it, a tiny GPT-2 reads a few made-up sentences first, in which Tim is brave and Lily is
# a doctor.

import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from equitune.text import EqualityWords, EquiLM, sequence_log_prob

torch.manual_seed(0)
GOES_ON = ["was very brave.", "was strong.", "was a doctor.", "was sad.", "loved to sing."]


def tiny_model():
    """A GPT-2 of 40 thousand parameters, and its tokenizer of one token for each word."""
    habits = {"Tim": [0, 0, 1, 3], "Lily": [2, 2, 3, 4]}  # places in GOES_ON
    texts = [f"One day, {who} {GOES_ON[k]}" for who, places in habits.items() for k in places]
    words = (
        "<unk> <end> One day , . Tim Lily he she was very brave strong a doctor sad loved to sing"
    )
    pieces = {word: number for number, word in enumerate(words.split())}
    by_words = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    by_words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=by_words, unk_token="<unk>")
    tokenizer.eos_token = "<end>"
    sizes = {"vocab_size": len(pieces), "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        for text in texts:
            ids = tokenizer(text, return_tensors="pt").input_ids
            optimizer.zero_grad()
            F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]).backward()
            optimizer.step()
    return tokenizer, model.eval()


if "EQUITUNE_DATA" in os.environ:
    folder = Path(os.environ["EQUITUNE_DATA"]) / "weights" / "stories260k"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
else:
    print("EQUITUNE_DATA is not set: a tiny GPT-2 in place of a Llama that tells stories")
    tokenizer, model = tiny_model()

# %%
# Which words are exchanged
# -------------------------

words = EqualityWords([("he", "she"), ("Tim", "Lily")]).resolve(tokenizer, model.config.vocab_size)
fair = EquiLM(model, words)

# %%
# How much more probable is a sentence of Tim than the same sentence of Lily?


def read(text, start=True):
    return tokenizer(text, return_tensors="pt", add_special_tokens=start).input_ids


def odds(model, ending):
    """How much more probable an ending is of Tim than of Lily, in nats."""
    starts = (read("One day, Tim"), read("One day, Lily"))
    tim, lily = (sequence_log_prob(model, start, read(ending, start=False)) for start in starts)
    return float(tim - lily)


found = {
    name: [odds(m, e) for e in GOES_ON] for name, m in {"plain": model, "EquiLM": fair}.items()
}

# %%
# The plain model thinks of Tim or of Lily, depending on what is said. The fair one is at 1 for
# each sentence, up to rounding. ``fair.generate`` works as that of the plain model does;
# ``EquiZeroLM`` generates what a scorer of yours likes best of both versions.

plt.style.use("equitune.viz.style")
figure, axis = plt.subplots(figsize=(7, 3))
axis.hlines(range(len(GOES_ON)), 1, torch.tensor(found["plain"]).exp(), color="C1", alpha=0.4)
for (name, values), marker in zip(found.items(), "os", strict=True):
    color = "C1" if name == "plain" else "C0"
    axis.plot(
        torch.tensor(values).exp(), range(len(GOES_ON)), marker, color=color, label=name, ms=8
    )
axis.set_xscale("log")
ticks = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
axis.set_xticks(ticks, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
axis.minorticks_off()
axis.set(ylim=(len(GOES_ON) - 0.5, -0.5), xlabel="times as probable of Tim as of Lily")
axis.set_yticks(range(len(GOES_ON)), [f"One day, ... {ending}" for ending in GOES_ON])
axis.grid(axis="x")
figure.legend(loc="outside upper center", ncols=2)
plt.show()
