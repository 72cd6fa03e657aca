"""Checks of arguments that all layers share, and their errors.

What is of the wrong kind is a TypeError, what has the wrong value a ValueError. The message names
the argument, says what was given and what to use instead.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


def described(value: object) -> str:
    """What a value is, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of dtype {value.dtype} and shape {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float | str):
        return f"{value!r:.60}"
    return with_article(type(value).__name__)


def with_article(noun: str) -> str:
    """A noun with a or an."""
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def require(
    passed: bool, name: str, must: str, got: object, use: str, error: type[Exception] = ValueError
) -> None:
    """Refuses an argument that is not what it must be, in the words of all messages.

    Args:
        passed: Whether it is.
        name: The argument's name.
        must: What it must do, such as ``"be positive"``.
        got: What was given; tensors are described.
        use: What to give.
        error: The class of the error.
    """
    if not passed:
        got = described(got) if isinstance(got, Tensor) else got
        raise error(f"`{name}` must {must}, got {got}; use {use}")


def require_type(name: str, value: object, kind: type[T], use: str) -> T:
    """The value itself; refuses what is not of a type.

    Args:
        name: The argument's name.
        value: What was given.
        kind: The type.
        use: What to give, such as ``"c4() or cyclic(3)"``.

    Raises:
        TypeError: If it is of another type.
    """
    words = {nn.Module: "a torch.nn.Module", str: "a string", Tensor: "a tensor"}
    if not isinstance(value, kind):
        must = words.get(kind, with_article(kind.__name__))
        raise TypeError(f"`{name}` must be {must}, got {described(value)}; use {use}")
    return value


def require_module(name: str, module: Any) -> nn.Module:
    """The module itself; refuses anything else, such as a function or a class."""
    return require_type(name, module, nn.Module, "your model")


def require_function(name: str, function: T, use: str) -> T:
    """The function itself; refuses what cannot be called."""
    require(callable(function), name, "be a function", described(function), use, TypeError)
    return function


def require_flag(name: str, value: bool) -> bool:
    """The flag itself; refuses what only counts as true or false."""
    return require_type(name, value, bool, "True or False")


def require_counts(**counts: int) -> None:
    """Refuses anything but whole numbers of 1 or more; the message names the argument.

    Raises:
        ValueError: If a count is another number, or none.
    """
    for name, count in counts.items():
        whole = isinstance(count, int) and not isinstance(count, bool) and count >= 1
        require(whole, name, "be 1 or more", described(count), "a whole number of 1 or more")


def require_int(name: str, value: Any, use: str, least: int | None = None) -> int:
    """The value as an int, from whatever counts as one; refuses smaller ones than ``least``."""
    try:
        # A tensor of one integer counts as one, and so do numbers of numpy.
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"`{name}` must be an int, got {described(value)}; use {use}")
    require(least is None or number >= least, name, f"be {least} or more", number, use)
    return number


def require_ints(name: str, values: Any, use: str) -> tuple[int, ...]:
    """The values as ints; refuses anything but a sequence of them."""
    entries = enumerate(require_entries(name, values, use))
    return tuple([require_int(f"{name}[{i}]", value, use) for i, value in entries])


def require_entries(name: str, values: Iterable[T], use: str, least: int = 0) -> list[T]:
    """The entries as a list; refuses a string, a scalar and fewer entries than ``least``."""
    scalar = isinstance(values, str | bytes) or (isinstance(values, Tensor) and values.dim() == 0)
    if scalar or not isinstance(values, Iterable):
        raise TypeError(f"`{name}` must be a sequence, got {described(values)}; use {use}")
    entries = list(values)
    require(len(entries) >= least, name, f"have {least} or more entries", entries, use)
    return entries


def require_mean(outputs: Tensor) -> None:
    """Refuses outputs of a dtype that has no mean.

    Raises:
        TypeError: If they are integers or booleans.
    """
    if not (outputs.is_floating_point() or outputs.is_complex()):
        use = "return floating-point scores and decide after their mean, or mark it with Drop()"
        raise TypeError(
            f"outputs of dtype {outputs.dtype} cannot be averaged over the group; {use}"
        )


