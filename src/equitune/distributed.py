"""The group split over processes: each runs its share of the copies of every sample."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from equitune._checks import require, require_type
from equitune.functional import widened
from equitune.runners import Batches, Call, Mix, Runner
from equitune.spaces import Space, Sums
from equitune.weightings import Copies, OrbitWeightNet
from equitune.weightings._base import Mean

__all__ = ["OrbitParallel"]


@final
class OrbitParallel(Runner):
    """Splits the group over the processes of a mesh; each runs its elements on the whole batch.

    It is exact: outputs, weights, scores and gradients are those of one process. Weights follow
    from the scores of all copies, which are exchanged first; then one sum over the processes, whose
    gradient is a sum again, makes the mean. All processes of the mesh must be called with the same
    batch, and have the same output. On a CPU each call checks that.

    The gradients of parameters are right once they are averaged over all processes, those of this
    mesh and those that split the batch: that is what DistributedDataParallel and ``fully_shard`` do
    by default.

    A deep copy has the same mesh. A pickle holds the runner inside instead, which runs the whole
    group in one process, since a mesh belongs to the processes that made it.

    Args:
        mesh: A mesh of one dimension, or one dimension of a larger one, such as ``mesh["orbit"]``.
        runner: How each process runs its elements. Default one batch.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the mesh has several dimensions. A wrapper raises it when it is built if the
            number of processes does not divide the order of the group, or if a weight network sees
            the whole orbit at once. Calls raise it for inputs or a backbone on devices of another
            type than the mesh's, for BatchNorm in train mode, whose statistics would be those of a
            part of the copies, and if the processes have different batches.

    Example:
        >>> from equitune import EquiTune, ImageAction, Symmetrized, c4
        >>> from equitune.distributed import OrbitParallel
        >>> import torch
        >>> import torch.distributed as dist
        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> orbit = OrbitParallel(init_device_mesh("cpu", (1,)))
        >>> model = Symmetrized(backbone, ImageAction(c4()), runner=orbit)
        >>> x = torch.rand(2, 1, 8, 8)
        >>> torch.allclose(model(x), EquiTune(backbone, ImageAction(c4()))(x), atol=1e-6)
        True
        >>> dist.destroy_process_group()
    """

    def __init__(self, mesh: DeviceMesh, runner: Runner | None = None) -> None:
        use = 'one dimension of that of init_device_mesh, such as mesh["orbit"]'
        self.mesh = require_type("mesh", mesh, DeviceMesh, use)
        shape = f"the shape {tuple(mesh.shape)} {mesh.mesh_dim_names or ''}".rstrip()
        require(mesh.ndim == 1, "mesh", "have one dimension", shape, 'mesh["orbit"], or its name')
        must, use = "hold this process", "OrbitParallel in the processes of the mesh alone"
        require(mesh.get_coordinate() is not None, "mesh", must, f"{mesh.mesh.tolist()}", use)
        inner = Batches() if runner is None else runner
        use = "a runner such as Batches(chunk_size=64), or None for one batch"
        self.runner = require_type("runner", inner, Runner, use)
        self.offers = self.runner.offers

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        self._require_share(len(elements))
        weighting = getattr(mix, "weighting", None)
        self._require_fitting(call, [m for m in (call.backbone, weighting) if m is not None])
        share = _Share(self.mesh, call, elements)
        share.require_one_batch()
        return self.runner.run(call, _SharedMix(mix, share), share.own)

    def literal(self, formula: Any, x: Any) -> Any:
        return self.runner.literal(formula, x)

    def compared(self, formula: Any, output: Any) -> Any:
        return self.runner.compared(formula, output)

    def bind(self, model: Any) -> None:
        """Refuses a model that does not fit; a split has no faster function."""
        self._require_share(model.group.order)
        joint = any(isinstance(m, OrbitWeightNet) for m in model.weighting.modules())
        must = "see one copy at a time where the group is split over processes"
        require(not joint, "weight_net", must, "one of whole orbits", "a network of single copies")

    def _require_share(self, count: int) -> None:
        size = self.mesh.size()
        must = f"have a number of processes that divides the {count} elements of the group"
        use = f"one of {[n for n in range(1, count + 1) if count % n == 0]}"
        require(count % size == 0, "mesh", must, size, use)

    def _require_fitting(self, call: Call, modules: Sequence[nn.Module]) -> None:
        kind = self.mesh.device_type
        first = itertools.islice(call.backbone.parameters(), 1)
        found = {x.device.type for x in [*first, *[leaf for _, leaf in call.leaves]]}
        must, use = f"be on the type of device of the mesh, {kind!r}", f"x.to({kind!r})"
        require(found <= {kind}, "the input and the backbone", must, sorted(found), use)
        norms = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
        trained = [
            name
            for module in modules
            for name, part in module.named_modules()
            if isinstance(part, norms) and part.training
        ]
        must = "hold no BatchNorm in train mode, whose statistics would be those of some copies"
        use = "its eval mode, another norm, or a runner in one process"
        require(not trained, "backbone", must, f"{trained[:1]} and others", use)

    def __repr__(self) -> str:
        return f"OrbitParallel({self.mesh.size()} processes, {self.runner})"

    def __copy__(self) -> OrbitParallel:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> OrbitParallel:
        return self

    def __reduce__(self) -> tuple[Callable[[Runner], Runner], tuple[Runner]]:
        return _inside, (self.runner,)


def _inside(runner: Runner) -> Runner:
    """What a pickle is read as."""
    return runner


@final
class _Share:
    """Which elements each process runs, and how the processes meet.

    Copies of one shape stay together, so that all processes make the same number of passes.
    """

    def __init__(self, mesh: DeviceMesh, call: Call, elements: Sequence[int]) -> None:
        self.call, self.count, self.group = call, len(elements), mesh.get_group()
        self.size, self.rank = mesh.size(), mesh.get_local_rank()
        classes, step = call.classes(elements), len(elements) // self.size
        together = [g for members in classes for g in members]
        shares = [sorted(together[i : i + step]) for i in range(0, self.count, step)]
        places = {g: k for k, g in enumerate(elements)}
        slots = [places[g] for share in shares for g in share]
        self.own, self.own_slots = shares[self.rank], slots[self.rank * step :][:step]
        # Where the row of each slot is, once the rows of all processes are one after the other.
        self.rows = None if slots == [*range(self.count)] else _inverse(slots)
        self.sums = _Across(self.group, one_shape=len(classes) == 1)

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all slots, from those of the slots at hand."""
        found: Tensor = _Gathered.apply(rows, self.group, self.rank, self.size)
        return found if self.rows is None else found[self.rows]

    def require_one_batch(self) -> None:
        """Refuses calls with another batch in each process, which no error would follow."""
        leaves = [leaf for _, leaf in self.call.leaves]
        # On an accelerator this would cost a synchronisation.
        if leaves[0].device.type != "cpu":
            return
        bits = [x.detach().contiguous().view(-1).view(torch.uint8) for x in leaves]
        sums = sum(b.sum(dtype=torch.int64) for b in bits)
        seen = torch.stack([torch.tensor(sum(b.numel() for b in bits)), torch.as_tensor(sums)])
        same = _gather(seen[None], self.group, self.size).unique(dim=0).shape[0] == 1
        use = 'a sampler with num_replicas=mesh["data"].size(), rank=mesh["data"].get_local_rank()'
        require(same, "the batch", "be the same in all processes of the mesh", "several", use)


