"""DistributedDataParallel, in two real processes (gloo): the gradients are those of one process."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cases import AnyWeightNet, Mlp, corners, proxy
from equitune import EquiZero, LambdaEquiTune, RegularFeatures

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


def test_batch_norm_statistics_would_differ():
    """Why the models above have none: half a batch has other statistics."""
    model = RegularFeatures(Mlp(5, (5,)), ACTION, ACTION).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(model(x)[:3], model(x[:3]))
