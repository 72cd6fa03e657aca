"""Policies of Stable-Baselines3 whose networks are symmetrised."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from equitune._checks import require, require_function, require_type
from equitune.actions import Action, TrivialAction
from equitune.functional import matrices
from equitune.losses import negative_log_max_probability
from equitune.rl._libraries import gymnasium, sb3
from equitune.rl._networks import Method
from equitune.rl._pictures import check_channels
from equitune.rl._symmetries import Symmetry, require_symmetry
from equitune.runners import MatrixProducts, Tuned
from equitune.wrappers import EquiTune, Symmetrized

common: Any = sb3.common
policies: Any = common.policies


@final
class SymmetricQNetwork(sb3.dqn.policies.QNetwork):  # type: ignore[misc]
    """The Q-network of :class:`SymmetricDQNPolicy`: that of Stable-Baselines3, inside a wrapper.

    Args:
        symmetry: How the group acts.
        method: What wraps the network.
        **arguments: Those of Stable-Baselines3's ``QNetwork``.
    """

    features_extractor: Any

    def __init__(self, *, symmetry: Symmetry, method: Method, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._takes_vectors = _takes_vectors(self, self.features_extractor)
        self.q_net = _wrapped(method, self.whole(self), symmetry, self.observation_space)
        self.features_extractor = nn.Identity()

    @staticmethod
    def whole(network: Any) -> nn.Module:
        """All of a plain Q-network that comes after the preparation of observations."""
        return _after(network, network.features_extractor, network.q_net)

    def forward(self, obs: Any) -> Any:
        """The values (B, A) of all actions."""
        # Preparing observations would cost as much as the copies do, and does not change vectors.
        return self.q_net(obs.float()) if self._takes_vectors else super().forward(obs)

    def set_training_mode(self, mode: bool) -> None:
        """Sets the mode, which each prediction asks for."""
        if mode != self.training or mode != self.q_net.training:
            super().set_training_mode(mode)


class SymmetricPolicy(policies.BasePolicy):  # type: ignore[misc]
    """What symmetric policies share: they are made with a symmetry and a method.

    Abstract; it comes before a policy of Stable-Baselines3 among the bases of a class.
    """

    environment_known = False
    """Whether an algorithm has looked at the environment, which a policy does not see."""

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        lr_schedule: Any,
        *,
        symmetry: Symmetry,
        method: Method = EquiTune,
        **arguments: Any,
    ) -> None:
        self.symmetry = require_symmetry(symmetry)
        use = "EquiTune, equitune.rl.equizero or lambda_equitune, or a function of your own"
        self.method = require_function("method", method, use)
        symmetry.check_spaces(observation_space, action_space)
        shape, vectors = observation_space.shape, len(action_space.shape) < 2
        if common.preprocessing.is_image_space(observation_space) and shape[0] == min(shape):
            check_channels(symmetry.on_observations, shape, 0)
        got, use = f"some of shape {action_space.shape}", "gymnasium.wrappers.TransformAction"
        require(vectors, "action_space", "have vectors as actions", got, use)
        super().__init__(observation_space, action_space, lr_schedule, **arguments)

    def set_training_mode(self, mode: bool) -> None:
        """Sets the mode, as in Stable-Baselines3."""
        if mode and not self.environment_known:
            self.environment_known = True
            warnings.warn(
                f"what trains a {type(self).__name__} does not see whether the environment "
                "normalises observations or shows pictures as (H, W, C); use SymmetricDQN, "
                "SymmetricPPO or SymmetricA2C, also to load it",
                stacklevel=3,
            )
        super().set_training_mode(mode)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        return {**parameters, "symmetry": self.symmetry, "method": self.method}


@final
class SymmetricDQNPolicy(SymmetricPolicy, sb3.dqn.policies.DQNPolicy):  # type: ignore[misc]
    """A policy of DQN whose Q-networks are equivariant (second paper, section 4.1).

    Args:
        observation_space: As for Stable-Baselines3's ``DQNPolicy``.
        action_space: As for Stable-Baselines3's ``DQNPolicy``.
        lr_schedule: As for Stable-Baselines3's ``DQNPolicy``.
        symmetry: How the group acts on observations and actions. A policy that stands alone, or in
            an algorithm other than :class:`SymmetricDQN`, takes a symmetry of what networks see:
            Stable-Baselines3 transposes pictures (H, W, C) to (C, H, W).
        method: ``EquiTune``, ``equitune.rl.equizero``, ``equitune.rl.lambda_equitune``, or a
            function ``method(network, on_observations, on_actions)`` that returns such a
            wrapper. It is called for each network, and makes new modules each time.
        **arguments: What else ``DQNPolicy`` takes, such as ``net_arch``.

    Raises:
        TypeError: If a space is of another kind than what the symmetry acts on.
        ValueError: If the symmetry does not fit the spaces.

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

    def make_q_net(self) -> SymmetricQNetwork:
        """A Q-network with features and weights of its own."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        network = SymmetricQNetwork(symmetry=self.symmetry, method=self.method, **arguments)
        moved: SymmetricQNetwork = network.to(self.device)
        return moved

    def networks(self, plain: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
        """The networks inside of the wrappers, each with that of a plain policy."""
        for own, given in ((self.q_net, plain.q_net), (self.q_net_target, plain.q_net_target)):
            yield own.q_net.unwrap(), SymmetricQNetwork.whole(given)


@final
class SymmetricActorCriticPolicy(SymmetricPolicy, policies.ActorCriticPolicy):  # type: ignore[misc]
    """A policy of PPO or A2C that is equivariant, with a value that is invariant.

    ``method`` combines the scores of discrete actions, or the means of continuous ones. The value
    is the mean over the group. So are the variances of continuous actions, which do not depend on
    the state, and the whole distribution is equivariant.

    Args:
        observation_space: As for Stable-Baselines3's ``ActorCriticPolicy``.
        action_space: As for Stable-Baselines3's ``ActorCriticPolicy``; ``Discrete`` or ``Box``.
        lr_schedule: As for Stable-Baselines3's ``ActorCriticPolicy``.
        symmetry: How the group acts on observations and actions, as for
            :class:`SymmetricDQNPolicy`.
        method: What wraps the network of the actions, as for :class:`SymmetricDQNPolicy`;
            ``equizero`` is for discrete actions.
        **arguments: What else ``ActorCriticPolicy`` takes, such as ``net_arch``.

    Raises:
        TypeError: If a space is of another kind than what the symmetry acts on.
        ValueError: If the symmetry does not fit the spaces, for ``equizero`` with continuous
            actions, and for ``use_sde``, whose noise is made from features on which the group does
            not act.
    """

    def _build(self, lr_schedule: Any) -> None:
        use = "noise that does not depend on the state: its features have no action of the group"
        require(not self.use_sde, "use_sde", "be False", True, use)
        super()._build(lr_schedule)
        (actor, critic), space, symmetry = self.whole(self), self.observation_space, self.symmetry
        invariant = replace(symmetry, on_actions=TrivialAction(symmetry.group))
        acting = _wrapped(self.method, actor, symmetry, space)
        self.mlp_extractor = ActorAndCritic(acting, _wrapped(EquiTune, critic, invariant, space))
        self.action_net = self.value_net = self.features_extractor = nn.Identity()
        self.pi_features_extractor = self.vf_features_extractor = self.features_extractor
        if not isinstance(self.action_space, gymnasium.spaces.Discrete):
            loss = getattr(acting.weighting, "proxy_loss", None)
            suits, use = loss is not negative_log_max_probability, "EquiTune or lambda_equitune"
            got = "equizero, which compares the scores of discrete ones"
            require(suits, "method", "take continuous actions", got, use)
            spread = _mean_of_variances(symmetry.on_actions, int(self.action_space.shape[0]))
            self.register_buffer("mean_of_variances", spread.to(self.log_std), persistent=False)
        rate = lr_schedule(1)
        self.optimizer = self.optimizer_class(self.parameters(), lr=rate, **self.optimizer_kwargs)

    @staticmethod
    def whole(policy: Any) -> tuple[nn.Module, nn.Module]:
        """All of a plain policy that leads from prepared observations to actions, and to values."""
        middle = policy.mlp_extractor
        actor = nn.Sequential(middle.policy_net, policy.action_net)
        critic = nn.Sequential(middle.value_net, policy.value_net)
        extractors = policy.pi_features_extractor, policy.vf_features_extractor
        return _after(policy, extractors[0], actor), _after(policy, extractors[1], critic)

    def networks(self, plain: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
        """The networks inside of the wrappers, and what else learns, each with its plain one."""
        own: Any = self.mlp_extractor
        yield from zip([own.actor.unwrap(), own.critic.unwrap()], self.whole(plain), strict=True)
        if hasattr(plain, "log_std"):
            yield nn.ParameterList([self.log_std]), nn.ParameterList([plain.log_std])

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Any:
        if not isinstance(self.action_dist, common.distributions.DiagGaussianDistribution):
            return super()._get_action_dist_from_latent(latent_pi)
        spread: Any = self.mean_of_variances
        log_std = (spread @ (2 * self.log_std).exp()).log() / 2
        return self.action_dist.proba_distribution(latent_pi, log_std)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        return {**parameters, "share_features_extractor": self.share_features_extractor}


@final
class ActorAndCritic(nn.Module):
    """Two whole networks in the place of Stable-Baselines3's ``MlpExtractor``.

    Args:
        actor: From observations to scores or means of actions.
        critic: From observations to values (B, 1).
    """

    def __init__(self, actor: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.actor, self.critic = actor, critic

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(observations), self.critic(observations)

    def forward_actor(self, observations: Tensor) -> Any:
        """Scores or means of actions (B, A)."""
        return self.actor(observations)

    def forward_critic(self, observations: Tensor) -> Any:
        """Values (B, 1)."""
        return self.critic(observations)


def _mean_of_variances(action: Action, width: int) -> Tensor:
    """What makes variances (width,) their mean over the group, (width, width) in float64."""
    found = matrices(action, width)
    # The covariances rho(g) diag(v) rho(g)^T, for each entry of v.
    covariances = torch.einsum("gij,gkj->jik", found, found) / len(found)
    diagonal = covariances.diagonal(dim1=1, dim2=2)
    independent = torch.allclose(torch.diag_embed(diagonal), covariances, atol=1e-9)
    must, got = "keep independent noise of continuous actions independent", "a group that does not"
    use = "one that permutes and negates, or turns a plane by equal angles"
    require(independent, "symmetry", must, got, use)
    return diagonal.mT


def _takes_vectors(policy: Any, extractor: nn.Module) -> bool:
    """Whether observations are vectors that nothing has to be done to."""
    space = policy.observation_space
    return len(space.shape) == 1 and type(extractor) is common.torch_layers.FlattenExtractor


def _after(policy: Any, extractor: nn.Module, network: nn.Module) -> nn.Module:
    """A network of prepared observations: with what extracts features, if that does anything."""
    return network if _takes_vectors(policy, extractor) else nn.Sequential(extractor, network)


def _wrapped(method: Method, network: nn.Module, symmetry: Symmetry, space: Any) -> Symmetrized:
    """The network in a wrapper, with the runner of small networks if observations are vectors."""
    use = "one such as EquiTune(network, on_observations, on_actions)"
    wrapped = method(network, symmetry.on_observations, symmetry.on_actions)
    wrapper: Symmetrized = require_type("method(...)", wrapped, Symmetrized, use)
    if len(space.shape) == 1 and isinstance(wrapper.runner, Tuned):
        wrapper.runner = MatrixProducts()
    return wrapper
