"""A wrapped vision model in transformers' Trainer, by the lines of the guide."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from equitune import (
    Drop,
    EquiTune,
    ImageAction,
    LambdaEquiTune,
    TreeAction,
    TrivialAction,
    cyclic,
    d4,
)
from equitune.testing import assert_invariant
from equitune.weight_nets import MlpWeightNet

pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

STILL = TrivialAction(d4())
OUTPUT = TreeAction({"logits": STILL}, others=Drop())


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        return {"pixel_values": torch.rand(3, 16, 16, generator=generator), "labels": i % 3}


def network():
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(image_size=16, patch_size=8, num_labels=3, hidden_size=16, num_hidden_layers=1,
                  num_attention_heads=2, intermediate_size=16)
    )  # fmt: skip


def loss(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels)


def trainer(model, folder, steps=3, **options):
    settings = TrainingArguments(
        folder, max_steps=steps, save_steps=3, per_device_train_batch_size=4, learning_rate=1e-2,
        use_cpu=True, report_to=[], disable_tqdm=True, remove_unused_columns=False,
        label_names=["labels"], **options,
    )  # fmt: skip
    return Trainer(
        model, settings, train_dataset=Pictures(), eval_dataset=Pictures(), compute_loss_func=loss
    )


ACTIONS = {
    "images": (ImageAction(d4()), OUTPUT),
    "images and labels by name": ({"pixel_values": ImageAction(d4()), "labels": STILL}, OUTPUT),
    "all that a trainer may pass": (
        {"pixel_values": ImageAction(d4()), "labels": STILL, "num_items_in_batch": STILL}, OUTPUT
    ),
    "a loss that is dropped": (
        ImageAction(d4()), TreeAction({"loss": Drop(), "logits": STILL})
    ),
    "cyclic(4)": (
        ImageAction(cyclic(4), [0, 1, 2, 3]),
        TreeAction({"logits": TrivialAction(cyclic(4))}, others=Drop()),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "outputs"), ACTIONS.values(), ids=ACTIONS)
def test_three_steps(inputs, outputs, tmp_path):
    model = EquiTune(network(), inputs, outputs)
    before = [p.detach().clone() for p in model.parameters()]
    assert trainer(model, tmp_path).train().global_step == 3
    assert not any(map(torch.equal, before[:1], list(model.parameters())[:1]))
    x = torch.rand(4, 3, 16, 16)
    action = inputs["pixel_values"] if isinstance(inputs, dict) else inputs
    model.eval()
    assert_invariant(lambda x: model(pixel_values=x), x, action)


def test_evaluation_checkpoints_and_resuming(tmp_path):
    model = LambdaEquiTune(network(), ImageAction(d4()), OUTPUT, weight_net=MlpWeightNet(768))
    whole = trainer(model, tmp_path / "whole", steps=6)
    whole.train()
    figures = whole.evaluate()
    assert figures["eval_loss"] > 0
    found = whole.predict(Pictures())
    assert found.predictions.shape == (12, 3)
    assert found.label_ids.tolist() == [i % 3 for i in range(12)]
    # Stopped after three steps, and taken up again by another process.
    torch.manual_seed(1)
    first = LambdaEquiTune(network(), ImageAction(d4()), OUTPUT, weight_net=MlpWeightNet(768))
    second = LambdaEquiTune(network(), ImageAction(d4()), OUTPUT, weight_net=MlpWeightNet(768))
    trainer(first, tmp_path / "parts").train()
    resumed = trainer(second, tmp_path / "parts", steps=6)
    assert resumed.train(resume_from_checkpoint=True).global_step == 6
    saved = Path(tmp_path / "parts" / "checkpoint-6")
    third = LambdaEquiTune(network(), ImageAction(d4()), OUTPUT, weight_net=MlpWeightNet(768))
    third.load_state_dict(load_file(saved / "model.safetensors"))
    pairs = itertools.zip_longest(second.state_dict().items(), third.state_dict().items())
    assert all(a == b and torch.equal(p, q) for (a, p), (b, q) in pairs)


def test_what_happens_without_these_lines(tmp_path):
    """The Trainer asks forward for the names of its arguments, and drops all others."""
    settings = TrainingArguments(
        tmp_path, max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True
    )
    model = EquiTune(network(), ImageAction(d4()), OUTPUT)
    with pytest.raises(ValueError, match="batch received was empty"):
        Trainer(model, settings, train_dataset=Pictures(), compute_loss_func=loss).train()
    settings.remove_unused_columns = False
    with pytest.raises(ValueError, match="the tensor argument 'labels' has no action"):
        Trainer(model, settings, train_dataset=Pictures()).train()


def test_the_loss_of_the_backbone_is_not_that_of_the_wrapper():
    assert EquiTune(network(), ImageAction(d4()), OUTPUT).accepts_loss_kwargs is False
