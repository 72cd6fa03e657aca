"""Which action moves which argument of the backbone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from equitune._checks import described, require, require_type
from equitune.actions import Action
from equitune.actions._tree import Key, common_group, holds_tensor, tensors
from equitune.runners import Call
from equitune.wrappers._subclasses import is_annotated, plain

Actions = Action | Mapping[str, Action]
"""One action, on the first argument, or one per named argument."""


@final
class InputActions:
    """The input action of a wrapper, argument by argument.

    Attributes:
        group: The group that acts.
        by_name: The action of each argument.
    """

    def __init__(self, backbone: nn.Module, input_action: Actions) -> None:
        names, positional, open_ended = _parameters(backbone)
        self._names, self._positional, self._open_ended = names, positional, open_ended
        self._order = {name: place for place, name in enumerate(names)}
        # Of a first argument that has no name in the signature.
        self._unnamed = None if positional or not isinstance(input_action, Action) else input_action
        if isinstance(input_action, Action):
            input_action = {names[0] if positional else "the first argument": input_action}
        else:
            must, use = "be an action, or a mapping from names to actions", "ImageAction(d4())"
            right = isinstance(input_action, Mapping)
            require(right, "input_action", must, described(input_action), use, TypeError)
            for name, action in input_action.items():
                require_type(f"input_action[{name!r}]", action, Action, "an action")
                must = f"name what the backbone's forward takes, {[*names]}"
                require(
                    name in names or open_ended, "input_action", must, repr(name), "these names"
                )
        self.by_name = dict(input_action)
        self.group = common_group(self.by_name, "input_action")

    def bind(
        self, backbone: nn.Module, args: Any, kwargs: dict[str, Any], output_action: Action
    ) -> tuple[Call, Tensor | None]:
        """Finds the action of every tensor in a call; refuses a tensor without one.

        Returns:
            The call, on plain tensors, and the first of them that was annotated, if one was.
        """
        moved: dict[Key, Action] = {}
        leaves: list[tuple[Action, Tensor]] = []
        arguments: dict[Key, Any] = dict(enumerate(args))
        # In the order of the signature, so that the order of keywords in a call does not matter.
        order, names = self._order, self._names
        arguments.update(sorted(kwargs.items(), key=lambda item: order.get(item[0], len(order))))
        first = next(iter(arguments), None)
        for key, value in arguments.items():
            name = key if isinstance(key, str) else f"argument {key}"
            if isinstance(key, int) and key < self._positional:
                name = names[key]
            action = self.by_name.get(name, self._unnamed if key == first else None)
            if action is None:
                _require_no_tensor(name, value)
            elif value is not None and not (action.trivial and _has_no_batch(value)):
                moved[key] = action
                leaves += action.flatten(value, name)
        if not leaves:
            raise ValueError(
                f"the call has no argument for the input action, which moves {[*self.by_name]}; it "
                f"was called with {len(args)} positional arguments and the names {[*kwargs]}"
            )
        source = None
        for _, leaf in leaves:
            if source is None and is_annotated(leaf):
                source = leaf
            if leaf.shape[0] != leaves[0][1].shape[0]:
                raise ValueError(
                    f"the moved tensors have the batch sizes {[len(x) for _, x in leaves]}; all "
                    "must have one batch dimension of the same size, first; use WholeBatchAction("
                    "group) for an argument that belongs to the whole batch and to no sample"
                )
        if source is not None:
            leaves = [(action, plain(leaf)) for action, leaf in leaves]
        return Call(backbone, args, kwargs, moved, leaves, self.group, output_action), source


def _parameters(backbone: nn.Module) -> tuple[tuple[str, ...], int, bool]:
    """The names of the parameters of forward, how many have a place, and whether it takes more."""
    inner = getattr(backbone, "_inputs", None)
    if isinstance(inner, InputActions):
        # A wrapper around a wrapper takes the arguments of the innermost backbone.
        return inner._names, inner._positional, inner._open_ended
    try:
        parameters = [*inspect.signature(backbone.forward).parameters.values()]
    except (TypeError, ValueError):
        return (), 0, True
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    children = [*backbone.children()]
    if parameters and not named and len(children) == 1:
        # What takes everything hands it on, as adapters and compiled modules do.
        return _parameters(children[0])
    # What follows *args in the signature has a name alone.
    positional = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    return tuple(named), positional, len(named) < len(parameters)


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
