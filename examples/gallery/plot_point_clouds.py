"""
Point clouds: a direction that turns along
==========================================

A network reads the points of a cone and returns the direction of its tip. It has learned from
cones that stand more or less upright. The 24 rotations of a cube act on points by exchanging
coordinates and changing signs, without rounding; with them on both sides, the network finds tips
anywhere.
"""

# %%
# The group and its action
# ------------------------
#
# All 3 x 3 matrices with one 1 or -1 in each row and column, and determinant 1. Row i says which
# coordinate comes to place i, and with which sign.

import copy
import itertools

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from equitune import EquiTune, FiniteGroup, SignedPermutationAction
from equitune.testing import assert_equivariant

signs = itertools.product((1.0, -1.0), repeat=3)
signed = itertools.product(itertools.permutations(range(3)), signs)
matrices = [torch.diag(torch.tensor(sign))[:, list(axes)] for axes, sign in signed]
matrices = [matrix for matrix in matrices if torch.linalg.det(matrix) > 0]
group = FiniteGroup.from_matrices(matrices)
places = [matrix.abs().argmax(1).tolist() for matrix in matrices]
rotations = SignedPermutationAction(group, places, [m.sum(1).int().tolist() for m in matrices])

# %%
# Cones, and a network that reads sets of points
# ----------------------------------------------


def cones(count, tilt, points=64):
    """Clouds (B, points, 3), and the directions of the tips (B, 3), tilted off the z-axis."""
    tips = F.normalize(torch.tensor([0.0, 0.0, 1.0]) + tilt * torch.randn(count, 3), dim=-1)
    aside = F.normalize(torch.linalg.cross(tips, torch.randn(count, 3)), dim=-1)
    basis = torch.stack([aside, torch.linalg.cross(tips, aside), tips], dim=1)
    height, angle = torch.rand(count, points).sqrt(), 6.28 * torch.rand(count, points)
    local = torch.stack([height * angle.cos(), height * angle.sin(), 1 - 2 * height], dim=-1)
    return 0.6 * local @ basis + 0.02 * torch.randn(count, points, 3), tips


class PointNet(nn.Module):
    def __init__(self, size=64):
        super().__init__()
        self.points = nn.Sequential(nn.Linear(3, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 3))

    def forward(self, clouds):
        return self.head(self.points(clouds).mean(1))


def train(model, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        clouds, tips = cones(32, tilt=0.3)
        optimizer.zero_grad()
        F.mse_loss(model(clouds), tips).backward()
        optimizer.step()


# %%
# Trained on upright cones, wrapped, and trained a little further on upright cones.

torch.manual_seed(0)
network = PointNet()
train(network, steps=300)
plain = copy.deepcopy(network)
model = EquiTune(network, rotations, rotations)
train(model, steps=100)

# %%
# The assertion runs in float64, where a mistake stands out from rounding.

clouds, tips = cones(400, tilt=10.0)  # any direction
assert_equivariant(copy.deepcopy(model).double(), clouds[:4].double(), rotations, rotations)

# %%
# Cones in any direction: by how many degrees is the tip missed?

plt.style.use("equitune.viz.style")
figure = plt.figure(figsize=(8, 3.2))
space, axis = figure.add_subplot(1, 2, 1, projection="3d"), figure.add_subplot(1, 2, 2)
lying = int(tips[:, 2].abs().argmin())
space.scatter(*clouds[lying].T.numpy(), s=6, color="C6", depthshade=False)
with torch.inference_mode():
    found = {"plain": plain(clouds), "EquiTune": model(clouds)}
space.quiver(0, 0, 0, *tips[lying].tolist(), color="0.15", linewidth=1, label="truth")
for color, (name, answers) in zip(("C1", "C0"), found.items(), strict=True):
    directions = F.normalize(answers, dim=-1)
    space.quiver(0, 0, 0, *directions[lying].tolist(), color=color, linewidth=2.5, label=name)
    missed = (directions * tips).sum(-1).clamp(-1, 1).arccos().rad2deg()
    from_z = tips[:, 2].clamp(-1, 1).arccos().rad2deg()
    axis.scatter(from_z.numpy(), missed.numpy(), s=8, color=color, label=name)
space.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
space.set(xticklabels=[], yticklabels=[], zticklabels=[], title="a cone that lies down")
axis.set(xlabel="the tip is off the z-axis by, degrees", ylabel="missed by, degrees")
axis.set(xlim=(0, 180), ylim=(0, 180), xticks=range(0, 181, 45), yticks=range(0, 181, 45))
axis.grid()
axis.legend(loc="upper left")
plt.show()
