"""Subclasses of Tensor that say something of their samples, such as MONAI's MetaTensor."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from equitune.actions._tree import mapped


def plain(x: Tensor) -> Tensor:
    """The tensor alone: copies of samples do not have the annotations of the samples."""
    return x.as_subclass(Tensor) if is_annotated(x) else x


def is_annotated(x: Tensor) -> bool:
    """Whether it is of a subclass by what functions return, not by where its numbers are."""
    kind = type(x)
    return (
        kind is not Tensor
        and kind.__torch_function__ is not nn.Parameter.__torch_function__
        and kind.__torch_dispatch__ is Tensor.__torch_dispatch__
    )


def annotated_as(source: Tensor, output: Any) -> Any:
    """An output as if it were what one function of torch returned for the source.

    That is where a subclass itself decides what it hands on.
    """
    kind = type(source)
    return mapped(output, lambda y: kind.__torch_function__(lambda _: y, (kind,), (source,), {}))
