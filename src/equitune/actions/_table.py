"""Constant tensors of actions: one value, a copy per device made once."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor


@final
class Table:
    """An immutable constant tensor that compares, hashes and pickles by value.

    It is no buffer of a module: casting a module does not touch it, and it survives a module
    that is initialised on the meta device.
    """

    def __init__(self, values: Tensor) -> None:
        # Tensors made in inference mode could not be used in training afterwards.
        with torch.inference_mode(False):
            self._host = values.detach().to("cpu", copy=True).contiguous()
        self._copies: dict[torch.device, Tensor] = {}

    @property
    def host(self) -> Tensor:
        """The values on the CPU; not to be written to."""
        return self._host

    def on(self, device: torch.device) -> Tensor:
        """The values on a device."""
        if device.type == "cpu":
            return self._host
        if device in self._copies:
            return self._copies[device]
        # What a tracer makes here is no real tensor and must not outlive the trace. (To give the
        # tracer a constant would be wrong: modules share its graphs.)
        if torch.compiler.is_compiling():
            return self._host.to(device)
        with torch.inference_mode(False):
            copy = self._host.to(device)
        if type(copy) is Tensor:
            self._copies[device] = copy
        return copy

    def rows(self, indices: tuple[int, ...]) -> Table:
        """The table that keeps these rows."""
        return Table(self._host[list(indices)])

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Table)
            and self._host.dtype == other._host.dtype
            and torch.equal(self._host, other._host)
        )

    def __hash__(self) -> int:
        return hash((tuple(self._host.shape), tuple(self._host.flatten().tolist())))

    def __getstate__(self) -> dict[str, object]:
        return {"_host": self._host, "_copies": {}}
