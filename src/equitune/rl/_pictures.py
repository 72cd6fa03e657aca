"""Pictures whose channels Stable-Baselines3 puts first, and what an action on them becomes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, final

from torch import Tensor

from equitune._checks import described, require, require_type
from equitune.actions import Action
from equitune.groups import Embedding
from equitune.rl._libraries import gymnasium, sb3
from equitune.rl._symmetries import Symmetry


@final
class ChannelsFirst(Action):
    """An action on (B, H, W, C), on the same pictures as (B, C, H, W).

    Stable-Baselines3 hands (C, H, W) to networks where an environment shows (H, W, C).

    Args:
        channels_last: The action on (B, H, W, C).

    Raises:
        TypeError: If it is not an action.

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
        use = "one such as ImageAction(c4(), dims=(-3, -2))"
        require_type("channels_last", channels_last, Action, use)
        self.group = channels_last.group
        self.channels_last = channels_last
        self.promise_as(channels_last)
        # Not along the dims that the other one says.
        self.permutes = False

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


def layers(env: Any) -> Iterator[Any]:
    """Each wrapper around an environment, from the outside to the inside; vectorised ones first."""
    while isinstance(env, sb3.common.vec_env.VecEnvWrapper):
        yield env
        env = env.venv
    for single in getattr(env, "envs", (env,)):
        layer = single
        while isinstance(layer, gymnasium.Wrapper):
            yield layer
            layer = layer.env


def for_network(symmetry: Symmetry, env: Any) -> Symmetry:
    """A symmetry of what an environment shows, as one of what networks are given.

    Args:
        symmetry: How the group acts on the observations of the environment itself.
        env: It, as Stable-Baselines3 has wrapped it.

    Raises:
        ValueError: If an action on pictures moves their channels.
    """
    transposing = sb3.common.vec_env.VecTransposeImage
    for layer in layers(env):
        if isinstance(layer, transposing) and not getattr(layer, "skip", False):
            check_channels(symmetry.on_observations, layer.venv.observation_space.shape, 2)
            return replace(symmetry, on_observations=ChannelsFirst(symmetry.on_observations))
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
    dims, at = action.image_dims or (), channels - len(shape)
    height, width = (place for place in range(-len(shape), 0) if place != at)
    got = f"{described(action)} on the dims {dims} of {shape}, whose channels are at dim {at}"
    use = f"dims=({height}, {width}), which act on what the environment shows"
    # The batch counts as a dim, so that the channels are one further on, or so far from the end.
    right = not {channels + 1, at} & {*dims}
    require(right, "symmetry", "move height and width of pictures", got, use)
