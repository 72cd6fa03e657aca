"""Submodules by their names: found, read and replaced in the pass of one call."""

from __future__ import annotations

import contextlib
import difflib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn

See = Callable[[Any], Any]
"""Gets what a submodule returns; what it returns itself, unless None, takes its place."""


class _Open(threading.local):
    """What the calls of this thread look at: hooks are called without their call."""

    def __init__(self) -> None:
        self.watches: dict[int, See] = {}


_OPEN = _Open()
_FOLLOWING = threading.Lock()


@final
class Watch:
    """Looks at what the submodule of a name returns, for the calls that ask for it.

    It is one forward hook for the life of its owner, because a hook that comes and goes with each
    call cannot be traced by ``torch.compile``. It keeps nothing: what it sees goes to the call that
    runs in the same thread. The name means the module that has it now.

    Args:
        name: The dotted name of the submodule.
        argument: The user's name of that argument, for messages.
    """

    def __init__(self, name: str, argument: str) -> None:
        self.name, self.argument = name, argument
        self._module: nn.Module | None = None
        self._handle: Any = None
        self._owner: Any = None

    @property
    def owned(self) -> bool:
        """Whether it has an owner, which is still there."""
        return self._owner is not None and self._owner() is not None

    def end(self) -> None:
        """Takes the hook away."""
        _remove(self._handle)

    def belong_to(self, owner: object) -> None:
        """Ends with its owner; to be said again by copies of the owner."""
        self._owner = weakref.ref(owner)
        weakref.finalize(owner, _remove, self._handle).atexit = False

    def follow(self, backbone: nn.Module) -> None:
        """Goes to the module that has the name in a backbone now.

        Raises:
            ValueError: If none has it.
        """
        try:
            found = backbone.get_submodule(self.name)
        except AttributeError:
            found = find_submodule(backbone, self.name, self.argument)
        if found is self._module:
            return
        with _FOLLOWING:
            # Another thread may have been faster.
            if found is not self._module:
                owner = None if self._owner is None else self._owner()
                _remove(self._handle)
                self._handle = found.register_forward_hook(self)
                self._module = found
                if owner is not None:
                    self.belong_to(owner)

    @contextlib.contextmanager
    def opened(self, see: See) -> Iterator[None]:
        """Calls ``see`` in this thread, within."""
        before = _OPEN.watches
        _OPEN.watches = {**before, id(self): see}
        try:
            yield
        finally:
            _OPEN.watches = before

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The forward hook."""
        see = _OPEN.watches.get(id(self))
        if see is not None:
            return see(output)
        if not torch.compiler.is_compiling() and not self.owned:
            # That of a copy of the backbone alone.
            _remove(self._handle)
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_owner": None}


@final
class Reading:
    """The one tensor that a watched submodule returns in a pass.

    It is a copy, which is safe against layers that work in place.

    Args:
        watch: What looks at the submodule; it has to be opened with :meth:`see`.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.seen: list[Any] = []
        self._differentiable = torch.is_grad_enabled()

    def see(self, output: Any) -> None:
        """Takes what the submodule returns.

        Raises:
            ValueError: If it runs under a checkpoint that gives no gradient.
        """
        require_gradients(self.watch, self._differentiable)
        self.seen.append(output.clone() if isinstance(output, Tensor) else output)

    def tensor(self) -> Tensor:
        """What was read.

        Raises:
            ValueError: If the submodule did not run exactly once.
            TypeError: If it did not return a tensor.
        """
        start = f"`{self.watch.argument}` must name a submodule that"
        use = "the name of one that does"
        if len(self.seen) != 1:
            raise ValueError(
                f"{start} runs once in a pass of the backbone, got {self.watch.name!r}, which ran "
                f"{len(self.seen)} times; use {use}"
            )
        (found,) = self.seen
        if not isinstance(found, Tensor):
            raise TypeError(
                f"{start} returns a tensor, got {self.watch.name!r}, which returns "
                f"{type(found).__name__}; use {use}"
            )
        return found


def read_submodule(watch: Watch, run: Callable[[], Any]) -> tuple[Any, Tensor]:
    """Runs a pass; what it returns, and the one tensor that the submodule returns in it.

    Raises:
        ValueError: If the submodule does not run exactly once, or under a checkpoint that gives
            no gradient.
        TypeError: If it does not return a tensor.
    """
    reading = Reading(watch)
    with watch.opened(reading.see):
        result = run()
    return result, reading.tensor()


def require_gradients(watch: Watch, differentiable: bool) -> None:
    """Refuses what has no gradient although it should have, such as re-entrant checkpoints."""
    if not differentiable or torch.is_grad_enabled():
        return
    module = watch._module
    if module is not None and any(p.requires_grad for p in module.parameters()):
        raise ValueError(
            f"`{watch.argument}` must name a submodule that has gradients, got {watch.name!r}, "
            "which runs without them, such as in a re-entrant checkpoint; use checkpoints with "
            "use_reentrant=False, torch.no_grad() around the call, or another submodule"
        )


def find_submodule(backbone: nn.Module, name: str, argument: str, others: str = "") -> nn.Module:
    """The submodule of a dotted name.

    Args:
        backbone: The module to look into.
        name: The dotted name.
        argument: The user's name of the argument, for the message.
        others: What else could be used.

    Raises:
        ValueError: If there is none; the message names the near ones.
    """
    modules = dict(backbone.named_modules(remove_duplicate=False))
    if name not in modules or name == "":
        known = [known for known in modules if known]
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.3) or known[:4]
        raise ValueError(
            f"{argument} is {name!r}, but the backbone has no submodule of that name; use "
            f"{others}the dotted name of a submodule, such as {near}"
        )
    found: nn.Module = modules[name]
    return found


def _remove(handle: Any) -> None:
    if handle is not None:
        handle.remove()
