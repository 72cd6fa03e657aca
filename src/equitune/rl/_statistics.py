"""Running statistics of observations that a group keeps, for environments that normalise."""

from __future__ import annotations

import copy
from typing import Any, final

import numpy as np
import torch

from equitune._checks import described, require, require_type
from equitune.actions import Action
from equitune.rl._libraries import gymnasium, sb3
from equitune.rl._pictures import layers
from equitune.rl._symmetries import Symmetry

TOLERANCE = 1e-9
"""How far, relative to its size, a moved entry may be from one of the entries, in float64."""


@final
class SymmetricMeanStd(sb3.common.running_mean_std.RunningMeanStd):  # type: ignore[misc]
    """Means and variances of observations and of all their moved copies.

    With o drawn from what was seen and g from the group, each with equal chances::

        mean = E[g o],    var = E[(g o)^2] - mean^2

    The group keeps both, so that the normalised g o is g of the normalised o. They are updated,
    copied, saved and loaded as the statistics of Stable-Baselines3 that they replace in
    ``VecNormalize`` and in ``gymnasium.wrappers.NormalizeObservation``.

    Args:
        statistics: Those so far, with ``mean``, ``var`` and ``count``.
        action: How the group acts on observations; it may exchange and negate entries.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the action mixes entries, as most rotations of a plane do: each entry is
            divided by its own deviation, which such an action does not keep.

    Example:
        >>> import numpy as np
        >>> from stable_baselines3.common.running_mean_std import RunningMeanStd
        >>> from equitune.rl import SymmetricMeanStd, cartpole_mirror
        >>> plain = RunningMeanStd(shape=(4,))
        >>> statistics = SymmetricMeanStd(plain, cartpole_mirror().on_observations)
        >>> statistics.update(np.ones((100, 4)))
        >>> statistics.mean.tolist(), statistics.var.round(3).tolist()
        ([0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0])
    """

    mean: Any
    var: Any

    def __init__(self, statistics: Any, action: Action) -> None:
        known = all(hasattr(statistics, name) for name in ("mean", "var", "count"))
        got, use = described(statistics), "a RunningMeanStd of Stable-Baselines3"
        require(known, "statistics", "have mean, var and count", got, use, TypeError)
        require_type("action", action, Action, "the action on observations")
        super().__init__(shape=np.shape(statistics.mean))
        _check_sizes(action, self.mean.shape)
        self.action = action
        self.mean, self.var = self._of_copies(statistics.mean, statistics.var)
        self.count = float(statistics.count)

    def update_from_moments(self, batch_mean: Any, batch_var: Any, batch_count: float) -> None:
        """Adds a batch that has these moments, and all its moved copies."""
        super().update_from_moments(*self._of_copies(batch_mean, batch_var), batch_count)

    def copy(self) -> SymmetricMeanStd:
        """The same statistics, updated on their own from now on."""
        return SymmetricMeanStd(self, self.action)

    def _of_copies(self, mean: Any, var: Any) -> tuple[Any, Any]:
        means, variances = (_orbit(self.action, moment) for moment in (mean, var))
        # Negated entries vary as much as they did; the copies' means vary too.
        return means.mean(axis=0), np.abs(variances).mean(axis=0) + means.var(axis=0)


def normalising_layers(env: Any, symmetry: Symmetry) -> list[Any]:
    """The wrappers that normalise observations by statistics that the group does not keep yet.

    Args:
        env: Vectorised environments, as Stable-Baselines3 has wrapped them.
        symmetry: How the group acts on the observations that networks are given.

    Returns:
        The wrappers, from the outside to the inside; ``obs_rms`` of each holds its statistics.

    Raises:
        ValueError: If one of them cannot be reached, or a wrapper around it changes observations.
    """
    found, action, changed = [], symmetry.on_observations, ""
    for layer in layers(env):
        statistics = vars(layer).get("obs_rms")
        if not hasattr(statistics, "mean") or not getattr(layer, "norm_obs", True):
            if not _commutes(layer, action):
                changed = f"{type(layer).__name__} around that changes observations"
            continue
        inside, outside = layer.observation_space.shape, env.observation_space.shape
        if inside != outside:
            changed = f"a wrapper around that changes their shape from {inside} to {outside}"
        got, use = f"{type(layer).__name__} and {changed}", "VecNormalize, outside of all others"
        require(not changed, "env", "normalise the observations that the group moves", got, use)
        if not (isinstance(statistics, SymmetricMeanStd) and statistics.action == action):
            found.append(layer)
    inner, single = env.unwrapped, gymnasium.wrappers.NormalizeObservation
    reached = hasattr(inner, "envs") or not any(inner.env_is_wrapped(single))
    must, use = "normalise observations in this process", "VecNormalize(env), or DummyVecEnv"
    got = f"NormalizeObservation in other processes ({type(inner).__name__})"
    require(reached, "env", must, got, use)
    return found


def symmetric_statistics(env: Any, symmetry: Symmetry) -> list[tuple[Any, SymmetricMeanStd]]:
    """Each of the :func:`normalising_layers`, and its statistics as ones that the group keeps."""
    found = []
    for layer in normalising_layers(env, symmetry):
        try:
            found.append((layer, SymmetricMeanStd(layer.obs_rms, symmetry.on_observations)))
        except ValueError as error:
            by = f"the environment normalises observations by {type(layer).__name__}"
            raise ValueError(f"{by}: {error}") from error
    return found


def with_own_statistics(env: Any) -> Any:
    """The same environments, normalised by copies of the statistics of ``VecNormalize``."""
    if not isinstance(env, sb3.common.vec_env.VecEnvWrapper):
        return env
    inner = with_own_statistics(env.venv)
    if isinstance(env, sb3.common.vec_env.VecNormalize):
        own = copy.deepcopy(env)
        own.set_venv(inner)
        return own
    if inner is env.venv:
        return env
    # copy.copy asks the new object for attributes before it has any.
    own = object.__new__(type(env))
    own.__dict__.update(env.__dict__, venv=inner)
    return own


def _commutes(layer: Any, action: Action) -> bool:
    """Whether it is the same to move what a layer is given and what it shows."""
    # The caller compares shapes.
    shape, shows = layer.observation_space.shape, isinstance(layer, gymnasium.ObservationWrapper)
    if not shows or layer.env.observation_space.shape != shape:
        return True
    probe = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    shown = _orbit(action, layer.observation(probe))
    moved = [layer.observation(copy.astype(np.float32)) for copy in _orbit(action, probe)]
    return bool(np.allclose(shown, moved, atol=TOLERANCE))


def _orbit(action: Action, values: Any) -> Any:
    """The orbit of one observation, in float64."""
    whole = torch.as_tensor(np.asarray(values, dtype=np.float64), device="cpu")
    return action.orbit(whole[None])[:, 0].numpy()


def _check_sizes(action: Action, shape: tuple[int, ...]) -> None:
    """Refuses what does more than to exchange and negate entries."""
    probe = np.random.default_rng(0).uniform(1, 2, shape)
    moved, opposite = _orbit(action, probe), _orbit(action, -probe)
    sizes = np.sort(np.abs(moved).reshape(len(moved), -1), axis=1)
    apart = np.abs(sizes - np.sort(probe, axis=None)).max()
    # Each entry is divided by its own deviation.
    kept = bool(apart <= TOLERANCE and (moved == -opposite).all())
    use = "VecNormalize(env, norm_obs=False)"
    require(kept, "action", "only exchange and negate entries", repr(action), use)
