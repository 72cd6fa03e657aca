"""What the wrapped Q-network of CartPole costs: 4-64-64-2, two elements, one and two threads.

In turns: each block of calls of a wrapped network stands between two of the plain one, its ratio
is to their mean, and the median is over rounds. One observation: the Q-networks as
Stable-Baselines3 calls them, their layers alone, and ``predict`` as a whole. 256 observations:
against the plain network on 512, which is as many as there are copies. Written by hand: the same
formulas for this one symmetry, without checks, and EquiZero without ties.

    python benchmarks/rl_speed.py [--rounds 101]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from stable_baselines3 import DQN
from torch import Tensor, nn

import record
from equitune import EquiTune
from equitune.rl import cartpole_mirror, equizero, lambda_equitune, symmetrize
from in_turns import ratios_to

NAME, SEED = "rl_speed", 0
BATCH = 256
WRAPPERS = {"EquiTune": EquiTune, "EquiZero": equizero, "LambdaEquiTune": lambda_equitune}
THREADS = {1: "one thread", 2: "two threads"}


def agents() -> dict[str, DQN]:
    """A plain DQN of CartPole, and those with wrapped networks."""
    plain = DQN("MlpPolicy", "CartPole-v1", buffer_size=100, seed=SEED, device="cpu")
    mirror = cartpole_mirror()
    wrapped = {name: symmetrize(plain, mirror, method) for name, method in WRAPPERS.items()}
    found = {"plain": plain, **wrapped}
    for model in found.values():
        model.policy.set_training_mode(False)
    return found


def by_hand(plain: nn.Module, weight_net: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """The methods for this one symmetry: observations change their sign, actions their places."""

    def copies(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        orbit = torch.cat([x, -x])
        outputs = plain(orbit)
        return orbit, outputs, torch.stack([outputs[: len(x)], outputs[len(x) :].flip(1)])

    def average(x: Tensor) -> Tensor:
        return copies(x)[2].mean(0)

    def best(x: Tensor) -> Tensor:
        _, outputs, stack = copies(x)
        surest = outputs.softmax(1).amax(1).view(2, -1).argmax(0)
        return stack[surest, torch.arange(len(x))]

    def learned(x: Tensor) -> Tensor:
        orbit, _, stack = copies(x)
        return (weight_net(orbit).view(2, -1, 1).softmax(0) * stack).sum(0)

    return dict(zip(WRAPPERS, (average, best, learned), strict=True))


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
        "one observation, its layers written by hand": {},
        "one observation, predict": {},
        f"{BATCH} observations, of plain with {2 * BATCH}": {},
    }
    network, layers, hand, predict, batch = found.values()
    weight_net = models["LambdaEquiTune"].q_net.q_net.weighting.weight_net
    plain = models["plain"].q_net.q_net
    written = {"plain": plain, **by_hand(plain, weight_net)}
    for name, model in models.items():
        given = copies if name == "plain" else some
        network[name] = repeated(lambda m=model: m.q_net(one), calls)
        layers[name] = repeated(lambda m=model: m.q_net.q_net(one), calls)
        hand[name] = repeated(lambda f=written[name]: f(one), calls)
        predict[name] = repeated(lambda m=model: m.predict(observation, deterministic=True), calls)
        batch[name] = repeated(lambda m=model, x=given: m.q_net(x), calls)
    return found


@torch.no_grad()
def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--calls", type=int, default=100, help="in each block")
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="a folder")
    arguments = parser.parse_args(words)
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    found: dict[str, float] = {}
    for threads, setting in THREADS.items():
        torch.set_num_threads(threads)
        for title, runs in contestants(arguments.calls).items():
            for name, ratio in ratios_to("plain", runs, arguments.rounds, title).items():
                row = f"{title}, {setting}, {name}"
                found[row] = round(ratio, 3)
                print(f"{row:<80} {ratio:.3f}")
    numbers = {
        "model": "CartPole, 4-64-64-2, two elements",
        "rounds": arguments.rounds,
        "calls": arguments.calls,
        "rows": found,
    }
    record.save(str(arguments.output.resolve() / NAME), record.command(), SEED, numbers)


if __name__ == "__main__":
    main()
