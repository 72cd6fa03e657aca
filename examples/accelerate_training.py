"""Accelerate in bf16: the two phases of LambdaEquiTune on digits, with a loss that reads scores.

accelerate launch examples/accelerate_training.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from equitune import Explaining, ImageAction, LambdaEquiTune, c4
from equitune.training import backbone_phase, upright_loss, weights_phase
from equitune.weight_nets import ConvWeightNet
from experiment import measure
from quickstart import SEED, digits, pretrain, small_cnn


def train(accelerator: Accelerator, model: LambdaEquiTune, phase, data, epochs: int) -> None:
    """One phase: what ``phase`` returns learns, everything else is fixed."""
    dataset = TensorDataset(data.images, data.labels)
    # The engine sees calls of forward only, so it gets a module whose forward explains.
    explaining, optimizer, loader = accelerator.prepare(
        Explaining(model),
        torch.optim.AdamW(phase(model), lr=1e-3),
        DataLoader(dataset, batch_size=64, shuffle=True),
    )
    for _ in range(epochs):
        for images, labels in loader:
            explanation = explaining(images)
            loss = F.cross_entropy(explanation.output, labels) + upright_loss(explanation.scores)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()


def main(epochs: int = 5) -> list[float]:
    """The accuracy on images in four rotations: before training, and after each phase."""
    accelerator = Accelerator(mixed_precision="bf16")
    torch.manual_seed(SEED)
    data, backbone = digits(), small_cnn()
    pretrain(backbone, data, epochs)
    model = LambdaEquiTune(backbone, ImageAction(c4()), weight_net=ConvWeightNet(1)).eval()
    found = [measure(model, data.test_images, data.test_labels).rotated]
    for phase in (weights_phase, backbone_phase):
        train(accelerator, model, phase, data, epochs)
        model.to("cpu").eval()
        found.append(measure(model, data.test_images, data.test_labels).rotated)
        accelerator.print(f"{phase.__name__}: {found[-1]:.1%} right in four rotations")
    return found


if __name__ == "__main__":
    main()
