"""The benchmarks of training: runs are paired, resumed, and tell what they should."""

import dataclasses
import json

import pytest
import torch
from torch import nn

import ants_and_bees
import cifar10
import cifar10_zero_shot
import finetuning
import pictures
import record
import render
from cases import ConvNet
from equitune import EquiTune, ImageAction, LambdaEquiTune, c4, d4
from equitune.losses import negative_log_max_probability
from equitune.testing import assert_equivariant
from equizero_sign import least_sure
from experiment import measure, measure_invariant

RECIPE = finetuning.Recipe(epochs=1, batch_size=4, learning_rate=0.1, measured_batch=5)


@pytest.fixture
def split():
    torch.manual_seed(0)
    return finetuning.Split(torch.randn(10, 3, 8, 8), torch.arange(10) % 2)


@pytest.fixture
def loaded(monkeypatch, tmp_path, split):
    """What each run was given: the first weight of its network."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    given = []

    def load(run):
        net = ConvNet(3, 2, dense=False)
        given.append((run.name, float(net.head.weight.detach().flatten()[0])))
        return net, split, split

    return load, given


def do(load, todo):
    finetuning.benchmark("finetuned", todo, load, RECIPE)


def test_runs_are_paired_stored_and_resumed(loaded, split, tmp_path):
    load, given = loaded
    todo = finetuning.runs(["net"], 2)
    assert len(todo) == 2 * 2 * 3
    do(load, todo[:5])
    first_runs = json.loads((tmp_path / "finetuned.json").read_text())["rows"]
    do(load, todo)
    # What was done is loaded, but not trained again.
    assert [name for name, _ in given] == [run.name for run in [*todo[:5], *todo]]
    later = json.loads((tmp_path / "finetuned.json").read_text())["rows"]
    assert {name: later[name] for name in first_runs} == first_runs
    first = {run.name: run.seed for run in todo}
    starts = {first[name]: weight for name, weight in given}
    assert all(starts[first[name]] == weight for name, weight in given)
    assert starts[0] != starts[1]
    stored = json.loads((tmp_path / "finetuned.json").read_text())
    assert stored["command"].startswith("python benchmarks/")
    assert list(stored["rows"]) == [run.name for run in todo]
    for row in stored["rows"].values():
        assert row["settings"]["recipe"]["batch_size"] == 4
        assert row["settings"]["size"] == 8
        if row["group"] != "plain":
            assert row["changed"] == 0
            assert row["error"] < 1e-5


def test_other_settings_are_other_runs(loaded, split, tmp_path):
    load, _ = loaded
    todo = finetuning.runs(["net"], 1)[:1]
    do(load, todo)
    smaller = finetuning.Split(split.images[:6], split.labels[:6])
    do(lambda run: (load(run)[0], smaller, split), todo)
    (row,) = json.loads((tmp_path / "finetuned.json").read_text())["rows"].values()
    assert row["settings"]["train_images"] == 6


def test_runs_repeat_and_depend_on_what_they_should(loaded, split):
    load, _ = loaded

    def trained(group, augmentation, seed):
        torch.manual_seed(seed)
        net, train, _ = load(finetuning.Run("net", group, augmentation, seed))
        model = finetuning.symmetrised(net, group)
        run = finetuning.Run("net", group, augmentation, seed)
        finetuning.finetune(model, run, train, RECIPE)
        assert not model.training
        return net.head.weight.detach().clone()

    plain = trained("plain", "none", 0)
    assert torch.equal(plain, trained("plain", "none", 0))
    for other in (("plain", "none", 1), ("plain", "c4", 0), ("c4", "none", 0), ("d4", "none", 0)):
        assert not torch.equal(plain, trained(*other))


def test_invariant_models_are_measured_as_by_all_rotations(split):
    labels = torch.arange(10) % 2
    net = ConvNet(3, 2, dense=False).eval()
    model = EquiTune(net, ImageAction(c4()))
    for checked in (3, 10):
        fast = measure_invariant(model, split.images, labels, checked=checked)
        assert (fast.upright, fast.rotated) == (measure(model, split.images, labels).rotated,) * 2
    # One that is not invariant is not measured by its upright images.
    slow = measure_invariant(net, split.images, labels, checked=10)
    assert slow == measure(net, split.images, labels)
    assert slow.changed > 0


def test_tables_of_fine_tuning():
    values = {"plain": [60.0, 50.0], "d4": [80.0, 90.0]}
    rows = {
        f"{group}{seed}": {"model": "net", "group": group, "augmentation": "none", "seed": seed,
                           "rotated": value / 100}
        for group, own in values.items() for seed, value in enumerate(own)
    }  # fmt: skip
    versions = {"torch": "2"}
    results = {"rows": rows, "command": "a", "seed": 0, "versions": versions, "machine": "m"}
    table = render.finetuning(results, diverged=0.55)
    assert "| net | plain | 55.0 (7.1), 1 diverged |  |" in table
    assert "| net | d4 | 85.0 (7.1) | **+30.0** (+20.0, +40.0) |" in table
    assert "seeds 0 to 1" in table


def test_pictures_show_every_seed():
    rows = {
        f"{group}{seed}": {"model": "net", "group": group, "augmentation": "c4", "seed": seed,
                           "rotated": value}
        for group, own in {"plain": [0.5, 0.25], "d4": [0.75, 0.5]}.items()
        for seed, value in enumerate(own)
    }  # fmt: skip
    expected = {"net\nc4 augmentation": {"plain": [50.0, 25.0], "d4": [75.0, 50.0]}}
    assert pictures.bars({"rows": rows}) == expected


@pytest.mark.parametrize(
    "weighting", cifar10_zero_shot.WEIGHTINGS.values(), ids=cifar10_zero_shot.WEIGHTINGS
)
def test_weight_networks_are_trained_on_what_they_read(weighting):
    torch.manual_seed(0)
    backbone = cifar10.CifarResNet(8).eval()
    # Brighter towards the top, so that there is an upright to learn.
    images = 0.1 * torch.randn(250, 3, 32, 32) + torch.linspace(2, -2, 32)[:, None]
    labels = torch.arange(250) % 10
    net = weighting.make()
    stack = cifar10_zero_shot.seen(backbone, weighting.weight_input, images)
    outputs = cifar10_zero_shot.seen(backbone, "output", images)
    assert stack.shape[:2] == outputs.shape[:2] == (4, 250)
    expected = torch.stack([backbone(images.rot90(k, (2, 3))) for k in range(4)])
    torch.testing.assert_close(outputs.float(), expected, rtol=0.02, atol=0.02)
    # The random network says little; more steps than the benchmark needs.
    longer = dataclasses.replace(weighting, epochs=30, learning_rate=1e-2)
    cifar10_zero_shot.train(net, longer, stack, outputs, labels)
    assert not net.training
    model = LambdaEquiTune(
        backbone, ImageAction(c4()), weight_net=net, weight_input=weighting.weight_input
    ).eval()
    upright, sideways = cifar10_zero_shot.mean_weights(model, images)[:2]
    assert upright > 0.3 > sideways


def test_the_wrong_sign_is_the_wrong_sign():
    logits = torch.randn(4, 5, 10)
    sure = negative_log_max_probability(logits).argmin(0)
    assert torch.equal(sure, logits.softmax(-1).amax(-1).argmax(0))
    assert torch.equal(least_sure(logits).argmin(0), logits.softmax(-1).amax(-1).argmin(0))


@pytest.mark.parametrize("name", ["squeezenet1_0", "resnet18", "alexnet", "densenet121"])
def test_the_last_layer_is_replaced(name):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    with torch.device("meta"):
        network = models.get_model(name, weights=None)
        ants_and_bees._replace_last_layer(network, 2)
        assert network.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 2)


FOLDER = cifar10.data_folder()


@pytest.mark.skipif(FOLDER is None, reason="EQUITUNE_DATA is not set")
def test_the_photographs_and_the_pretrained_network():
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    images, labels = ants_and_bees.load_photographs("val", 64, FOLDER)
    assert images.shape == (153, 3, 64, 64)
    assert labels.bincount().tolist() == [70, 83]
    assert 0.5 < float(images.std()) < 1.5
    network = ants_and_bees.load_network("squeezenet1_0", FOLDER)
    with torch.inference_mode():
        assert network(images[:2]).shape == (2, 2)
    last = [m for m in network.modules() if isinstance(m, nn.Conv2d)][-1]
    assert 0.005 < float(last.weight.detach().std()) < 0.02
    assert_equivariance_of(network, images[:2])


def assert_equivariance_of(network, images):
    action = ImageAction(d4())
    assert_equivariant(EquiTune(network, action), images, action)
    assert_equivariant(EquiTune(network, action, action, submodule="features"), images, action)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(network, images, action)
