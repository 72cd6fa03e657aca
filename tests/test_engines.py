"""The examples for Lightning and accelerate run, and each phase trains what it should."""

import ast
import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from equitune import ImageAction, LambdaEquiTune, c4
from equitune.training import backbone_phase, weights_phase
from equitune.weight_nets import ConvWeightNet
from quickstart import small_cnn

ROOT = Path(__file__).resolve().parents[1]
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}

# What Lightning says of every small run, and of every frozen module.
LIGHTNINGS = (
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.. is deprecated"),
)


def of_lightning(test):
    for mark in LIGHTNINGS:
        test = mark(test)
    return test


@of_lightning
def test_the_example_for_lightning():
    pytest.importorskip("lightning", reason="Lightning is not installed")
    import lightning_training

    found = lightning_training.main(epochs=1, limit_test_batches=1, **QUIET)
    # Invariant in every phase.
    assert [len(set(accuracies.values())) for accuracies in found] == [1, 1, 1]
    before, weighted, tuned = (accuracies["turned by 90"] for accuracies in found)
    assert weighted > before + 0.2
    assert tuned > before + 0.2


@of_lightning
@pytest.mark.parametrize("phase", [weights_phase, backbone_phase])
def test_lightning_leaves_alone_what_is_fixed(phase):
    """Statistics of BatchNorm included: the engine sets modes of its own."""
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    from lightning_training import Phase

    torch.manual_seed(0)
    model = LambdaEquiTune(small_cnn(), ImageAction(c4()), weight_net=ConvWeightNet(1))
    before = copy.deepcopy(model.state_dict())
    loader = DataLoader(TensorDataset(torch.randn(8, 1, 8, 8), torch.arange(8)), batch_size=4)
    lightning.Trainer(**QUIET, max_epochs=1, log_every_n_steps=1).fit(Phase(model, phase), loader)
    changed = {name for name, value in model.state_dict().items()
               if not torch.equal(value, before[name])}  # fmt: skip
    learns = "backbone" if phase is backbone_phase else "weighting"
    assert {name.partition(".")[0] for name in changed} == {learns}
    assert any("running_mean" in name for name in changed)


def test_the_example_for_accelerate():
    """In a process of its own: accelerate keeps the precision of the first one that asks."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT / "examples")))
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c",
         "import accelerate_training; print(accelerate_training.main(epochs=1))"],
        env={**os.environ, "PYTHONPATH": path, "ACCELERATE_USE_CPU": "true"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    before, weighted, tuned = ast.literal_eval(run.stdout.splitlines()[-1])
    assert weighted > before + 0.2
    assert tuned > before + 0.2
