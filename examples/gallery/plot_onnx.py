"""
A wrapper in onnxruntime
========================

What is deployed is one file of ONNX, which holds the group, the choice and the network. No Python
and no PyTorch is left, and the answer is still the same for each orientation of the input.
"""

# %%
# A network and its wrapper
# -------------------------
#
# A small network learns upright digits. The wrapper looks at all four orientations, and answers by
# the one of which the network is surest.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import onnxruntime
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from equitune import EquiZero, ImageAction, c4
from equitune.losses import entropy

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)

network = nn.Sequential(
    nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10)
)
optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
for _ in range(60):
    optimizer.zero_grad()
    F.cross_entropy(network(images[:1500]), labels[:1500]).backward()
    optimizer.step()
model = EquiZero(network, ImageAction(c4()), proxy_loss=entropy).eval()

# %%
# The file
# --------
#
# The batch is dynamic: one file serves every number of images.

program = torch.export.export(
    model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)
)
path = Path(tempfile.mkdtemp()) / "digits.onnx"
torch.onnx.export(program, verbose=False).save(path)
session = onnxruntime.InferenceSession(path)
(given,) = session.get_inputs()


def answer(batch):
    """The probabilities that onnxruntime computes."""
    (logits,) = session.run(None, {given.name: batch.numpy()})
    return torch.from_numpy(logits).softmax(-1)


# %%
# The same answer for each orientation
# ------------------------------------
#
# One digit in four orientations: above what the network says by itself, below what the file says.

turned = torch.cat([images[1700:1701].rot90(k, (-2, -1)) for k in range(4)])
with torch.no_grad():
    alone = network(turned).softmax(-1)
together = answer(turned)
torch.testing.assert_close(together, together[:1].expand(4, 10), rtol=1e-4, atol=1e-5)

plt.style.use("equitune.viz.style")
figure, axes = plt.subplots(3, 4, figsize=(7.5, 4.6), layout="constrained", sharey="row")
for k, column in enumerate(axes.T):
    column[0].imshow(turned[k, 0].numpy(), cmap="gray_r")
    column[0].set_title(f"turned by {90 * k}°")
    column[0].set_axis_off()
    column[1].bar(range(10), alone[k].tolist(), color="C1")
    column[2].bar(range(10), together[k].tolist(), color="C0")
    for axis in column[1:]:
        axis.set(ylim=(0, 1), xticks=range(0, 10, 3))
axes[1, 0].set_ylabel("the network")
axes[2, 0].set_ylabel("the ONNX file")
plt.show()
