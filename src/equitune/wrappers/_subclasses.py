"""Subclasses of Tensor that say something of their samples, such as MONAI's MetaTensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor, nn

from equitune.actions._tree import mapped

__all__ = ["Annotations", "plain"]


def plain(x: Tensor) -> Tensor:
    """The tensor alone: copies of samples do not have the annotations of the samples."""
    return x.as_subclass(Tensor) if _is_annotated(x) else x


@final
class Annotations:
    """What the inputs of a call say of its samples, such as their names; perhaps nothing.

    Args:
        inputs: The inputs; the first that is of a subclass counts.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self._source = next((x for x in inputs if _is_annotated(x)), None)

    def on(self, output: Any) -> Any:
        """An output as if it were what one function of torch returned for the input.

        That is where a subclass itself decides what it hands on.
        """
        source = self._source
        if source is None:
            return output
        kind = type(source)
        return mapped(
            output, lambda y: kind.__torch_function__(lambda _: y, (kind,), (source,), {})
        )


def _is_annotated(x: Tensor) -> bool:
    """Whether it is of a subclass by what functions return, not by where its numbers are."""
    kind = type(x)
    return (
        kind is not Tensor
        and kind.__torch_function__ is not nn.Parameter.__torch_function__
        and kind.__torch_dispatch__ is Tensor.__torch_dispatch__
    )
