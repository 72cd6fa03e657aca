"""Subclasses of Tensor that say something of their samples, such as MONAI's MetaTensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor, nn

from equitune.actions import Action
from equitune.actions._tree import mapped


def plain(x: Tensor) -> Tensor:
    """The tensor alone: copies of samples do not have the annotations of the samples."""
    return x.as_subclass(Tensor) if type(x) is not Tensor and _is_annotated(x) else x


@final
class Annotations:
    """What the inputs of a call say of its samples, such as their names; perhaps nothing.

    Args:
        leaves: The inputs, with the action of each; the first that is of a subclass counts.
    """

    def __init__(self, leaves: Sequence[tuple[Action, Tensor]]) -> None:
        self._source: Tensor | None = None
        for _, x in leaves:
            if type(x) is not Tensor and _is_annotated(x):
                self._source = x
                break

    def plain(self, leaves: list[tuple[Action, Tensor]]) -> list[tuple[Action, Tensor]]:
        """The inputs without what they say of samples."""
        if self._source is None:
            return leaves
        return [(action, plain(leaf)) for action, leaf in leaves]

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
        kind.__torch_function__ is not nn.Parameter.__torch_function__
        and kind.__torch_dispatch__ is Tensor.__torch_dispatch__
    )
