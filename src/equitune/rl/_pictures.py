"""Pictures whose channels Stable-Baselines3 puts first, and what an action on them becomes."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from equitune._extras import require
from equitune.actions import Action
from equitune.groups import Embedding
from equitune.rl._symmetries import Symmetry

EXTRA = '"equitune[rl]"'
preprocessing: Any = require("stable_baselines3.common.preprocessing", EXTRA)
vec_env: Any = require("stable_baselines3.common.vec_env", EXTRA)

__all__ = ["ChannelsFirst", "check_channels", "for_network", "is_picture", "transposes"]


@final
class ChannelsFirst(Action):
    """An action on (B, H, W, C), on the same pictures as (B, C, H, W).

    Stable-Baselines3 hands (C, H, W) to networks where an environment shows (H, W, C).

    Args:
        channels_last: The action on (B, H, W, C).

    Raises:
        TypeError: If it is no action.

    Example:
        >>> import torch
        >>> from equitune import ImageAction
        >>> from equitune.rl._pictures import ChannelsFirst
        >>> mirror = ChannelsFirst(ImageAction.horizontal_flip((-3, -2)))
        >>> mirror.transform(torch.tensor([[[[1, 2], [3, 4]]]]), 1)  # (B, C, H, W)
        tensor([[[[2, 1],
                  [4, 3]]]])
    """

    def __init__(self, channels_last: Action) -> None:
        if not isinstance(channels_last, Action):
            raise TypeError(
                f"`channels_last` must be an action, got a {type(channels_last).__name__}; use one "
                "such as ImageAction(c4(), dims=(-3, -2))"
            )
        self.group = channels_last.group
        self.channels_last = channels_last
        self.promise_as(channels_last)

    def transform(self, x: Tensor, g: int) -> Tensor:
        moved: Tensor = self.channels_last.unchecked_transform(x.movedim(1, -1), g)
        return moved.movedim(-1, 1)

    def check(self, x: Any, g: int | Tensor = 0) -> None:
        super().check(x, g)
        if x.dim() != 4:
            raise ValueError(f"`x` must be of shape (B, C, H, W), got {tuple(x.shape)}")
        self.channels_last.check(x.movedim(1, -1))

    def restrict(self, embedding: Embedding) -> ChannelsFirst:
        return ChannelsFirst(self.channels_last.restrict(embedding))

    def __repr__(self) -> str:
        return f"ChannelsFirst({self.channels_last!r})"


def is_picture(space: Any) -> bool:
    """Whether Stable-Baselines3 takes a space for one of pictures."""
    return bool(preprocessing.is_image_space(space))


def transposes(layer: Any) -> bool:
    """Whether a layer around vectorised environments puts the channels of pictures first."""
    return isinstance(layer, vec_env.VecTransposeImage) and not getattr(layer, "skip", False)


def for_network(symmetry: Symmetry, env: Any) -> Symmetry:
    """A symmetry of what an environment shows, as one of what networks are given.

    Args:
        symmetry: How the group acts on the observations of the environment itself.
        env: It, as Stable-Baselines3 has wrapped it.

    Raises:
        ValueError: If an action on pictures moves their channels.
    """
    layer = env
    while isinstance(layer, vec_env.VecEnvWrapper):
        if transposes(layer):
            check_channels(symmetry.observation, layer.venv.observation_space.shape, 2)
            return Symmetry(ChannelsFirst(symmetry.observation), symmetry.action, symmetry.names)
        layer = layer.venv
    return symmetry


def check_channels(action: Action, shape: tuple[int, ...], channels: int) -> None:
    """Refuses to turn and flip pictures along their channels.

    Args:
        action: How the group acts; only one that has ``image_dims`` is looked at.
        shape: That of one picture.
        channels: Where the channels are in it.

    Raises:
        ValueError: If one of its dims is that of the channels.
    """
    dims = action.image_dims or ()
    # The batch counts as a dim, so that the channels are one further on, or so far from the end.
    if not {channels + 1, channels - len(shape)} & {*dims}:
        return
    height, width = (place - len(shape) for place in range(len(shape)) if place != channels)
    raise ValueError(
        f"`symmetry` must move height and width of pictures, got an {type(action).__name__} on the "
        f"dims {dims} for observations of shape {shape}, whose channels are at dim "
        f"{channels - len(shape)}; use dims=({height}, {width}), which act on what the environment "
        "shows"
    )
