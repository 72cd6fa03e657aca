"""The abstract action of a finite group, what all actions share, and the one that does nothing."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from equitune._checks import naming, readable, require, require_tensor, require_type
from equitune.actions._arguments import in_format_of, require_batch, require_group
from equitune.actions._table import Table, frozen
from equitune.groups import Embedding, FiniteGroup
from equitune.groups._group import require_into

if TYPE_CHECKING:
    from equitune.actions._permutation import PermutationAction

Move = Callable[[Any, Any, int], Any]


def _checked(move: Move, each_sample: bool) -> Callable[[Any, Any, Any], Any]:
    """The public ``transform``, which keeps the promises that a ``move`` by one element may not."""

    @functools.wraps(move)
    def transform(self: Action, x: Any, g: Any) -> Any:
        self.check(x, g)
        if isinstance(g, int) or each_sample:
            return move(self, x, g)
        return _by_element(self, move, x, g)

    return transform


def _by_element(action: Action, move: Move, x: Tensor, g: Tensor) -> Tensor:
    """Moves each sample by its own element."""
    if readable(g) or len(action.shape_classes(x)) > 1:
        order = g.argsort(stable=True)
        performed, counts = g[order].unique_consecutive(return_counts=True)
        samples = x.index_select(0, order).split(counts.tolist())
        pieces = [move(action, *pair) for pair in zip(samples, performed.tolist(), strict=True)]
        joined = _joined(pieces or [move(action, x, 0)], "x")
        return in_format_of(x, joined.index_select(0, order.argsort()))
    # Values cannot be looked at, or that would cost a synchronisation.
    moved = move(action, x, 0)
    for element in action.group.elements[1:]:
        here = (g == element).view(-1, *[1] * (x.dim() - 1))
        moved = torch.where(here, move(action, x, element), moved)
    return in_format_of(x, moved)


def _joined(copies: list[Tensor], name: str) -> Tensor:
    """Copies in one batch; refuses those of several shapes."""
    for copy in copies:
        if copy.shape[1:] != copies[0].shape[1:]:
            got = f"samples of shape {tuple(copies[0].shape[1:])} and {tuple(copy.shape[1:])}"
            use = "the elements of one of shape_classes(x) at a time, and check the action"
            require(False, name, "give copies of one shape", got, use)
    # Concatenated and not stacked: this keeps the memory format, and the batch is a view.
    return torch.cat(copies)


class Action(ABC):
    """How a finite group acts on a batch of shape (B, ...): a left action, (gh)x = g(hx).

    An action is a value: it is immutable, compares, hashes and pickles, and belongs to no device.
    It changes neither the dtype nor the device of what it acts on, and is differentiable. What is
    in the memory format ``channels_last`` or ``channels_last_3d`` stays in it, entry by entry in
    stacks; of other strides nothing is promised.

    An action of your own has a ``group`` and a ``transform`` for one element; the rest follows.
    What it promises beyond that, it says by the attributes below, of the class or of the instance;
    :func:`equitune.testing.assert_action` finds a promise that it does not keep.

    Args:
        each_sample: In the class statement: whether ``transform`` also serves an int64 tensor (B,)
            of elements, one per sample. By default samples are grouped by their element.

    Attributes:
        group: The group that acts.
        exact: Whether it only moves and negates entries, or renames ids, without any rounding.
        linear: Whether g(ax + by) = a gx + b gy.
        permutes: Whether it permutes entries along the dims of :attr:`extent` and does nothing
            else. What is ``exact`` and ``linear`` at most changes signs too.
        trivial: Whether it moves nothing.
        keeps_shape: Whether gx always has the shape of x; only asked for by speed.
        image_dims: The dims of height and width of an action that moves pixels, or None.
        vocabulary_size: The number of ids of an action on integer ids, or None.
        fields: The action of each field of an action on structures; None on a single tensor.
        rounding: The relative rounding of the numbers that it was given, if it was given any.

    Example:
        >>> import torch
        >>> from equitune import Action, cyclic
        >>> class Reverse(Action):
        ...     group = cyclic(2)
        ...
        ...     def transform(self, x, g):
        ...         return x.flip(-1) if g == 1 else x
        >>> Reverse().transform(torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 1]))
        tensor([[1, 2],
                [4, 3]])
    """

    group: FiniteGroup
    exact: bool = False
    linear: bool = False
    permutes: bool = False
    trivial: bool = False
    keeps_shape: bool = False
    image_dims: tuple[int, int] | None = None
    vocabulary_size: int | None = None
    fields: Mapping[Any, Action] | None = None
    rounding: float = torch.finfo(torch.float64).eps

    def __init_subclass__(cls, *, each_sample: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "transform" in vars(cls):
            move = cls.unchecked_transform = cls.transform  # type: ignore[method-assign]
            cls.transform = _checked(move, each_sample)  # type: ignore

    @abstractmethod
    def transform(self, x: Any, g: Any) -> Any:
        """The transformed batch, rho(g) x.

        A subclass defines this for one element, an int, and may rely on ``x`` and ``g`` having been
        checked. Callers may also give each sample its own element.

        Args:
            x: A batch of shape (B, ...).
            g: One element for the whole batch, or an int64 tensor of shape (B,) with one element
                per sample.

        Raises:
            ValueError: If the action cannot act on the shape of ``x``, ``g`` is not an element, or
                samples would get different shapes.
            TypeError: If ``x`` or ``g`` is of the wrong type.
        """

    def unchecked_transform(self, x: Any, g: int) -> Any:
        """:meth:`transform` by one element, of what ``check`` has accepted already."""
        return self.transform(x, g)

    @property
    def extent(self) -> Mapping[int, int | None]:
        """The dims that are acted on and their sizes, None for any; empty for any tensor."""
        return {}

    @property
    def state(self) -> tuple[object, ...]:
        """All attributes, by which the value compares and hashes."""
        return tuple((name, frozen(value)) for name, value in sorted(vars(self).items()))

    def check(self, x: Any, g: int | Tensor = 0) -> None:
        """Refuses what the action cannot act on; a subclass may add checks of its own.

        Args:
            x: What should be a batch of shape (B, ...) with the dims of :attr:`extent`.
            g: What should be an element, or one per sample.

        Raises:
            ValueError: If a shape or an element is wrong.
            TypeError: If ``x`` is not a tensor, or ``g`` not of a type of elements.
        """
        if not isinstance(x, Tensor) or x.dim() == 0:
            require_batch(x, "x", self)
        for dim, size in self.extent.items():
            place = dim % x.dim() if -x.dim() <= dim < x.dim() else 0
            if not place or size not in (None, x.shape[place]):
                what = "a dim" if size is None else f"{size} entries along dim"
                must = f"have {what} {dim} after the batch dimension for {type(self).__name__}"
                require(False, "x", must, f"shape {tuple(x.shape)}", "(B, ...)")
        if isinstance(g, int):
            if g:
                self.group.check_element(g)
            return
        require_type("g", g, Tensor, "an int, or an int64 tensor of shape (B,)")
        require(g.dtype == torch.int64, "g", "be int64", g, "g.long()", TypeError)
        require(g.shape == x.shape[:1], "g", "have shape (B,)", g, "one element per sample")
        for extreme in (g.min(), g.max()) if readable(g) else ():
            self.group.check_element(int(extreme))

    def orbit(self, x: Any, elements: Sequence[int] | None = None) -> Any:
        """The orbit stack of shape (|G|, B, ...): entry g is rho(g) x.

        Args:
            x: A batch of shape (B, ...).
            elements: Only these elements, in this order. Default all.

        Raises:
            ValueError: If the copies do not all have one shape (see :meth:`shape_classes`).
        """
        self.check(x)
        elements = self.group.check_elements(elements)
        copies = [self.unchecked_transform(x, g) for g in elements]
        return _joined(copies, "x").unflatten(0, (len(elements), x.shape[0]))

    def inverse_orbit(self, y: Any, elements: Sequence[int] | None = None) -> Any:
        """Undoes the action on a stack of shape (|G|, B, ...): entry g becomes rho(g)^-1 y[g].

        Args:
            y: A stack, whose entry i belongs to ``elements[i]``.
            elements: The elements that the entries belong to. Default all.
        """
        elements = self.require_stack(y, elements)
        with naming("y"):
            self.check(y[0])
        inverses = self.group.inverses
        undone = [self.unchecked_transform(y[i], inverses[g]) for i, g in enumerate(elements)]
        return _joined(undone, "y").unflatten(0, (len(elements), undone[0].shape[0]))

    def shape_classes(self, x: Any) -> tuple[tuple[int, ...], ...]:
        """Splits the elements by the shape of rho(g) x; one class unless images are not square."""
        self.check(x)
        if self.keeps_shape:
            return (tuple(self.group.elements),)
        shapes = [self.unchecked_transform(x[:1], g).shape for g in self.group.elements]
        # Compared one by one: exporting has sizes that are symbols, and compilers look none up.
        parts: list[list[int]] = []
        for g in self.group.elements:
            for part in parts:
                if shapes[g] == shapes[part[0]]:
                    part.append(g)
                    break
            else:
                parts.append([g])
        return tuple([tuple(part) for part in parts])

    def flatten(self, x: Any, name: str = "x") -> list[tuple[Action, Tensor]]:
        """The tensors of a structure with the action of each; here one tensor."""
        return [(self, require_batch(x, name, self))]

    def unflatten(self, x: Any, leaves: Sequence[Tensor]) -> Any:
        """Puts tensors in the places of a structure that :meth:`flatten` took them from."""
        (leaf,) = leaves
        return leaf

    def restrict(self, embedding: Embedding) -> Action:
        """The same action, of a subgroup only.

        Args:
            embedding: That of the subgroup, such as ``group.subgroup([1])``.

        Raises:
            TypeError: If it is not an embedding.
            ValueError: If it is one into another group than the one that acts.
        """
        require_into(self.group, embedding)
        return Pulled(self, embedding.subgroup, embedding.elements)

    def on_logits(self, dim: int = -1) -> PermutationAction:
        """The action on scores over the vocabulary that matches one on ids.

        Args:
            dim: The dimension of the scores.

        Raises:
            TypeError: If the action is not one on ids.
        """
        from equitune.actions._permutation import PermutationAction

        count = self.vocabulary_size
        if count is None:
            raise TypeError(f"`action` must be one on ids, got {self!r}; use a TokenAction")
        ids = torch.arange(count, device="cpu").unsqueeze(0)
        return PermutationAction(self.group, self.orbit(ids)[:, 0], dim)

    def other_side(self) -> Action | None:
        """The regular action from the other side; None for an action that is not regular."""
        return None

    def doubts(self, x: Any) -> Sequence[str]:
        """What values of x this action cannot be meant for; nothing unless a subclass looks.

        Calls of an action do not ask, since looking at values synchronises accelerators; the
        testing kit does.
        """
        return ()

    def prepare(self, device: torch.device) -> None:
        """Makes the constant tables on a device now, so that compiled code need not."""
        _applied(vars(self), lambda part: part.prepare(device))

    def promise_as(self, *parts: Action) -> None:
        """Promises what all parts promise, for an action that is made of others."""
        for name in ("exact", "linear", "permutes", "trivial", "keeps_shape"):
            setattr(self, name, all(getattr(part, name) for part in parts))
        sizes = [part.vocabulary_size for part in parts if part.vocabulary_size is not None]
        self.vocabulary_size = sizes[0] if sizes else None
        self.rounding = max([part.rounding for part in parts])

    def require_stack(self, y: Tensor, elements: Sequence[int] | None) -> Sequence[int]:
        elements, stack = self.group.check_elements(elements), "(|G|, B, ...)"
        right = require_tensor("y", y, stack, dims=2).shape[0] == len(elements)
        require(right, "y", f"have an entry for each of {len(elements)} elements", y, stack)
        return elements

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.state == other.state

    def __hash__(self) -> int:
        return hash((type(self), self.state))

    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" for name, value in vars(self).items()
                 if not name.startswith("_") and name not in Action.__annotations__]  # fmt: skip
        return f"{type(self).__name__}({', '.join([f'group of order {self.group.order}', *shown])})"

    def __copy__(self) -> Action:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Action:
        return self


class Composed(Action):
    """An action made of tables, with a row per element, and of actions of the same group.

    They are attributes, or stand in a dict or a tuple that is one.
    """

    def restrict(self, embedding: Embedding) -> Any:
        require_into(self.group, embedding)
        restricted = object.__new__(type(self))
        vars(restricted).update(_applied(vars(self), lambda part: part.restrict(embedding)))
        vars(restricted).update(group=embedding.subgroup)
        return restricted


@final
class Pulled(Action):
    """A group that acts by the elements of another one: element g does ``elements[g]``.

    Args:
        action: The action of the other group.
        group: The group that acts.
        elements: A homomorphism to the other group.
    """

    def __init__(self, action: Action, group: FiniteGroup, elements: Sequence[int]) -> None:
        self.action, self.group, self.elements = action, group, tuple(elements)
        self.image_dims = action.image_dims
        self.promise_as(action)

    @property
    def extent(self) -> Mapping[int, int | None]:
        return self.action.extent

    def check(self, x: Any, g: int | Tensor = 0) -> None:
        self.action.check(x)
        super().check(x, g)

    def transform(self, x: Any, g: int) -> Any:
        return self.action.unchecked_transform(x, self.elements[g])


@final
class TrivialAction(Composed):
    """The action that moves nothing: rho(g) x = x, of any dtype and shape.

    As an output action it means invariance.

    Args:
        group: The group that acts.

    Example:
        >>> import torch
        >>> from equitune import TrivialAction, c4
        >>> TrivialAction(c4()).orbit(torch.zeros(2, 5)).shape
        torch.Size([4, 2, 5])
    """

    exact = linear = permutes = trivial = keeps_shape = True

    def __init__(self, group: FiniteGroup) -> None:
        self.group = require_group(group)

    def transform(self, x: Tensor, g: int) -> Tensor:
        return x

    def inverse_orbit(self, y: Tensor, elements: Sequence[int] | None = None) -> Tensor:
        self.require_stack(y, elements)
        return y


def _applied(part: Any, change: Callable[[Any], Any]) -> Any:
    """An attribute whose tables and actions were changed."""
    if isinstance(part, Action | Table):
        return change(part)
    if isinstance(part, dict):
        return {key: _applied(value, change) for key, value in part.items()}
    return tuple([_applied(value, change) for value in part]) if isinstance(part, tuple) else part
