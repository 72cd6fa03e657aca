"""
Commands that nobody has taught
===============================

A recurrent network learns "jump", "run", "run twice" and "run left", and does not understand
"jump twice". Nothing in its training says that the two verbs are of one kind. The wrappers of
``equitune.seq2seq`` say so: exchange the verbs in the command, and their actions are exchanged in
the whole decoded sequence. The commands are a small part of SCAN (Lake and Baroni, 2018).
"""

# %%
# Commands and actions
# --------------------
#
# Four verbs, four times, three directions. "jump" is learned by itself; its other commands are
# the test.

import copy
import itertools

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from equitune import TokenAction
from equitune.seq2seq import EquiSeq2Seq, EquiZeroSeq2Seq, GreedyDecoder, mean_error_probability

PAD, BOS, EOS = range(3)
VERBS = ("run", "walk", "look", "jump")
DIRECTIONS, TIMES = ("", "left", "right"), ("", "twice", "thrice")
IDS = {word: 3 + k for k, word in enumerate((*VERBS, "left", "right", "twice", "thrice"))}
RUN, JUMP = IDS["run"], IDS["jump"]


def ids(words, length):
    return ([IDS[word] for word in words if word] + [EOS] + [PAD] * length)[:length]


def split(held_out):
    """Commands (N, 4) and their actions (N, 7) that are learned, or that are held out."""
    commands = itertools.product(VERBS, DIRECTIONS, TIMES)
    chosen = [c for c in commands if (c[0] == "jump" and any(c[1:])) == held_out]
    actions = [(turn, verb) * (1 + TIMES.index(times)) for verb, turn, times in chosen]
    return torch.tensor([ids(c, 4) for c in chosen]), torch.tensor([ids(a, 7) for a in actions])


taught, test = split(held_out=False), split(held_out=True)

# %%
# A step model
# ------------
#
# ``encode`` reads the command, ``step`` takes the last token and returns the scores of the next
# one.


class Translator(nn.Module):
    def __init__(self, size=48):
        super().__init__()
        self.words, self.tokens = nn.Embedding(11, size), nn.Embedding(9, size)
        self.reader = nn.GRU(size, size, batch_first=True)
        self.cell, self.scores = nn.GRUCell(size, size), nn.Linear(size, 9)

    def encode(self, commands):
        return self.reader(self.words(commands))[1][0]

    def step(self, last, state):
        state = self.cell(self.tokens(last), state)
        return self.scores(state), state


def train(model, steps):
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        scores = model(*taught).scores
        optimizer.zero_grad()
        F.nll_loss(scores.flatten(0, 1), taught[1].flatten(), ignore_index=PAD).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model, commands, actions):
    """The share of commands whose actions are right to the last one."""
    return 100 * (model(commands, length=7).tokens == actions).all(1).double().mean().item()


# %%
# Three networks, and their wrappers
# ----------------------------------
#
# "run" and "jump" are exchanged. ``EquiZeroSeq2Seq`` keeps the copy that is surest of its answer
# and is not trained; ``EquiSeq2Seq`` takes the mean of both copies, and is trained a little
# further.

on_words = TokenAction.cyclic_swaps(11, [(RUN, JUMP)])
on_tokens = TokenAction.cyclic_swaps(9, [(RUN, JUMP)])
found = {"plain": [], "EquiZeroSeq2Seq": [], "EquiSeq2Seq": []}
for seed in range(3):
    torch.manual_seed(seed)
    plain = GreedyDecoder(Translator(), bos=BOS, eos=EOS, pad=PAD, max_length=7)
    train(plain, steps=120)
    zero = EquiZeroSeq2Seq(plain, on_words, on_tokens, proxy_loss=mean_error_probability)
    tuned = EquiSeq2Seq(copy.deepcopy(plain), on_words, on_tokens)
    train(tuned, steps=30)
    for name, model in zip(found, (plain, zero, tuned), strict=True):
        found[name].append([accuracy(model, *part) for part in (taught, test)])

# %%
# Each network is a dot. All of them know nearly everything that they were taught; the plain ones
# know nothing else.

plt.style.use("equitune.viz.style")
figure, axis = plt.subplots(figsize=(6.5, 3.2))
for k, seeds in enumerate(found.values()):
    for place, values in enumerate(zip(*seeds, strict=True)):
        x = place + 0.22 * (k - 1)
        axis.bar(x, sum(values) / 3, 0.2, color=f"C{k}", alpha=0.7)
        axis.plot([x - 0.05, x, x + 0.05], values, "o", color="0.15", ms=3)
axis.set(ylabel="commands understood, %", ylim=(0, 104))
axis.set_xticks([0, 1], ["taught commands", "commands with jump, not taught"])
axis.grid(axis="y")
figure.legend(axis.containers[::2], list(found), loc="outside upper center", ncols=3)
plt.show()
