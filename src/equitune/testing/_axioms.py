"""Assertions for groups and actions: the axioms, by brute force."""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import torch

from equitune.actions import Action
from equitune.testing._batches import check_batch, one_element_each
from equitune.testing._comparison import close

__all__ = ["Group", "assert_action", "assert_group"]


class Group(Protocol):
    """What :func:`assert_group` needs to know of a group, of equitune or not.

    Its elements are the integers ``0 .. order - 1``.
    """

    @property
    def order(self) -> int:
        """The number of elements."""

    @property
    def identity(self) -> int:
        """The neutral element."""

    def compose(self, g: int, h: int, /) -> int:
        """The product gh."""

    def inverse(self, g: int, /) -> int:
        """The inverse of g."""


def assert_group(group: Group) -> None:
    """Asserts the axioms of a group, by trying all elements, pairs and triples.

    Args:
        group: A :class:`equitune.FiniteGroup`, or any object with ``order``, ``identity``,
            ``compose(g, h)`` and ``inverse(g)`` over the integers 0 to order - 1.

    Raises:
        AssertionError: If an axiom fails; the message names the axiom and the elements.
        TypeError: If the object lacks one of these.

    Example:
        >>> from equitune import d4
        >>> from equitune.testing import assert_group
        >>> assert_group(d4())
    """
    for name in ("order", "identity", "compose", "inverse"):
        if not hasattr(group, name):
            raise TypeError(
                f"group is a {type(group).__name__} without {name!r}; use an object with order, "
                "identity, compose(g, h) and inverse(g), or FiniteGroup(cayley_table)"
            )
    elements, e = range(group.order), group.identity
    _require(e in elements, f"the identity {e} is no element of 0 to {group.order - 1}")
    table = [[group.compose(g, h) for h in elements] for g in elements]
    for g, h in itertools.product(elements, repeat=2):
        _require(
            table[g][h] in elements, f"closure fails: the product of {g} and {h} is {table[g][h]}"
        )
    for g in elements:
        _require(
            table[e][g] == g and table[g][e] == g,
            f"{e} is not neutral: {e}*{g} is {table[e][g]} and {g}*{e} is {table[g][e]}",
        )
        h = group.inverse(g)
        _require(h in elements, f"the inverse of {g} is {h}, which is no element")
        _require(
            table[g][h] == e and table[h][g] == e,
            f"the inverse of {g} is not {h}: {g}*{h} is {table[g][h]} and {h}*{g} is {table[h][g]}",
        )
    for x, y, z in itertools.product(elements, repeat=3):
        left, right = table[table[x][y]][z], table[x][table[y][z]]
        _require(
            left == right,
            f"associativity fails: ({x}*{y})*{z} is {left}, but {x}*({y}*{z}) is {right}",
        )


def assert_action(action: Action, x: Any) -> None:
    """Asserts that an action is one on a given batch.

    Checks the identity, g(hx) = (gh)x for all pairs, each sample with its own g against whole
    batches, the orbit and its inverse, and that dtype and device stay. equitune's own actions have
    to be exact but for :class:`equitune.MatrixAction`, which is allowed rounding, as are actions
    of your own.

    Args:
        action: The action, of equitune or your own subclass of :class:`equitune.Action`.
        x: A batch of shape (B, ...), or a structure of batches; random, so that no two entries
            are equal.

    Raises:
        AssertionError: If one of these fails; the message names the elements.
        TypeError: If ``action`` is no action, or does not fit the structure of ``x``.
        ValueError: If ``x`` is empty or holds NaN, or the action cannot act on it.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, d4
        >>> from equitune.testing import assert_action
        >>> assert_action(ImageAction(d4()), torch.randn(3, 1, 4, 6))
    """
    if not isinstance(action, Action):
        raise TypeError(
            f"action is a {type(action).__name__}; use an action such as ImageAction(d4())"
        )
    check_batch(action, x)
    group = action.group
    copies = [action.transform(x, g) for g in group.elements]
    _assert_same(action, copies[0], x, "the identity, element 0, moves x")
    for h in group.elements:
        for g in group.elements:
            _assert_same(
                action,
                action.transform(copies[h], g),
                copies[group.compose(g, h)],
                f"element {g} after element {h} is not their product {group.compose(g, h)}",
            )
    each = one_element_each(action, x)
    moved = action.transform(x, each)
    for (leaf_action, part), *parts in zip(
        action.flatten(moved), *(action.flatten(copy) for copy in copies), strict=True
    ):
        same = torch.equal if leaf_action.exact else close
        for i, g in enumerate(each.tolist()):
            _require(
                same(part[i], parts[g][1][i]),
                f"sample {i} with its own element {g} moves unlike a batch with element {g}",
            )
    for elements in action.shape_classes(x):
        stack = action.orbit(x, elements)
        back = action.inverse_orbit(stack, elements)
        for i, g in enumerate(elements):
            where = f"at element {g}"
            entry = _entry(action, stack, i)
            _assert_same(action, entry, copies[g], f"the orbit differs from transform {where}")
            entry = _entry(action, back, i)
            _assert_same(action, entry, x, f"inverse_orbit does not undo orbit {where}")


def _entry(action: Action, stack: Any, i: int) -> Any:
    return action.unflatten(stack, [leaf[i] for _, leaf in action.flatten(stack)])


def _assert_same(action: Action, found: Any, expected: Any, message: str) -> None:
    pairs = zip(action.flatten(found), action.flatten(expected), strict=True)
    for (leaf_action, one), (_, other) in pairs:
        same = torch.equal if leaf_action.exact else close
        _require(
            one.dtype == other.dtype and one.device == other.device,
            f"the action changes {other.dtype} on {other.device} to {one.dtype} on {one.device}",
        )
        _require(one.shape == other.shape and same(one, other), message)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