def _inverse(slots: Sequence[int]) -> list[int]:
    return sorted(range(len(slots)), key=slots.__getitem__)


@final
class _Across(Sums):
    """Sums and maxima over the processes of a group.

    Attributes:
        used: Whether something has been summed.
    """

    def __init__(self, group: dist.ProcessGroup, one_shape: bool) -> None:
        self.group, self.one_shape, self.used = group, one_shape, False

    def total(self, x: Tensor) -> Tensor:
        self.used = True
        self.require_one_shape(x)
        return _Total.apply(x, self.group)  # type: ignore[no-any-return]

    def largest(self, x: Tensor) -> Tensor:
        self.require_one_shape(x)
        return _reduce(x.detach(), self.group, dist.ReduceOp.MAX)

    def require_one_shape(self, x: Tensor) -> None:
        """Refuses copies that cannot be combined; one process sees by itself that it has none."""
        if self.one_shape:
            return
        own = torch.tensor([*x.shape, *[0] * (8 - x.dim())], device=x.device)
        found = _gather(own[None], self.group, dist.get_world_size(self.group)).unique(dim=0)
        must = "return outputs whose copies have one shape once the action is undone"
        use = "output_action, the action of the output"
        require(len(found) == 1, "backbone", must, found[:, : x.dim()].tolist(), use)


