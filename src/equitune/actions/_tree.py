"""Actions on structures of tensors: dicts, lists, tuples, dataclasses and model outputs."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from torch import Tensor

from equitune._checks import described, require, require_entries, require_type
from equitune.actions._arguments import advice, require_group
from equitune.actions._base import Action, Composed
from equitune.groups import FiniteGroup

Key = str | int


@final
@dataclasses.dataclass(frozen=True)
class Drop:
    """Marks a field that cannot be combined over the group, such as a cache or a loss.

    The field is None in what a wrapper returns.
    """


FieldActions = Mapping[str, Action | Drop] | Sequence[Action | Drop]
"""The action of each field, by name or by position."""


class Structured(Composed, each_sample=True):
    """An action on structures, tensor by tensor: subclasses flatten and unflatten them."""

    fields: Mapping[Key, Action]

    def check(self, x: Any, g: int | Tensor = 0) -> None:
        """Checks nothing: the actions on the tensors do."""

    def transform(self, x: Any, g: int | Tensor) -> Any:
        return self.unflatten(x, [action.transform(leaf, g) for action, leaf in self.flatten(x)])

    def orbit(self, x: Any, elements: Sequence[int] | None = None) -> Any:
        return self.unflatten(x, [action.orbit(leaf, elements) for action, leaf in self.flatten(x)])

    def inverse_orbit(self, y: Any, elements: Sequence[int] | None = None) -> Any:
        undone = [action.inverse_orbit(leaf, elements) for action, leaf in self.flatten(y)]
        return self.unflatten(y, undone)

    def shape_classes(self, x: Any) -> tuple[tuple[int, ...], ...]:
        return common_classes(self.flatten(x), self.group)


@final
class TreeAction(Structured):
    """One action per field of a dict, tuple, list, dataclass or transformers ``ModelOutput``.

    Fields that are None or hold no tensor pass through; a tensor without an action is an error,
    and so is an action without a field.

    Args:
        actions: A mapping from keys or field names, or a sequence by position, of actions;
            nested structures take a nested ``TreeAction``. ``Drop()`` marks fields that cannot
            be combined over the group. The fields of a named tuple go by name or by position.
        others: The action of every tensor in the fields that are not in ``actions``, however many
            there are; or ``Drop()``, for None in all of these fields. ``TreeAction(others=action)``
            is that of a list of any length.

    Raises:
        ValueError: If no action is given, or the actions are of different groups.
        TypeError: If ``actions`` is neither a mapping nor a sequence, or an entry is neither an
            action nor ``Drop()``.

    Example:
        >>> import torch
        >>> from equitune import Drop, ImageAction, TreeAction, c4
        >>> action = TreeAction({"out": ImageAction(c4()), "loss": Drop()})
        >>> turned = action.transform({"out": torch.zeros(1, 2, 3), "loss": torch.zeros(())}, 1)
        >>> turned["out"].shape, turned["loss"]
        (torch.Size([1, 3, 2]), None)
        >>> pyramid = TreeAction(others=ImageAction(c4()))
        >>> [level.shape for level in pyramid.transform([torch.zeros(1, 4, 6)] * 2, 1)]
        [torch.Size([1, 6, 4]), torch.Size([1, 6, 4])]
    """

    def __init__(self, actions: FieldActions = (), *, others: Action | Drop | None = None) -> None:
        use = "an action for each field, or others=action for one on every field"
        mapping = isinstance(actions, Mapping)
        given: Any = actions if mapping else enumerate(require_entries("actions", actions, use))
        self.actions: dict[Any, Action | Drop] = dict(given)
        self.others, drop = others, "Drop() for what cannot be averaged"
        named = {f"actions[{key!r}]": action for key, action in self.actions.items()}
        named |= {} if others is None else {"others": others}
        for name, action in named.items():
            right = isinstance(action, Action | Drop)
            require(right, name, "be an action, or Drop()", described(action), drop, TypeError)
        self.fields = {key: a for key, a in self.actions.items() if isinstance(a, Action)}
        self.group = common_group({name: a for name, a in named.items() if isinstance(a, Action)})

    def flatten(self, x: Any, name: str = "x") -> list[tuple[Action, Tensor]]:
        fields = self._fields(x, name)
        leaves = [action.flatten(value, f"{name}[{key!r}]") for key, value, action in fields]
        return list(itertools.chain(*leaves))

    def unflatten(self, x: Any, leaves: Sequence[Tensor]) -> Any:
        values: dict[Key, Any] = {}
        for key, value, action in self._fields(x, "x"):
            count = len(action.flatten(value))
            values[key] = action.unflatten(value, leaves[:count])
            leaves = leaves[count:]
        return rebuilt(x, values)

    def _fields(self, x: Any, name: str) -> list[tuple[Key, Any, Action]]:
        """Each field with its action; what is dropped as None, which passes."""
        fields = children(x)
        if fields is None:
            must = f"be a structure with the fields {[*self.actions]} of its TreeAction"
            use = "one action for a tensor, or OneOf([...]) for what is one in some modes only"
            raise TypeError(f"`{name}` must {must}, got {described(x)}; use {use}")
        # Named tuples have positions too.
        places: dict[Key, Key] = dict(enumerate(fields)) if isinstance(x, tuple) else {}
        by_field = {places.get(key, key): action for key, action in self.actions.items()}
        for key in [key for key, a in by_field.items() if isinstance(a, Action)]:
            got, use = f"the fields {[*fields]}", f"a TreeAction of these fields{advice(x)}"
            require(key in fields, name, f"have the field {key!r} of its TreeAction", got, use)
        # No generator: torch 2.10 cannot compile an exception that leaves one.
        each: list[tuple[Key, Any, Action]] = []
        still = WholeBatchAction(self.group)
        for key, value in fields.items():
            found = by_field.get(key, self.others)
            if found is None and holds_tensor(value):
                use = f"TrivialAction(group) for what does not move, {key!r}: Drop() for what "
                use += f"cannot be combined, or others=... for all fields not named{advice(x)}"
                require(False, name, f"have an action for its field {key!r}", "none", use)
            if isinstance(found, Action) and value is not None:
                each.append((key, value, found if key in by_field else _at_any_depth(found, value)))
            else:
                each.append((key, None if isinstance(found, Drop) else value, still))
        return each


@final
class OneOf(Structured):
    """The first of several actions that fits the structure at hand.

    For outputs that are not always alike: a tuple in train mode and a tensor in eval mode, or
    fields that are there in one mode only. Actions are told apart by structure alone, by which
    fields there are; not by shapes.

    Args:
        actions: The actions, the first that fits counts.

    Raises:
        ValueError: If no action is given, or the actions are of different groups.
        TypeError: If an entry is not an action. Calls raise it for a structure that none fits.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, OneOf, TreeAction, c4
        >>> image = ImageAction(c4())
        >>> action = OneOf([TreeAction({"out": image, "aux": image}), TreeAction({"out": image})])
        >>> list(action.transform({"out": torch.zeros(1, 4, 6)}, 1))
        ['out']
    """

    def __init__(self, actions: Sequence[Action]) -> None:
        self.actions = tuple(require_entries("actions", actions, "a list of actions"))
        named = {f"actions[{i}]": action for i, action in enumerate(self.actions)}
        for name, action in named.items():
            require_type(name, action, Action, "an action")
        self.group, self.fields = common_group(named), {}

    def flatten(self, x: Any, name: str = "x") -> list[tuple[Action, Tensor]]:
        return self._fitting(x, name).flatten(x, name)

    def unflatten(self, x: Any, leaves: Sequence[Tensor]) -> Any:
        return self._fitting(x, "x").unflatten(x, leaves)

    def _fitting(self, x: Any, name: str) -> Action:
        reasons = []
        for action in self.actions:
            try:
                action.flatten(x, name)
                return action
            except (TypeError, ValueError) as error:
                reasons.append(str(error))
        raise TypeError(f"{name} fits no action of OneOf: " + "; or ".join(reasons))


@final
class WholeBatchAction(Structured):
    """The action on what belongs to the whole batch and not to its samples: it passes unchanged.

    A time step, the edges of a graph, a prompt, a scalar tensor, a flag: any value, in an argument
    that a model takes beside the batch.

    Args:
        group: The group of the other actions.

    Example:
        >>> import torch
        >>> from equitune import WholeBatchAction, c4
        >>> WholeBatchAction(c4()).transform(torch.tensor(0.5), 1)
        tensor(0.5000)
    """

    def __init__(self, group: FiniteGroup) -> None:
        self.group, self.fields = require_group(group), {}

    def flatten(self, x: Any, name: str = "x") -> list[tuple[Action, Tensor]]:
        return []

    def unflatten(self, x: Any, leaves: Sequence[Tensor]) -> Any:
        return x


def common_group(actions: Mapping[str, Action], name: str = "actions") -> FiniteGroup:
    """The group of some actions; refuses none at all, or actions of different groups."""
    require(len(actions) > 0, name, "hold an action", "none", "TrivialAction(group) at least")
    (first_name, first), *others = actions.items()
    use = "ProductAction and TrivialAction to lift them to one group, or restrict(...)"
    for other, action in others:
        got = f"different groups, of order {first.group.order} {first.group.names} for "
        got += f"{first_name!r} and {action.group.order} {action.group.names} for {other!r}"
        require(action.group == first.group, name, "hold actions of one group", got, use)
    return first.group


def common_classes(
    leaves: Sequence[tuple[Action, Tensor]], group: FiniteGroup
) -> tuple[tuple[int, ...], ...]:
    """The coarsest split of the elements in which the copies of every tensor have one shape."""
    classes = [tuple(group.elements)]
    for action, leaf in leaves:
        finer = action.shape_classes(leaf)
        if len(finer) > 1:
            parts = [tuple([g for g in part if g in other]) for part in classes for other in finer]
            classes = [part for part in parts if part]
    return tuple(classes)


def children(x: Any) -> dict[Key, Any] | None:
    """The fields of a structure by key, position or name; None for anything else."""
    # Tuples first: torch 2.10 cannot compile the question whether a named one is a dataclass.
    if isinstance(x, tuple | list):
        return dict(zip(_names(x), x, strict=True))
    # Then dataclasses: a ModelOutput is a mapping too, one that hides its empty fields.
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {f.name: getattr(x, f.name) for f in dataclasses.fields(x)}
    return dict(x) if isinstance(x, Mapping) else None


def _at_any_depth(action: Action, value: Any) -> Action:
    """What acts on a field that may be a structure, or hold no tensor at all."""
    if not holds_tensor(value):
        return WholeBatchAction(action.group)
    single = isinstance(value, Tensor) or isinstance(action, Structured)
    return action if single else TreeAction(others=action)


def _names(x: tuple[Any, ...] | list[Any]) -> Sequence[Key]:
    """The names of the fields of a named tuple, such as torch.max returns too, or positions."""
    names = getattr(x, "_fields", getattr(type(x), "__match_args__", ()))
    return names if names and len(names) == len(x) else range(len(x))


def holds_tensor(x: Any) -> bool:
    """Whether a structure has a tensor in it."""
    return len(tensors(x)) > 0


def tensors(x: Any) -> list[Tensor]:
    """The tensors of a structure."""
    if isinstance(x, Tensor):
        return [x]
    return [tensor for value in (children(x) or {}).values() for tensor in tensors(value)]


def mapped(x: Any, change: Callable[[Tensor], Any]) -> Any:
    """A structure like x with every tensor changed."""
    fields = children(x)
    if isinstance(x, Tensor) or fields is None:
        return change(x) if isinstance(x, Tensor) else x
    return rebuilt(x, {key: mapped(value, change) for key, value in fields.items()})


def rebuilt(x: Any, values: Mapping[Any, Any]) -> Any:
    """A structure like x with other values in its fields."""
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*values.values())
    if isinstance(x, tuple | list):
        return type(x)(values.values())
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return type(x)(**{f.name: values[f.name] for f in dataclasses.fields(x) if f.init})
    if type(x) is dict:
        return dict(values)
    replaced: Any = copy.copy(x)
    for key, value in values.items():
        replaced[key] = value
    return replaced
