"""EquiZero in bfloat16: no prediction may change under rotation (ResNet-20, 512 test images, c4).

EQUITUNE_DATA=... python benchmarks/bfloat16_consistency.py
"""

from __future__ import annotations

import torch

import record
from cifar10 import data_folder, load_images, load_resnet
from equitune import EquiZero, ImageAction, c4
from equitune.losses import negative_log_max_probability

NAME, SEED, COUNT = "bfloat16_consistency", 0, 512


@torch.inference_mode()
def main() -> None:
    folder = data_folder()
    if folder is None:
        raise SystemExit("Set EQUITUNE_DATA to the folder with cifar10/ and weights/.")
    images, _ = load_images(folder, "test", COUNT)
    model = EquiZero(
        load_resnet(folder), ImageAction(c4()), proxy_loss=negative_log_max_probability
    ).to(torch.bfloat16)
    symmetric = sum(images.rot90(k, (-2, -1)) for k in range(4)) / 4
    numbers = {}
    for name, inputs in (("photographs", images), ("symmetric inputs", symmetric)):
        x = inputs.to(torch.bfloat16)
        turned = [model(x.rot90(k, (-2, -1)).contiguous()).float() for k in range(4)]
        logits = torch.stack(turned)
        numbers[name] = {
            "images": COUNT,
            "changed_predictions": int((logits.argmax(-1) != logits[0].argmax(-1)).any(0).sum()),
            "largest_logit_difference": float((logits - logits[0]).abs().max()),
            "largest_logit": float(logits.abs().max()),
        }
        print(name, numbers[name])
    record.save(NAME, "python benchmarks/bfloat16_consistency.py", SEED, {"rows": numbers})


if __name__ == "__main__":
    main()
