"""What the wrapped Q-network of CartPole costs: 4-64-64-2, two elements, one thread.

In turns: each block of calls of a wrapped network stands between two of the plain one, its ratio
is to their mean, and the median is over rounds. One observation: the Q-networks as
Stable-Baselines3 calls them, their layers alone, and ``predict`` as a whole. 256 observations:
against the plain network on 512, which is as many as there are copies.

    python benchmarks/rl_speed.py [--rounds 101]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from stable_baselines3 import DQN

import record
from equitune import EquiTune
from equitune.rl import cartpole_mirror, equizero, lambda_equitune, symmetrize
from in_turns import ratios_to

NAME, SEED = "rl_speed", 0
BATCH = 256
WRAPPERS = {"EquiTune": EquiTune, "EquiZero": equizero, "LambdaEquiTune": lambda_equitune}


def agents() -> dict[str, DQN]:
    """A plain DQN of CartPole, and those with wrapped networks."""
    plain = DQN("MlpPolicy", "CartPole-v1", buffer_size=100, seed=SEED, device="cpu")
    mirror = cartpole_mirror()
    wrapped = {name: symmetrize(plain, mirror, method) for name, method in WRAPPERS.items()}
    found = {"plain": plain, **wrapped}
    for model in found.values():
        model.policy.set_training_mode(False)
    return found


def repeated(call: Callable[[], object], calls: int) -> Callable[[], object]:
    """A block of calls, as one of them is too short for the clock."""

    def block() -> None:
        for _ in range(calls):
            call()

    return block


def contestants(calls: int) -> dict[str, dict[str, Callable[[], object]]]:
    """What is compared, by what is done."""
    models = agents()
    one, some = torch.rand(1, 4), torch.rand(BATCH, 4)
    copies = torch.cat([some, -some])
    observation = one[0].numpy()
    found: dict[str, dict[str, Callable[[], object]]] = {
        "one observation, the Q-network": {},
        "one observation, its layers alone": {},
        "one observation, predict": {},
        f"{BATCH} observations, of plain with {2 * BATCH}": {},
    }
    network, layers, predict, batch = found.values()
    for name, model in models.items():
        given = copies if name == "plain" else some
        network[name] = repeated(lambda m=model: m.q_net(one), calls)
        layers[name] = repeated(lambda m=model: m.q_net.q_net(one), calls)
        predict[name] = repeated(lambda m=model: m.predict(observation, deterministic=True), calls)
        batch[name] = repeated(lambda m=model, x=given: m.q_net(x), calls)
    return found


@torch.no_grad()
def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--calls", type=int, default=200, help="in each block")
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="a folder")
    arguments = parser.parse_args(words)
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    found: dict[str, float] = {}
    for title, runs in contestants(arguments.calls).items():
        for name, ratio in ratios_to("plain", runs, arguments.rounds, title).items():
            found[f"{title}, {name}"] = round(ratio, 3)
            print(f"{title}, {name:<16} {ratio:.3f}")
    numbers = {
        "model": "CartPole, 4-64-64-2, two elements, one thread",
        "rounds": arguments.rounds,
        "calls": arguments.calls,
        "rows": found,
    }
    record.save(str(arguments.output.resolve() / NAME), record.command(), SEED, numbers)


if __name__ == "__main__":
    main()
