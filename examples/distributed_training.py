"""Trains on many devices: the batch is split over some processes, the group over others.

    torchrun --nproc-per-node 4 examples/distributed_training.py --orbit 2

Each image shows a short bar somewhere; the label says whether it is bright at one end. The model is
invariant to d4, so that nobody has to show it every orientation. Uses all GPUs (NCCL), or the CPU
(gloo).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from equitune import ImageAction, Symmetrized, d4
from equitune.distributed import OrbitParallel


def bars(count: int, side: int = 16) -> TensorDataset:
    """Images of upright bars, and whether each has a bright end."""
    random = torch.Generator().manual_seed(0)
    images = 0.1 * torch.randn(count, 1, side, side, generator=random)
    labels = torch.randint(2, (count,), generator=random)
    rows, columns = torch.randint(side - 5, (2, count), generator=random).tolist()
    for image, label, row, column in zip(images, labels, rows, columns, strict=True):
        image[0, row : row + 5, column] += 1
        image[0, row, column] += 2 * label
    return TensorDataset(images, labels)


def network() -> nn.Module:
    # GroupNorm: the statistics of BatchNorm would be those of the copies of one process.
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orbit", type=int, default=2, help="processes that share the group")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--checkpoint", type=Path, help="the folder to save to")
    arguments = parser.parse_args()

    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    shape = (dist.get_world_size() // arguments.orbit, arguments.orbit)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("data", "orbit"))

    torch.manual_seed(0)
    model = Symmetrized(network(), ImageAction(d4()), runner=OrbitParallel(mesh["orbit"]))
    model = model.to(device)
    replica = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    # All processes that share the orbit of a sample get the same sample.
    data, place = bars(arguments.images), mesh["data"]
    sampler = DistributedSampler(data, num_replicas=place.size(), rank=place.get_local_rank())
    loader = DataLoader(data, batch_size=32, sampler=sampler)
    for epoch in range(arguments.epochs):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            logits = replica(images.to(device))
            loss = nn.functional.cross_entropy(logits, labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    images, labels = (tensor.to(device) for tensor in data[:256])
    upright, turned = (accuracy(model, x, labels) for x in (images, images.rot90(1, (-2, -1))))
    if dist.get_rank() == 0:
        print(f"mesh {shape}, accuracy upright {upright:.1%}, turned {turned:.1%}")
    if arguments.checkpoint is not None:
        # Of the wrapper and not of the engine, so that its names have no prefix.
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=arguments.checkpoint)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
