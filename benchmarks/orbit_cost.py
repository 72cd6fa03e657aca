"""What a training step costs on many devices: the batch split, or the group. Arithmetic alone.

A step computes on the copies of one device, adds up the outputs and their gradients over the
processes that share the group, and averages the gradients of the parameters over all devices.
Nothing overlaps, so that every figure is the most that its step takes. An answer is the forward
pass alone, a third of the work, and sends the outputs only.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from markdown_tables import rows, source

ORDER = 8
"""The order of d4."""
CASES = ((8, 1), (8, 8), (8, 64), (64, 1), (64, 8), (64, 64), (64, 512))
"""Devices, and samples on all of them."""


@dataclass(frozen=True)
class Cluster:
    """What is assumed of the devices, since none of them was at hand.

    Attributes:
        speed: How many times as fast as the measured thread one device is.
        floor: The least seconds of a step, however few copies there are.
        node: How many devices have fast links among them.
        inside: Bytes per second and device within a node.
        between: Bytes per second and device between nodes.
        latency: Seconds of one message.
    """

    speed: float = 300.0
    floor: float = 5e-3
    node: int = 8
    inside: float = 200e9
    between: float = 25e9
    latency: float = 10e-6

    def said(self) -> str:
        """The assumptions in words."""
        return (
            f"a device is {self.speed:g} times as fast as the measured thread, and takes at least "
            f"{1e3 * self.floor:g} ms for a step; nodes of {self.node} devices; "
            f"{self.inside / 1e9:g} GB/s for each device within a node and "
            f"{self.between / 1e9:g} GB/s between nodes; {1e6 * self.latency:g} µs per message"
        )


@dataclass(frozen=True)
class Network:
    """A backbone.

    Attributes:
        name: What it is.
        seconds: Of a step of the measured thread, by the number of copies.
        parameters: How many there are, of four bytes.
        outputs: How many numbers there are for each copy, of four bytes.
    """

    name: str
    seconds: dict[int, float]
    parameters: int
    outputs: int = 1000

    def times(self, factor: int) -> Network:
        """A backbone with so many times the parameters and the work."""
        seconds = {count: factor * taken for count, taken in self.seconds.items()}
        name = f"{factor} times {self.name}"
        return Network(name, seconds, factor * self.parameters, self.outputs)

    def of(self, copies: int) -> float:
        """The seconds of a step on so many copies, between those that were measured."""
        counts = sorted(self.seconds)
        if copies >= counts[-1]:
            return self.seconds[counts[-1]] * copies / counts[-1]
        for low, high in itertools.pairwise(counts):
            if copies <= high:
                part = (copies - low) / (high - low)
                return (1 - part) * self.seconds[low] + part * self.seconds[high]
        return self.seconds[counts[0]]


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        copies: How many each device runs.
        sent: The bytes that each device sends.
        seconds: How long it takes.
        answer: How long the forward pass takes by itself.
    """

    copies: int
    sent: float
    seconds: float
    answer: float


def step(network: Network, devices: int, orbit: int, batch: int, cluster: Cluster) -> Step:
    """One training step.

    Args:
        network: The backbone.
        devices: How many there are.
        orbit: How many of them share the group; those that share the batch are the others.
        batch: The samples of a step, on all devices.
        cluster: What is assumed of the devices.
    """
    # Where samples are few, the devices without any are not used.
    parts = min(devices // orbit, batch)
    samples = math.ceil(batch / parts)
    copies = samples * ORDER // orbit
    compute = max(cluster.floor, network.of(copies) / cluster.speed)
    used = parts * orbit
    gradients = all_reduce(4 * network.parameters, used, cluster)
    # Forward, and once more for their gradients.
    outputs = all_reduce(4 * network.outputs * samples, orbit, cluster)
    sent = gradients[0] + 2 * outputs[0]
    seconds = compute + gradients[1] + 2 * outputs[1]
    return Step(copies, sent, seconds, compute / 3 + outputs[1])


def all_reduce(size: float, devices: int, cluster: Cluster) -> tuple[float, float]:
    """The bytes that each device sends, and the seconds, for a sum in a ring."""
    if devices == 1:
        return 0.0, 0.0
    sent = 2 * (devices - 1) / devices * size
    speed = cluster.inside if devices <= cluster.node else cluster.between
    return sent, sent / speed + 2 * math.log2(devices) * cluster.latency


def networks(results: dict[str, Any]) -> list[Network]:
    """The measured backbone, and a large one."""
    seconds = {int(count): taken for count, taken in results["seconds_of_a_step"].items()}
    small = Network("resnet18", seconds, results["parameters"])
    return [small, small.times(50)]


def orbit_cost(results: dict[str, Any]) -> str:
    cluster, body = Cluster(), []
    for network, (devices, batch) in itertools.product(networks(results), CASES):
        one, other = (step(network, devices, orbit, batch, cluster) for orbit in (1, ORDER))
        samples = f"{batch} sample{'s' if batch > 1 else ''}"
        body.append([
            f"{network.name}, {devices} devices, {samples}",
            f"{one.copies}; {other.copies}",
            f"{one.sent / 1e6:,.0f}; {other.sent / 1e6:,.0f}",
            f"{1e3 * one.seconds:,.1f}; {1e3 * other.seconds:,.1f}",
            f"{other.seconds / one.seconds:.2f}",
            f"{other.answer / one.answer:.2f}",
        ])  # fmt: skip
    head = ["batch split; group split (d4)", "copies per device", "MB sent per device", "step, ms",
            "step, group / batch", "answer, group / batch"]  # fmt: skip
    return rows(head, body) + f"\nAssumed: {cluster.said()}.\n" + source(results)


def orbit_parallel(results: dict[str, Any]) -> str:
    body = [
        [name, f"{row['ratio']:.2f}", f"{row['seconds_of_one']:.2f} s"]
        for name, row in results["rows"].items()
    ]
    return rows([results["model"], "two / one", "one process"], body) + source(results)
