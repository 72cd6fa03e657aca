"""The benchmark of cheap scores: its scorers, its rows, and how it goes on."""

import pytest
import torch
from torchvision.models import resnet18

import cheap_scores
import record
import render
from cifar10 import CifarResNet


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A small network and few images; what was trained."""
    torch.manual_seed(0)
    network, trained = CifarResNet(8).eval(), []
    images, labels = torch.randn(12, 3, 32, 32), torch.arange(12) % 10
    with torch.no_grad():  # so that not all images are of one class
        network.linear.bias -= network(images).mean(0)
    train = cheap_scores.train
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(cheap_scores, "load_resnet", lambda folder: network)
    monkeypatch.setattr(
        cheap_scores, "load_images", lambda folder, split, count: (images[:count], labels[:count])
    )
    for name, value in {"IMAGES": 8, "BATCH": 4, "EPOCHS": 1, "CHECKED": 6}.items():
        monkeypatch.setattr(cheap_scores, name, value)
    monkeypatch.setattr(cheap_scores, "train", lambda *arguments: trained.append(train(*arguments)))
    return tmp_path, trained


def test_rows_are_made_once_and_of_invariant_models(small):
    folder, trained = small
    cheap_scores.Accuracies(folder, fresh=False).run()
    # One network for both groups, and none for the scorer that does not learn.
    learns = [name for name in cheap_scores.SCORERS if name != cheap_scores.UNTRAINED]
    assert len(trained) == len(learns) + len(cheap_scores.SEEDS) - 1
    results = record.load("cheap_scores")
    rows = results["rows"].values()
    assert {(row["group"], row["method"]) for row in rows} == {
        (group, method)
        for group in ("c4", "d4")
        for method in ("plain", "EquiZero, its entropy",
                       *(f"Canonicalize, {name}" for name in cheap_scores.SCORERS))
    }  # fmt: skip
    assert all(row["changed"] == 0 for row in rows if row["method"] != "plain")
    assert any(row["changed"] > 0 for row in rows if row["method"] == "plain")
    cheap_scores.Accuracies(folder, fresh=False).run()
    assert record.load("cheap_scores") == results
    assert len(trained) == len(learns) + len(cheap_scores.SEEDS) - 1


def test_the_prior_is_learned():
    torch.manual_seed(0)
    upright = torch.randn(400, 3, 8, 8) + torch.linspace(2, -2, 8).view(8, 1)
    stack = cheap_scores.orbit(upright, cheap_scores.ACTIONS["c4"])
    net = cheap_scores.ConvWeightNet(3, 8)

    def share():
        logits = net.eval()(stack.flatten(0, 1)).view(stack.shape[:2])
        return float((logits.argmax(0) == 0).double().mean())

    before = share()
    cheap_scores.train(net, stack, seed=0)
    assert share() > max(0.9, before)


@pytest.mark.parametrize("name", cheap_scores.COSTS)
def test_scorers_whose_cost_is_measured(name):
    net = cheap_scores.COSTS[name](resnet18().eval()).eval()
    assert net(torch.zeros(1, 3, 224, 224)).shape == (1, 1)


def test_the_tables():
    row = {"group": "c4", "method": "a", "changed": 0.0}
    made = {"command": "python x.py", "seed": 0, "machine": "m", "versions": {"torch": "t"}}
    counts = {"test_images": 9, "checked_images": 3, "training_images": 8, "epochs": 2}
    rows = {str(seed): {**row, "seed": seed, "moved": 0.5 + seed / 10} for seed in (0, 1)}
    table = render.cheap_scores({**made, **counts, "rows": rows})
    assert "| a | 55.0% (50.0% to 60.0%) | 0.0% |" in table
    assert "seeds 0 to 1" in table
    costs = {g: {"group": g, "scorer": "a", "ratio": r} for g, r in (("c4", 1.1), ("d4", 1.25))}
    assert "| a | 1.10 | 1.25 |" in render.cheap_scores_cost({**made, "model": "m", "rows": costs})
