"""Assertions for groups and actions: the axioms, by brute force."""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import torch
from torch import Tensor

from equitune._checks import described, require, require_type
from equitune.actions import Action
from equitune.testing._batches import check_batch, one_element_each
from equitune.testing._comparison import close


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
        group: A :class:`equitune.groups.FiniteGroup`, or any object with ``order``, ``identity``,
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
        got, use = f"{described(group)} without it", "FiniteGroup(cayley_table), or one of your own"
        require(hasattr(group, name), "group", f"have {name!r}", got, use, TypeError)
    elements, e = range(group.order), group.identity
    if e not in elements:
        raise AssertionError(f"the identity {e} is not among the elements 0 to {group.order - 1}")
    table = [[group.compose(g, h) for h in elements] for g in elements]
    for g, h in itertools.product(elements, repeat=2):
        if table[g][h] not in elements:
            raise AssertionError(f"closure fails: the product of {g} and {h} is {table[g][h]}")
    for g in elements:
        products, h = f"{e}*{g} is {table[e][g]} and {g}*{e} is {table[g][e]}", group.inverse(g)
        if not table[e][g] == table[g][e] == g:
            raise AssertionError(f"{e} is not neutral: {products}")
        if h not in elements:
            raise AssertionError(f"the inverse of {g} is {h}, which is not an element")
        products = f"{g}*{h} is {table[g][h]} and {h}*{g} is {table[h][g]}"
        if not table[g][h] == table[h][g] == e:
            raise AssertionError(f"the inverse of {g} is not {h}: {products}")
    for x, y, z in itertools.product(elements, repeat=3):
        left, right = table[table[x][y]][z], table[x][table[y][z]]
        products = f"({x}*{y})*{z} is {left}, but {x}*({y}*{z}) is {right}"
        if left != right:
            raise AssertionError(f"associativity fails: {products}")


def assert_action(action: Action, x: Any) -> None:
    """Asserts that an action is one on a given batch.

    Checks the identity, g(hx) = (gh)x for all pairs, each sample with its own g against whole
    batches, the orbit and its inverse, that dtype and device stay, and what the action says of
    itself: ``exact`` (up to rounding if it does not say so), ``linear``, ``permutes``, ``trivial``,
    ``keeps_shape``.

    Args:
        action: The action, of equitune or your own subclass of :class:`equitune.actions.Action`.
        x: A batch of shape (B, ...), or a structure of batches; random, so that no two entries
            are equal.

    Raises:
        AssertionError: If one of these fails; the message names the elements.
        TypeError: If ``action`` is not an action, or does not fit the structure of ``x``.
        ValueError: If ``x`` is empty or holds NaN, or the action cannot act on it.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, d4
        >>> from equitune.testing import assert_action
        >>> assert_action(ImageAction(d4()), torch.randn(3, 1, 4, 6))
    """
    require_type("action", action, Action, "one such as ImageAction(d4())")
    check_batch(action, x)
    for leaf_action, leaf in action.flatten(x):
        _assert_promises(leaf_action, leaf)
    group = action.group
    copies = [action.transform(x, g) for g in group.elements]
    _assert_same(action, copies[0], x, "the identity, element 0, moves x")
    for h, g in itertools.product(group.elements, repeat=2):
        product = group.compose(g, h)
        broken = f"element {g} after element {h} is not their product {product}"
        _assert_same(action, action.transform(copies[h], g), copies[product], broken)
    each = one_element_each(action, x)
    moved = action.transform(x, each)
    for (leaf_action, part), *parts in zip(*map(action.flatten, [moved, *copies]), strict=True):
        same = torch.equal if leaf_action.exact else close
        for i, g in enumerate(each.tolist()):
            if not same(part[i], parts[g][1][i]):
                what = f"sample {i} with its own element {g} moves unlike a batch with element {g}"
                raise AssertionError(what)
    for elements in action.shape_classes(x):
        stack = action.orbit(x, elements)
        back = action.inverse_orbit(stack, elements)
        for i, g in enumerate(elements):
            where = f"at element {g}"
            entry = _entry(action, stack, i)
            _assert_same(action, entry, copies[g], f"the orbit differs from transform {where}")
            entry = _entry(action, back, i)
            _assert_same(action, entry, x, f"inverse_orbit does not undo orbit {where}")


