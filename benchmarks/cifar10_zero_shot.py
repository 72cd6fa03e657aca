"""A frozen ResNet-20 on rotated CIFAR-10: plain, EquiTune, EquiZero and LambdaEquiTune (c4).

The form of Figures 5b and 11b of the second paper. Every test image is tried in all four
rotations. Rows that are done are kept, so that an interrupted run goes on; --fresh starts again.

    EQUITUNE_DATA=... python benchmarks/cifar10_zero_shot.py
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

import torch
from torch import nn

import record
from cifar10 import data_folder, load_images, load_resnet
from equitune import EquiTune, EquiZero, ImageAction, LambdaEquiTune, c4
from equitune.losses import entropy, negative_max_probability
from equitune.weights import ConvWeightNet
from experiment import measure, train_weight_net

NAME, SEED = "cifar10_zero_shot", 0
COMMAND = "python benchmarks/cifar10_zero_shot.py"
LAMBDA_IMAGES, LAMBDA_EPOCHS = 5000, 6
# Pieces that suit a CPU; a GPU wants none.
CHUNK_SIZE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="do all rows again")
    fresh = parser.parse_args().fresh
    folder = data_folder()
    if folder is None:
        raise SystemExit("Set EQUITUNE_DATA to the folder with cifar10/ and weights/.")
    torch.manual_seed(SEED)
    images, labels = load_images(folder, "test")
    backbone, action = load_resnet(folder), ImageAction(c4())
    learned = LambdaEquiTune(
        backbone, action, weight_net=ConvWeightNet(32), weight_input="layer2", chunk_size=CHUNK_SIZE
    )
    models: dict[str, nn.Module] = {
        "plain": backbone,
        "EquiTune": EquiTune(backbone, action, chunk_size=CHUNK_SIZE),
        "EquiZero, negative_max_probability": EquiZero(
            backbone, action, proxy_loss=negative_max_probability, chunk_size=CHUNK_SIZE
        ),
        "EquiZero, entropy": EquiZero(backbone, action, proxy_loss=entropy, chunk_size=CHUNK_SIZE),
        f"LambdaEquiTune, {LAMBDA_IMAGES:,} training images": learned,
    }
    rows = {} if fresh else record.load(NAME).get("rows", {})
    for name, model in models.items():
        if name in rows:
            print(f"{name}: kept from {record.RESULTS / NAME}.json")
            continue
        start = time.perf_counter()
        if model is learned:
            train_weight_net(
                learned, *load_images(folder, "train", LAMBDA_IMAGES),
                epochs=LAMBDA_EPOCHS, seed=SEED,
            )  # fmt: skip
        # Batches of the size of a piece for the plain network as well.
        size = CHUNK_SIZE if model is backbone else 250
        rows[name] = asdict(measure(model, images, labels, batch_size=size, name=name))
        rows[name]["seconds"] = round(time.perf_counter() - start)
        record.save(NAME, COMMAND, SEED, {"test_images": len(images), "rows": rows})
    print(f"\nResNet-20, {len(images)} test images of CIFAR-10, each in all four rotations\n")
    print(f"{'':<40} {'upright':>8} {'rotated':>8} {'changed':>8} {'error':>9}")
    for name, row in rows.items():
        print(
            f"{name:<40} {row['upright']:>8.2%} {row['rotated']:>8.2%} {row['changed']:>8.2%} "
            f"{row['error']:>9.1e}"
        )


if __name__ == "__main__":
    main()
