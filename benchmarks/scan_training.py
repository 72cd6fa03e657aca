"""How SCAN's models are trained and measured: batches of examples, free decoding, checkpoints."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import record  # noqa: F401 - it lets the examples be imported
from equitune import FiniteGroup
from equitune.audit._files import write_atomically
from recurrent import PAD
from scan_data import Examples

MEASURED_ROWS = 2048
"""How many sequences are decoded at once, copies included."""


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW and one cycle of the learning rate.

    Attributes:
        examples: How many examples are seen, counted with repetitions.
        batch_size: How many of them make a batch.
        learning_rate: The highest of the cycle.
        teacher: How often a batch is decoded with a teacher.
        clip: The largest norm of a gradient.
        warm_up: The share of the iterations in which the learning rate rises.
        smoothing: The share of each target that is spread over all tokens, so that a model is
            not sure of what it has never seen.
        weight_decay: That of AdamW.
    """

    examples: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    teacher: float = 0.5
    clip: float = 5.0
    warm_up: float = 0.05
    smoothing: float = 0.0
    weight_decay: float = 0.0

    @property
    def iterations(self) -> int:
        """The number of batches."""
        return self.examples // self.batch_size


def train(
    model: nn.Module,
    examples: Examples,
    recipe: Recipe,
    *,
    seed: int,
    name: str,
    after: Callable[[int], None] = lambda iteration: None,
) -> None:
    """Trains a decoder, or a wrapper around one; the order depends on the seed alone.

    Args:
        model: What is called as a ``GreedyDecoder`` is.
        examples: What to learn.
        recipe: How.
        seed: That of the order, and of which batches have a teacher.
        name: What the progress bar says.
        after: Called with the number of iterations that are done, before the first as well.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=recipe.iterations,
        pct_start=max(recipe.warm_up, 2 / recipe.iterations),
    )
    after(0)
    batches = _batches(len(examples), recipe, generator)
    for done, rows in enumerate(tqdm(batches, name, recipe.iterations, False, unit="batch"), 1):
        model.train()
        batch = examples[rows]
        commands, targets = batch.commands.to(device), batch.targets.to(device)
        if torch.rand((), generator=generator) < recipe.teacher:
            scores = model(commands, targets).scores
        else:
            scores = model(commands, length=targets.shape[1]).scores
        loss = loss_of(scores, targets, recipe.smoothing)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        after(done)
    model.eval()


def loss_of(scores: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with label smoothing, of log-probabilities (B, L, V) at tokens (B, L).

    ``cross_entropy`` would normalise them once more, and its gradient would vanish where EquiZero's
    copy is sure, independent of the other copies.
    """
    loss = F.nll_loss(scores.flatten(0, 1), targets.flatten(), ignore_index=PAD)
    if not smoothing:
        return loss
    return (1 - smoothing) * loss - smoothing * scores[targets != PAD].mean()


def _batches(count: int, recipe: Recipe, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows of each batch; every example is seen before one is seen again."""
    size = min(recipe.batch_size, count)
    for done in range(recipe.iterations):
        place = done % (count // size)
        if place == 0:
            order = torch.randperm(count, generator=generator)
        yield order[place * size : (place + 1) * size]


@torch.inference_mode()
def right(model: nn.Module, examples: Examples, *, copies: int = 1, name: str = "") -> Tensor:
    """(N,) bool: which sequences, decoded freely, are right from the first token to EOS.

    Args:
        model: What is called as a ``GreedyDecoder`` is.
        examples: What to decode, and what is right.
        copies: How many copies of each command the model decodes.
        name: What the progress bar says.
    """
    model.eval()
    device = next(model.parameters()).device
    found = []
    rows = torch.arange(len(examples)).split(max(1, MEASURED_ROWS // copies))
    for batch in tqdm(map(examples.__getitem__, rows), name, len(rows), False, unit="batch"):
        tokens = model(batch.commands.to(device)).tokens.cpu()
        longest = max(tokens.shape[1], batch.targets.shape[1])
        pair = [F.pad(ids, (0, longest - ids.shape[1]), value=PAD)
                for ids in (tokens, batch.targets)]  # fmt: skip
        found.append((pair[0] == pair[1]).all(dim=1))
    return torch.cat(found)


def accuracy(
    model: nn.Module, examples: Examples, *, group: FiniteGroup | None = None, name: str = ""
) -> float:
    """The share of sequences that are right, see :func:`right`."""
    copies = 1 if group is None else group.order
    answers = right(model, examples.by_length(), copies=copies, name=name)
    return float(answers.double().mean())


def save_checkpoint(
    path: Path, model: nn.Module, settings: dict[str, Any], measured: dict[str, Any]
) -> None:
    """Stores weights with what they were trained with, and how good they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    torch.save({"weights": model.state_dict(), "settings": settings, "measured": measured}, file)
    write_atomically(path, file.getvalue())


def load_checkpoint(
    path: Path, model: nn.Module, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Loads weights, if there are some that were trained with these settings.

    Returns:
        What was measured of them; None if there are none.

    Raises:
        ValueError: If they belong to another kind of model.
    """
    if not path.exists():
        return None
    stored = torch.load(path, map_location="cpu", weights_only=True)
    if stored["settings"] != settings:
        return None
    model.load_state_dict(stored["weights"])
    measured: dict[str, Any] = stored["measured"]
    return measured


def settings_of(recipe: Recipe, **others: Any) -> dict[str, Any]:
    """What a stage of a run was made with, as it is stored."""
    return {**asdict(recipe), "iterations": recipe.iterations, **others}
