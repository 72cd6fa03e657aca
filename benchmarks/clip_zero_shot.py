"""CLIP on rotated pictures: zero-shot, with learned weights, and fine-tuned.

The form of Figures 5a, 7, 8 and 11a of the second paper, with the settings of its section D.4; it
does not name the optimizer, so that this is an option. Needs the weights of a CLIP model, which
open_clip or transformers download. Rows that are done with the same settings are kept, so that an
interrupted benchmark goes on, with the fine-tuning that it was in from its start.

    python benchmarks/clip_zero_shot.py --model ViT-B-32 --pretrained openai
    python benchmarks/clip_zero_shot.py --hf openai/clip-vit-base-patch32
    EQUITUNE_DATA=... python benchmarks/clip_zero_shot.py --dataset cifar10
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

import record
from cifar10 import data_folder
from clip_models import (
    Clip,
    Pictures,
    load_cifar10,
    load_cifar100,
    load_open_clip,
    load_transformers,
    random_pictures,
    tiny_clip,
)
from equitune import EquiTune, EquiZero, ImageAction, LambdaEquiTune, c4, d4
from equitune.training import backbone_phase, upright_loss, weights_phase, with_frozen_features
from equitune.vision import PHOTO_TEMPLATES, ZeroShotClassifier
from equitune.weight_nets import MlpWeightNet

NAME = "clip_zero_shot"
MODES = ("EquiTune", "EquiZero", "LambdaEquiTune")
ACTIONS: dict[str, Callable[[], ImageAction]] = {
    "c4": lambda: ImageAction(c4()),
    "d4": lambda: ImageAction(d4()),
    "flip": ImageAction.horizontal_flip,
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adamw": torch.optim.AdamW,
}
# What --tiny changes, so that all of the code runs in seconds.
TINY = {"lambda_steps": 3, "finetune_steps": 4, "evaluate_every": 2, "batch_size": 4, "seeds": 1,
        "test_images": 6, "train_images": 12, "templates": 2, "workers": 0}  # fmt: skip


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32", help="of open_clip")
    parser.add_argument("--pretrained", default="openai", help="weights of open_clip")
    parser.add_argument("--hf", help="a CLIPModel or SiglipModel of the hub instead")
    parser.add_argument("--tiny", action="store_true", help="random weights and noise: a test")
    parser.add_argument("--dataset", choices=["cifar100", "cifar10"], default="cifar100",
                        help="downloaded, or that of EQUITUNE_DATA")  # fmt: skip
    parser.add_argument("--downloads", type=Path, default=Path("downloads"))
    parser.add_argument("--group", choices=list(ACTIONS), default="c4")
    parser.add_argument("--templates", type=int, default=len(PHOTO_TEMPLATES), help="how many")
    parser.add_argument("--test-images", type=int, help="how many; default all")
    parser.add_argument("--train-images", type=int, help="how many; default all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), default="sgd")
    parser.add_argument("--lambda-steps", type=int, default=1000)
    parser.add_argument("--lambda-rate", type=float, default=0.3)
    parser.add_argument("--upright", type=float, default=0.0,
                        help="how much the upright copy's likelihood counts")  # fmt: skip
    parser.add_argument("--finetune-steps", type=int, default=4000, help="0 for zero-shot only")
    parser.add_argument("--evaluate-every", type=int, default=1000)
    parser.add_argument("--backbone-rate", type=float, default=1e-3, help="EquiTune and EquiZero")
    parser.add_argument("--lambda-backbone-rate", type=float, default=5e-7, help="LambdaEquiTune")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--output", type=Path, help="the folder of the results; default results/")
    parser.add_argument("--fresh", action="store_true", help="do all rows again")
    arguments = parser.parse_args(words)
    arguments.output = (
        arguments.output or (Path() if arguments.tiny else record.RESULTS)
    ).resolve()
    if arguments.tiny:
        vars(arguments).update(TINY)
        if arguments.output == record.RESULTS:
            parser.error("--tiny is a test; use it another --output than results/")
    if arguments.finetune_steps and not 1 <= arguments.evaluate_every <= arguments.finetune_steps:
        parser.error("give an --evaluate-every from 1 to --finetune-steps")
    return arguments


@dataclass
class Rows:
    """The rows of the table: each is written when it is done, and kept with its settings."""

    path: Path
    command: str
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A name that is a whole path leads there, and not into results/.
        self.rows = record.load(str(self.path)).get("rows", {})

    def has(self, name: str, settings: dict[str, Any]) -> bool:
        return self.rows.get(name, {}).get("settings") == settings

    def add(self, name: str, settings: dict[str, Any], row: dict[str, Any]) -> None:
        self.rows[name] = {**row, "settings": settings}
        record.add(str(self.path), self.command, 0, {name: self.rows[name]})
        tqdm.write(f"{name}: upright {row['upright']:.1%}, moved {row['moved']:.1%}")


@dataclass(frozen=True)
class Bench:
    """One model, one data set and one group."""

    arguments: argparse.Namespace
    plain: ZeroShotClassifier
    action: ImageAction
    train: Pictures
    test: Pictures
    rows: Rows
    name: str
    device: torch.device

    def run(self) -> None:
        """All rows that are not there yet, under a bar for the runs."""
        seeds = range(self.arguments.seeds)
        runs: list[Callable[[], None]] = [
            lambda m=m: self.zero_shot(m) for m in ("plain", *MODES[:2])
        ]
        for seed in seeds:
            runs.append(lambda seed=seed: self.learn_lambda(seed))
            if self.arguments.finetune_steps:
                runs += [lambda m=m, seed=seed: self.finetune(m, seed) for m in MODES]
        for run in tqdm(runs, desc=self.name, unit="run"):
            run()

    def zero_shot(self, mode: str) -> None:
        name, settings = f"{self.name}, zero-shot, {mode}", self.settings()
        if not self.rows.has(name, settings):
            self.measure(symmetrised(self.plain, mode, self.action), name, settings, time.time())

    def learn_lambda(self, seed: int) -> None:
        name, settings = f"{self.name}, zero-shot, {MODES[2]}, seed {seed}", self.lambda_settings()
        if not self.rows.has(name, settings):
            start = time.time()
            self.measure(self.learned(seed), name, settings, start)

    def learned(self, seed: int) -> LambdaEquiTune:
        """The weights after phase one, on a copy of the encoder."""
        torch.manual_seed(seed)
        model: LambdaEquiTune = symmetrised(copy.deepcopy(self.plain), MODES[2], self.action)
        model.to(self.device)
        parameters = weights_phase(model)
        upright = self.arguments.upright

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            explanation = model.explain(images)
            known = upright * upright_loss(explanation.scores) if upright else 0.0
            return F.cross_entropy(explanation.output, labels) + known

        self.optimise(
            parameters, loss, self.arguments.lambda_steps, self.arguments.lambda_rate, seed
        )
        model.eval()
        return model

    def finetune(self, mode: str, seed: int) -> None:
        arguments, learns_lambda = self.arguments, mode == MODES[2]
        rate = arguments.lambda_backbone_rate if learns_lambda else arguments.backbone_rate
        settings = {**(self.lambda_settings() if learns_lambda else self.training_settings()),
                    "backbone_rate": rate, "finetune_steps": arguments.finetune_steps}  # fmt: skip
        every = arguments.evaluate_every
        ends = range(every, arguments.finetune_steps + 1, every)
        names = {end: f"{self.name}, {end} steps, {mode}, seed {seed}" for end in ends}
        if all(self.rows.has(name, settings) for name in names.values()):
            return
        start = time.time()
        if learns_lambda:
            model = self.learned(seed)
            # The weights read what they learned to read, while the encoder moves on.
            model = with_frozen_features(model)
        else:
            model = symmetrised(copy.deepcopy(self.plain), mode, self.action)
        model.to(self.device)
        parameters = backbone_phase(model)

        def after(step: int) -> None:
            if step in names:
                self.measure(model.eval(), names[step], settings, start)
                model.train()

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(model(images), labels)

        self.optimise(parameters, loss, arguments.finetune_steps, rate, seed, after)

    def optimise(
        self,
        parameters: list[nn.Parameter],
        loss: Callable[[Tensor, Tensor], Tensor],
        steps: int,
        rate: float,
        seed: int,
        after: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Steps on upright pictures: a symmetrised model cannot tell them from moved ones."""
        optimizer = OPTIMIZERS[self.arguments.optimizer](parameters, lr=rate)
        batches = itertools.islice(self.endless(seed), steps)
        with tqdm(batches, total=steps, unit="step", leave=False) as bar:
            for step, (images, labels) in enumerate(bar, 1):
                value = loss(images.to(self.device), labels.to(self.device))
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                bar.set_postfix(loss=f"{value.item():.2f}", refresh=False)
                after(step)

    def endless(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            self.train, self.arguments.batch_size, shuffle=True, drop_last=True,
            num_workers=self.arguments.workers, generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        while True:
            yield from loader

    def measure(self, model: nn.Module, name: str, settings: dict[str, Any], start: float) -> None:
        model = model.eval().to(self.device)
        loader = DataLoader(
            self.test, self.arguments.batch_size, num_workers=self.arguments.workers
        )
        row = measured(model, loader, self.action, self.device, name)
        self.rows.add(name, settings, {**row, "seconds": round(time.time() - start)})

    def settings(self) -> dict[str, Any]:
        return {"templates": self.arguments.templates, "test_images": len(self.test)}

    def training_settings(self) -> dict[str, Any]:
        names = ("batch_size", "optimizer")
        chosen = {name: getattr(self.arguments, name) for name in names}
        return {**self.settings(), **chosen, "train_images": len(self.train)}

    def lambda_settings(self) -> dict[str, Any]:
        names = ("lambda_steps", "lambda_rate", "upright")
        return {**self.training_settings(), **{n: getattr(self.arguments, n) for n in names}}


def symmetrised(classifier: ZeroShotClassifier, mode: str, action: ImageAction) -> Any:
    """The classifier itself, or one of the three modes, with the paper's weight network."""
    if mode == "plain":
        return classifier
    encoder = {"submodule": "encoder"}
    if mode == "EquiTune":
        return EquiTune(classifier, action, **encoder)
    if mode == "EquiZero":
        return EquiZero(classifier, action, proxy_loss=classifier.image_text_loss, **encoder)
    net = MlpWeightNet(classifier.class_embeddings.shape[1])
    return LambdaEquiTune(classifier, action, weight_net=net, weight_input="output", **encoder)


@torch.inference_mode()
def measured(
    model: Any,
    loader: DataLoader[tuple[Tensor, Tensor]],
    action: ImageAction,
    device: torch.device,
    name: str = "",
) -> dict[str, Any]:
    """Accuracy on upright pictures and on all of their copies, changes, and the mean weights."""
    right, changed, weights = [], [], []
    plain = isinstance(model, ZeroShotClassifier)
    for images, labels in tqdm(loader, desc=name, unit="batch", leave=False):
        copies = action.orbit(images.to(device))
        answers = torch.stack([model(moved).argmax(-1) for moved in copies])
        right.append((answers == labels.to(device)).double())
        changed.append((answers != answers[0]).any(0).double())
        if not plain:
            weights.append(model.explain(copies[0]).weights)
    shares = torch.cat(right, dim=1)
    row: dict[str, Any] = {
        "upright": float(shares[0].mean()),
        "moved": float(shares.mean()),
        "changed": float(torch.cat(changed).mean()),
    }
    if weights:
        row["weights"] = [round(w, 6) for w in torch.cat(weights, dim=1).double().mean(1).tolist()]
    return row


def load(arguments: argparse.Namespace) -> tuple[Clip, Pictures, Pictures]:
    """The model, and the pictures to learn from and to be tested on."""
    if arguments.tiny:
        torch.manual_seed(0)
        clip = tiny_clip()
        train, test = (random_pictures(count, clip.preprocess, seed) for seed, count in
                       enumerate((arguments.train_images, arguments.test_images)))  # fmt: skip
        return clip, train, test
    folder = data_folder() if arguments.dataset == "cifar10" else arguments.downloads
    if folder is None:
        raise SystemExit("Set EQUITUNE_DATA to the folder with cifar10/.")
    clip = (
        load_transformers(arguments.hf)
        if arguments.hf
        else load_open_clip(arguments.model, arguments.pretrained)
    )
    read = load_cifar10 if arguments.dataset == "cifar10" else load_cifar100
    train = read(folder, "train", clip.preprocess, arguments.train_images)
    return clip, train, read(folder, "test", clip.preprocess, arguments.test_images)


def command(arguments: argparse.Namespace) -> str:
    """What says which model and data; the rest stands with each row."""
    model = f"--model {arguments.model} --pretrained {arguments.pretrained}"
    model = f"--hf {arguments.hf}" if arguments.hf else model
    chosen = "--tiny" if arguments.tiny else f"{model} --dataset {arguments.dataset}"
    return f"python benchmarks/clip_zero_shot.py {chosen} --group {arguments.group}"


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    clip, train, test = load(arguments)
    if len(train) < arguments.batch_size:
        raise SystemExit(f"{len(train)} pictures to learn from make no batch of --batch-size.")
    rows = Rows(arguments.output / NAME, command(arguments))
    if arguments.fresh:
        rows.rows.clear()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain = clip.classify(test.class_names, PHOTO_TEMPLATES[: arguments.templates]).to(device)
    name = f"{clip.name}, {test.name}, {arguments.group}"
    Bench(arguments, plain, ACTIONS[arguments.group](), train, test, rows, name, device).run()
    print(f"\n{'':<70} {'upright':>8} {'moved':>8} {'changed':>8}")
    for key, row in rows.rows.items():
        print(f"{key:<70} {row['upright']:>8.2%} {row['moved']:>8.2%} {row['changed']:>8.2%}")


if __name__ == "__main__":
    main()
