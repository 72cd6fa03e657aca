"""
Embeddings that find turned images
==================================

Search engines compare embeddings. A photograph that was taken with the camera on its side has
another embedding, and its neighbours are other images. The mean of the embeddings of all four
rotations is the same for every orientation, so that a turned query finds what the upright one
finds.
"""

# %%
# An encoder
# ----------
#
# A small network learns to name upright digits; without its last layer it is an encoder. Nines
# are left out, because a turned nine is a six.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from equitune import EquiTune, ImageAction, c4
from equitune.vision import UnitEmbeddings

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
images = torch.tensor(pixels[labels != 9] / 16).float().view(-1, 1, 8, 8)
labels = torch.tensor(labels[labels != 9])

encoder = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 32),
)  # fmt: skip
classifier = nn.Sequential(encoder, nn.ReLU(), nn.Linear(32, 9))
optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3)
for _ in range(15):
    for batch in torch.randperm(1000).split(50):
        optimizer.zero_grad()
        F.cross_entropy(classifier(images[batch]), labels[batch]).backward()
        optimizer.step()

# %%
# Wrapped
# -------
#
# What is averaged should be of one length, or a copy with a long embedding outweighs the others:
# ``UnitEmbeddings`` scales them, before the mean and once more after it.

action = ImageAction(c4())
plain = UnitEmbeddings(encoder)
wrapped = UnitEmbeddings(EquiTune(plain, action))

# %%
# Upright images are searched with turned queries, neither of which the encoder was trained on.

index, queries = images[1000:1400], images[1400:]
index_labels, query_labels = labels[1000:1400], labels[1400:]
turns = torch.randint(1, 4, (len(queries),))  # each query is turned by 90, 180 or 270 degrees
turned = action.transform(queries, turns)


@torch.inference_mode()
def search(encode, found=5):
    """The most similar images of the index, (queries, found)."""
    return (encode(turned) @ encode(index).T).topk(found).indices


results = {"plain": search(plain), "EquiTune": search(wrapped)}
for name, found in results.items():
    share = (index_labels[found] == query_labels[:, None]).double().mean()
    print(f"{name}: {share:.0%} of the first five show the digit of the query")

# %%
# Three queries with what they find: vermilion frames are other digits.

plt.style.use("equitune.viz.style")
figure, axes = plt.subplots(3, 12, figsize=(9, 3.1), width_ratios=[1] + [1] * 5 + [0.3] + [1] * 5)
for row, query in zip(axes, (0, 3, 6), strict=True):
    row[0].imshow(turned[query, 0].numpy(), cmap="gray_r")
    row[6].set_visible(False)
    for cells, found in zip((row[1:6], row[7:]), results.values(), strict=True):
        for axis, number in zip(cells, found[query].tolist(), strict=True):
            axis.imshow(index[number, 0].numpy(), cmap="gray_r")
            right = index_labels[number] == query_labels[query]
            axis.spines[:].set(visible=True, color="C0" if right else "C1", linewidth=2.5)
plt.setp(axes, xticks=[], yticks=[])
axes[0, 0].set_title("query")
for axis, (name, found) in zip((axes[0, 3], axes[0, 9]), results.items(), strict=True):
    share = (index_labels[found] == query_labels[:, None]).double().mean()
    axis.set_title(f"{name}: {share:.0%} right")
plt.show()
