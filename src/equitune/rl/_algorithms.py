"""Trained algorithms of Stable-Baselines3, with symmetrised networks in place of their own."""

from __future__ import annotations

import copy
from typing import Any, final

from equitune._checks import described, require
from equitune.rl._libraries import gymnasium, sb3
from equitune.rl._networks import Method
from equitune.rl._pictures import for_network
from equitune.rl._policies import SymmetricActorCriticPolicy, SymmetricDQNPolicy, SymmetricPolicy
from equitune.rl._statistics import normalising_layers, symmetric_statistics, with_own_statistics
from equitune.rl._symmetries import Symmetry, require_symmetry
from equitune.wrappers import EquiTune

POLICIES: dict[type, type] = {
    sb3.dqn.policies.DQNPolicy: SymmetricDQNPolicy,
    sb3.dqn.policies.CnnPolicy: SymmetricDQNPolicy,
    sb3.common.policies.ActorCriticPolicy: SymmetricActorCriticPolicy,
    sb3.common.policies.ActorCriticCnnPolicy: SymmetricActorCriticPolicy,
}
"""What takes the place of a policy of Stable-Baselines3."""


CHOSEN = [getattr(sb3.common.buffers, name, None) for name in ("ReplayBuffer", "NStepReplayBuffer")]
"""The replay buffers that Stable-Baselines3 chooses by itself."""


