"""The abstract action of a finite group, and what all actions share."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import (
    naming,
    readable,
    require_entries,
    require_int,
    require_tensor,
    require_type,
)
from equitune.actions._table import Table
from equitune.groups import Embedding, FiniteGroup

__all__ = ["Action", "TrivialAction"]

Elements = Sequence[int]
"""Some elements of a group, in the order in which a stack holds them."""


class Action(ABC):
    """How a finite group acts on a batch of shape (B, ...): a left action, (gh)x = g(hx).

    An action is a value: it is immutable, compares, hashes and pickles, and belongs to no device.
    It changes neither the dtype nor the device of what it acts on, and is differentiable. What is
    in the memory format ``channels_last`` or ``channels_last_3d`` stays in it, entry by entry in
    stacks; of other strides nothing is promised. Subclasses say what one element does; the rest
    follows.

    Attributes:
        group: The group that acts.
        rounding: The relative rounding of the numbers that it was given, if it was given any.
    """

    group: FiniteGroup
    rounding: float = torch.finfo(torch.float64).eps

    @abstractmethod
    def transform(self, x: Any, g: int | Tensor) -> Any:
        """The transformed batch, rho(g) x.

        Args:
            x: A batch of shape (B, ...).
            g: One element for the whole batch, or an int64 tensor of shape (B,) that gives each
                sample its own element.

        Raises:
            ValueError: If the action cannot act on the shape of ``x``, or ``g`` is no element.
            TypeError: If ``x`` or ``g`` is of the wrong type.
        """

    @abstractmethod
    def restrict(self, embedding: Embedding) -> Action:
        """The same action, of a subgroup only."""

    @abstractmethod
    def _state(self) -> tuple[object, ...]:
        """What the value consists of, for comparing and hashing."""

    def orbit(self, x: Any, elements: Elements | None = None) -> Any:
        """The orbit stack of shape (|G|, B, ...): entry g is rho(g) x.

        Args:
            x: A batch of shape (B, ...).
            elements: Only these elements, in this order. Default all.

        Raises:
            ValueError: If the copies do not all have one shape (see :meth:`shape_classes`).
        """
        elements = self._elements(elements)
        # Concatenated and not stacked: this keeps the memory format, and the batch is a view.
        copies = torch.cat([self.transform(x, g) for g in elements])
        return copies.unflatten(0, (len(elements), x.shape[0]))

    def inverse_orbit(self, y: Any, elements: Elements | None = None) -> Any:
        """Undoes the action on a stack of shape (|G|, B, ...): entry g becomes rho(g)^-1 y[g].

        Args:
            y: A stack, whose entry i belongs to ``elements[i]``.
            elements: The elements that the entries belong to. Default all.
        """
        elements = self._elements(elements)
        self._check_stack(y, elements)
        with naming("y"):
            undone = [self.transform(y[i], self.group.inverse(g)) for i, g in enumerate(elements)]
        for g, moved in zip(elements, undone, strict=True):
            if moved.shape != undone[0].shape:
                raise ValueError(
                    f"y has entries of shape {tuple(y.shape[1:])}, but undoing element {g} gives "
                    f"{tuple(moved.shape)}: the images are not square; check the action"
                )
        # Concatenated as in orbit.
        return torch.cat(undone).unflatten(0, (len(elements), undone[0].shape[0]))

    def shape_classes(self, x: Any) -> tuple[tuple[int, ...], ...]:
        """Splits the elements by the shape of rho(g) x; one class unless images are not square."""
        return (tuple(self.group.elements),)

    def flatten(self, x: Any, name: str = "x") -> list[tuple[Action, Tensor]]:
        """The tensors of a structure with the action of each; here one tensor."""
        return [(self, _require_tensor(x, name, self))]

    def unflatten(self, x: Any, leaves: Sequence[Tensor]) -> Any:
        """Puts tensors in the places of a structure that :meth:`flatten` took them from."""
        (leaf,) = leaves
        return leaf

    def check(self, x: Tensor, g: int | Tensor) -> None:
        """Refuses what is no tensor, and a ``g`` that is no element, nor one per sample."""
        _require_tensor(x, "x", self)
        if isinstance(g, int):
            self.group.check_element(g)
            return
        require_type("g", g, Tensor, "an int, or an int64 tensor of shape (B,)")
        if g.dtype != torch.int64:
            raise TypeError(f"g has dtype {g.dtype}; use int64 elements, g.long()")
        if g.shape != x.shape[:1]:
            raise ValueError(
                f"g has shape {tuple(g.shape)} for x of shape {tuple(x.shape)}; "
                "use one element per sample"
            )
        if readable(g):
            self.group.check_element(int(g.min()))
            self.group.check_element(int(g.max()))

    def doubts(self, x: Any) -> Sequence[str]:
        """What values of x this action cannot be meant for; nothing unless a subclass looks.

        Calls of an action do not ask, since looking at values synchronises accelerators; the
        testing kit does.
        """
        return ()

    def prepare(self, device: torch.device) -> None:
        """Makes the constant tables on a device now, so that compiled code need not."""
        for part in self._parts():
            if isinstance(part, Table):
                part.on(device)
            elif isinstance(part, Action):
                part.prepare(device)

    def _parts(self) -> Iterable[object]:
        return vars(self).values()

    def _extent(self) -> dict[int, int | None]:
        """The dims that are acted on and their sizes (None: any), to probe products with."""
        raise TypeError(
            f"{type(self).__name__} cannot be a factor of a ProductAction; "
            "build the products first and put them into the structure"
        )

    def _elements(self, elements: Elements | None) -> Elements:
        if elements is None:
            return self.group.elements
        some = require_entries("elements", elements, "a list of elements of the group", least=1)
        return [self.group.check_element(g, "elements") for g in some]

    def _check_stack(self, y: Tensor, elements: Elements) -> None:
        require_tensor("y", y, "(|G|, B, ...)", dims=2)
        if y.shape[0] != len(elements):
            raise ValueError(
                f"y has shape {tuple(y.shape)}; its first dimension must be the {len(elements)} "
                "elements of the group"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._state() == other._state()

    def __hash__(self) -> int:
        return hash((type(self), self._state()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(group of order {self.group.order})"

    def __copy__(self) -> Action:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Action:
        return self


@final
class TrivialAction(Action):
    """The action that moves nothing: rho(g) x = x, of any dtype and shape.

    As an output action it means invariance.

    Example:
        >>> import torch
        >>> from equitune import TrivialAction, c4
        >>> TrivialAction(c4()).orbit(torch.zeros(2, 5)).shape
        torch.Size([4, 2, 5])
    """

    def __init__(self, group: FiniteGroup) -> None:
        self.group = require_group(group)

    def transform(self, x: Tensor, g: int | Tensor) -> Tensor:
        self.check(x, g)
        return x

    def inverse_orbit(self, y: Tensor, elements: Elements | None = None) -> Tensor:
        self._check_stack(y, self._elements(elements))
        return y

    def restrict(self, embedding: Embedding) -> TrivialAction:
        require_embedding(self, embedding)
        return TrivialAction(embedding.subgroup)

    def _extent(self) -> dict[int, int | None]:
        return {}

    def _state(self) -> tuple[object, ...]:
        return (self.group,)


def require_group(group: object) -> FiniteGroup:
    """Refuses what is no group, such as a constructor that was not called."""
    if not isinstance(group, FiniteGroup):
        called = f"{group.__name__}()" if inspect.isfunction(group) else "c4() or cyclic(3)"
        raise TypeError(f"group is a {type(group).__name__}; use a FiniteGroup such as {called}")
    return group


def require_embedding(action: Action, embedding: Embedding) -> None:
    """Refuses an embedding into another group than the one that acts."""
    require_type("embedding", embedding, Embedding, "group.subgroup([1])")
    if embedding.group != action.group:
        raise ValueError(
            f"the embedding is one into a group of order {embedding.group.order}, but the action "
            f"is one of a group of order {action.group.order}; "
            "make the embedding with action.group.subgroup(...)"
        )


def dimension(x: Tensor, dim: int, action: Action, size: int | None = None) -> int:
    """The dimension ``dim`` of a batch counted from the front; refuses what cannot be acted on."""
    _require_tensor(x, "x", action)
    position = dim if dim >= 0 else x.dim() + dim
    if not 1 <= position < x.dim():
        raise ValueError(
            f"{type(action).__name__} acts on dim {dim}, but x has shape {tuple(x.shape)}, whose "
            "first dimension is the batch; check dim, and that x has a batch dimension"
        )
    if size is not None and x.shape[position] != size:
        raise ValueError(
            f"{type(action).__name__} acts on {size} entries along dim {dim}, but x has shape "
            f"{tuple(x.shape)}, {x.shape[position]} along that dim"
        )
    return position


def advice(x: object) -> str:
    """What helps with a list, for a message; nothing for anything else."""
    if not isinstance(x, list):
        return ""
    if x and all(isinstance(entry, dict) for entry in x):
        return "; for a list of one dict per image use equitune.vision.PaddedDetections"
    return "; for a list of any length use TreeAction(others=action)"


def require_dim(name: str, dim: int, use: str) -> int:
    """The dimension as an int; refuses the batch."""
    dim = require_int(name, dim, use)
    if dim == 0:
        raise ValueError(f"{name} is 0, the batch; use {use}")
    return dim


def in_format_of(x: Tensor, moved: Tensor) -> Tensor:
    """``moved`` in channels_last or channels_last_3d if ``x`` is, for a model's fast path."""
    if x.dim() in (4, 5) and x.stride(1) == 1 and x.shape[1] > 1:
        # Not by name: under vmap formats have none.
        return moved.movedim(1, -1).contiguous().movedim(-1, 1)
    return moved


def _require_tensor(x: object, name: str, action: Action) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} is a {type(x).__name__}, but {type(action).__name__} acts on one tensor; "
            "for dicts, tuples, dataclasses and model outputs give a "
            "TreeAction({field: action, ...}), with Drop() for fields that cannot be combined"
            + advice(x)
        )
    if x.dim() == 0:
        raise ValueError(f"{name} is a scalar; actions act on batches of shape (B, ...)")
    return x
