"""One epoch of fine-tuning on CIFAR-10, tested on rotated images: plain, c4 and d4 equi-tuning.

The form of Table 3 of the first paper, with CIFAR ResNets. Runs that are done are kept, so that an
interrupted benchmark goes on. The default number of training images is what two CPU cores manage.

    EQUITUNE_DATA=... python benchmarks/cifar10_finetune.py
"""

from __future__ import annotations

import argparse

import finetuning
from cifar10 import data_folder, load_images, load_resnet

NAME = "cifar10_finetune"
RECIPE = finetuning.Recipe(epochs=1, batch_size=10, learning_rate=3e-4, measured_batch=250)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", nargs="+", type=int, default=[20, 56])
    parser.add_argument("--train-images", nargs="+", type=int, default=[10000, 1000],
                        help="for each depth; 50000 is the whole training set")  # fmt: skip
    parser.add_argument("--test-images", nargs="+", type=int, default=[2500, 1000],
                        help="for each depth; 5000 is what the folder has")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if not len(arguments.depths) == len(arguments.train_images) == len(arguments.test_images):
        parser.error("give as many --train-images and --test-images as --depths")
    folder = data_folder()
    if folder is None:
        raise SystemExit("Set EQUITUNE_DATA to the folder with cifar10/ and weights/.")
    models = [f"resnet{depth}" for depth in arguments.depths]
    train, test = (
        {
            model: finetuning.Split(*load_images(folder, split, count))
            for model, count in zip(models, counts, strict=True)
        }
        for split, counts in (("train", arguments.train_images), ("test", arguments.test_images))
    )

    def load(run: finetuning.Run) -> finetuning.Loaded:
        backbone = load_resnet(folder, int(run.model.removeprefix("resnet")))
        return backbone, train[run.model], test[run.model]

    finetuning.benchmark(NAME, finetuning.runs(models, arguments.seeds), load, RECIPE)


if __name__ == "__main__":
    main()