def require_strings(name: str, values: Iterable[str], use: str) -> tuple[str, ...]:
    """The strings; refuses one string in place of several, and what is none."""
    entries = enumerate(require_entries(name, values, use))
    return tuple([require_type(f"{name}[{i}]", value, str, use) for i, value in entries])


def require_number(
    name: str, value: Any, least: float = -float("inf"), most: float = float("inf"), use: str = ""
) -> float:
    """The value itself; refuses anything but a number from ``least`` to ``most``.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is outside.
    """
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not (real and least <= float(value) <= most):
        spans = f"a number of {least:g} or more" if least > -float("inf") else "a number"
        spans = f"in [{least:g}, {most:g}]" if most < float("inf") else spans
        got, error = (value, ValueError) if real else (described(value), TypeError)
        require(False, name, f"be {spans}", got, use or spans, error)
    return float(value)


def optional_tolerance(tolerance: float | None) -> float | None:
    """The ``tie_tolerance`` itself, None for the default; refuses what is negative."""
    if tolerance is None:
        return None
    return require_number("tie_tolerance", tolerance, 0, use="0 or more, or None for the default")


def require_tensor(name: str, x: Any, shape: str, dims: int = 0, floating: bool = False) -> Tensor:
    """The tensor itself; refuses anything else, and one with fewer dimensions.

    Args:
        name: The argument's name.
        x: What was given.
        shape: The shape that it should have, such as ``"(|G|, B)"``.
        dims: The least number of dimensions.
        floating: Whether it has to hold floating-point numbers.

    Raises:
        TypeError: If it is not a tensor, or not one of floating-point numbers.
        ValueError: If it has too few dimensions.
    """
    if not isinstance(x, Tensor) or (floating and not x.is_floating_point()):
        what = "a floating-point tensor" if floating else "a tensor"
        raise TypeError(f"`{name}` must be {what}, got {described(x)}; use one of shape {shape}")
    if x.dim() < dims:
        raise ValueError(f"`{name}` must be {shape}, got {described(x)}; use one of that shape")
    return x


def require_numbers(name: str, values: Any, use: str) -> Tensor:
    """A table of numbers as a tensor on the CPU, in the dtype in which it was given.

    Floats of Python are float64, whatever the default dtype of torch is.

    Raises:
        TypeError: If it holds something else than numbers.
        ValueError: If its rows differ in length, or are empty.
    """
    try:
        return _numbers(values).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        got = f"{described(values)} ({error})"
        raise kind(f"`{name}` must be a table of numbers, got {got}; use {use}") from error


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Errors inside name an argument, also where what they come from calls it otherwise."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if re.search(rf"\b{re.escape(name)}\b", str(error)):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"`{name}`: {error}") from error


def readable(x: Tensor) -> bool:
    """Whether the values of a tensor may be looked at; False if there are none.

    On accelerators this would cost a synchronisation. While a graph is made, under
    ``torch.func.vmap`` and in tensors without values it is impossible.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() == 0:
        return False
    try:
        x[(0,) * x.dim()].item()
    except RuntimeError:
        # Nothing public says beforehand whether a tensor is mapped over: it refuses to be asked.
        return False
    return True


def _numbers(values: Any) -> Tensor:
    if hasattr(values, "dtype"):
        return torch.as_tensor(values, device="cpu")
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise TypeError(f"{described(values)} is not a number")
    if all(type(value) in (int, float, bool) for value in values):
        exact = not any(type(value) is float for value in values)
        return torch.tensor(values, dtype=torch.int64 if exact else torch.float64, device="cpu")
    if any(type(value) is complex for value in values):
        return torch.tensor(values, dtype=torch.complex128, device="cpu")
    return torch.stack([_numbers(value) for value in values])
