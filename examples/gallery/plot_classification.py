"""
A classifier that does not mind rotations
=========================================

A network that was trained on upright images is lost when they are turned. Two wrappers repair
that without any training: ``EquiTune`` takes the mean over the four rotations of an image,
``EquiZero`` keeps the rotation that the network is surest of. Both give one answer for all four
orientations.
"""

# %%
# A pretrained network
# --------------------
#
# With ``EQUITUNE_DATA`` set, this is a ResNet-20 that was trained on CIFAR-10. Without it, a
# small network learns scikit-learn's digits first, which takes a few seconds.

import sys

import matplotlib.pyplot as plt
import torch

sys.path.extend(["..", "examples"])  # where cifar10.py and quickstart.py lie
import cifar10
import quickstart
from equitune import EquiTune, EquiZero, ImageAction, c4
from equitune.losses import negative_log_max_probability

torch.manual_seed(0)
folder = cifar10.data_folder()
if folder is None:
    print("EQUITUNE_DATA is not set: digits and a small network in place of CIFAR-10")
    data, network = quickstart.digits(), quickstart.small_cnn()
    quickstart.pretrain(network, data, epochs=10)
    images, labels, names = data.test_images, data.test_labels, list("012345678")
else:
    network, names = cifar10.load_resnet(folder), cifar10.CLASSES
    images, labels = cifar10.load_images(folder, "test", 160)

# %%
# One line for each wrapper
# -------------------------
#
# ``c4()`` is the group of rotations by 90 degrees, ``ImageAction`` says that it turns images.
# ``EquiZero`` needs a score that is small for good outputs; the usual one is minus the logarithm
# of the largest probability.

action = ImageAction(c4())
models = {
    "plain": network,
    "EquiTune": EquiTune(network, action),
    "EquiZero": EquiZero(network, action, proxy_loss=negative_log_max_probability),
}

# %%
# What rotations do to the accuracy
# ---------------------------------
#
# The plain network is best on upright images, and worst on all others. The mean listens to three
# turned copies as much as to the upright one; the selection mostly finds the upright one.

with torch.inference_mode():
    said = {
        name: torch.stack([model(action.transform(images, g)).argmax(-1) for g in range(4)])
        for name, model in models.items()
    }
for name, answers in said.items():
    changed = (answers != answers[0]).any(0).double().mean()
    print(f"{name}: a rotation changes the answer for {changed:.0%} of the images")

# %%
# The picture shows one image on which a rotation changes the plain network's mind, and the
# accuracies for each rotation.

plt.style.use("equitune.viz.style")
figure, axes = plt.subplot_mosaic(
    [[0, 1, 2, 3], ["lines"] * 4], figsize=(7, 5.2), height_ratios=[3, 4]
)
right = (said["plain"][0] == labels) & (said["EquiZero"][0] == labels)
shown = int((right * (said["plain"] != labels).sum(0)).argmax())
low, high = images[shown].min(), images[shown].max()
for g in range(4):
    turned = action.transform(images[shown : shown + 1], g)[0]
    axes[g].imshow((turned - low).div(high - low).permute(1, 2, 0).numpy(), cmap="gray_r")
    plain, equizero = (names[said[name][g, shown]] for name in ("plain", "EquiZero"))
    axes[g].set_title(f"{90 * g}°\nplain: {plain}\nEquiZero: {equizero}")
    axes[g].set_axis_off()
for name, answers in said.items():
    accuracy = 100 * (answers == labels).double().mean(1)
    axes["lines"].plot(range(4), accuracy, "o-", label=name)
axes["lines"].set(ylim=(0, 102), ylabel="accuracy, %", xlabel="images turned by")
axes["lines"].set_xticks(range(4), ["0°", "90°", "180°", "270°"])
axes["lines"].grid(axis="y")
figure.legend(loc="outside lower center", ncols=3)
plt.show()