@final
class _SharedMix:
    """What becomes of the copies of all processes."""

    def __init__(self, mix: Mix, share: _Share) -> None:
        self.mix, self.share, self.reads = mix, share, mix.reads

    def ask(self, copies: Copies) -> Tensor | None:
        weights = self.mix.ask(_Shared(copies, self.share))
        # Where none of its own copies counts, a process runs them all: every process has to go on
        # to the sum, and to have gradients.
        return weights if weights is not None and bool((weights != 0).any()) else None

    def __call__(self, copies: Copies) -> Any:
        return self.mix(_Shared(copies, self.share))


@final
class _Shared(Copies):
    """The copies at hand, with scores and means of those of all processes."""

    def __init__(self, inner: Copies, share: _Share) -> None:
        self.inner, self.share = inner, share
        self.count, self.dtypes = share.count, inner.dtypes
        self.sums = inner.sums = share.sums

    @property
    def batch_size(self) -> int:
        return self.share.call.batch_size

    def read(self, what: str) -> list[tuple[Sequence[int], Tensor]]:
        return self.inner.read(what)

    def outputs(self) -> list[tuple[Sequence[int], Any]]:
        return self.inner.outputs()

    def undone(self, leaf: int) -> Tensor:
        """The copies of one tensor of the output, of all processes."""
        inner: Any = self.inner
        found = inner.undone(leaf)
        self.share.sums.require_one_shape(found)
        return self.share.gathered(found)

    def means(self, space: Space) -> list[Mean]:
        pairs = zip(self.inner.means(space), self.dtypes, strict=True)
        return [self._mean(mean, dtype) for mean, dtype in pairs]

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        return self.inner.rebuild(tensors)

    def gathered(self, scores: Tensor) -> Tensor:
        return self.share.gathered(self.inner.gathered(scores))

    def own(self, weights: Tensor) -> Tensor:
        return weights[self.share.own_slots]

    def _mean(self, mean: Mean, dtype: torch.dtype) -> Mean:
        averaged = dtype.is_floating_point or dtype.is_complex

        def shared(weights: Tensor | None) -> Tensor:
            if weights is None and not averaged:
                return mean(None)  # Refused there.
            if weights is None:
                device = self.share.call.leaves[0][1].device
                one = widened(torch.ones(1, dtype=dtype, device=device).real)
                weights = (one / self.count).expand(self.count, self.batch_size)
            self.share.sums.used = False
            found = mean(self.own(weights))
            if not averaged:
                return self._of_the_first(found, weights)
            use = "Batches(), Loop() or another one whose copies use `sums`"
            must = "add up the copies of all processes"
            require(self.share.sums.used, "runner", must, "one that does not", use)
            return found

        return shared

    def _of_the_first(self, found: Tensor, weights: Tensor) -> Tensor:
        """Integers of the copy with the largest weight, from the process that has it."""
        first = torch.zeros_like(weights).scatter_(0, weights.argmax(0, keepdim=True), 1)
        own = self.own(first).any(0).view(-1, *[1] * (found.dim() - 1))
        return self.share.sums.total(torch.where(own, found.long(), 0)).to(found.dtype)


class _Total(torch.autograd.Function):
    """The sum over processes; the gradient is that of the sum of the losses of all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _reduce(x, group, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Total.apply(gradient, ctx.group), None


class _Gathered(torch.autograd.Function):
    """The rows of all processes, one after the other; each row collects all gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, rank: int, size: int) -> Tensor:
        ctx.group, ctx.start, ctx.stop = group, rank * len(x), (rank + 1) * len(x)
        return _gather(x, group, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        total: Tensor = _Total.apply(gradient, ctx.group)
        return total[ctx.start : ctx.stop], None, None, None


def _reduce(x: Tensor, group: dist.ProcessGroup, op: Any) -> Tensor:
    found = x.clone(memory_format=torch.contiguous_format)
    with _meeting(group):
        dist.all_reduce(found, op, group)
    return found


def _gather(x: Tensor, group: dist.ProcessGroup, size: int) -> Tensor:
    found = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(size)]
    with _meeting(group):
        dist.all_gather(found, x.contiguous(), group)
    return torch.cat(found)


@contextmanager
def _meeting(group: dist.ProcessGroup) -> Iterator[None]:
    """Errors inside say whom this process has waited for."""
    try:
        yield
    except Exception as error:
        ranks = dist.get_process_group_ranks(group)
        error.add_note(
            f"OrbitParallel: rank {dist.get_rank()} waited for the copies of the ranks {ranks}. "
            "One of them has ended or failed, and its own error says why; or it has called the "
            "model another number of times."
        )
        raise
