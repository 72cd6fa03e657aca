"""
An audit of a classifier
========================

How much do the predictions of a classifier change when its images are turned and mirrored?
``audit`` measures it for the model and for wrappers around it. On the command line, ``equitune
audit`` does the same on a folder of images, writes a report, and fails a build where a limit is
exceeded.
"""

# %%
# A classifier
# ------------
#
# With ``EQUITUNE_DATA`` set, a ResNet-20 that was trained on CIFAR-10 with horizontal flips.
# Without it, a small network that learns scikit-learn's digits first.

import sys

import matplotlib.pyplot as plt
import torch

sys.path.extend(["..", "examples"])  # where cifar10.py and quickstart.py lie
import cifar10
import quickstart
from equitune import ImageAction, d4
from equitune.audit import audit, elements_table, models_table, wrap

torch.manual_seed(0)
folder = cifar10.data_folder()
if folder is None:
    print("EQUITUNE_DATA is not set: digits and a small network in place of CIFAR-10")
    data, network = quickstart.digits(), quickstart.small_cnn()
    quickstart.pretrain(network, data, epochs=10)
    images, labels = data.test_images[:200], data.test_labels[:200]
else:
    network = cifar10.load_resnet(folder)
    images, labels = cifar10.load_images(folder, "test", 40)

# %%
# The audit
# ---------
#
# ``d4()`` has the four rotations, and the four rotations followed by a horizontal flip. A wrapper
# runs on each of the eight copies of an image, and makes eight copies of each.

action = ImageAction(d4())
found = audit(network, images.split(50), action, wrappers=wrap(network, action), labels=labels)
print(models_table(found))

# %%
# The same, element by element: agreement is the share of images whose prediction stays.

print(elements_table(found))

# %%
# The plain network agrees with itself on upright images by definition; where it was trained with
# flips, mostly on mirrored ones as well. The wrappers agree everywhere. A gate for a build is one
# line: ``assert found.plain.changed < 0.05``.

plt.style.use("equitune.viz.style")
figure, axes = plt.subplots(2, 1, figsize=(7.5, 4.6), sharex=True)
for k, model in enumerate(found.models):
    places = [g + 0.26 * (k - 1) for g in range(8)]
    axes[0].bar(places, [100 * model.agreement(g) for g in range(8)], 0.24, label=model.name)
    axes[1].bar(places, [100 * model.accuracy(g, labels) for g in range(8)], 0.24)
axes[0].set_ylabel("agreement, %")
axes[1].set_ylabel("accuracy, %")
axes[1].set_xticks(range(8), d4().names)
axes[1].set_xlabel("element: r turns by 90 degrees, s mirrors")
for axis in axes:
    axis.grid(axis="y")
    axis.set_ylim(0, 104)
figure.legend(loc="outside upper center", ncols=3)
plt.show()
