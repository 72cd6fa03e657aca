"""Fine-tuning on ants and bees, tested on rotated photographs: plain, c4 and d4 equi-tuning.

The form of Table 1 of the first paper. Runs that are done are kept, so that an interrupted
benchmark goes on.

    EQUITUNE_DATA=... python benchmarks/hymenoptera.py
    python benchmarks/hymenoptera.py --models alexnet resnet18 vgg11 densenet121 --size 224
"""

from __future__ import annotations

import argparse

import finetuning
from ants_and_bees import load_network, load_photographs
from cifar10 import data_folder

NAME = "hymenoptera"
RECIPE = finetuning.Recipe(epochs=10, batch_size=8, learning_rate=3e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["squeezenet1_0"])
    parser.add_argument("--size", type=int, default=128, help="pixels, height and width")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    folder = data_folder()
    train, test = (
        finetuning.Split(*load_photographs(split, arguments.size, folder))
        for split in ("train", "val")
    )

    def load(run: finetuning.Run) -> finetuning.Loaded:
        return load_network(run.model, folder), train, test

    finetuning.benchmark(
        NAME,
        finetuning.runs(arguments.models, arguments.seeds),
        load,
        RECIPE,
    )


if __name__ == "__main__":
    main()
