"""Assertions for symmetric models and actions; they need torch only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from equitune.actions import Action, TrivialAction

__all__ = ["assert_action", "assert_equivariant"]

RELATIVE_TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""By dtype of the output, relative to its largest entry; for integers nothing may differ."""


def assert_equivariant(
    fn: Callable[[Any], Any],
    x: Any,
    input_action: Action,
    output_action: Action | None = None,
    *,
    rtol: float | None = None,
    atol: float = 0.0,
) -> None:
    """Asserts that fn(gx) = g fn(x) for every element g, and for each sample with its own g.

    The function is called |G| + 2 times, without gradients.

    Args:
        fn: A function of one batch, or of one structure of batches.
        x: What to call it with, of shape (B, ...). Use at least two different samples, and none
            that is symmetric itself.
        input_action: How the group acts on ``x``.
        output_action: How it acts on what ``fn`` returns; None means one invariant tensor.
        rtol: The largest allowed difference, relative to the largest entry of the output.
            Default by its dtype: 1e-12 for float64, 1e-5 for float32, 1e-2 for float16, 5e-2 for
            bfloat16, 0 for integers.
        atol: An absolute difference that is allowed on top.

    Raises:
        AssertionError: If ``fn`` is not equivariant; the message names the worst element and
            sample, with the error.
        ValueError: If the actions are of different groups, or do not fit.
        TypeError: If the actions do not fit the structures.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, c4
        >>> from equitune.testing import assert_equivariant
        >>> action = ImageAction(c4())
        >>> assert_equivariant(torch.relu, torch.randn(2, 3, 8, 8), action, action)
        >>> assert_equivariant(lambda x: x.flatten(1), torch.randn(2, 3, 8, 8), action)
        Traceback (most recent call last):
            ...
        AssertionError: not equivariant: ...
    """
    if output_action is None:
        output_action = TrivialAction(input_action.group)
    if output_action.group != input_action.group:
        raise ValueError(
            f"output_action is one of a group of order {output_action.group.order}, input_action "
            f"one of a group of order {input_action.group.order}; give two actions of one group"
        )
    group = input_action.group
    with torch.no_grad():
        reference = fn(x)
        worst: _Difference | None = None
        for g in [*group.elements, _one_element_each(input_action, x)]:
            expected = output_action.transform(reference, g)
            found = fn(input_action.transform(x, g))
            for difference in _compare(output_action, found, expected, g, rtol, atol):
                if worst is None or not difference.excess <= worst.excess:
                    worst = difference
    if worst is not None and not worst.excess <= 0:
        raise AssertionError(f"not equivariant: {worst.describe(group.names)}")


def assert_action(action: Action, x: Any) -> None:
    """Asserts that an action is one on a given batch.

    Checks the identity, g(hx) = (gh)x for all pairs, each sample with its own g against whole
    batches, the orbit and its inverse, and that dtype and device stay. Permuting actions have to
    be exact; a :class:`equitune.MatrixAction` is allowed rounding.

    Args:
        action: The action.
        x: A batch of shape (B, ...), or a structure of batches.

    Raises:
        AssertionError: If one of these fails; the message names the elements.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, d4
        >>> from equitune.testing import assert_action
        >>> assert_action(ImageAction(d4()), torch.randn(3, 1, 4, 6))
    """
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
    each = _one_element_each(action, x)
    moved = action.transform(x, each)
    for (_, part), *parts in zip(
        action.flatten(moved), *(action.flatten(copy) for copy in copies), strict=True
    ):
        for i, g in enumerate(each.tolist()):
            if not _close(part[i], parts[g][1][i]):
                raise AssertionError(
                    f"sample {i} with its own element {g} moves unlike a batch with element {g}"
                )
    for elements in action.shape_classes(x):
        stack = action.orbit(x, elements)
        back = action.inverse_orbit(stack, elements)
        for i, g in enumerate(elements):
            where = f"at element {g}"
            entry = action.unflatten(stack, [leaf[i] for _, leaf in action.flatten(stack)])
            _assert_same(action, entry, copies[g], f"the orbit differs from transform {where}")
            entry = action.unflatten(back, [leaf[i] for _, leaf in action.flatten(back)])
            _assert_same(action, entry, x, f"inverse_orbit does not undo orbit {where}")


@final
@dataclass
class _Difference:
    """The largest difference of two outputs, and where it is."""

    error: float
    scale: float
    tolerance: float
    sample: int
    g: int | Tensor

    @property
    def excess(self) -> float:
        """By how much the difference is larger than allowed; NaN for NaN."""
        return self.error - self.tolerance

    def describe(self, names: Sequence[str]) -> str:
        if isinstance(self.g, Tensor):
            element = int(self.g[self.sample])
            context = ", in a batch in which each sample has its own element"
        else:
            element, context = self.g, ""
        relative = self.error / self.scale if self.scale else float("inf")
        return (
            f"fn(gx) differs from g fn(x) most for element {element} ({names[element]}) at sample "
            f"{self.sample}{context}: by {self.error:.3g} absolute, {relative:.3g} relative to the "
            f"largest entry, where {self.tolerance:.3g} absolute is allowed"
        )


def _compare(
    action: Action, found: Any, expected: Any, g: int | Tensor, rtol: float | None, atol: float
) -> list[_Difference]:
    differences = []
    pairs = zip(action.flatten(found, "the output"), action.flatten(expected), strict=True)
    for (_, one), (_, other) in pairs:
        if one.shape != other.shape:
            raise AssertionError(
                f"not equivariant: fn(gx) has shape {tuple(one.shape)} and g fn(x) has shape "
                f"{tuple(other.shape)} for element {g}; check output_action"
            )
        relative = RELATIVE_TOLERANCES.get(one.real.dtype, 0.0) if rtol is None else rtol
        if one.numel() == 0:
            continue
        exact = one.to(torch.float64 if not one.is_complex() else torch.complex128)
        # Equal infinities are no difference.
        gaps = torch.where(one == other, 0.0, (exact - other).abs())
        errors = gaps.reshape(one.shape[0], -1).amax(dim=1)
        sample = int(errors.argmax())
        scale = float(torch.where(other.isfinite(), other, 0).abs().max())
        error = float(errors[sample])
        differences.append(_Difference(error, scale, atol + relative * scale, sample, g))
    return differences


def _one_element_each(action: Action, x: Any) -> Tensor:
    """An element for each sample, as different as the shape of x allows."""
    _, first = action.flatten(x)[0]
    # Samples can only be mixed where their copies have one shape.
    largest = max(action.shape_classes(x), key=len)
    elements = [largest[(i + 1) % len(largest)] for i in range(first.shape[0])]
    return torch.tensor(elements, device=first.device)


def _assert_same(action: Action, found: Any, expected: Any, message: str) -> None:
    pairs = zip(action.flatten(found), action.flatten(expected), strict=True)
    for (_, one), (_, other) in pairs:
        if one.dtype != other.dtype or one.device != other.device:
            raise AssertionError(f"the action changes {other.dtype} to {one.dtype}")
        if one.shape != other.shape or not _close(one, other):
            raise AssertionError(message)


def _close(one: Tensor, other: Tensor) -> bool:
    if torch.equal(one, other):
        return True
    if not (one.is_floating_point() or one.is_complex()):
        return False
    tolerance = 100 * torch.finfo(one.dtype).eps
    return torch.allclose(one, other, rtol=0, atol=tolerance * float(other.abs().max()))
