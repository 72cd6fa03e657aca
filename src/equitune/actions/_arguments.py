"""Arguments of actions: how they are checked, and the memory format that copies keep."""

from __future__ import annotations

import inspect

from torch import Tensor

from equitune._checks import described, require, require_int, require_type
from equitune.groups import FiniteGroup


def require_group(group: object) -> FiniteGroup:
    """Refuses anything but a group, such as a constructor that was not called."""
    called = f"{group.__name__}()" if inspect.isfunction(group) else "c4() or cyclic(3)"
    return require_type("group", group, FiniteGroup, f"a group such as {called}")


def require_batch(x: object, name: str, action: object) -> Tensor:
    """The tensor itself; refuses anything else, and one without a batch dimension."""
    if isinstance(x, Tensor) and x.dim():
        return x
    if isinstance(x, Tensor):
        use = "WholeBatchAction(group) for what belongs to the whole batch"
        raise ValueError(f"`{name}` must be a batch of shape (B, ...), got a scalar; use {use}")
    use = "TreeAction({field: action, ...}) for dicts, tuples, dataclasses and model outputs, "
    use += "with Drop() for fields that cannot be combined" + advice(x)
    must = f"be one tensor for {type(action).__name__}"
    raise TypeError(f"`{name}` must {must}, got {described(x)}; use {use}")


def advice(x: object) -> str:
    """What helps with a list, for a message; nothing for anything else."""
    if isinstance(x, list) and x and all(isinstance(entry, dict) for entry in x):
        return ", and equitune.vision.PaddedDetections for a list of one dict per image"
    return ", and TreeAction(others=action) for a list of any length" * isinstance(x, list)


def require_dim(name: str, dim: int, use: str) -> int:
    """The dimension as an int; refuses the batch."""
    require(require_int(name, dim, use) != 0, name, "be another dimension than the batch", 0, use)
    return dim


def in_format_of(x: Tensor, moved: Tensor) -> Tensor:
    """``moved`` in channels_last or channels_last_3d if ``x`` is, for a model's fast path."""
    if x.dim() in (4, 5) and x.stride(1) == 1 and x.shape[1] > 1:
        # Not by name: under vmap formats have none.
        return moved.movedim(1, -1).contiguous().movedim(-1, 1)
    return moved
