"""A module around a backbone and its orbit: arguments, devices, modes, freezing."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from equitune._checks import require, require_module, require_type
from equitune._modes import Flags, freeze, learning, renamed, restore
from equitune._submodules import Watch
from equitune.actions import Action, TrivialAction
from equitune.runners import Mix, Runner, Tuned
from equitune.wrappers._inputs import Actions, InputActions
from equitune.wrappers._subclasses import annotated_as

PARTS = ("backbone", "input_action", "output_action", "runner", "weighting", "space")
"""What may be replaced, and has to fit the rest."""

HANDED_ON = (
    "config", "default_cfg", "device", "dtype", "main_input_name", "name_or_path", "num_classes",
    "pretrained_cfg",
)  # fmt: skip
"""What describes the backbone and computes nothing, so that the group has no part in it."""


class OrbitModule(nn.Module, ABC):
    """Runs a backbone on the orbit of its input and undoes the output action.

    Subclasses say what becomes of the copies g^-1 M(gx).

    Args:
        backbone: The module M. It is registered and never modified.
        input_action: How the group acts on the first argument of the backbone, or a mapping from
            argument names to actions.
        output_action: How it acts on the output; None means one invariant tensor. Structured
            outputs need a ``TreeAction``.
        runner: How the backbone is evaluated on the copies. Default
            :class:`equitune.runners.Tuned`.

    Attributes:
        accepts_loss_kwargs: Says to trainers that no loss is computed inside, since the mean of
            the losses of the copies is not the loss of the mean.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the actions are of different groups.
    """

    backbone: nn.Module
    output_action: Action
    runner: Runner
    accepts_loss_kwargs = False
    # What the flags of parameters are once the backbone is unfrozen; None while it is not frozen.
    _flags: Flags | None = None

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Actions,
        output_action: Action | None = None,
        *,
        runner: Runner | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.input_action = require_module("backbone", backbone), input_action
        self.output_action = output_action  # type: ignore[assignment]
        self.runner = Tuned() if runner is None else runner
        self.watches: dict[str, Watch] = {}
        self._fit(input_action)

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
        if name == "backbone" and self._flags is not None:
            self._flags = renamed(self._flags, held, value)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the backbone: those in ``HANDED_ON``, and no others."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            # While a pickle is read the backbone does not exist yet.
            backbone = self.__dict__.get("_modules", {}).get("backbone")
            if backbone is None or name.startswith("_") or not hasattr(backbone, name):
                raise
            if name not in HANDED_ON:
                raise AttributeError(
                    f"{error}; its backbone has {name!r}, which is not symmetrised: use "
                    f"unwrap().{name} (a wrapper hands on {', '.join(HANDED_ON)} alone)"
                ) from None
        return getattr(backbone, name)

    def moved_arguments(self) -> Actions:
        """The actions of all arguments that move, those that a kit adds included."""
        return self.input_action

    def refit(self) -> None:
        """Fits the parts together after one of them has been replaced.

        Raises:
            TypeError: If one is of another type.
            ValueError: If they do not fit, such as an action of another group.
        """
        self._fit(self.moved_arguments())

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
        return self._flags is not None

    @property
    def learning(self) -> tuple[str, ...]:
        """The names of the backbone's parameters that learn, or will once it is unfrozen."""
        return learning(self.backbone, self._flags)

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
        learning = self.learning if learning is None else learning
        self._flags = freeze(self.backbone, learning, probed)
        return self

    def unfreeze_backbone(self) -> Self:
        """Undoes :meth:`freeze_backbone`: what had gradients before has them again, and no other.

        Returns:
            The wrapper itself.
        """
        restore(self.backbone, self._flags or {})
        self._flags = None
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
        watches = self.watches.items()
        self.watches = {name: watch.of_copy(self, self.backbone) for name, watch in watches}

    def extra_repr(self) -> str:
        return f"group of order {self.group.order}, runner={self.runner}"

    def run(
        self, mix: Mix, x: Any, args: Any, kwargs: dict[str, Any], runner: Runner | None = None
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
        call, source = self._inputs.bind(self.backbone, given, kwargs, self.output_action)
        for watch in self.watches.values():
            watch.follow(self.backbone)
        call.tap, call.cut = self.watches.get("weight_input"), self.watches.get("submodule")
        output = (runner or self.runner).run(call, mix, self.group.elements)
        return output if source is None else annotated_as(source, output)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._prepare_actions()
        return self

    def _fit(self, moved: Actions) -> None:
        """Fits the parts together."""
        use = "a runner such as Batches(chunk_size=64), or None for Tuned()"
        require_type("runner", self.runner, Runner, use)
        inputs = InputActions(require_module("backbone", self.backbone), moved)
        own: Any = self.output_action
        if own is None:
            own = self.output_action = TrivialAction(inputs.group)
        use = "an action, or None for one invariant tensor"
        own, group = require_type("output_action", own, Action, use).group, inputs.group
        must = f"be of the group of input_action, of order {group.order} {group.names}"
        got, use = f"one of order {own.order} {own.names}", "two actions of one group"
        require(own == group, "output_action", must, got, use)
        self._inputs, self.group = inputs, group
        self._prepare_actions()

    def _prepare_actions(self) -> None:
        """Puts the actions' tables where the backbone is."""
        tensors = itertools.chain(self.backbone.parameters(), self.backbone.buffers())
        device = next((t.device for t in tensors), torch.device("cpu"))
        for action in [*self._inputs.by_name.values(), self.output_action]:
            action.prepare(device)
