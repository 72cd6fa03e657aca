"""
A segmenter whose masks turn with the image
===========================================

When an image is turned, its mask should turn as well. A convolutional network promises this for
shifts, and not for rotations. ``EquiTune`` with an action on the output makes it exact, and the
wrapped network is fine-tuned on the same upright images, so that it is good as well.
"""

# %%
# Scenes with two kinds of things
# -------------------------------
#
# Each scene holds four handwritten digits. Sevens and fours are to be told apart: the classes are
# background, four and seven.

import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from equitune import EquiTune, ImageAction, c4
from equitune.testing import assert_equivariant

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
fours, sevens = (torch.tensor(pixels[labels == k] / 16).float().view(-1, 8, 8) for k in (4, 7))


def scenes(count, digits):
    """Noisy images (B, 1, 20, 20) with four digits each, and their masks (B, 20, 20)."""
    images, masks = 0.1 * torch.rand(count, 1, 20, 20), torch.zeros(count, 20, 20, dtype=torch.long)
    for image, mask in zip(images, masks, strict=True):
        for row, column in ((1, 1), (1, 11), (11, 1), (11, 11)):
            kind = int(torch.randint(2, ()))
            digit = digits[kind][int(torch.randint(len(digits[kind]), ()))]
            image[0, row : row + 8, column : column + 8] += digit
            mask[row : row + 8, column : column + 8][digit > 0.3] = kind + 1
    return images, masks


images, masks = scenes(400, (fours[:120], sevens[:120]))
test_images, test_masks = scenes(100, (fours[120:], sevens[120:]))

# %%
# A network, trained on upright scenes
# ------------------------------------

network = nn.Sequential(
    nn.Conv2d(1, 24, 5, padding=2), nn.ReLU(),
    nn.Conv2d(24, 24, 5, padding=2), nn.ReLU(),
    nn.Conv2d(24, 3, 5, padding=2),
)  # fmt: skip


def train(model, epochs):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(20):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), masks[batch]).backward()
            optimizer.step()


train(network, epochs=8)

# %%
# Wrapped and fine-tuned
# ----------------------
#
# The second action says how the *output* moves: as the image does. The wrapper is equivariant
# from the start; fine-tuning makes it good. It has not seen a single turned scene when it is done.

action = ImageAction(c4())
plain = copy.deepcopy(network)
segmenter = EquiTune(network, action, action)
train(segmenter, epochs=4)
assert_equivariant(segmenter, test_images[:4], action, action)

# %%
# Sevens and fours are told apart in every orientation; the plain network takes turned digits for
# each other.

models = {"plain": plain, "EquiTune": segmenter}
plt.style.use("equitune.viz.style")
figure, axes = plt.subplots(4, 4, figsize=(7, 7))
for g in range(4):
    turned = action.transform(test_images, g)
    wanted = action.transform(test_masks[:, None], g)[:, 0]
    axes[0, g].imshow(turned[0, 0].numpy(), cmap="gray_r")
    axes[0, g].set_title(f"turned by {90 * g}°")
    rows = {"truth": wanted[0]}
    for name, model in models.items():
        with torch.inference_mode():
            said = model(turned).argmax(1)
        rows[name] = said[0]
        things = (wanted > 0) | (said > 0)
        share = (said == wanted)[things].double().mean()
        axes[len(rows), g].set_xlabel(f"{share:.0%} of digits right")
    for axis, mask in zip(axes[1:, g], rows.values(), strict=True):
        axis.imshow(mask.numpy(), cmap="cividis", vmin=0, vmax=2)
for axis, name in zip(axes[:, 0], ("scene", "truth", "plain", "EquiTune"), strict=True):
    axis.set_ylabel(name)
plt.setp(axes, xticks=[], yticks=[])
plt.show()
