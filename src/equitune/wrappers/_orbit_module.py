"""A module around a backbone and its orbit: arguments, devices, modes, freezing."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from equitune._checks import require_module, require_type
from equitune._modes import freeze, learn, learning
from equitune._submodules import Watch, find_submodule
from equitune.actions import Action, TrivialAction
from equitune.runners import Batches, Mix, Runner
from equitune.wrappers._attributes import Around
from equitune.wrappers._inputs import InputActions

PARTS = ("backbone", "input_action", "output_action", "runner", "weighting", "space")
"""What may be replaced, and has to fit the rest."""


class OrbitModule(Around, ABC):
    """Runs a backbone on the orbit of its input and undoes the output action.

    Subclasses say what becomes of the copies g^-1 M(gx).

    Args:
        backbone: The module M. It is registered and never modified.
        input_action: How the group acts on the first argument of the backbone, or a mapping from
            argument names to actions.
        output_action: How it acts on the output; None means one invariant tensor. Structured
            outputs need a ``TreeAction``.
        runner: How the backbone is evaluated on the copies. Default one batch.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the actions are of different groups.
    """

    # The names of the parameters that learn once the backbone is unfrozen; None while it is not
    # frozen.
    _learning: tuple[str, ...] | None = None
    _probed: tuple[str, ...] = ()

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Action | Mapping[str, Action],
        output_action: Action | None = None,
        *,
        runner: Runner | None = None,
    ) -> None:
        super().__init__()
        self._inputs = InputActions(require_module("backbone", backbone), input_action)
        self.group = self._inputs.group
        self.input_action = input_action
        self.output_action = _check_output_action(output_action, self._inputs)
        use = "a runner such as Batches(chunk_size=64), or None for one batch"
        self.runner = Batches() if runner is None else require_type("runner", runner, Runner, use)
        self.backbone = backbone
        self.watches: dict[str, Watch] = {}
        self._prepare_actions()

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; a part that is replaced has to fit the others."""
        held = vars(self).get("_modules", {}).get(name, vars(self).get(name))
        super().__setattr__(name, value)
        if name not in PARTS or held is None:
            return
        try:
            self.refit()
        except Exception:
            super().__setattr__(name, held)
            self.refit()
            raise
        if name == "backbone":
            # What was frozen is gone.
            self._learning, self._probed = None, ()

    def moved_arguments(self) -> Action | Mapping[str, Action]:
        """The actions of all arguments that move, those that a kit adds included."""
        return self.input_action

    def refit(self) -> None:
        """Fits the parts together after one of them has been replaced.

        Raises:
            TypeError: If one is of another type.
            ValueError: If they do not fit, such as an action of another group.
        """
        require_type("runner", self.runner, Runner, "a runner such as Batches()")
        inputs = InputActions(require_module("backbone", self.backbone), self.moved_arguments())
        if inputs.group != self.group:
            raise ValueError(
                f"`input_action` must be one of the group of the wrapper, of order "
                f"{self.group.order}, got one of order {inputs.group.order}; use a new wrapper"
            )
        _check_output_action(self.output_action, inputs)
        self._inputs = inputs
        self._prepare_actions()

    # The first argument is by itself, so that torch.export takes dynamic_shapes=({0: batch},).
    @abstractmethod
    def forward(self, x: Any = None, /, *args: Any, **kwargs: Any) -> Any:
        """Calls the symmetrised backbone with the backbone's own arguments."""

    def unwrap(self) -> nn.Module:
        """The backbone itself, with the weights and flags that it has now.

        A plain checkpoint loads through ``model.unwrap().load_state_dict(...)``. After
        :meth:`freeze_backbone`, call :meth:`unfreeze_backbone` first to have the flags back.
        """
        return self.backbone

    @property
    def frozen(self) -> bool:
        """Whether the backbone is frozen."""
        return self._learning is not None

    @property
    def learning(self) -> tuple[str, ...]:
        """The names of the backbone's parameters that learn, or will once it is unfrozen."""
        return learning(self.backbone) if self._learning is None else self._learning

    def freeze_backbone(
        self, learning: Sequence[str] | None = None, *, probed: Sequence[str] = ()
    ) -> Self:
        """Keeps the backbone in eval mode, also under ``train()``, and its weights fixed.

        Args:
            learning: The names of the parameters that :meth:`unfreeze_backbone` lets learn; None
                for those that learn now.
            probed: The names of parameters that learn until then.

        Returns:
            The wrapper itself.
        """
        self._learning = self.learning if learning is None else tuple(learning)
        self._probed = tuple(probed)
        freeze(self.backbone)
        learn(self.backbone, self._probed)
        return self

    def unfreeze_backbone(self) -> Self:
        """Undoes :meth:`freeze_backbone`: what had gradients before has them again, and no other.

        Returns:
            The wrapper itself.
        """
        learn(self.backbone, self._probed, False)
        learn(self.backbone, self.learning)
        self._learning, self._probed = None, ()
        self.backbone.train(self.training)
        return self

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for argument, watch in [*self.watches.items()]:
            if watch.owned:
                # A shallow copy has the same backbone and its own hooks.
                self.watches = {**self.watches, argument: Watch(watch.name, argument)}
                self.watches[argument].follow(self.backbone)
            self.watches[argument].belong_to(self)

    def extra_repr(self) -> str:
        return f"group of order {self.group.order}, runner={self.runner}"

    def watch(self, argument: str, name: str, others: str = "") -> None:
        """Looks at a submodule of the backbone in each call.

        Args:
            argument: The user's name of the argument that names it.
            name: The dotted name of the submodule.
            others: What else the argument may be, for messages.

        Raises:
            TypeError: If the name is not a string.
            ValueError: If no submodule has it.
        """
        require_type(argument, name, str, "the dotted name of a submodule of the backbone")
        find_submodule(self.backbone, name, argument, others)
        watch = self.watches[argument] = Watch(name, argument)
        watch.follow(self.backbone)
        watch.belong_to(self)

    def watched(self, argument: str) -> Watch | None:
        """What looks at the submodule that an argument names, at the module that has it now."""
        watch = self.watches.get(argument)
        if watch is not None:
            watch.follow(self.backbone)
        return watch

    def run(
        self,
        mix: Mix,
        x: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        runner: Runner | None = None,
    ) -> Any:
        """The output of one call, from what ``mix`` makes of the copies.

        Args:
            mix: What combines the copies.
            x: The first argument by position, or None.
            args: The others.
            kwargs: The arguments by name.
            runner: A runner for this call; None for that of the model.
        """
        given = () if x is None and not args else (x, *args)
        call, annotations = self._inputs.bind(self.backbone, given, kwargs, self.output_action)
        if self.watches:
            call.tap, call.cut = self.watched("weight_input"), self.watched("submodule")
        return annotations.on((runner or self.runner).run(call, mix, self.group.elements))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._prepare_actions()
        return self

    def _prepare_actions(self) -> None:
        """Puts the actions' tables where the backbone is."""
        tensors = itertools.chain(self.backbone.parameters(), self.backbone.buffers())
        device = next((t.device for t in tensors), torch.device("cpu"))
        for action in [*self._inputs.actions(), self.output_action]:
            action.prepare(device)


def _check_output_action(action: Action | None, inputs: InputActions) -> Action:
    if action is None:
        return TrivialAction(inputs.group)
    require_type("output_action", action, Action, "an action, or None for one invariant tensor")
    if action.group != inputs.group:
        raise ValueError(
            f"output_action is one of a group of order {action.group.order} {action.group.names}, "
            f"but input_action is one of a group of order {inputs.group.order} "
            f"{inputs.group.names}; use two actions of one group"
        )
    return action
