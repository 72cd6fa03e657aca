"""
A test that says what is wrong
==============================

Code for equivariance fails quietly: the loss goes down, only the symmetry is not there.
``assert_equivariant`` checks any model, of this library or not, in one line, and says which of
the usual mistakes a failure looks like. Here it meets a segmenter that is right, and four that
are not.
"""

# %%
# One model that is right
# -----------------------
#
# A segmenter returns maps that turn with the image: the same action on both sides.

import matplotlib.pyplot as plt
import torch
from torch import nn

from equitune import EquiTune, ImageAction, c4
from equitune.testing import assert_equivariant, equivariance_report

torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1))
action = ImageAction(c4())
images = torch.rand(4, 3, 16, 16)
assert_equivariant(EquiTune(network, action, action), images, action, action)

# %%
# And four that look right
# ------------------------
#
# Each of them is a mistake that published code has made: outputs that are turned once more
# instead of back, outputs that are not turned at all, one element for a whole batch, and a
# network as it is.


def averaged(back):
    """The mean of the network's outputs, moved by ``back(output, g)``."""
    return lambda x: sum(back(network(action.transform(x, g)), g) for g in range(4)) / 4


def chosen_for_the_batch(x):
    copies = torch.stack(
        [action.transform(network(action.transform(x, g)), -g % 4) for g in range(4)]
    )
    return copies[copies.amax((1, 2, 3, 4)).argmax()]


suspects = {
    "EquiTune": EquiTune(network, action, action),
    "turned once more": averaged(action.transform),
    "not turned back": averaged(lambda y, g: y),
    "one element for the batch": chosen_for_the_batch,
    "the network as it is": network,
}
reports = {
    name: equivariance_report(model, images, action, action) for name, model in suspects.items()
}
for name, report in reports.items():
    print(f"{name}:", "passed" if report.passed else [*report.causes, "no symmetry"][0])

# %%
# What a failure looks like
# -------------------------
#
# In a test suite, this is the message that a developer sees.

try:
    assert_equivariant(suspects["turned once more"], images, action, action)
except AssertionError as error:
    print(error)

# %%
# The errors of all five, relative to the largest entry. The last column has another element for
# each sample, and is where models that mix up the samples of a batch fail.

plt.style.use("equitune.viz.style")
rows = [[float(e.relative) for e in report.errors] for report in reports.values()]
names = ["each its own" if e.mixed else e.name for e in next(iter(reports.values())).errors]
figure, axis = plt.subplots(figsize=(7, 3))
shown = axis.imshow(
    torch.tensor(rows).clamp(min=1e-8).log10().numpy(), cmap="cividis", aspect="auto"
)
for i, row in enumerate(rows):
    for k, error in enumerate(row):
        color = "white" if error < 1e-4 else "black"
        axis.text(k, i, f"{error:.0e}" if error else "0", ha="center", va="center", color=color)
axis.set_xticks(range(len(names)), names)
axis.set_yticks(range(len(reports)), [
    f"{name}: {'passes' if report.passed else 'fails'}" for name, report in reports.items()
])  # fmt: skip
axis.tick_params(length=0)
axis.spines[:].set_visible(False)
axis.set_title("relative error for each element")
plt.show()
