"""
Boxes that turn with the image
==============================

A network that finds a thing in an image returns the corners of a box, numbers with a meaning:
when the image is turned, they change places and signs. ``BoxAction`` knows how. This example
makes a small network equivariant that returns one box; ``GridBoxAction`` and ``BoxMapAction`` do
the same for the grids of YOLO and its relatives, ``PaddedDetections`` for lists of detections.
"""

# %%
# Upright pictures
# ----------------
#
# Things on a road are wider than tall and low in the picture. The network learns from such
# pictures alone: a bright ellipse on a noisy ground.

import copy

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from torch import nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from equitune import EquiTune, ImageAction, c4
from equitune.testing import assert_equivariant
from equitune.vision import BoxAction

torch.manual_seed(0)
places = (torch.arange(32) + 0.5) / 32  # of pixels, between 0 and 1


def pictures(count):
    """Images (B, 1, 32, 32), and boxes (x1, y1, x2, y2) between 0 and 1, (B, 4)."""
    middle = torch.rand(count, 2) * torch.tensor([0.5, 0.2]) + torch.tensor([0.25, 0.65])
    half = torch.rand(count, 2) * torch.tensor([0.08, 0.03]) + torch.tensor([0.14, 0.07])
    x, y = ((places - middle.T[..., None]) / half.T[..., None]).square()
    inside = x[:, None, :] + y[:, :, None] < 1
    images = 0.7 * inside + 0.3 * torch.rand(count, 32, 32)
    return images[:, None], torch.cat([middle - half, middle + half], dim=1)


images, boxes = pictures(1000)
test_images, test_boxes = pictures(200)

# %%
# A network, trained on them
# --------------------------

network = nn.Sequential(
    nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
    nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
    nn.Flatten(), nn.Linear(32 * 64, 64), nn.ReLU(), nn.Linear(64, 4),
)  # fmt: skip


def train(model, epochs):
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(50):
            optimizer.zero_grad()
            F.smooth_l1_loss(model(images[batch]), boxes[batch], beta=0.05).backward()
            optimizer.step()


train(network, epochs=12)
plain = copy.deepcopy(network)

# %%
# Wrapped and fine-tuned on the same pictures
# -------------------------------------------
#
# ``BoxAction(action)`` moves boxes as ``action`` moves images.

action = ImageAction(c4())
on_boxes = BoxAction(action)
detector = EquiTune(network, action, on_boxes)
train(detector, epochs=8)
assert_equivariant(detector, test_images[:4], action, on_boxes)

# %%
# The overlap (intersection over union) of the boxes with the true ones says how good they are.

plt.style.use("equitune.viz.style")
figure, axes = plt.subplots(1, 4, figsize=(9, 3.1))
styles = {"truth": ("white", "--"), "plain": ("C1", "-"), "EquiTune": ("C5", "-")}
for g, axis in enumerate(axes):
    turned, truth = action.transform(test_images, g), on_boxes.transform(test_boxes, g)
    with torch.inference_mode():
        found = {"truth": truth, "plain": plain(turned), "EquiTune": detector(turned)}
    axis.imshow(turned[0, 0].numpy(), cmap="gray", extent=(0, 1, 1, 0))
    for name, (color, line) in styles.items():
        x, y, right, bottom = found[name][0].tolist()
        size = (right - x, bottom - y)
        axis.add_patch(Rectangle((x, y), *size, fill=False, ec=color, ls=line, lw=2, label=name))
    overlaps = {name: box_iou(found[name], truth).diagonal().mean() for name in list(styles)[1:]}
    text = "\n".join(f"{name}: {overlap:.2f}" for name, overlap in overlaps.items())
    axis.set(title=f"turned by {90 * g}°", xlabel=f"mean overlap\n{text}", xticks=[], yticks=[])
axes[0].legend(labelcolor="white", loc="upper left")
plt.show()
