"""Real weights and real images, from the folder that EQUITUNE_DATA names."""

import pytest
import torch

import cifar10
from equitune import EquiTune, EquiZero, ImageAction, c4, d4
from equitune.losses import negative_log_max_probability
from equitune.testing import assert_equivariant
from experiment import measure

FOLDER = cifar10.data_folder()
pytestmark = pytest.mark.skipif(FOLDER is None, reason="EQUITUNE_DATA is not set")


@pytest.fixture(scope="module")
def images():
    return cifar10.load_images(FOLDER, "test", 512)


@pytest.fixture(scope="module")
def backbone():
    return cifar10.load_resnet(FOLDER)


def test_the_plain_network_reads_upright_images_only(backbone, images):
    measured = measure(backbone, *images)
    assert measured.upright > 0.75
    assert measured.rotated < 0.5
    assert measured.changed > 0.8


def test_wrappers_are_consistent_and_better(backbone, images):
    x, labels = images[0][:256], images[1][:256]
    plain = measure(backbone, x, labels)
    action = ImageAction(c4())
    average = measure(EquiTune(backbone, action), x, labels)
    best = measure(EquiZero(backbone, action, proxy_loss=negative_log_max_probability), x, labels)
    assert average.changed == best.changed == 0
    assert plain.rotated + 0.05 < average.rotated < best.rotated


@pytest.mark.parametrize("symmetric", [False, True], ids=["photographs", "symmetric inputs"])
def test_equizero_in_bfloat16(images, symmetric):
    x = images[0]
    if symmetric:
        x = torch.stack([x.rot90(k, (-2, -1)) for k in range(4)]).mean(0)
    model = EquiZero(
        cifar10.load_resnet(FOLDER), ImageAction(c4()), proxy_loss=negative_log_max_probability
    ).to(torch.bfloat16)
    x = x.to(torch.bfloat16)
    with torch.inference_mode():
        logits = torch.stack([model(x.rot90(k, (-2, -1)).contiguous()) for k in range(4)]).float()
    assert int((logits.argmax(-1) != logits[0].argmax(-1)).sum()) == 0
    assert float((logits - logits[0]).abs().max()) <= 2e-2


def test_equivariance_of_a_real_network(backbone, images):
    action = ImageAction(d4())
    assert_equivariant(EquiTune(backbone, action), images[0][:4], action)
