"""Training steps with the activations of one piece of the orbit: the others are made again."""

from __future__ import annotations

import functools
import itertools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from equitune._checks import require, require_type
from equitune._submodules import Reached, Watch
from equitune.actions import Action
from equitune.actions._tree import Key, mapped, tensors
from equitune.runners import Call, Loop, Mix, Orbit, Ran, Runner
from equitune.runners._orbit import early_weights, parts_of

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

STILL: Mapping[Key, Action] = MappingProxyType({})
"""What a function moves of arguments that have been moved."""

Function = Callable[..., Any]


class RunAgain(Runner):
    """Runs passes without keeping their activations, and runs them again for their gradient.

    Args:
        runner: What splits the orbit into passes. Default one for each element.
    """

    def __init__(self, runner: Runner | None = None) -> None:
        use = "Batches(chunk_size=...), or None for one pass for each element"
        self.runner = None if runner is None else require_type("runner", runner, Runner, use)
        self.offers = Loop.offers if runner is None else runner.offers

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self.runner is None else self.runner})"

    @abstractmethod
    def without_activations(self, function: Function, args: Any, kwargs: Any) -> Any:
        """Calls a function of (args, kwargs), and keeps what it needs to call it again alone."""

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        _require_fixed_statistics(call.backbone)
        # A compiler decides itself what it keeps, and what does not learn keeps nothing.
        given = tensors((call.args, call.kwargs))
        learns = any(x.requires_grad for x in itertools.chain(call.backbone.parameters(), given))
        if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and learns):
            return (self.runner or Loop()).run(call, mix, elements)
        function, cut = call.function or call.backbone, call.cut
        if cut is None:
            return self._run(call, function, mix, elements)
        must = f"read 'output', which at the submodule {cut.name!r} is its activation"
        require(mix.reads != cut.name, "weighting", must, repr(mix.reads), "'output'")
        up_to_cut = functools.partial(_up_to, cut, function)
        mixed = self._run(replace(call, cut=None), up_to_cut, mix, elements)
        # The pass that leads to the rest needs few samples, but not as many as the mean has.
        rows = 3 if call.batch_size == 2 else 2
        few = [torch.cat([leaf[:1]] * rows) for _, leaf in call.leaves]
        return call.evaluate([few], lambda _: mixed)

    def _run(self, call: Call, function: Function, mix: Mix, elements: Sequence[int]) -> Any:
        if self.runner is None:
            return self._by_element(call, function, mix, elements)
        passes = 0

        def passing(*args: Any, **kwargs: Any) -> Any:
            nonlocal passes
            passes += 1
            return self.without_activations(functools.partial(_called, function), args, kwargs)

        output = self.runner.run(replace(call, function=passing), mix, elements)
        must, use = "call the function of its call", "Batches(chunk_size=...), or None"
        require(passes > 0, "runner", must, f"{self.runner}, which calls another one", use)
        return output

    def _by_element(self, call: Call, function: Function, mix: Mix, elements: Sequence[int]) -> Any:
        if mix.reads == "input":
            early_weights(call, mix, parts_of(call, elements))
        leaves = [leaf for _, leaf in call.leaves]
        ran: list[Ran] = []

        def passing(g: int, *args: Any, **kwargs: Any) -> Any:
            # Moved in the pass, so that no copies of the input are kept either.
            moved = functools.partial(_called, function, moved=call.moved, g=g)
            return self.without_activations(moved, args, kwargs)

        for g in elements:
            one = replace(call, function=functools.partial(passing, g))
            one.evaluate([leaves], ran.extend)
        return mix(Orbit.of(call, [[g] for g in elements], ran))


@final
class Checkpointed(RunAgain):
    """Keeps no activations of the copies: each pass runs again when its gradient is due.

    A training step then holds the activations of one pass, by default of one element, instead of
    those of the whole orbit; it runs each pass twice. Exact: values, weights and gradients are
    those of the runner inside. Dropout draws the same numbers again. This is
    ``torch.utils.checkpoint`` without re-entrance around each pass, so that it works with taps,
    ``torch.autograd.grad``, DistributedDataParallel and FSDP2.

    Without gradients, and while a model is compiled or exported, it is the runner inside.

    Args:
        runner: What splits the orbit into passes: ``Batches(chunk_size)`` for pieces of another
            size, or a runner of your own. Default one pass for each element.

    Raises:
        TypeError: If ``runner`` is not a runner.
        ValueError: Calls raise it, before any pass, if a module of the backbone would count batch
            statistics twice (BatchNorm in train mode), and if a weighting reads the activation at
            ``submodule`` by its name. They raise it, too, if the runner inside does not call the
            function that it is given, as those that decode sequences.

    Example:
        >>> import torch
        >>> from equitune import EquiTune, ImageAction, Symmetrized, c4
        >>> from equitune.scaling import Checkpointed
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = Symmetrized(backbone, ImageAction(c4()), runner=Checkpointed())
        >>> x = torch.rand(2, 1, 8, 8)
        >>> torch.allclose(model(x), EquiTune(backbone, ImageAction(c4()))(x), atol=1e-6)
        True
    """

    def without_activations(self, function: Function, args: Any, kwargs: Any) -> Any:
        return checkpoint(function, args, kwargs, use_reentrant=False)


