"""Which action moves which argument of the backbone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from equitune._checks import require_type
from equitune.actions import Action
from equitune.actions._tree import Key, common_classes, common_group, holds_tensor
from equitune.groups import FiniteGroup
from equitune.wrappers._subclasses import Annotations, plain

__all__ = ["InputActions", "MovedCall"]


@final
@dataclass
class MovedCall:
    """One call of the backbone: all of its arguments, and those of them that the group moves.

    Attributes:
        args: The arguments by position.
        kwargs: Those by name.
        moved: The action of each argument that the group moves.
        leaves: Their tensors, with the action of each; plain ones.
        group: The group.
        annotations: What the tensors said of their samples before.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    moved: dict[Key, Action]
    leaves: list[tuple[Action, Tensor]]
    group: FiniteGroup
    annotations: Annotations

    @property
    def batch_size(self) -> int:
        """The number B of samples."""
        return self.leaves[0][1].shape[0]

    def shape_classes(self) -> tuple[tuple[int, ...], ...]:
        """The elements, split so that within each class the copies have one shape."""
        return common_classes(self.leaves, self.group)

    def orbits(self, elements: Sequence[int]) -> list[Tensor]:
        """The stacks (E, B, ...) of all moved tensors."""
        return [action.orbit(leaf, elements) for action, leaf in self.leaves]

    def run(self, backbone: Callable[..., Any], copies: Sequence[Tensor]) -> Any:
        """Calls the backbone, or a part of it, with other tensors in the moved ones' places."""
        args, kwargs, start = list(self.args), dict(self.kwargs), 0
        for key, action in self.moved.items():
            place: Any = args if isinstance(key, int) else kwargs
            stop = start + len(action.flatten(place[key]))
            place[key] = action.unflatten(place[key], copies[start:stop])
            start = stop
        return backbone(*args, **kwargs)


@final
class InputActions:
    """The input action of a wrapper: one for the first argument, or one per named argument."""

    def __init__(self, backbone: nn.Module, input_action: Action | Mapping[str, Action]) -> None:
        names, open_ended = _parameters(backbone)
        self._names, self._open_ended = names, open_ended
        self._by_name: dict[str, Action] | None = None
        self._first: Action | None = None
        if isinstance(input_action, Action):
            self._first = input_action
            self.group = input_action.group
        elif isinstance(input_action, Mapping):
            self._by_name = dict(input_action)
            for name, action in self._by_name.items():
                require_type(f"input_action[{name!r}]", action, Action, "an action")
                if name not in names and not open_ended:
                    raise ValueError(
                        f"input_action has an action for {name!r}, but the backbone's forward "
                        f"takes {list(names)}"
                    )
            self.group = common_group(self._by_name, "input_action")
        else:
            raise TypeError(
                f"input_action is a {type(input_action).__name__}; use an action such as "
                "ImageAction(d4()), or a mapping from argument names to actions"
            )

    def actions(self) -> list[Action]:
        """All actions on arguments."""
        return [*(self._by_name or {}).values(), *([self._first] if self._first else [])]

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> MovedCall:
        """Finds the action of every tensor in a call; refuses a tensor without one."""
        moved: dict[Key, Action] = {}
        leaves: list[tuple[Action, Tensor]] = []
        first = self._first_key(args, kwargs)
        arguments: dict[Key, Any] = dict(enumerate(args))
        # In the order of the signature, so that the order of keywords in a call does not matter.
        order = {name: place for place, name in enumerate(self._names)}
        arguments.update(sorted(kwargs.items(), key=lambda item: order.get(item[0], len(order))))
        for key, value in arguments.items():
            name = self._name_of(key)
            action = self._first if key == first else None
            if self._by_name is not None:
                action = self._by_name.get(name)
            if action is None:
                _require_no_tensor(name, value, self.group)
            elif value is not None:
                moved[key] = action
                leaves += action.flatten(value, name)
        if not leaves:
            raise ValueError(
                f"the call has no argument for the input action, which moves {self._described()}; "
                f"it was called with {len(args)} positional arguments and the names {list(kwargs)}"
            )
        for _, leaf in leaves[1:]:
            if leaf.shape[0] != leaves[0][1].shape[0]:
                raise ValueError(
                    f"the moved tensors have the batch sizes "
                    f"{[leaf.shape[0] for _, leaf in leaves]}; all must have one batch dimension "
                    "of the same size, first"
                )
        annotations = Annotations([leaf for _, leaf in leaves])
        leaves = [(action, plain(leaf)) for action, leaf in leaves]
        return MovedCall(args, kwargs, moved, leaves, self.group, annotations)

    def _first_key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key | None:
        if args:
            return 0
        if self._names:
            return self._names[0]
        return next(iter(kwargs), None)

    def _name_of(self, key: Key) -> str:
        if isinstance(key, str):
            return key
        return self._names[key] if key < len(self._names) else f"argument {key}"

    def _described(self) -> str:
        if self._by_name is not None:
            return f"{list(self._by_name)}"
        return f"the first argument, {self._names[0]!r}" if self._names else "the first argument"


def _parameters(backbone: nn.Module) -> tuple[tuple[str, ...], bool]:
    """The names of the parameters of forward, and whether it takes others as well."""
    inner = getattr(backbone, "_inputs", None)
    if isinstance(inner, InputActions):
        # A wrapper around a wrapper takes the arguments of the innermost backbone.
        return inner._names, inner._open_ended
    try:
        parameters = inspect.signature(backbone.forward).parameters.values()
    except (TypeError, ValueError):
        return (), True
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = tuple(p.name for p in parameters if p.kind not in variadic)
    return names, any(p.kind in variadic for p in parameters)


def _require_no_tensor(name: str, value: Any, group: FiniteGroup) -> None:
    if holds_tensor(value):
        raise ValueError(
            f"the tensor argument {name!r} has no action; use a mapping as input_action, with one "
            f"for each, input_action={{..., {name!r}: TrivialAction(group)}} if the group does not "
            "move it"
        )
