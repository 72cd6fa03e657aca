"""
Less memory: the activations of one copy
========================================

Training through a group of eight elements keeps the activations of eight copies. Two runners keep
those of one copy, and run the copies again when their gradients are due. The picture shows what a
training step holds at its peak, and what it costs in passes.
"""

# %%
# A network and its runners
# -------------------------
#
# BatchNorm is in eval mode: each pass holds a part of the orbit and runs twice, and statistics of
# the batch would count both. The runners refuse it in train mode.

import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import profile

from equitune import ImageAction, Symmetrized, d4
from equitune.runners import Batches
from equitune.scaling import Accumulated, Checkpointed

torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
).eval()  # fmt: skip
images, labels = torch.rand(16, 3, 32, 32), torch.arange(16) % 10

runners = {
    "Batches()": Batches(),
    "Batches(16)": Batches(16),
    "Checkpointed()": Checkpointed(),
    "Accumulated()": Accumulated(),
    "Checkpointed(Batches(4))": Checkpointed(Batches(4)),
}
models = {"without a group": network}
models |= {name: Symmetrized(network, ImageAction(d4()), runner=r) for name, r in runners.items()}


def step(model):
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()


# %%
# All of them have the same gradients.

step(models["Batches()"])
expected = network[0].weight.grad.clone()
for name in runners:
    step(models[name])
    torch.testing.assert_close(network[0].weight.grad, expected)

# %%
# The peak of a step
# ------------------
#
# The profiler of torch reports each allocation. Their running sum is what the step holds.


def peak(model):
    with profile(profile_memory=True) as profiler:
        step(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    events = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    held = torch.tensor([e["args"]["Bytes"] for e in events]).cumsum(0)
    return float(held.max()) / 1e6


megabytes = {name: peak(model) for name, model in models.items()}

# %%
# Pieces alone save little in a training step: the activations of all of them wait for the
# gradient. A step that runs pieces again holds those of one piece.

plt.style.use("equitune.viz.style")
figure, axes = plt.subplots(figsize=(7, 2.9))
colours = ["C6", "C0", "C0", "C2", "C2", "C2"]
bars = axes.barh(list(megabytes), list(megabytes.values()), color=colours)
axes.bar_label(bars, [f"{size:.0f} MB" for size in megabytes.values()], padding=3)
axes.invert_yaxis()
axes.set_xlim(0, 1.25 * max(megabytes.values()))
axes.set_xlabel("peak of a training step, 16 images, eight elements")
passes = ["1", "8", "8", "8, and 8 again", "8, and 8 again", "32, and 32 again"]
for place, text in enumerate(["passes", *passes], start=-1):
    axes.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center")
plt.show()