@final
class Accumulated(RunAgain):
    """Accumulates gradients over the orbit, in two passes, without a graph of the backbone.

    The loss reads the mean of the copies, so it is not a sum over copies, and the gradient of one
    copy depends on all others. The first pass runs all copies without a graph. The loss then gives
    the gradient of each raw output, also the part that comes through the weights. The second pass
    runs each copy again, and adds its gradients to ``.grad`` at once. Exact: values, weights and
    gradients are those of the runner inside.

    It holds as many activations as :class:`Checkpointed`, and runs each pass twice as well. Since
    it adds to ``.grad`` directly, a step that adds to gradients of earlier ones needs no second set
    of them. In return, gradients come from ``backward()`` alone: not from ``torch.autograd.grad``,
    nor through engines that wait for one gradient of each parameter, such as
    DistributedDataParallel; and weightings cannot tap a submodule.

    Args:
        runner: As in :class:`Checkpointed`.

    Raises:
        TypeError: If ``runner`` is not a runner.
        ValueError: As in :class:`Checkpointed`; and a wrapper raises it, when it is built, for a
            weighting that taps a submodule.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, Symmetrized, c4
        >>> from equitune.scaling import Accumulated
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = Symmetrized(backbone, ImageAction(c4()), runner=Accumulated())
        >>> model(torch.rand(2, 1, 8, 8)).square().mean().backward()
        >>> backbone[1].weight.grad.shape
        torch.Size([10, 64])
    """

    def __init__(self, runner: Runner | None = None) -> None:
        super().__init__(runner)
        self.offers = self.offers - {"submodule"}

    def without_activations(self, function: Function, args: Any, kwargs: Any) -> Any:
        structure: list[Any] = []

        def run(one: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            given = iter(inputs)
            output = function(*mapped((args, kwargs), lambda _: next(given)))
            # Nothing that would keep the graph of the second pass.
            structure[:] = [mapped(output, lambda y: y.new_empty(0))]
            return one.clone(), *tensors(output)

        # The first tensor has a gradient whatever the others have, so that the second pass comes.
        one = torch.empty(0, requires_grad=True)
        _, *outputs = checkpoint(run, one, *tensors((args, kwargs)), use_reentrant=True)
        found = iter(outputs)
        return mapped(structure[0], lambda _: next(found))


def _called(
    function: Function, args: Any, kwargs: Any, moved: Mapping[Key, Action] = STILL, g: int = 0
) -> Any:
    """Calls a function on moved arguments, and on copies of the others: it may work in place."""
    given = mapped({**dict(enumerate(args)), **kwargs}, torch.clone)
    for key, action in moved.items():
        given[key] = action.transform(given[key], g)
    return function(*[given.pop(place) for place in range(len(args))], **given)


def _up_to(cut: Watch, function: Function, *args: Any, **kwargs: Any) -> Any:
    """What a submodule returns in a call of a function, which ends there."""
    seen: list[Any] = []

    def see(activation: Any) -> None:
        seen.append(activation)
        raise Reached

    try:
        with cut.opened(see):
            function(*args, **kwargs)
    except Reached:
        pass
    cut.require_once(len(seen))
    return seen[0]


def _require_fixed_statistics(backbone: nn.Module) -> None:
    """Refuses modules whose batch statistics would be of a pass, and counted twice."""
    for name, module in backbone.named_modules():
        tracks = getattr(module, "track_running_stats", None)
        counts = tracks and module.training
        # Without running statistics, those of the batch are used in eval mode as well.
        if counts or (tracks is False and isinstance(module, BATCH_NORMS)):
            mode = "train" if module.training else "eval"
            must = "keep no batch statistics: each pass holds a part of the orbit and runs twice"
            got = f"{type(module).__name__} {name or 'backbone'!r} in {mode} mode"
            use = "freeze_backbone(), eval() on that module, or the runner Batches(chunk_size=...)"
            require(False, "backbone", must, got, use)
