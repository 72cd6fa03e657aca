"""Batches and structures of batches, as functions are given them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equitune._checks import described
from equitune.actions import Action
from equitune.testing._comparison import find_nan
from equitune.wrappers._subclasses import plain


def tensors_of(action: Action, y: Any, name: str = "x") -> list[Tensor]:
    """The tensors of a structure, in the order of its action; plain ones."""
    return [plain(leaf) for _, leaf in action.flatten(y, name)]


def output_tensors_of(action: Action, y: Any) -> list[Tensor]:
    """The tensors of fn(x); refuses an output without one, from which nothing can be seen."""
    leaves = tensors_of(action, y, "fn(x)")
    if not leaves:
        raise ValueError(
            f"`fn` must return a tensor that `output_action` moves, got {described(y)} without "
            "one; return a tensor, or a structure with one"
        )
    return leaves


def copied(action: Action, x: Any) -> Any:
    """A copy of a structure, since functions may work in place, or return one buffer again."""
    return action.unflatten(x, [leaf.detach().clone() for _, leaf in action.flatten(x)])


def check_batch(action: Action, x: Any) -> None:
    """Refuses a batch without samples, of several sizes, or with NaN."""
    leaves = tensors_of(action, x)
    if not leaves:
        raise ValueError(
            f"`x` must hold a tensor that its action moves, got {described(x)} without one; use "
            "at least one sample"
        )
    for leaf in leaves:
        if leaf.numel() == 0:
            raise ValueError(f"x has shape {tuple(leaf.shape)}; use at least one sample")
        if len(leaf) != len(leaves[0]):
            raise ValueError(
                f"the tensors of x have the batch sizes {[len(leaf) for leaf in leaves]}; all must "
                "have one batch dimension of the same size, first"
            )
    sample = find_nan(leaves)
    if sample is not None:
        raise ValueError(f"x holds NaN at sample {sample}; use finite numbers")


def one_element_each(action: Action, x: Any) -> Tensor:
    """An element for each sample, (B,) int64, as different as the shape of x allows."""
    _, first = action.flatten(x)[0]
    # Samples can only be mixed where their copies have one shape.
    largest: Sequence[int] = max(action.shape_classes(x), key=len)
    elements = [largest[(i + 1) % len(largest)] for i in range(first.shape[0])]
    return torch.tensor(elements, dtype=torch.int64, device=first.device)
