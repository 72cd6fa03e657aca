"""Constant tensors of actions, a copy per device made once, and how attributes are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from equitune.groups import Embedding


@final
class Table:
    """An immutable constant tensor that compares, hashes and pickles by value.

    It is not a buffer of a module: casting a module does not touch it, and it survives a module
    that is initialised on the meta device.

    Attributes:
        host: The values on the CPU; not to be written to.
    """

    def __init__(self, values: Tensor) -> None:
        # Tensors made in inference mode could not be used in training afterwards.
        with torch.inference_mode(False):
            self.host = values.detach().to("cpu", copy=True).contiguous()
        self._copies: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """The values on a device."""
        if device.type == "cpu":
            return self.host
        if device in self._copies:
            return self._copies[device]
        # What a tracer makes here is not a real tensor and must not outlive it. (To give the
        # tracer a constant would be wrong: modules share its graphs.)
        if torch.compiler.is_compiling():
            return self.host.to(device)
        with torch.inference_mode(False):
            copy = self.host.to(device)
        if type(copy) is Tensor:
            self._copies[device] = copy
        return copy

    def prepare(self, device: torch.device) -> None:
        """Makes the copy on a device."""
        self.on(device)

    def restrict(self, embedding: Embedding) -> Table:
        """The rows of the elements of a subgroup."""
        return Table(self.host[list(embedding.elements)])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table) or self.host.dtype != other.host.dtype:
            return False
        return torch.equal(self.host, other.host)

    def __hash__(self) -> int:
        return hash((self.host.shape, *self.host.flatten().tolist()))

    def __getstate__(self) -> dict[str, object]:
        return {"host": self.host, "_copies": {}}


def frozen(value: Any) -> object:
    """A value that compares and hashes."""
    if hasattr(value, "__array__"):
        return Table(torch.as_tensor(value))
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    if isinstance(value, Mapping | set):
        return frozenset(map(frozen, value.items() if isinstance(value, Mapping) else value))
    return value
