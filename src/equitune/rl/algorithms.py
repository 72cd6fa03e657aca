"""Trained algorithms of Stable-Baselines3, with symmetrised networks in place of their own."""

from __future__ import annotations

import copy
from typing import Any

from equitune.extras import require
from equitune.rl.networks import Method
from equitune.rl.policies import SymmetricActorCriticPolicy, SymmetricDQNPolicy
from equitune.rl.symmetries import Symmetry
from equitune.wrappers import EquiTune

EXTRA = '"equitune[rl]"'
buffers: Any = require("stable_baselines3.common.buffers", EXTRA)
common: Any = require("stable_baselines3.common.policies", EXTRA)
dqn: Any = require("stable_baselines3.dqn.policies", EXTRA)

__all__ = ["symmetrize"]

POLICIES: dict[type, type] = {
    dqn.DQNPolicy: SymmetricDQNPolicy,
    dqn.CnnPolicy: SymmetricDQNPolicy,
    common.ActorCriticPolicy: SymmetricActorCriticPolicy,
    common.ActorCriticCnnPolicy: SymmetricActorCriticPolicy,
}
"""What takes the place of a policy of Stable-Baselines3."""


CHOSEN = [getattr(buffers, name, None) for name in ("ReplayBuffer", "NStepReplayBuffer")]
"""The replay buffers that Stable-Baselines3 chooses by itself."""


def symmetrize(model: Any, symmetry: Symmetry, method: Method = EquiTune) -> Any:
    """A trained DQN, PPO or A2C of Stable-Baselines3 with equivariant networks.

    The model that is returned predicts, is evaluated, learns on, and is saved and loaded as any
    other. It has weights, a state of the optimizer and an empty replay buffer of its own, as if it
    had been saved and loaded. The given model stays as it is, but both have one environment, so
    that only one of them should learn; ``set_env`` gives the other one its own.

    Args:
        model: A ``DQN``, ``PPO`` or ``A2C`` with one of Stable-Baselines3's policies for vectors
            or images.
        symmetry: How a group acts on observations and actions.
        method: ``EquiTune``, ``equitune.rl.equizero``, ``equitune.rl.lambda_equitune``, or a
            function ``method(network, observation_action, action_action)`` that returns such a
            wrapper; it is called for each network. See :class:`SymmetricActorCriticPolicy` for what
            becomes of the parts of PPO.

    Returns:
        A model of the same class.

    Raises:
        TypeError: If the policy is another one, or a space is of another kind than what the
            symmetry acts on.
        ValueError: If the symmetry does not fit the spaces, or the environment of the model
            normalises observations by ``VecNormalize``.

    Example:
        >>> from stable_baselines3 import DQN
        >>> from equitune.rl import cartpole_mirror, equizero, symmetrize
        >>> model = DQN("MlpPolicy", "CartPole-v1", buffer_size=1000).learn(200)
        >>> symmetric = symmetrize(model, cartpole_mirror(), equizero)
        >>> observation = symmetric.observation_space.sample()
        >>> action, _ = symmetric.predict(observation, deterministic=True)
        >>> mirrored, _ = symmetric.predict(-observation, deterministic=True)
        >>> int(action) + int(mirrored)
        1
    """
    plain = getattr(model, "policy", None)
    if type(plain) not in POLICIES:
        known = ", ".join(sorted({policy.__name__ for policy in POLICIES}))
        raise TypeError(
            f"model is a {type(model).__name__} with a policy of the class "
            f"{type(plain).__name__}; give a DQN, PPO or A2C with one of {known}"
        )
    _check_normalisation(model)
    symmetric = _twin(model)
    symmetric.policy_class = POLICIES[type(plain)]
    symmetric.policy_kwargs = {**_arguments(plain), "symmetry": symmetry, "method": method}
    # Without a seed, so that the generators of the process and the environment go on.
    seed, symmetric.seed = symmetric.seed, None
    symmetric._setup_model()
    symmetric.seed = seed
    _take_over(symmetric.policy, plain)
    return symmetric


def _twin(model: Any) -> Any:
    """The model without networks and experience, with the state that a saved one would have."""
    twin = copy.copy(model)
    shared = model._excluded_save_params()
    for name, value in vars(model).items():
        if name not in shared:
            setattr(twin, name, copy.deepcopy(value))
    # What the environment has shown last is to be shown anew.
    twin._last_obs = twin._last_episode_starts = None
    if hasattr(model, "replay_buffer"):
        twin.replay_buffer = None
        # These are chosen anew; one that is named would be taken for the user's own.
        if twin.replay_buffer_class in CHOSEN:
            twin.replay_buffer_class = None
    return twin


def _arguments(policy: Any) -> dict[str, Any]:
    """What a policy was made with, but for what its algorithm gives to it."""
    given = policy._get_constructor_parameters()
    for name in ("observation_space", "action_space", "lr_schedule", "use_sde"):
        given.pop(name, None)
    shared = getattr(policy, "share_features_extractor", None)
    if shared is not None:
        given["share_features_extractor"] = shared
    # Arguments of noise that there is none of.
    return {name: value for name, value in given.items() if value is not None}


def _take_over(symmetric: Any, plain: Any) -> None:
    """Copies weights and what the optimizer knows of them."""
    for own, given in symmetric.networks(plain):
        own.load_state_dict(given.state_dict())
        for new, old in zip(own.parameters(), given.parameters(), strict=True):
            known = plain.optimizer.state.get(old)
            if known:
                symmetric.optimizer.state[new] = copy.deepcopy(known)


def _check_normalisation(model: Any) -> None:
    """Refuses observations that are shifted by running means, which no group keeps."""
    normaliser = model.get_vec_normalize_env()
    if normaliser is None or not normaliser.norm_obs:
        return
    raise ValueError(
        "the environment of model is normalised by VecNormalize, whose means and variances of "
        "observations the group does not keep; give a model that was trained with norm_obs=False"
    )
