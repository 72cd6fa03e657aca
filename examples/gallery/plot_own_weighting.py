"""
A weighting of your own: the k best copies
==========================================

``EquiTune`` listens to all copies of an image alike, ``EquiZero`` to the one that the network is
surest of. What is in between? A weighting is a class with two methods: one scores the copies, the
other turns scores into weights. This one takes the mean of the k surest copies.
"""

# %%
# The weighting
# -------------
#
# ``copies.scores`` calls a function of the raw outputs, and gives (copies, samples). A larger
# score counts more. Copies that tie with the last of the k share its place, so that the order of
# the copies never decides.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from equitune import ImageAction, Symmetrized, Weighting, d4
from equitune.losses import entropy
from equitune.spaces import Probabilities
from equitune.testing import assert_invariant
from equitune.weightings import tie_tolerance


class Surest(Weighting):
    """The mean of the k copies with the smallest entropy."""

    reads = "output"

    def __init__(self, k):
        super().__init__()
        self.k = k

    def score(self, copies):
        return -copies.scores(entropy).detach()

    def weigh(self, scores, copies):
        least = scores.topk(self.k, dim=0).values[-1]
        chosen = scores >= least - tie_tolerance(*copies.dtypes) * least.abs()
        return chosen.to(scores) / chosen.sum(0)


# %%
# A network that was trained on upright digits
# --------------------------------------------
#
# Nines are left out, because a turned nine is a six.

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
images = torch.tensor(pixels[labels != 9] / 16).float().view(-1, 1, 8, 8)
labels = torch.tensor(labels[labels != 9])
network = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 16, 9),
)  # fmt: skip
optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
for _ in range(12):
    for batch in torch.randperm(1000).split(50):
        optimizer.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
network.eval()

# %%
# From one copy to all eight
# --------------------------
#
# ``Symmetrized`` is what all wrappers are: the network, the action and a weighting. Here it takes
# the mean of probabilities. The testing kit treats a weighting of yours as it treats the built-in
# ones.

action, test_images, test_labels = ImageAction(d4()), images[1000:], labels[1000:]
accuracy = {}
for k in range(1, 9):
    model = Symmetrized(network, action, weighting=Surest(k), space=Probabilities())
    assert_invariant(model, test_images[:8], action)
    with torch.inference_mode():
        said = model(test_images).argmax(1)
    accuracy[k] = 100 * (said == test_labels).double().mean().item()

with torch.inference_mode():
    turned = action.transform(test_images, torch.arange(len(test_images)) % 8)
    plain = 100 * (network(turned).argmax(1) == test_labels).double().mean().item()

# %%
# Digits in all eight orientations: the more copies have a say, the more of them are turned digits
# that the network has never seen.

plt.style.use("equitune.viz.style")
figure, axis = plt.subplots(figsize=(6.5, 3.2))
axis.plot(list(accuracy), list(accuracy.values()), "o-")
axis.axhline(plain, color="C1", linestyle="--")
axis.annotate(
    "the plain network", (8, plain), (0, 4), textcoords="offset points", ha="right", color="C1"
)
axis.annotate("as EquiZero", (1, accuracy[1]), (0, -14), textcoords="offset points", color="C0")
axis.annotate(
    "as EquiTune", (8, accuracy[8]), (0, -14), textcoords="offset points", ha="right", color="C0"
)
axis.set(xlabel="k, copies that count", ylabel="accuracy, %", ylim=(0, 100))
axis.grid(axis="y")
plt.show()