def _assert_promises(action: Action, x: Tensor) -> None:
    """Asserts what an action on one tensor says of itself."""
    generator = torch.Generator("cpu").manual_seed(0)
    other = torch.randint(-8, 9, x.shape, generator=generator, device="cpu").to(x)
    has_signs = x.dtype.is_signed or x.is_complex()
    for g in action.group.elements:
        moved = action.transform(x, g)
        if action.keeps_shape and moved.shape != x.shape:
            raise AssertionError(f"keeps_shape is True, but {g} changes the shape")
        if action.trivial and not torch.equal(moved, x):
            raise AssertionError(f"trivial is True, but element {g} moves x")
        if action.linear and has_signs:
            total, part = action.transform(x + 2 * other, g), action.transform(other, g)
            if not close(total, moved + 2 * part):
                raise AssertionError(
                    f"linear is True, but element {g} moves a sum unlike its terms"
                )
        if action.exact and action.linear and not torch.equal(_sizes(moved), _sizes(x)):
            does = "does more than move and negate entries"
            raise AssertionError(f"exact is True, but element {g} {does}")
        if action.permutes and not _only_permutes(action, x, g):
            does = f"something else than a permutation along the dims of extent, {[*action.extent]}"
            raise AssertionError(f"permutes is True, but element {g} does {does}")


def _sizes(x: Tensor) -> Tensor:
    """The sizes of the entries of each sample, in order."""
    wide = x if x.is_floating_point() or x.is_complex() else x.double()
    return wide.abs().flatten(1).sort(dim=1).values


def _only_permutes(action: Action, x: Tensor, g: int) -> bool:
    """Whether places along the acted dims are permuted, everywhere alike, and no other dim is."""
    acted = {dim % x.dim() for dim in action.extent}
    along = [_along(x.shape, dim, x.device) for dim in range(x.dim())]
    # Every entry knows its place along each dim.
    moved = [action.transform(places.expand(x.shape).contiguous(), g) for places in along]
    kept = all(
        torch.equal(moved[dim], _along(moved[dim].shape, dim, x.device).expand_as(moved[dim]))
        for dim in range(x.dim())
        if dim not in acted
    )
    number = torch.zeros_like(moved[0])
    for dim in acted:
        number = number * x.shape[dim] + moved[dim]
    first = number
    for dim in set(range(x.dim())) - acted:
        first = first.narrow(dim, 0, 1)
    count = torch.arange(first.numel(), device=x.device)
    alike = torch.equal(number, first.expand_as(number))
    return kept and alike and torch.equal(first.flatten().sort().values, count)


def _along(shape: torch.Size, dim: int, device: torch.device) -> Tensor:
    """The place of each entry along a dimension, of a shape that expands to ``shape``."""
    return torch.arange(shape[dim], device=device).view([-1 if d == dim else 1
                                                         for d in range(len(shape))])  # fmt: skip


def _entry(action: Action, stack: Any, i: int) -> Any:
    return action.unflatten(stack, [leaf[i] for _, leaf in action.flatten(stack)])


def _assert_same(action: Action, found: Any, expected: Any, message: str) -> None:
    pairs = zip(action.flatten(found), action.flatten(expected), strict=True)
    for (leaf_action, one), (_, other) in pairs:
        same = torch.equal if leaf_action.exact else close
        if one.dtype != other.dtype or one.device != other.device:
            changed = f"{other.dtype} on {other.device} to {one.dtype} on {one.device}"
            raise AssertionError(f"the action changes {changed}")
        if one.shape != other.shape or not same(one, other):
            raise AssertionError(message)
