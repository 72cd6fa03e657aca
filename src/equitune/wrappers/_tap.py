"""Reads the activation of a submodule in the pass that runs anyway."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn

from equitune._cut import find_submodule

__all__ = ["Tap"]


@final
class Tap:
    """Copies what a submodule returns, while it is open; does nothing while it is closed.

    It is one forward hook for the life of the wrapper, because a hook that comes and goes with
    each call cannot be traced by ``torch.compile``. The copy is what makes it safe against
    layers behind it that work in place.

    Args:
        backbone: The module to look into.
        name: The dotted name of a submodule of it.
        argument: The user's name of that argument, for messages.
        others: What else could be given, for messages.

    Raises:
        ValueError: If there is no such submodule.
    """

    def __init__(
        self, backbone: nn.Module, name: str, argument: str = "weight_input", others: str = ""
    ) -> None:
        self._module = find_submodule(backbone, name, argument, others)
        self.name = name
        self._argument = argument
        self._open = False
        self._seen: list[Any] = []

    def attach(self, owner: object) -> None:
        """Puts the hook on the submodule, until the owner is gone."""
        handle = self._module.register_forward_hook(self)
        weakref.finalize(owner, handle.remove).atexit = False

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """The forward hook."""
        if self._open:
            self._seen.append(output.clone() if isinstance(output, Tensor) else output)

    def read(self, run: Callable[[], Any]) -> tuple[Any, Tensor]:
        """Runs a pass; what it returns, and the one tensor that the submodule must return in it."""
        self._seen, self._open = [], True
        try:
            output = run()
        finally:
            # Nothing is kept between calls.
            seen, self._seen, self._open = self._seen, [], False
        if len(seen) != 1:
            raise ValueError(
                f"{self._argument}: the submodule {self.name!r} ran {len(seen)} times in one pass "
                "of the backbone; use one that runs once"
            )
        if not isinstance(seen[0], Tensor):
            raise TypeError(
                f"{self._argument}: the submodule {self.name!r} returns a "
                f"{type(seen[0]).__name__}; use one that returns a tensor"
            )
        return output, seen[0]
