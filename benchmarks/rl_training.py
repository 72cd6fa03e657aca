"""Deep Q-networks for the benchmark of reinforcement learning: trained, kept and measured."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

import gridworld
from equitune import EquiTune
from equitune.audit._files import write_atomically
from equitune.rl import (
    Symmetry,
    acrobot_mirror,
    cartpole_mirror,
    equizero,
    symmetrize,
)
from equitune.rl._networks import Method

CELLS = 7
"""The sides of the grid world, and :data:`MOVES` its time limit: the paper names neither."""
MOVES = 100


@dataclass(frozen=True)
class Environment:
    """An environment of the paper.

    Attributes:
        name: That of gymnasium.
        symmetry: Makes its group.
        steps: For how many steps the paper pretrains.
        arguments: Further ones of ``gymnasium.make``.
    """

    name: str
    symmetry: Callable[[], Symmetry]
    steps: int
    arguments: tuple[tuple[str, Any], ...] = ()

    def make(self) -> gymnasium.Env:
        """A new one, without the checks of gymnasium, which cost time in every step."""
        return gymnasium.make(self.name, disable_env_checker=True, **dict(self.arguments))


GRIDWORLD = (("size", CELLS), ("max_episode_steps", MOVES))
ENVIRONMENTS = {
    "Gridworld": Environment("equitune/Gridworld-v0", gridworld.rotations, 100_000, GRIDWORLD),
    "CartPole": Environment("CartPole-v1", cartpole_mirror, 100_000),
    "Acrobot": Environment("Acrobot-v1", acrobot_mirror, 70_000),
}
NETS = {"64-64": (64, 64), "316-316": (316, 316)}
"""Stable-Baselines3's own network, and one of the depth of it with the paper's parameters."""
METHODS: dict[str, Method | None] = {"plain": None, "EquiTune": EquiTune, "EquiZero": equizero}


@dataclass(frozen=True)
class Recipe:
    """How a network is pretrained; what is not said is as in Stable-Baselines3.

    Attributes:
        widths: Of the hidden layers.
        steps: How many steps of the environment.
        first: After how many of them the first checkpoint is kept.
        every: The steps from one checkpoint to the next.
        learning_rate: That of Adam.
    """

    widths: tuple[int, ...]
    steps: int
    first: int = 50_000
    every: int = 10_000
    learning_rate: float = 1e-4

    @property
    def kept(self) -> list[int]:
        """The steps whose checkpoints are kept."""
        return list(range(self.first, self.steps + 1, self.every))


def new_model(environment: Environment, recipe: Recipe, seed: int) -> DQN:
    """An untrained DQN."""
    return DQN(
        "MlpPolicy",
        environment.make(),
        learning_rate=recipe.learning_rate,
        policy_kwargs={"net_arch": list(recipe.widths)},
        seed=seed,
        device="cpu",
    )


def parameters(model: DQN) -> int:
    """The parameters of the Q-network, without those of its target."""
    return sum(parameter.numel() for parameter in model.q_net.parameters())


class Watch(BaseCallback):
    """Calls something at certain steps, and shows how far it is.

    Args:
        steps: At which steps of the model.
        call: What is called, with the step.
        bar: Is moved on with every step.
    """

    def __init__(self, steps: Sequence[int], call: Callable[[int], None], bar: tqdm[Any]) -> None:
        super().__init__()
        self.steps, self.call, self.bar = frozenset(steps), call, bar

    def _on_step(self) -> bool:
        self.bar.update()
        if self.num_timesteps in self.steps:
            self.call(self.num_timesteps)
        return True


def pretrain(model: DQN, recipe: Recipe, title: str, silent: bool = False) -> dict[str, Any]:
    """Trains from scratch.

    Returns:
        The checkpoints by their steps, and all transitions that were seen.
    """
    checkpoints: dict[int, Any] = {}

    def keep(step: int) -> None:
        state = {"policy": model.policy.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoints[step] = _copied(state)

    optimizer = model.policy.optimizer
    with tqdm(desc=title, total=recipe.steps, unit="step", leave=False, disable=silent) as bar:
        model.learn(recipe.steps, callback=Watch(recipe.kept, keep, bar))
    buffer: Any = model.replay_buffer
    transitions = {
        name: torch.from_numpy(getattr(buffer, name)[: recipe.steps].copy()) for name in TRANSITIONS
    }
    return {"checkpoints": checkpoints, "transitions": transitions}


TRANSITIONS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
"""The arrays of a replay buffer."""


def _copied(state: Any) -> Any:
    """A state that does not change when training goes on."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state


