"""Times of several runs in turns, as ratios to one of them, and their peak memory."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

Run = Callable[[], object]

BLOCK = 0.02
"""Seconds: what takes less is called several times in a row, as it is too short for the clock."""


def seconds(run: Run, calls: int = 1, device: torch.device | None = None) -> float:
    """The time of one call, on average over some calls in a row."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    _wait(device)
    return (time.perf_counter() - start) / calls


def block_of(run: Run, device: torch.device | None = None) -> tuple[int, float]:
    """How many calls make a block that is long enough for the clock, and how long one takes."""
    run()
    each = max(seconds(run, 1, device), 1e-6)
    return max(1, math.ceil(BLOCK / each)), each


def ratios_to(
    reference: str,
    runs: Mapping[str, Run],
    rounds: int,
    title: str,
    *,
    between: int = 1,
    calls: Mapping[str, int] | None = None,
    device: torch.device | None = None,
) -> dict[str, float]:
    """The median over rounds of each time relative to the reference just before and just after.

    Args:
        reference: The run that all others are compared with.
        runs: What is run, by name, the reference included.
        rounds: How often all of them are run.
        title: Of the progress bar.
        between: How many runs stand between two of the reference.
        calls: How many calls make a block of each run; None for one.
        device: What the runs wait for; None for a CPU.
    """
    calls = calls or {}
    names = [name for name in runs if name != reference]
    found: dict[str, list[float]] = {name: [] for name in names}

    def timed(name: str) -> float:
        return seconds(runs[name], calls.get(name, 1), device)

    if not calls:
        for run in runs.values():
            run()
    before = timed(reference)
    for number in tqdm(range(rounds), desc=title, unit="round", leave=False):
        # The order turns, so that no run always follows the same one.
        start = number % len(names)
        order = names[start:] + names[:start]
        for first in range(0, len(order), between):
            taken = {name: timed(name) for name in order[first : first + between]}
            after = timed(reference)
            for name, own in taken.items():
                found[name].append(2 * own / (before + after))
            before = after
    return {name: statistics.median(values) for name, values in found.items()}


def peak_mib(run: Run, device: torch.device | None = None) -> float:
    """The most memory that torch's allocator held during a call, beyond what it held before.

    The weights are there before, so that this is memory of activations and gradients. On a CPU it
    is read from the trace of torch's profiler, which notes each allocation; what libraries below
    torch allocate on their own is not in it.
    """
    if device is not None and device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        _wait(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    noted = allocations(run)
    if not noted:
        return 0.0
    before = noted[0]["Total Allocated"] - noted[0]["Bytes"]
    return (max(arguments["Total Allocated"] for arguments in noted) - before) / 2**20


def allocations(run: Run) -> list[dict[str, int]]:
    """What the allocator notes in a call on a CPU: addresses, and bytes, negative if freed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_bytes())["traceEvents"]
    noted = [event for event in events if event.get("name") == "[memory]"]
    return [event["args"] for event in sorted(noted, key=lambda event: event["ts"])]


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
