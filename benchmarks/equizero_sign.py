"""EquiZero on CNNs: the copy that the network is surest of, or the one it is least sure of (c4).

The second paper reports that EquiZero does worse than EquiTune on CNNs (section 5.2.2, Figure 5b).
Its published code minimised the confidence. Pretrained CIFAR ResNets, frozen; every test image in
all four rotations. Rows that are done are kept.

    EQUITUNE_DATA=... python benchmarks/equizero_sign.py
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from torch import Tensor

import record
from cifar10 import data_folder, load_images, load_resnet
from equitune import EquiTune, EquiZero, ImageAction, c4
from equitune.losses import negative_log_max_probability
from experiment import measure, measure_invariant

NAME, SEED = "equizero_sign", 0
CHUNK_SIZE = 128


def least_sure(logits: Tensor) -> Tensor:
    """The proxy loss with the wrong sign."""
    return -negative_log_max_probability(logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test-images", type=int, default=1000)
    count = parser.parse_args().test_images
    folder = data_folder()
    if folder is None:
        raise SystemExit("Set EQUITUNE_DATA to the folder with cifar10/ and weights/.")
    images, labels = load_images(folder, "test", count)
    rows = record.load(NAME).get("rows", {})
    for depth in (20, 56):
        backbone, action = load_resnet(folder, depth), ImageAction(c4())
        models = {
            "plain": backbone,
            "EquiTune": EquiTune(backbone, action, chunk_size=CHUNK_SIZE),
            "EquiZero, surest copy": EquiZero(
                backbone, action, proxy_loss=negative_log_max_probability, chunk_size=CHUNK_SIZE
            ),
            "EquiZero, wrong sign": EquiZero(
                backbone, action, proxy_loss=least_sure, chunk_size=CHUNK_SIZE
            ),
        }
        for model_name, model in models.items():
            name = f"ResNet-{depth}, {model_name}"
            if rows.get(name, {}).get("test_images") == count:
                continue
            if model is backbone:
                measured = measure(model, images, labels, batch_size=CHUNK_SIZE, name=name)
            else:
                measured = measure_invariant(model, images, labels, name=name)
            rows[name] = {**asdict(measured), "test_images": count}
            record.add(NAME, record.command(), SEED, {name: rows[name]},
                       test_images=len(images), checked_images=100)  # fmt: skip
            print(f"{name:<40} {measured.rotated:.2%} on rotated images")


if __name__ == "__main__":
    main()
