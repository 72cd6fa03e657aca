"""Reads the activation of a submodule in the pass that runs anyway."""

from __future__ import annotations

import difflib
import weakref
from typing import Any, final

from torch import Tensor, nn

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

    Raises:
        ValueError: If there is no such submodule.
    """

    def __init__(self, backbone: nn.Module, name: str) -> None:
        modules = dict(backbone.named_modules(remove_duplicate=False))
        if name not in modules or name == "":
            known = [known for known in modules if known]
            near = difflib.get_close_matches(name, known, n=4, cutoff=0.3) or known[:4]
            raise ValueError(
                f"weight_input is {name!r}, but the backbone has no submodule of that name; give "
                f"'input', 'output' or the dotted name of a submodule, such as {near}"
            )
        self.name = name
        self._open = False
        self._seen: list[Any] = []
        self._module = modules[name]

    def attach(self, owner: object) -> None:
        """Puts the hook on the submodule, until the owner is gone."""
        handle = self._module.register_forward_hook(self)
        weakref.finalize(owner, handle.remove).atexit = False

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """The forward hook."""
        if self._open:
            self._seen.append(output.clone() if isinstance(output, Tensor) else output)

    def open(self) -> None:
        """Starts to copy."""
        self._seen = []
        self._open = True

    def close(self) -> list[Any]:
        """Stops, and gives what the submodule has returned since; nothing is kept."""
        seen, self._seen, self._open = self._seen, [], False
        return seen

    def only(self, seen: list[Any]) -> Tensor:
        """The one tensor that a pass must have left."""
        if len(seen) != 1:
            raise ValueError(
                f"weight_input: the submodule {self.name!r} ran {len(seen)} times in one pass of "
                "the backbone; tap one that runs once"
            )
        if not isinstance(seen[0], Tensor):
            raise TypeError(
                f"weight_input: the submodule {self.name!r} returns a {type(seen[0]).__name__}; "
                "tap one that returns a tensor"
            )
        return seen[0]
