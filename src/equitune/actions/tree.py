"""Actions on structures of tensors: dicts, tuples, dataclasses and model outputs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final

from torch import Tensor

from equitune.actions.base import Action
from equitune.checks import require_entries
from equitune.groups import Embedding, FiniteGroup

__all__ = ["Drop", "TreeAction"]

Key = str | int

LISTS = "; for a list of detections per image there is equitune.vision.PaddedDetections"


@final
@dataclasses.dataclass(frozen=True)
class Drop:
    """Marks a field that cannot be combined over the group, such as a cache or a loss.

    The field is None in what a wrapper returns.
    """


@final
class TreeAction(Action):
    """One action per field of a dict, tuple, dataclass or transformers ``ModelOutput``.

    Fields that are None or hold no tensor pass through; a tensor without an action is an error,
    and so is an action without a field.

    Args:
        actions: A mapping from keys or field names, or a sequence by position, of actions;
            nested structures take a nested ``TreeAction``. ``Drop()`` marks fields that cannot
            be combined over the group.

    Raises:
        ValueError: If there is no action, or the actions are of different groups.
        TypeError: If an entry is neither an action nor ``Drop()``.

    Example:
        >>> import torch
        >>> from equitune import Drop, ImageAction, TreeAction, c4
        >>> action = TreeAction({"out": ImageAction(c4()), "loss": Drop()})
        >>> turned = action.transform({"out": torch.zeros(1, 2, 3), "loss": torch.zeros(())}, 1)
        >>> turned["out"].shape, turned["loss"]
        (torch.Size([1, 3, 2]), None)
    """

    def __init__(self, actions: Mapping[str, Action | Drop] | Sequence[Action | Drop]) -> None:
        entries: dict[Key, Action | Drop] = {}
        entries.update(
            actions
            if isinstance(actions, Mapping)
            else enumerate(require_entries("actions", actions, "an action for each field"))
        )
        for key, action in entries.items():
            if not isinstance(action, Action | Drop):
                raise TypeError(
                    f"actions[{key!r}] is a {type(action).__name__}; give an action, or Drop() "
                    "for a field that cannot be combined"
                )
        self._actions = entries
        self.group = common_group({str(k): a for k, a in entries.items() if isinstance(a, Action)})

    @property
    def actions(self) -> dict[Key, Action | Drop]:
        """The action of each field."""
        return dict(self._actions)

    def transform(self, x: Any, g: int | Tensor) -> Any:
        return self.unflatten(x, [action.transform(leaf, g) for action, leaf in self.flatten(x)])

    def orbit(self, x: Any, elements: Sequence[int] | None = None) -> Any:
        return self.unflatten(x, [action.orbit(leaf, elements) for action, leaf in self.flatten(x)])

    def inverse_orbit(self, y: Any, elements: Sequence[int] | None = None) -> Any:
        return self.unflatten(
            y, [action.inverse_orbit(leaf, elements) for action, leaf in self.flatten(y)]
        )

    def shape_classes(self, x: Any) -> tuple[tuple[int, ...], ...]:
        return common_classes(self.flatten(x), self.group)

    def flatten(self, x: Any, name: str = "x") -> list[tuple[Action, Tensor]]:
        leaves: list[tuple[Action, Tensor]] = []
        for key, value, action in self._fields(x, name):
            if isinstance(action, Action):
                leaves += action.flatten(value, f"{name}[{key!r}]")
        return leaves

    def unflatten(self, x: Any, leaves: Sequence[Tensor]) -> Any:
        remaining = list(leaves)
        values: dict[Key, Any] = {}
        for key, value, action in self._fields(x, "x"):
            if isinstance(action, Action):
                count = len(action.flatten(value))
                values[key] = action.unflatten(value, remaining[:count])
                remaining = remaining[count:]
            else:
                values[key] = None if isinstance(action, Drop) else value
        return rebuilt(x, values)

    def restrict(self, embedding: Embedding) -> TreeAction:
        restricted = {
            key: action.restrict(embedding) if isinstance(action, Action) else action
            for key, action in self._actions.items()
        }
        if all(isinstance(key, int) for key in restricted):
            return TreeAction(list(restricted.values()))
        return TreeAction({str(key): action for key, action in restricted.items()})

    def _fields(self, x: Any, name: str) -> Iterator[tuple[Key, Any, Action | Drop | None]]:
        """Each field with its action; None for a field that passes through."""
        fields = children(x)
        if fields is None:
            raise TypeError(
                f"{name} is a {type(x).__name__}, but its TreeAction has the fields "
                f"{list(self._actions)}; give one action for a tensor"
            )
        for key, action in self._actions.items():
            if key not in fields and isinstance(action, Action):
                raise ValueError(
                    f"the TreeAction has an action for {key!r}, but {name} is a "
                    f"{type(x).__name__} with the fields {list(fields)}"
                    + (LISTS if isinstance(x, list) else "")
                )
        for key, value in fields.items():
            found = self._actions.get(key)
            if found is None and holds_tensor(value):
                raise ValueError(
                    f"{name} has a field {key!r} without an action; give the TreeAction one for "
                    f"it, such as TrivialAction(group), or {key!r}: Drop() if it cannot be combined"
                )
            yield key, value, None if value is None else found

    def _parts(self) -> Iterable[object]:
        return self._actions.values()

    def _state(self) -> tuple[object, ...]:
        return (frozenset(self._actions.items()),)


def common_group(actions: Mapping[str, Action], name: str = "actions") -> FiniteGroup:
    """The group of some actions; refuses none at all, or actions of different groups."""
    if not actions:
        raise ValueError(f"`{name}` has no action; use at least one, such as TrivialAction(group)")
    (first_name, first), *others = actions.items()
    for other, action in others:
        if action.group != first.group:
            raise ValueError(
                f"the actions are of different groups: {first_name!r} has one of order "
                f"{first.group.order} {first.group.names}, {other!r} one of order "
                f"{action.group.order} {action.group.names}; lift them to one group with "
                "ProductAction and TrivialAction, or restrict(...) them to one"
            )
    return first.group


def common_classes(
    leaves: Sequence[tuple[Action, Tensor]], group: FiniteGroup
) -> tuple[tuple[int, ...], ...]:
    """The coarsest split of the elements in which the copies of every tensor have one shape."""
    classes = [tuple(group.elements)]
    for action, leaf in leaves:
        finer = action.shape_classes(leaf)
        if len(finer) > 1:
            parts = [_common(members, other) for members in classes for other in finer]
            classes = [part for part in parts if part]
    return tuple(classes)


def _common(members: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple([g for g in members if g in other])


def children(x: Any) -> dict[Key, Any] | None:
    """The fields of a structure by key, position or name; None for anything else."""
    # Dataclasses first: a ModelOutput is a mapping too, one that hides its empty fields.
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {f.name: getattr(x, f.name) for f in dataclasses.fields(x)}
    if isinstance(x, Mapping):
        return dict(x)
    if isinstance(x, tuple | list):
        return dict(enumerate(x))
    return None


def holds_tensor(x: Any) -> bool:
    """Whether a structure has a tensor in it."""
    if isinstance(x, Tensor):
        return True
    fields = children(x)
    return fields is not None and any(map(holds_tensor, fields.values()))


def rebuilt(x: Any, values: Mapping[Any, Any]) -> Any:
    """A structure like x with other values in its fields."""
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        given = [f.name for f in dataclasses.fields(x) if f.init]
        return type(x)(**{name: values[name] for name in given})
    if isinstance(x, Mapping):
        if type(x) is dict:
            return dict(values)
        replaced: Any = copy.copy(x)
        for key, value in values.items():
            replaced[key] = value
        return replaced
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*values.values())
    return type(x)(values.values())
