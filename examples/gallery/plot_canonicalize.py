"""
Upright first: one copy in place of all
=======================================

A classifier of upright digits gets digits in any orientation. ``Canonicalize`` turns each of them
upright before the classifier sees it, so that the classifier runs once and not four times. A small
network finds out which way is up. It has learned that from upright digits, without their labels.
"""

# %%
# A classifier of upright digits
# ------------------------------
#
# Nines are left out, because a turned nine is a six.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from equitune import Canonicalize, EquiZero, ImageAction, c4
from equitune.functional import orbit
from equitune.losses import entropy
from equitune.training import upright_loss
from equitune.weight_nets import ConvWeightNet

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
images = torch.tensor(pixels[labels != 9] / 16).float().view(-1, 1, 8, 8)
labels = torch.tensor(labels[labels != 9])
network = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 16, 9),
)  # fmt: skip


def train(net, loss, epochs):
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(1000).split(50):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
    net.eval()


train(network, lambda batch: F.cross_entropy(network(images[batch]), labels[batch]), epochs=12)

# %%
# A network that knows which way is up
# ------------------------------------
#
# It gives each of the four copies a score. The loss asks that the copy which was not turned has
# the highest one.

action = ImageAction(c4())
scorer = ConvWeightNet(1, 32)


def prior(batch):
    copies = orbit(images[batch], action)
    return upright_loss(scorer(copies.flatten(0, 1)).view(copies.shape[:2]))


train(scorer, prior, epochs=20)

# %%
# One pass
# --------
#
# Each test image is turned by an element of its own. ``EquiZero`` runs the classifier on all four
# copies and keeps the one that it is surest of.

test_images, test_labels = images[1000:], labels[1000:]
turned = action.transform(test_images, torch.randint(4, test_labels.shape))
canonical = Canonicalize(network, action, weight_net=scorer).eval()
surest = EquiZero(network, action, proxy_loss=entropy).eval()
with torch.inference_mode():
    for name, model in {"plain": network, "EquiZero": surest, "Canonicalize": canonical}.items():
        right = (model(turned).argmax(1) == test_labels).double().mean()
        print(f"{name}: {right:.0%} of the turned digits")
    elements = canonical.explain(turned).elements

# %%
# Above the digits as they came, below what the classifier sees of them. A zero, a one and an eight
# may end upside down, which does no harm.

plt.style.use("equitune.viz.style")
figure, axes = plt.subplots(2, 9, figsize=(7, 2))
for column in range(9):
    shown = int((test_labels == column).nonzero()[0])
    one = turned[shown : shown + 1]
    for axis, image in zip(
        axes[:, column], (one, action.transform(one, int(elements[shown]))), strict=True
    ):
        axis.imshow(image[0, 0].numpy(), cmap="gray_r")
        axis.set_axis_off()
    axes[1, column].set_title(f"+{90 * int(elements[shown])}°")
axes[0, 4].set_title("as they came")
plt.show()
