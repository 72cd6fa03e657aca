"""Weights that are tied over orbits, and what is made of them."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from equitune.actions._table import Table

SHORT_BLOCK = 16
MOST_PLACES = 2**21


@final
class Ties:
    """Copies the block of each orbit to all of its points.

    (rows, orbits, width) becomes (rows, points, width). It holds tables and no buffers, which
    averaging, broadcasting or the meta device would change.

    Args:
        orbits: (points,) int64, the number of the orbit of each point.
        rows: The number of rows.
        width: The number of entries of each block in a row.
    """

    def __init__(self, orbits: Tensor, rows: int, width: int) -> None:
        self.count = int(orbits.max()) + 1
        self.points = len(orbits)
        self._shape = (rows, self.points, width)
        self._orbits = Table(orbits)
        self._places: Table | None = None
        # Short blocks are not worth a copy each: all entries are gathered one by one.
        if width < SHORT_BLOCK and math.prod(self._shape) <= MOST_PLACES:
            row = torch.arange(rows, device="cpu").view(-1, 1, 1) * self.count
            places = (row + orbits.view(1, -1, 1)) * width + torch.arange(width, device="cpu")
            self._places = Table(places.flatten())

    @property
    def orbits(self) -> Tensor:
        """(points,) int64, on the CPU."""
        return self._orbits.host

    def spread(self, entries: Tensor) -> Tensor:
        """The entries of all points."""
        if self._places is None:
            return entries.index_select(1, self._orbits.on(entries.device))
        return entries.flatten().index_select(0, self._places.on(entries.device)).view(self._shape)
