"""Engines of training, in two real processes (gloo): the gradients are those of one process."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from cases import AnyWeightNet, Mlp, corners, proxy
from equitune import (
    EquiTune,
    EquiZero,
    Explaining,
    LambdaEquiTune,
    Learned,
    RegularFeatures,
    Symmetrized,
)
from equitune.scaling import Checkpointed
from equitune.training import upright_loss

ACTION = corners(5)


class Plain(nn.Module):
    """Without BatchNorm, whose statistics would be those of each process."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.features(x))


MODELS = {
    "LambdaEquiTune": lambda: LambdaEquiTune(
        Plain(), ACTION, ACTION, weight_net=AnyWeightNet(), weight_input="features"
    ),
    "EquiZero": lambda: EquiZero(Plain(), ACTION, ACTION, proxy_loss=proxy),
    "checkpointed": lambda: Symmetrized(
        Plain(),
        ACTION,
        ACTION,
        weighting=Learned(nn.Linear(8, 1), "features"),
        runner=Checkpointed(),
    ),
    "RegularFeatures and a head": lambda: nn.Sequential(
        RegularFeatures(Plain(), ACTION, ACTION), nn.Flatten(), nn.Linear(50, 3)
    ),
}


def gradients(model, x):
    model(x).square().mean().backward()
    return [p.grad.clone() for p in model.parameters()]


def work(rank, store, models, x, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    part = x.chunk(2)[rank]
    found = {name: gradients(DistributedDataParallel(m), part) for name, m in models.items()}
    if rank == 0:
        queue.put({name: [g.tolist() for g in grads] for name, grads in found.items()})
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path):
    models = {name: make().double() for name, make in MODELS.items()}
    x = torch.randn(6, 5, dtype=torch.float64)
    expected = {name: gradients(copy.deepcopy(m), x) for name, m in models.items()}
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    processes = mp.start_processes(
        work, (str(tmp_path / "store"), models, x, queue), nprocs=2, join=False
    )
    found = queue.get()
    while not processes.join():
        pass
    for name, grads in expected.items():
        for one, other in zip(found[name], grads, strict=True):
            torch.testing.assert_close(torch.tensor(one, dtype=torch.float64), other)


# Losses that read scores need the explanation, and engines see calls of forward alone.
EXPLAINED = {
    "LambdaEquiTune": lambda: LambdaEquiTune(
        Plain(), ACTION, ACTION, weight_net=nn.Linear(8, 1), weight_input="features"
    ),
    "EquiZero": MODELS["EquiZero"],
    "EquiTune": lambda: EquiTune(Plain(), ACTION, ACTION),
    "checkpointed": MODELS["checkpointed"],
}


def loss_of(explanation):
    loss = explanation.output.float().square().mean()
    return loss if explanation.scores is None else loss + upright_loss(explanation.scores.float())


class Step(nn.Module):
    """A step of training inside of forward, as Lightning runs that of its modules."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return loss_of(self.model.explain(x))


def ddp(model, x):
    replica = DistributedDataParallel(Explaining(model))
    loss_of(replica(x)).backward()


def ddp_of_a_step(model, x):
    replica = DistributedDataParallel(Step(model))
    replica(x).backward()


def fsdp2(model, x):
    explaining = Explaining(model)
    fully_shard(model.backbone)
    fully_shard(explaining)
    loss_of(explaining(x)).backward()


def accelerated(model, x):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    explaining = accelerator.prepare(Explaining(model))
    accelerator.backward(loss_of(explaining(x)))


ENGINES = {"ddp": ddp, "ddp of a step": ddp_of_a_step, "fsdp2": fsdp2, "accelerate": accelerated}


def explain_in(rank, store, models, x, queue):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT="29531")  # fmt: skip
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for engine, run in ENGINES.items():
        for name, model in models.items():
            own = copy.deepcopy(model)
            run(own, x.chunk(2)[rank])
            grads = [p.grad for p in own.parameters()]
            grads = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
            found[engine, name] = [g.tolist() for g in grads]
    if rank == 0:
        queue.put(found)
    dist.barrier()
    dist.destroy_process_group()


def test_explanations_are_trained_in_two_processes(tmp_path):
    x = torch.randn(6, 5)
    models = {name: make() for name, make in EXPLAINED.items()}
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    processes = mp.start_processes(
        explain_in, (str(tmp_path / "store"), models, x, queue), nprocs=2, join=False
    )
    found = queue.get()
    while not processes.join():
        pass
    assert len(found) == len(ENGINES) * len(EXPLAINED)
    for (engine, name), grads in found.items():
        own = copy.deepcopy(models[name])
        loss_of(own.explain(x)).backward()
        tolerance = 0.1 if engine == "accelerate" else 1e-5
        scale = max(float(p.grad.abs().max()) for p in own.parameters())
        for one, parameter in zip(grads, own.parameters(), strict=True):
            gap = (torch.tensor(one) - parameter.grad).abs().max()
            assert gap <= tolerance * scale, (engine, name)
        # Gradients of one process alone are others.
        alone = copy.deepcopy(models[name])
        loss_of(alone.explain(x.chunk(2)[0])).backward()
        first, other = next(own.parameters()).grad, next(alone.parameters()).grad
        assert (first - other).abs().max() > 0.2 * first.abs().max(), name


def test_batch_norm_statistics_would_differ():
    """Why the models above have none: half a batch has other statistics."""
    model = RegularFeatures(Mlp(5, (5,)), ACTION, ACTION).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(model(x)[:3], model(x[:3]))
