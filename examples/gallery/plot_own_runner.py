"""
A runner of your own: a few copies of many
==========================================

A wrapper runs the network once for each element of the group. With 48 elements, the eight ways to
turn and mirror an image times the six orders of its colours, that is a lot. A runner says which
copies run, and how; this one draws a few of them by chance for each call. The answer is then
right on average, and no longer the same for each orientation: the picture shows what is lost.
"""

# %%
# The runner
# ----------
#
# ``call.copies`` moves the input, ``call.evaluate`` runs the network on flat batches, and ``mix``
# combines what came out with the weights of the wrapper. A runner never sees a weight.

import itertools

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from equitune import (
    EquiTune,
    ImageAction,
    PermutationAction,
    ProductAction,
    Symmetrized,
    d4,
    symmetric,
)
from equitune.runners import Orbit, Runner


class Drawn(Runner):
    """Runs some copies, drawn by chance; unbiased for equal weights."""

    offers = frozenset({"output"})

    def __init__(self, count):
        self.count = count

    def run(self, call, mix, elements):
        drawn = torch.randperm(len(elements))[: self.count].sort().values
        some = [elements[g] for g in drawn]
        copies = [stack.flatten(0, 1) for stack in call.copies(some)]
        return call.evaluate([copies], lambda ran: mix(Orbit.of(call, [some], ran)))


# %%
# Coloured digits
# ---------------
#
# The network learns digits that are upright and red. The group exchanges the three colours in all
# six ways, and turns and mirrors: their product has 48 elements.

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
images = torch.zeros(len(pixels), 3, 8, 8)
images[:, 0] = torch.tensor(pixels / 16).float().view(-1, 8, 8)
images, labels = images + 0.1 * torch.rand_like(images), torch.tensor(labels)

orders = list(itertools.permutations(range(3)))
colours = PermutationAction(symmetric(3), orders, dim=-3)
action = ProductAction(ImageAction(d4()), colours)

network = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 16, 10),
)  # fmt: skip
model = EquiTune(network, action)


def train(trained, epochs):
    optimizer = torch.optim.AdamW(trained.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(1000).split(50):
            optimizer.zero_grad()
            F.cross_entropy(trained(images[batch]), labels[batch]).backward()
            optimizer.step()


# %%
# Fine-tuned through six drawn copies for each step, an eighth of the cost of all 48.

train(network, epochs=5)
train(Symmetrized(network, action, runner=Drawn(6)), epochs=6)
network.eval()

# %%
# How many copies are enough?
# ---------------------------

test_images, test_labels = images[1000:1150], labels[1000:1150]
counts = (1, 2, 4, 8, 16, 32, 48)
distance, accuracy = [], []
with torch.inference_mode():
    exact = model(test_images)
    for count in counts:
        some = Symmetrized(network, action, runner=Drawn(count))
        outputs = torch.stack([some(test_images) for _ in range(4)])
        distance.append(float((outputs - exact).norm() / (exact.norm() * 4**0.5)))
        accuracy.append(100 * (outputs.argmax(-1) == test_labels).double().mean().item())

plt.style.use("equitune.viz.style")
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3))
axes[0].plot(counts, distance, "o-")
axes[0].set_ylabel("distance to the full mean, relative")
axes[1].plot(counts, accuracy, "o-", color="C1")
axes[1].set_ylabel("accuracy, %")
for axis in axes:
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.set_xlabel("copies drawn, of 48")
    axis.set_ylim(0, None)
    axis.grid(axis="y")
plt.show()
