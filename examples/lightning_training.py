"""Lightning: the two phases of LambdaEquiTune on digits, tested on images in four rotations.

python examples/lightning_training.py
"""

import lightning
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from equitune import ImageAction, LambdaEquiTune, c4
from equitune.training import backbone_phase, upright_loss, weights_phase
from equitune.weight_nets import ConvWeightNet
from quickstart import SEED, digits, pretrain, small_cnn


class Phase(lightning.LightningModule):
    """One phase of training: the optimizer gets what ``phase`` says that learns."""

    def __init__(self, model, phase):
        super().__init__()
        self.model, self.phase = model, phase

    def configure_optimizers(self):
        return torch.optim.AdamW(self.phase(self.model), lr=1e-3)

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        images, labels = batch
        # Lightning calls this inside the forward of its engine, so that explain is safe.
        explanation = self.model.explain(images)
        return F.cross_entropy(explanation.output, labels) + upright_loss(explanation.scores)

    def test_step(self, batch: list[Tensor], number: int) -> None:
        images, labels = batch
        for quarters in range(4):
            found = self.model(images.rot90(quarters, (-2, -1))).argmax(-1)
            self.log(f"turned by {90 * quarters}", (found == labels).float().mean())


def main(epochs: int = 5, **options) -> list[dict[str, float]]:
    """The accuracy for each rotation: before training, and after each phase."""
    torch.manual_seed(SEED)
    data, backbone = digits(), small_cnn()
    pretrain(backbone, data, epochs)
    model = LambdaEquiTune(backbone, ImageAction(c4()), weight_net=ConvWeightNet(1))
    upright = DataLoader(TensorDataset(data.images, data.labels), batch_size=64, shuffle=True)
    test = DataLoader(TensorDataset(data.test_images, data.test_labels), batch_size=256)
    options = {"max_epochs": epochs, "logger": False, "enable_checkpointing": False, **options}
    found = lightning.Trainer(**options).test(Phase(model.eval(), weights_phase), test)
    for phase in (weights_phase, backbone_phase):
        trainer, module = lightning.Trainer(**options), Phase(model, phase)
        trainer.fit(module, upright)
        found += trainer.test(module, test)
    return found


if __name__ == "__main__":
    main()
