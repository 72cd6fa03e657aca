"""
The copies of an image
======================

A wrapper runs its model on every copy of an image under the group and combines what it says. Here
the group is that of quarter turns, and the model a small network with random weights.
"""

import torch

from equitune import EquiZero, ImageAction, c4
from equitune.losses import entropy
from equitune.viz import draw_orbit

# %%
# The image is bright at the bottom, and has a white corner.

image = torch.linspace(0, 1, 32)[:, None].expand(3, 32, 32).clone()
image[:, :8, :8] = 1

# %%
# ``EquiZero`` listens to the copy of which the model is surest, so that all four copies get the
# same answer.

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
model = EquiZero(network, ImageAction(c4()), proxy_loss=entropy)

figure = draw_orbit(model, image, plain=network, classes=["cat", "dog", "bee"])
