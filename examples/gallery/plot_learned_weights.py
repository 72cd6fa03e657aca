"""
Which way is up? Weights that are learned
=========================================

``LambdaEquiTune`` learns how much each rotated copy of an image should count. A small network
reads what the frozen classifier computes anyway, and is trained on upright images alone. What it
has learned can be seen: it knows which copy stands upright, but for digits that have no top.
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

from equitune import EquiZero, ImageAction, LambdaEquiTune, c4
from equitune.losses import negative_log_max_probability
from equitune.training import upright_loss, weights_phase
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


def train(parameters, loss, epochs):
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(1000).split(50):
            optimizer.zero_grad()
            loss(images[batch], labels[batch]).backward()
            optimizer.step()


train(network.parameters(), lambda x, y: F.cross_entropy(network(x), y), epochs=12)
network.eval()

# %%
# A network for the weights
# -------------------------
#
# It reads layer 6, the feature maps after the pooling. ``weights_phase`` freezes the classifier
# and returns what learns. The loss is that of the weighted mean, plus one that asks for the
# upright copy.

action = ImageAction(c4())
learned = LambdaEquiTune(network, action, weight_net=ConvWeightNet(64), weight_input="6")


def loss(x, y):
    explanation = learned.explain(x)
    return F.cross_entropy(explanation.output, y) + upright_loss(explanation.scores)


train(weights_phase(learned), loss, epochs=10)
learned.eval()
selected = EquiZero(network, action, proxy_loss=negative_log_max_probability)

# %%
# A picture of the weights
# ------------------------
#
# The mean weight of each copy over the test images, digit by digit. A zero, a one and an eight
# look nearly the same upside down, and the upright copy shares its weight with the one turned by
# 180°.

test_images, test_labels = images[1000:], labels[1000:]
plt.style.use("equitune.viz.style")
figure, axes = plt.subplots(1, 2, figsize=(7, 3.8), sharey=True)
models = {"EquiZero": selected, "LambdaEquiTune": learned}
for axis, (name, model) in zip(axes, models.items(), strict=True):
    with torch.inference_mode():
        explanation = model.explain(test_images)
    mean = torch.stack([explanation.weights[:, test_labels == k].mean(1) for k in range(9)])
    shown = axis.imshow(mean.numpy(), cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for k, row in enumerate(mean.tolist()):
        for g, weight in enumerate(row):
            color = "black" if weight > 0.5 else "white"
            axis.text(g, k, f"{weight:.2f}", ha="center", va="center", color=color, fontsize=7.5)
    right = (explanation.output.argmax(1) == test_labels).double().mean()
    axis.set_title(f"{name}: accuracy {right:.0%}")
    axis.set_xticks(range(4), ["0°", "90°", "180°", "270°"])
    axis.set(xlabel="copy, turned by", yticks=range(9))
    axis.tick_params(length=0)
axes[0].set_ylabel("digit")
figure.colorbar(shown, ax=axes, label="mean weight")
plt.show()