class SymmetricAlgorithm(sb3.common.base_class.BaseAlgorithm):  # type: ignore[misc]
    """What trains symmetric policies: unlike a policy, it knows the environment.

    Abstract; it comes before an algorithm of Stable-Baselines3 among the bases of a class. A
    symmetry says how the group acts on what the environment shows, also where Stable-Baselines3
    puts the channels of pictures first. In every environment that is set, running statistics that
    normalise observations are replaced by ones that the group keeps.
    """

    policy_kwargs: dict[str, Any]
    in_network_layout = False
    """Whether the symmetry of the policy already acts on what networks see."""

    def _setup_model(self) -> None:
        right, got = issubclass(self.policy_class, SymmetricPolicy), described(self.policy_class)
        must = "be a SymmetricDQNPolicy or a SymmetricActorCriticPolicy"
        use = "symmetrize(model, symmetry) for a model with another one"
        require(right, "policy", must, got, use, TypeError)
        symmetry = require_symmetry(self.policy_kwargs.get("symmetry"))
        if not self.in_network_layout:
            picture = sb3.common.preprocessing.is_image_space(self.observation_space)
            known = self.env is not None or not picture
            must = "have an environment, which shows the order of height, width and channels"
            require(known, "model", must, None, "model.set_env(...) or load(..., env=...)")
            symmetry = for_network(symmetry, self.env)
            self.policy_kwargs = {**self.policy_kwargs, "symmetry": symmetry}
            self.in_network_layout = True
        super()._setup_model()
        self.policy.environment_known = True
        self._normalise_symmetrically()

    def _normalise_symmetrically(self) -> None:
        if self.env is not None:
            for layer, statistics in symmetric_statistics(self.env, self.policy_kwargs["symmetry"]):
                layer.obs_rms = statistics

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Sets the environment, as in Stable-Baselines3.

        Args:
            env: The environment. If it normalises observations, the group will keep the
                statistics from now on.
            force_reset: Whether to reset it before training.

        Raises:
            ValueError: If it does not fit the model, or normalises observations in a way that
                cannot be made symmetric.
        """
        vectors = self._wrap_env(env, self.verbose)
        if vectors.observation_space.shape == self.observation_space.shape:
            # Refused before anything changes.
            symmetric_statistics(vectors, self.policy_kwargs["symmetry"])
        super().set_env(vectors, force_reset)
        self._normalise_symmetrically()

    def _setup_learn(self, *arguments: Any, **options: Any) -> Any:
        # Statistics may have been replaced since the environment was set.
        self._normalise_symmetrically()
        return super()._setup_learn(*arguments, **options)


@final
class SymmetricDQN(SymmetricAlgorithm, sb3.DQN):  # type: ignore[misc]
    """DQN of a :class:`SymmetricDQNPolicy`; :func:`symmetrize` makes it of a trained DQN.

    It takes, does and returns what Stable-Baselines3's ``DQN`` does, but also looks at the
    environment: a symmetry acts on what the environment shows, pictures (H, W, C) included, and
    running statistics that normalise observations (``VecNormalize``, ``NormalizeObservation``)
    become a :class:`SymmetricMeanStd`.

    Raises:
        TypeError: If the policy is another one.
        ValueError: If the symmetry does not fit the environment, or its statistics cannot be made
            symmetric.

    Example:
        >>> from equitune.rl import SymmetricDQN, SymmetricDQNPolicy, cartpole_mirror
        >>> model = SymmetricDQN(
        ...     SymmetricDQNPolicy,
        ...     "CartPole-v1",
        ...     buffer_size=1000,
        ...     policy_kwargs={"symmetry": cartpole_mirror()},
        ... )
        >>> model.learn(200).num_timesteps
        200
    """


@final
class SymmetricPPO(SymmetricAlgorithm, sb3.PPO):  # type: ignore[misc]
    """PPO of a :class:`SymmetricActorCriticPolicy`; :func:`symmetrize` makes it of a trained PPO.

    It takes, does and returns what Stable-Baselines3's ``PPO`` does, and treats the environment as
    :class:`SymmetricDQN` does.

    Example:
        >>> from equitune.rl import SymmetricPPO, SymmetricActorCriticPolicy, cartpole_mirror
        >>> model = SymmetricPPO(
        ...     SymmetricActorCriticPolicy,
        ...     "CartPole-v1",
        ...     n_steps=64,
        ...     policy_kwargs={"symmetry": cartpole_mirror()},
        ... )
        >>> model.learn(64).num_timesteps
        64
    """


@final
class SymmetricA2C(SymmetricAlgorithm, sb3.A2C):  # type: ignore[misc]
    """A2C of a :class:`SymmetricActorCriticPolicy`; :func:`symmetrize` makes it of a trained A2C.

    It takes, does and returns what Stable-Baselines3's ``A2C`` does, and treats the environment as
    :class:`SymmetricDQN` does.

    Example:
        >>> from equitune.rl import SymmetricA2C, SymmetricActorCriticPolicy, cartpole_mirror
        >>> model = SymmetricA2C(
        ...     SymmetricActorCriticPolicy,
        ...     "CartPole-v1",
        ...     n_steps=64,
        ...     policy_kwargs={"symmetry": cartpole_mirror()},
        ... )
        >>> model.learn(64).num_timesteps
        64
    """


SYMMETRIC: dict[type, type] = {sb3.DQN: SymmetricDQN, sb3.PPO: SymmetricPPO, sb3.A2C: SymmetricA2C}
"""What takes the place of an algorithm of Stable-Baselines3."""


def symmetrize(model: Any, symmetry: Symmetry, method: Method = EquiTune) -> Any:
    """A trained DQN, PPO or A2C of Stable-Baselines3 with equivariant networks.

    The model that is returned predicts, learns on, and is evaluated, saved and loaded as any other.
    It has weights, a state of the optimizer and an empty replay buffer of its own, as if it had
    been saved and loaded. The given model stays as it is, but both share one environment, so only
    one of them should learn; ``set_env`` sets another one.

    Where the environment normalises observations by ``VecNormalize``, the model that is returned
    has statistics of its own too, a :class:`SymmetricMeanStd` of those so far; its
    ``get_vec_normalize_env()`` returns them.

    Args:
        model: A ``DQN``, ``PPO`` or ``A2C`` with one of Stable-Baselines3's policies for vectors
            or images.
        symmetry: How a group acts on the observations and actions of the environment, as
            :func:`check_symmetry` compares them. Pictures may be (H, W, C), which
            Stable-Baselines3 transposes, or (C, H, W).
        method: ``EquiTune``, ``equitune.rl.equizero``, ``equitune.rl.lambda_equitune``, or a
            function ``method(network, on_observations, on_actions)`` that returns such a
            wrapper; it is called for each network. :class:`SymmetricActorCriticPolicy` says what
            becomes of the parts of PPO.

    Returns:
        A :class:`SymmetricDQN`, :class:`SymmetricPPO` or :class:`SymmetricA2C`, which is also of
        the model's class.

    Raises:
        TypeError: If the policy is another one, or a space is of another kind than what the
            symmetry acts on.
        ValueError: If the symmetry does not fit the spaces, a model of pictures has no
            environment, or the environment normalises observations by statistics that cannot be
            made symmetric, or that belong to the environment itself, such as those of gymnasium's
            ``NormalizeObservation``.

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
    must = f"have a policy of the class {' or '.join(policy.__name__ for policy in POLICIES)}"
    got = f"{described(model)} with {described(plain)} as its policy"
    use = "a DQN, PPO or A2C of Stable-Baselines3"
    require(type(plain) in POLICIES, "model", must, got, use, TypeError)
    require_symmetry(symmetry)
    symmetric = _twin(model)
    if symmetric.env is not None:
        symmetric.env = with_own_statistics(model.env)
        symmetric._vec_normalize_env = sb3.common.vec_env.unwrap_vec_normalize(symmetric.env)
        _check_shared(symmetric.env, symmetry)
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
    kind = type(model)
    # A user's own algorithm gets a class of its own.
    own = type(f"Symmetric{kind.__name__}", (SymmetricAlgorithm, kind), {})
    twin.__class__ = SYMMETRIC.get(kind, own)
    shared = model._excluded_save_params()
    for name, value in vars(model).items():
        if name not in shared:
            setattr(twin, name, copy.deepcopy(value))
    # The twin begins with a new observation.
    twin._last_obs = twin._last_episode_starts = None
    if hasattr(model, "replay_buffer"):
        twin.replay_buffer = None
        # These are chosen again; one that is named would be taken for the user's own.
        if twin.replay_buffer_class in CHOSEN:
            twin.replay_buffer_class = None
    return twin


def _arguments(policy: Any) -> dict[str, Any]:
    """What a policy was made with, without what its algorithm adds."""
    shared = getattr(policy, "share_features_extractor", None)
    given = {**policy._get_constructor_parameters(), "share_features_extractor": shared}
    added = ("observation_space", "action_space", "lr_schedule", "use_sde")
    # Arguments of noise are None where the policy has none.
    return {name: value for name, value in given.items() if name not in added and value is not None}


def _take_over(symmetric: Any, plain: Any) -> None:
    """Copies weights and what the optimizer knows of them."""
    for own, given in symmetric.networks(plain):
        own.load_state_dict(given.state_dict())
        for new, old in zip(own.parameters(), given.parameters(), strict=True):
            known = plain.optimizer.state.get(old)
            if known:
                symmetric.optimizer.state[new] = copy.deepcopy(known)


def _check_shared(env: Any, symmetry: Symmetry) -> None:
    """Refuses statistics that the plain model would go on with."""
    must = "normalise observations by VecNormalize, whose statistics are copied"
    use = "a model that is loaded without an environment, and set_env(...) of what is returned"
    for layer in normalising_layers(env, for_network(symmetry, env)):
        got = f"{type(layer).__name__}, whose statistics the given model would share"
        require(not isinstance(layer, gymnasium.Wrapper), "model", must, got, use)
