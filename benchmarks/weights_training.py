"""How weight networks are trained on activations that were read before."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm


def fit(
    net: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    count: int,
    *,
    batch_size: int,
    epochs: int,
    learning_rate: float,
    seed: int,
    name: str,
) -> None:
    """Trains a network by AdamW and one cycle of the learning rate, and leaves it in eval mode.

    Args:
        net: The network.
        loss_of: The loss of a batch, from the indices of its samples.
        count: The number of samples.
        batch_size: Of each step; what remains of an epoch is left out.
        epochs: How often all samples are seen.
        learning_rate: The largest one.
        seed: Of the order of samples.
        name: Of the progress bar.
    """
    optimizer = torch.optim.AdamW(net.parameters(), learning_rate, weight_decay=1e-2)
    each = count // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * each
    )
    generator = torch.Generator().manual_seed(seed)
    net.train()
    with tqdm(total=epochs * each, desc=name, unit="batch", leave=False) as bar:
        for _ in range(epochs):
            for batch in torch.randperm(count, generator=generator).split(batch_size)[:each]:
                loss = loss_of(batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    net.eval()
