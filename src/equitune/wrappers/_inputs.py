"""Which action moves which argument of the backbone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from equitune._checks import require_type
from equitune.actions import Action
from equitune.actions._tree import Key, common_group, holds_tensor, tensors
from equitune.runners import Call
from equitune.wrappers._subclasses import Annotations


@final
class InputActions:
    """The input action of a wrapper: one for the first argument, or one per named argument."""

    def __init__(self, backbone: nn.Module, input_action: Action | Mapping[str, Action]) -> None:
        names, open_ended = _parameters(backbone)
        self._names, self._open_ended = names, open_ended
        self._order = {name: place for place, name in enumerate(names)}
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

    def bind(
        self,
        backbone: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output_action: Action,
    ) -> tuple[Call, Annotations]:
        """Finds the action of every tensor in a call; refuses a tensor without one.

        Returns:
            The call, on plain tensors, and what the tensors said of their samples before.
        """
        moved: dict[Key, Action] = {}
        leaves: list[tuple[Action, Tensor]] = []
        arguments: dict[Key, Any] = dict(enumerate(args))
        # In the order of the signature, so that the order of keywords in a call does not matter.
        order, names = self._order, self._names
        arguments.update(sorted(kwargs.items(), key=lambda item: order.get(item[0], len(order))))
        first = 0 if args else self._names[0] if self._names else next(iter(kwargs), None)
        for key, value in arguments.items():
            name = key if isinstance(key, str) else f"argument {key}"
            if isinstance(key, int) and key < len(names):
                name = names[key]
            action = self._first if key == first else None
            if self._by_name is not None:
                action = self._by_name.get(name)
            if action is None:
                _require_no_tensor(name, value)
            elif value is not None and not (action.trivial and _has_no_batch(value)):
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
                    "of the same size, first; use WholeBatchAction(group) for an argument that "
                    "belongs to the whole batch and to no sample"
                )
        annotations = Annotations(leaves)
        leaves = annotations.plain(leaves)
        call = Call(backbone, args, kwargs, moved, leaves, self.group, output_action)
        return call, annotations

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
        parameters = [*inspect.signature(backbone.forward).parameters.values()]
    except (TypeError, ValueError):
        return (), True
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    children = [*backbone.children()]
    if parameters and not named and len(children) == 1:
        # What takes everything hands it on, as adapters and compiled modules do.
        return _parameters(children[0])
    return tuple(p.name for p in named), len(named) < len(parameters)


def _has_no_batch(value: Any) -> bool:
    """Whether nothing in a value can belong to samples: numbers, and tensors that are numbers."""
    return all(x.dim() == 0 for x in tensors(value))


def _require_no_tensor(name: str, value: Any) -> None:
    if holds_tensor(value):
        raise ValueError(
            f"the tensor argument {name!r} has no action; use a mapping as input_action, with one "
            f"for each, input_action={{..., {name!r}: TrivialAction(group)}} if the group does not "
            f"move it, or {name!r}: WholeBatchAction(group) if it belongs to the whole batch and "
            "to no sample, such as a time step"
        )
