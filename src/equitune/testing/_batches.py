"""Batches and structures of batches, as functions are given them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equitune._checks import described, require
from equitune.actions import Action
from equitune.testing._comparison import find_nan
from equitune.wrappers._subclasses import plain


def tensors_of(action: Action, y: Any, name: str = "x") -> list[Tensor]:
    """The tensors of a structure, in the order of its action; plain ones."""
    return [plain(leaf) for _, leaf in action.flatten(y, name)]


def output_tensors_of(action: Action, y: Any) -> list[Tensor]:
    """The tensors of fn(x); refuses an output without one, from which nothing can be seen."""
    leaves = tensors_of(action, y, "fn(x)")
    got, use = f"{described(y)} without one", "one tensor, or a structure with one"
    require(bool(leaves), "fn", "return a tensor that `output_action` moves", got, use)
    return leaves


def copied(action: Action, x: Any) -> Any:
    """A copy of a structure, since functions may work in place, or return one buffer again."""
    return action.unflatten(x, [leaf.detach().clone() for _, leaf in action.flatten(x)])


def check_batch(action: Action, x: Any) -> None:
    """Refuses a batch without samples, of several sizes, or with NaN."""
    leaves = tensors_of(action, x)
    got, use = f"{described(x)} without one", "at least one sample"
    require(bool(leaves), "x", "hold a tensor that its action moves", got, use)
    for leaf in leaves:
        require(leaf.numel() > 0, "x", "hold samples", f"shape {tuple(leaf.shape)}", use)
    sizes = [len(leaf) for leaf in leaves]
    must = "have one batch size in all tensors"
    require(len({*sizes}) == 1, "x", must, sizes, "tensors (B, ...)")
    sample = find_nan(leaves)
    require(sample is None, "x", "be finite", f"NaN at sample {sample}", "finite numbers")


def one_element_each(action: Action, x: Any) -> Tensor:
    """An element for each sample, (B,) int64, as different as the shape of x allows."""
    _, first = action.flatten(x)[0]
    # Samples can only be mixed where their copies have one shape.
    largest: Sequence[int] = max(action.shape_classes(x), key=len)
    elements = [largest[(i + 1) % len(largest)] for i in range(first.shape[0])]
    return torch.tensor(elements, dtype=torch.int64, device=first.device)
