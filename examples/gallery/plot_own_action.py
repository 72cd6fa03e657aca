"""
An action of your own: panoramas
================================

A panorama shows all directions. Where it is cut open, to be stored as a rectangle, means nothing,
but networks see two borders there. The group is that of turning round, in steps of an eighth; the
action is a class of two lines.
"""

# %%
# The action
# ----------
#
# An action needs a ``group`` and a ``transform``. What it says of itself is optional, and
# checked: ``exact`` promises that nothing is interpolated, ``extent`` names the dimension that is
# acted on.

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from equitune import Action, EquiTune, cyclic
from equitune.testing import assert_action, assert_equivariant


class TurnRound(Action):
    """Turns panoramas (B, ..., W) by multiples of an eighth of a full turn."""

    group = cyclic(8)
    exact = linear = permutes = True
    extent = {-1: 96}

    def transform(self, x, g):
        return x.roll(g * 12, -1)


action = TurnRound()
assert_action(action, torch.rand(2, 1, 24, 96))

# %%
# A network that removes noise
# ----------------------------
#
# It learns from ordinary pictures, waves of hills below a sky, and pads them with zeros.

torch.manual_seed(0)
angles, heights = torch.linspace(0, 2 * torch.pi, 97)[:-1], torch.linspace(1, -1, 24)[:, None]


def panoramas(count):
    """Hills and a sun, (B, 1, 24, 96); the left border continues at the right one."""
    phases, sun = 2 * torch.pi * torch.rand(2, 3, count, 1)
    ground = sum(0.25 * torch.sin(k * angles + phases[k - 1]) for k in (1, 2, 3))
    sky = 0.6 + 0.4 * torch.exp(4 * (torch.cos(angles - sun[0]) - 1))
    return torch.where(heights < ground[:, None], 0.2, sky[:, None])[:, None]


network = nn.Sequential(
    nn.Conv2d(1, 16, 7, padding=3), nn.ReLU(),
    nn.Conv2d(16, 16, 7, padding=3), nn.ReLU(),
    nn.Conv2d(16, 1, 7, padding=3),
)  # fmt: skip
optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
for _ in range(150):
    clean = panoramas(8)
    optimizer.zero_grad()
    F.mse_loss(network(clean + 0.3 * torch.randn_like(clean)), clean).backward()
    optimizer.step()

# %%
# Wrapped
# -------

model = EquiTune(network, action, action)
clean = panoramas(64)
noisy = clean + 0.3 * torch.randn_like(clean)
assert_equivariant(model, noisy[:2], action, action)

# %%
# The plain network is worst at the cut, wherever it happens to be. The wrapped one, which has
# seen each place away from the cut in seven of eight copies, has no cut.

with torch.inference_mode():
    outputs = {"plain": network(noisy), "EquiTune": model(noisy)}
plt.style.use("equitune.viz.style")
figure, axes = plt.subplots(3, 1, figsize=(7, 5.6), height_ratios=[3, 3, 4])
shown = {"a noisy panorama": noisy[0, 0], "EquiTune": outputs["EquiTune"][0, 0]}
for axis, (name, panorama) in zip(axes, shown.items(), strict=False):
    axis.imshow(
        panorama.numpy(), cmap="cividis", vmin=0, vmax=1, aspect="auto", extent=(0, 360, 0, 1)
    )
    axis.set(title=name, xticks=[], yticks=[])
for name, output in outputs.items():
    error = (output - clean).square().mean((0, 1, 2)).sqrt()
    axes[2].plot(torch.arange(96) * 3.75 + 1.9, error, label=name)
axes[2].set(
    xlim=(0, 360), ylim=(0, None), xlabel="direction, degrees", ylabel="error (64 panoramas)"
)
axes[2].set_xticks(range(0, 361, 45))
axes[2].grid(axis="y")
axes[2].legend(loc="lower center", ncols=2)
plt.show()
