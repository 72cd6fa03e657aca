"""Submodules by their names: found, read and replaced in the pass of one call."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn

from equitune._checks import require, require_type

See = Callable[[Any], Any]
"""Gets what a submodule returns; what it returns itself, unless None, takes its place."""


class _Open(threading.local):
    """What the calls of this thread look at, and whether their passes have gradients."""

    # Hooks are called without their call. The instance has it in every thread, not its class:
    # torch.compile takes an attribute that appears during a call for one that is still missing.
    def __init__(self) -> None:
        self.watches: dict[int, tuple[See, bool]] = {}


_OPEN = _Open()
_FOLLOWING = threading.Lock()


@final
class Watch:
    """Looks at what the submodule of a name returns, for the calls that ask for it.

    It is one forward hook for the life of its owner, because a hook that comes and goes with each
    call cannot be traced by ``torch.compile``. It keeps nothing: what it sees goes to the call that
    runs in the same thread. The name means the module that has it now. What hooks return that are
    registered later, it does not see.

    Args:
        owner: What has the backbone, and ends the hook with itself.
        backbone: The module to look into.
        name: The dotted name of the submodule.
        argument: The user's name of that argument, for messages.
        others: What else the argument may be, for messages.

    Raises:
        TypeError: If the name is not a string.
        ValueError: If no submodule has it.
    """

    def __init__(
        self, owner: nn.Module, backbone: nn.Module, name: str, argument: str, others: str = ""
    ) -> None:
        require_type(argument, name, str, "the dotted name of a submodule of the backbone")
        self.name, self.argument = name, argument
        self._module = find_submodule(backbone, name, argument, others)
        self._handle = self._module.register_forward_hook(self)
        self._belong_to(owner)

    def end(self) -> None:
        """Takes the hook away."""
        self._handle.remove()

    def of_copy(self, owner: nn.Module, backbone: nn.Module) -> Watch:
        """That of a copy of its owner: another one, where the copy has the same backbone."""
        if self._owned():
            return Watch(owner, backbone, self.name, self.argument)
        self._belong_to(owner)
        return self

    def follow(self, backbone: nn.Module) -> None:
        """Goes to the module that has the name in a backbone now.

        Raises:
            ValueError: If none has it.
        """
        found = find_submodule(backbone, self.name, self.argument)
        if found is self._module:
            return
        with _FOLLOWING:
            # Another thread may have been faster.
            if found is not self._module:
                self.end()
                self._handle = found.register_forward_hook(self)
                self._module = found

    @contextlib.contextmanager
    def opened(self, see: See) -> Iterator[None]:
        """Calls ``see`` in this thread, within."""
        before = _OPEN.watches
        _OPEN.watches = {**before, id(self): (see, torch.is_grad_enabled())}
        try:
            yield
        finally:
            _OPEN.watches = before

    def require_once(self, count: int, where: str = "") -> None:
        """Refuses a submodule that does not run exactly once in a pass."""
        must, use = "name a submodule that runs once in a pass of the backbone", "one that does"
        require(
            count == 1, self.argument, must, f"{self.name!r}, which ran {count} times{where}", use
        )

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The forward hook.

        Raises:
            ValueError: If the submodule runs under a checkpoint that gives no gradient.
        """
        if id(self) in _OPEN.watches:
            see, differentiable = _OPEN.watches[id(self)]
            if differentiable and not torch.is_grad_enabled():
                self._require_gradients()
            return see(output)
        if not torch.compiler.is_compiling() and not self._owned():
            # That of a copy of the backbone alone.
            self.end()
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_owner": None}

    def _belong_to(self, owner: nn.Module) -> None:
        self._owner: weakref.ref[nn.Module] | None = weakref.ref(owner)
        # Not the watch itself: it would keep a module that was replaced for as long as the owner.
        weakref.finalize(owner, _end, weakref.ref(self)).atexit = False

    def _owned(self) -> bool:
        return self._owner is not None and self._owner() is not None

    def _require_gradients(self) -> None:
        """Refuses what has no gradient although it should have, as in re-entrant checkpoints."""
        owner: Any = self._owner
        parameters = [*self._module.parameters()]
        if not parameters:
            # A layer without its own passes on the gradients of what is registered before it.
            before = itertools.takewhile(lambda m: m is not self._module, owner().modules())
            parameters = [p for m in before for p in m.parameters(recurse=False)]
        learns = any(p.requires_grad for p in parameters)
        got = f"{self.name!r}, which runs without them, such as in a re-entrant checkpoint"
        use = "checkpoints with use_reentrant=False, torch.no_grad() around the call, or another"
        require(not learns, self.argument, "name a submodule that has gradients", got, use)


@final
class Reading:
    """The one tensor that a watched submodule returns in a pass.

    It is a copy, which is safe against layers that work in place.

    Args:
        watch: What looks at the submodule.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.seen: list[Any] = []

    def opened(self) -> contextlib.AbstractContextManager[None]:
        """Reads in this thread, within."""
        return self.watch.opened(self.see)

    def see(self, output: Any) -> None:
        """Notes what the submodule returned."""
        self.seen.append(output.clone() if isinstance(output, Tensor) else output)

    def tensor(self, where: str = "") -> Tensor:
        """What was read.

        Args:
            where: The part of a pass that is over, for messages.

        Raises:
            ValueError: If the submodule did not run exactly once.
            TypeError: If it did not return a tensor.
        """
        self.watch.require_once(len(self.seen), where)
        found: Any = self.seen[0]
        got = f"{self.watch.name!r}, which returns {type(found).__name__}"
        must, use = "name a submodule that returns a tensor", "one that does"
        require(isinstance(found, Tensor), self.watch.argument, must, got, use, TypeError)
        return found  # type: ignore[no-any-return]


def read_submodule(watch: Watch, run: Callable[[], Any]) -> tuple[Any, Tensor]:
    """Runs a pass; what it returns, and the one tensor that the submodule returns in it.

    Raises:
        ValueError: If the submodule does not run exactly once, or under a checkpoint that gives
            no gradient.
        TypeError: If it does not return a tensor.
    """
    reading = Reading(watch)
    with reading.opened():
        result = run()
    return result, reading.tensor()


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
    try:
        found = backbone.get_submodule(name)
    except AttributeError:
        found = backbone
    if found is backbone:
        known = [known for known, _ in backbone.named_modules(remove_duplicate=False) if known]
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.3) or known[:4]
        raise ValueError(
            f"{argument} is {name!r}, but the backbone has no submodule of that name; use "
            f"{others}the dotted name of a submodule, such as {near}"
        )
    return found


class Reached(Exception):  # noqa: N818
    """The pass has come to where it ends; an Exception, so that hooks that clean up are called."""


def _end(reference: weakref.ref[Watch]) -> None:
    watch = reference()
    if watch is not None:
        watch.end()