def restored(
    environment: Environment, recipe: Recipe, known: dict[str, Any], step: int, seed: int
) -> DQN:
    """A plain model as it was at a checkpoint, without its transitions.

    The target becomes the network itself, which is what happens at each of these steps.
    """
    model = new_model(environment, recipe, seed)
    state = known["checkpoints"][step]
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    model.q_net_target.load_state_dict(model.q_net.state_dict())
    model.num_timesteps = step
    return model


def symmetric(model: DQN, environment: Environment, method: str) -> DQN:
    """The model itself, or a copy with wrapped networks."""
    wrap = METHODS[method]
    if wrap is None:
        return model
    found: DQN = symmetrize(model, environment.symmetry(), wrap)
    return found


@dataclass(frozen=True)
class Outcome:
    """What an agent has reached, over episodes.

    Attributes:
        mean: The mean return.
        deviation: The standard deviation of the returns.
        ended: The share of episodes that ended before the time limit: in CartPole by a fall, in
            the others by success.
    """

    mean: float
    deviation: float
    ended: float


def play(model: DQN, environments: Sequence[gymnasium.Env], first_seed: int) -> Outcome:
    """Plays one episode in each environment at the same time, greedily.

    Args:
        model: Who acts.
        environments: As many as episodes are wanted. None of them starts a second episode, so
            that short ones do not count more often.
        first_seed: That of the first environment; the next ones have the next seeds.

    Returns:
        What was reached.
    """
    seeds = range(first_seed, first_seed + len(environments))
    pairs = zip(environments, seeds, strict=True)
    observations = np.stack([env.reset(seed=seed)[0] for env, seed in pairs])
    returns, ended = np.zeros(len(environments)), np.zeros(len(environments), dtype=bool)
    going = np.arange(len(environments))
    while going.size:
        actions, _ = model.predict(observations, deterministic=True)
        steps = [environments[i].step(a) for i, a in zip(going, actions, strict=True)]
        observations = np.stack([step[0] for step in steps])
        returns[going] += [float(step[1]) for step in steps]
        ended[going] = [step[2] for step in steps]
        on = np.array([not (step[2] or step[3]) for step in steps])
        going, observations = going[on], observations[on]
    deviation = float(returns.std(ddof=1)) if len(returns) > 1 else 0.0
    return Outcome(float(returns.mean()), deviation, float(ended.mean()))


def go_on(
    model: DQN,
    transitions: dict[str, torch.Tensor],
    steps: int,
    every: int,
    measure: Callable[[int], None],
    title: str,
    silent: bool = False,
) -> None:
    """Trains a restored model further, with the experience that it had, in a new episode.

    Args:
        model: Plain or wrapped, after ``num_timesteps`` steps.
        transitions: Those of the pretraining; the replay buffer gets the ones up to that step.
        steps: How many more.
        every: The steps between two measurements.
        measure: Is called with how many more steps have been done.
        title: What the progress bar says.
        silent: Without a progress bar.
    """
    start = model.num_timesteps
    buffer: Any = model.replay_buffer
    for name, values in transitions.items():
        getattr(buffer, name)[:start] = values[:start].numpy()
    buffer.pos = start
    at = range(start + every, start + steps + 1, every)
    with tqdm(desc=title, total=steps, unit="step", leave=False, disable=silent) as bar:
        watch = Watch(at, lambda step: measure(step - start), bar)
        model.learn(steps, callback=watch, reset_num_timesteps=False)


def save(path: Path, known: dict[str, Any]) -> None:
    """Stores what :func:`pretrain` has returned, with what it was made with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    torch.save(known, file)
    write_atomically(path, file.getvalue())


def load(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What is stored, if it was made with these settings."""
    if not path.exists():
        return None
    known: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return known if known["settings"] == settings else None


def set_up(environment: Environment, episodes: int) -> list[gymnasium.Env]:
    """The environments of :func:`play`."""
    return [environment.make() for _ in range(episodes)]
