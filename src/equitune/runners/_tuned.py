"""One batch or pieces, and in which memory format, as a measurement on a CPU says."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, distributed

from equitune._checks import readable, require
from equitune.functional import can_be_averaged
from equitune.runners._base import Mix, Mixing, Runner
from equitune.runners._batches import FORMATS, Batches
from equitune.runners._call import Call
from equitune.spaces import Values
from equitune.weightings import Copies, Uniform

ONE = Batches()
LEAST, ENOUGH, PIECE = 2**16, 2**21, 2**15
"""How many numbers copies hold that are worth a measurement, that suffice for it, in a piece."""
SHORT, GAIN, ROUNDS, SHAPES = 0.01, 0.95, 2, 16
"""Seconds that are not worth a measurement; the part of the time of one batch that is better; how
often the best plans are measured; how many shapes calls measure by themselves."""
MEASURING = threading.Lock()


@final
class Tuned(Runner):
    """The fastest way to run all copies, found by a measurement on a CPU; the default of wrappers.

    The first call of each shape, dtype, mode and number of threads measures one batch, pieces of
    it, and both with the channels of images last, and keeps the fastest as a plan: a
    :class:`Batches`. It is exact up to rounding: a plan whose raw outputs are not those of one
    batch is never taken, nor is one that saves less than a twentieth of the time.

    One batch runs, and nothing is measured: on accelerators, while a module of the backbone trains,
    while a model is compiled or exported, under ``torch.func.vmap``, in a process group, for copies
    of fewer than 65,536 numbers, for passes under 10 ms, within another measurement, and for new
    shapes after 16.

    Plans are in no ``state_dict``, copy or pickle. Threads may share the runner.

    Args:
        clock: The time, in seconds.

    Example:
        >>> import torch
        >>> from equitune import EquiTune, ImageAction, c4
        >>> backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten()).eval()
        >>> model = EquiTune(backbone, ImageAction(c4()))
        >>> model.runner
        Tuned()
        >>> model.runner = model.runner.measure(model, torch.rand(2, 3, 16, 16))
        >>> isinstance(model.runner, Batches)
        True
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._plans: dict[Any, Batches] = {}

    def __repr__(self) -> str:
        plans = [(*key[:2], plan) for key, plan in [*self._plans.items()]]
        return f"Tuned({', '.join(f'{n} x {[*s[0][0]]}: {plan}' for n, s, plan in plans)})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_plans": {}}

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        off = torch.compiler.is_compiling() or call.backbone.training
        if off or len(elements) * _numbers(call) < LEAST:
            return ONE.run(call, mix, elements)
        once = _Once(mix)
        return self._plan(call, once, elements, SHORT).run(call, once, elements)

    def measure(self, model: Any, x: Any = None, /, *args: Any, **kwargs: Any) -> Batches:
        """Measures now, on an example, and also what calls find too small.

        Args:
            model: A wrapper in eval mode, with this runner or another one.
            x: The first argument of the wrapper.
            *args: The other arguments by position.
            **kwargs: The arguments by name.

        Returns:
            The plan. As ``model.runner`` it runs all shapes, and nothing is measured.

        Raises:
            ValueError: If a module of the backbone trains.
        """
        mix = Mixing(getattr(model, "weighting", Uniform()), Values())
        plan: Batches = model.run(mix, x, args, kwargs, _Measuring(self))
        return plan

    def _plan(self, call: Call, mix: _Once, elements: Sequence[int], short: float) -> Batches:
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
        if plan is not None:
            return ONE if plan is ONE or call.training else plan
        full = short and len(self._plans) >= SHAPES
        if full or call.training or not MEASURING.acquire(blocking=not short):
            return ONE
        try:
            with torch.random.fork_rng(devices=[]):
                plan = self._plans[key] = self._fastest(call, mix, elements, short)
        finally:
            MEASURING.release()
        return plan

    def _fastest(self, call: Call, mix: _Once, elements: Sequence[int], short: float) -> Batches:
        numbers = _numbers(call)
        if mix.reads != "input":
            # More copies than that take as long each.
            elements = elements[: -(-ENOUGH // numbers)]
        trial, copies = _Trial(mix), len(elements) * call.batch_size

        def seconds(plan: Batches) -> float:
            start = self.clock()
            plan.run(call, trial, elements)
            return self.clock() - start

        times = {ONE: seconds(ONE)}
        expected = trial.tensors
        if times[ONE] < short or copies < 2:
            return ONE

        def attempt(plan: Batches) -> None:
            try:
                taken = seconds(plan)
            except Exception:
                # A backbone may need the whole batch, or its own memory format.
                taken = math.inf
            taken = taken if _agree(trial.tensors, expected) else math.inf
            times[plan] = min(taken, times.get(plan, math.inf))

        sizes = [2**k for k in range(copies.bit_length() - 1)]
        sizes = [n for n in sizes if n * numbers >= PIECE * call.batch_size] or sizes[-1:]
        middle = sizes.pop(len(sizes) // 2)
        formats = dict.fromkeys([None, FORMATS.get(call.leaves[0][1].dim())])
        # What is compiled would be compiled again for each size.
        with torch.compiler.set_stance("eager_on_recompile"):
            pieces = [Batches(middle, kind) for kind in formats]
            for plan in pieces:
                attempt(plan)
            kind = min(pieces, key=times.__getitem__).memory_format
            for size in sizes:
                attempt(Batches(size, kind))
            for plan in [ONE, *sorted(times, key=times.__getitem__)[:2]] * ROUNDS:
                attempt(plan)
        best = min(times, key=times.__getitem__)
        return best if times[best] < GAIN * times[ONE] else ONE


def limited(chunk_size: int | None) -> Runner:
    """The runner of wrappers: pieces of a size, or what is fastest."""
    return Tuned() if chunk_size is None else Batches(chunk_size)


@final
class _Measuring(Runner):
    """Measures in place of a run."""

    def __init__(self, tuned: Tuned) -> None:
        self.tuned = tuned

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        use = "model.eval(), since a plan is for inference"
        require(not call.training, "model", "be in eval mode", "one that trains", use)
        return self.tuned._plan(call, _Once(mix), elements, 0)


@final
class _Once:
    """A mix that is asked once, however often the copies run."""

    def __init__(self, mix: Mix) -> None:
        self.mix, self.reads = mix, mix.reads
        self._answers: list[Tensor | None] = []

    def ask(self, copies: Copies) -> Tensor | None:
        if not self._answers:
            self._answers.append(self.mix.ask(copies))
        return self._answers[0]

    def __call__(self, copies: Copies) -> Any:
        return self.mix(copies)


@final
class _Trial:
    """A mix that keeps what has run, and makes nothing of it.

    Attributes:
        tensors: The raw outputs, and what the weighting reads.
    """

    def __init__(self, mix: Mix) -> None:
        self.reads, self.ask = mix.reads, mix.ask
        self.tensors: list[Tensor] = []

    def __call__(self, copies: Any) -> None:
        found = [[*[leaf for _, leaf in p.leaves], p.read] for p in copies.parts]
        self.tensors = [x.detach() for part in found for x in part if x is not None]


def _numbers(call: Call) -> int:
    """How many numbers the copies by one element hold."""
    return sum([x.numel() for _, x in call.leaves])


def _agree(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether tensors are equal up to rounding."""
    for x, y in zip(found, expected, strict=True):
        if torch.equal(x, y):
            continue
        if x.shape != y.shape or not can_be_averaged(x):
            return False
        near = torch.finfo(x.dtype).eps ** 0.5
        size = float(y.abs().nan_to_num(0, 0, 0).max())
        if not torch.allclose(x, y, near, near * size, equal_nan=True):
            return False
    return True
