"""One batch or pieces, and in which memory format, as a measurement on a CPU says."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, distributed

from equitune._checks import readable, require_function
from equitune.functional import can_be_averaged
from equitune.runners._base import Mix, Runner
from equitune.runners._batches import FORMATS, Batches
from equitune.runners._call import Call
from equitune.weightings import Copies

ONE = Batches()
LEAST, ENOUGH, PIECE = 2**16, 2**21, 2**18
"""How many numbers copies hold that are worth a measurement, that suffice for it, in a piece."""
SHORT, GAIN, ROUNDS, SHAPES = 0.01, 0.95, 4, 16
"""Seconds that are not worth a measurement; the part of the time of one batch that is better; how
often plans are measured, the slower half of them no more; how many shapes calls measure."""
MEASURING = threading.Lock()


@final
class Tuned(Runner):
    """The fastest way to run all copies, found by a measurement on a CPU; the default of wrappers.

    The first call of each shape, dtype, mode and number of threads measures one batch, pieces of
    it, and pieces with the channels of images last. It keeps the fastest as a plan: a
    :class:`Batches`. The plan is exact up to rounding. One whose raw outputs are not those of one
    batch is never taken, nor is one that saves less than a twentieth of the time.

    One batch runs, and nothing is measured, on accelerators, while a module of the backbone trains,
    while a model is compiled or exported, under ``torch.func.vmap``, in a process group, for copies
    of fewer than 65,536 numbers, for passes under 10 ms, within another measurement, and for new
    shapes after 16.

    Plans are in no ``state_dict``, copy or pickle. Threads may share the runner.

    Args:
        clock: A function that returns the time in seconds.

    Raises:
        TypeError: If ``clock`` cannot be called.

    Example:
        >>> import torch
        >>> from equitune import EquiTune, ImageAction, c4
        >>> backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten()).eval()
        >>> EquiTune(backbone, ImageAction(c4())).runner
        Tuned()
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = require_function("clock", clock, "one such as time.perf_counter")
        self._plans: dict[Any, Batches] = {}

    def __repr__(self) -> str:
        plans = [(*key[:2], plan) for key, plan in [*self._plans.items()]]
        return f"Tuned({', '.join(f'{n} x {[*s[0][0]]}: {plan}' for n, s, plan in plans)})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_plans": {}}

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        off = torch.compiler.is_compiling() or call.backbone.training
        small = off or len(elements) * _numbers(call) < LEAST
        return (ONE if small else self.plan(call, elements, SHORT)).run(call, mix, elements)

    def plan(self, call: Call, elements: Sequence[int], short: float = 0.0) -> Batches:
        """The plan of a call, which is measured unless it is known.

        Args:
            call: The call.
            elements: The elements to run.
            short: How many seconds one batch has to take to be worth a measurement. With 0 the
                measurement is made now, also of what is known.
        """
        grouped = distributed.is_available() and distributed.is_initialized()
        if grouped or not readable(call.leaves[0][1]):
            return ONE
        key = (
            len(elements), tuple([(x.shape, x.dtype) for _, x in call.leaves]),
            weakref.ref(call.backbone), call.cut is None, torch.get_num_threads(),
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        )  # fmt: skip
        plan = self._plans.get(key) if short else None
        if plan is ONE or call.training:
            return ONE
        if plan is not None or (short and len(self._plans) >= SHAPES):
            return plan or ONE
        # Calls in the meantime run one batch, those of a wrapper within this one included.
        if not MEASURING.acquire(blocking=not short):
            return ONE
        try:
            with torch.random.fork_rng(devices=[]):
                plan = self._plans[key] = _fastest(call, elements, self.clock, short)
        finally:
            MEASURING.release()
        return plan


def limited(chunk_size: int | None) -> Runner:
    """The runner of wrappers: pieces of a size, or what is fastest."""
    return Tuned() if chunk_size is None else Batches(chunk_size)


@final
class _Trial:
    """A mix that keeps what has run, and makes nothing of it.

    Attributes:
        tensors: The raw outputs, and what a weighting reads.
    """

    reads = None
    tensors: Sequence[Tensor] = ()

    def ask(self, copies: Copies) -> None:
        """Nothing: all copies run."""

    def __call__(self, copies: Any) -> None:
        found = [[*[leaf for _, leaf in p.leaves], p.read] for p in copies.parts]
        self.tensors = [x.detach() for part in found for x in part if x is not None]


def _numbers(call: Call) -> int:
    """How many numbers the copies by one element hold."""
    return sum([x.numel() for _, x in call.leaves])


def _fastest(
    call: Call, elements: Sequence[int], clock: Callable[[], float], short: float
) -> Batches:
    """The plan that takes the least time; one batch where no other takes clearly less."""
    numbers, trial = _numbers(call), _Trial()
    # More copies than that take as long each.
    elements = elements[: -(-ENOUGH // numbers)]
    times: dict[Batches, float] = {}

    def measure(plan: Batches) -> None:
        start = clock()
        plan.run(call, trial, elements)
        taken = clock() - start
        if times:
            _require_equal(trial.tensors, expected)
        times[plan] = min(taken, times.get(plan, taken))

    measure(ONE)
    expected = trial.tensors
    if times[ONE] < short:
        return ONE
    sizes = [2**k for k in range((len(elements) * call.batch_size - 1).bit_length())]
    fits = [n for n in sizes if PIECE <= n * numbers / call.batch_size <= ENOUGH]
    formats = dict.fromkeys([None, FORMATS.get(call.leaves[0][1].dim())])
    pairs = [(n, kind) for n in [*(fits or sizes[-1:]), None] for kind in formats]
    plans = [Batches(*pair) for pair in pairs if pair != (None, None)]
    # What is compiled would be compiled again for each size.
    with torch.compiler.set_stance("eager_on_recompile"):
        for _ in range(ROUNDS):
            for plan in [ONE, *plans]:
                # A backbone may need the whole batch, or its own memory format.
                with contextlib.suppress(Exception):
                    measure(plan)
            # The first time holds what torch makes once for each shape.
            ranked = sorted(times.keys() & plans, key=times.__getitem__)
            plans = ranked[: max(2, len(plans) // 2)]
    best = min(times, key=times.__getitem__)
    return best if times[best] < GAIN * times[ONE] else ONE


def _require_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Refuses tensors that differ by more than rounding."""
    for x, y in zip(found, expected, strict=True):
        near = torch.finfo(x.dtype).eps ** 0.5 if can_be_averaged(x) else 0.0
        size = float(y.abs().nan_to_num(0, 0, 0).max()) if near else 0.0
        torch.testing.assert_close(x, y, rtol=near, atol=near * size, equal_nan=True)
