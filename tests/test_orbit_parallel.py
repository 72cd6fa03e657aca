"""The group split over real processes (gloo): everything is as in one process."""

import copy
import io
import os
import pickle
import re
import subprocess
import sys
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from cases import CASES, WRAPPERS, AnyWeightNet, Attention, Mlp, corners, proxy
from equitune import (
    Best,
    EquiTune,
    EquiZero,
    Explaining,
    ImageAction,
    LambdaEquiTune,
    Learned,
    RegularFeatures,
    Symmetrized,
    c4,
    d4,
)
from equitune.distributed import OrbitParallel
from equitune.runners import Batches, Loop, MatrixProducts
from equitune.seq2seq import SymmetrizedSeq2Seq, mean_entropy
from equitune.spaces import Logits, Probabilities
from equitune.training import upright_loss
from seq2seq_cases import CASES as DECODERS

BY_NAME = {case.name: case for case in CASES}
MODELS = {
    **WRAPPERS,
    "EquiZero, identity": lambda *a: EquiZero(*a, proxy_loss=proxy, gradient="identity"),
    "EquiZero, selected": lambda *a: EquiZero(*a, proxy_loss=proxy, gradient="selected"),
    "EquiZero, no gradient": lambda *a: EquiZero(*a, proxy_loss=proxy, gradient=None),
    "one by one": lambda *a: Symmetrized(*a, runner=Loop()),
}


def leaves(output):
    """The numbers of an output of any structure."""
    found = output.values() if isinstance(output, dict) else [output]
    return torch.cat([x.flatten() for x in found])


def loss_of(explanation, weight=1.0):
    """A loss that reads the output, the weights and the scores."""
    flat = leaves(explanation.output)
    places = torch.arange(len(flat), dtype=flat.dtype)
    loss = (flat * torch.cos(places)).mean() + flat.square().mean()
    if explanation.weights.requires_grad:
        loss = loss + explanation.weights.square().mean() + explanation.scores.square().mean()
    return weight * loss


def require_close(found, expected, what):
    found, expected = found.detach(), expected.detach()
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    gap = float((found - expected).abs().max()) if expected.numel() else 0.0
    assert found.shape == expected.shape, what
    assert gap <= 1e-12 * scale, (what, gap)


def averaged(parameters):
    """The gradients as engines average them over all processes; zeros where there are none."""
    found = []
    for p in parameters:
        grad = torch.zeros_like(p) if p.grad is None else p.grad.clone()
        dist.all_reduce(grad)
        found.append(grad / dist.get_world_size())
    return found


def require_as_in_one_process(model, mesh, x, what):
    """Outputs, explanations and gradients."""
    model.zero_grad()
    one, split = model, copy.deepcopy(model)
    split.runner = OrbitParallel(mesh, split.runner)
    expected, found = one.explain(x), split.explain(x)
    require_close(leaves(split(x)), leaves(one(x)), what)
    require_close(leaves(found.output), leaves(expected.output), what)
    require_close(found.weights, expected.weights, what)
    assert torch.equal(found.elements, expected.elements), what
    if expected.scores is not None:
        require_close(found.scores, expected.scores, what)
    if leaves(expected.output).requires_grad:
        loss_of(expected).backward()
        loss_of(found).backward()
        for grad, parameter in zip(averaged(split.parameters()), one.parameters(), strict=True):
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            require_close(grad, own, what)


def table(rank, mesh, folder):
    """Wrappers on every row whose group the mesh divides, images of two shapes included."""
    count, seen = 0, set()
    rows = [case for case in CASES if case.input_action.group.order % mesh.size() == 0]
    for number, case in enumerate(rows):
        # A third of them each, in turns.
        for name, make in [*MODELS.items()][number % 3 :: 3]:
            torch.manual_seed(0)
            backbone = case.backbone().double()
            backbone(case.input(torch.float64))  # The statistics of BatchNorm.
            model = make(backbone.eval(), case.input_action, case.output_action).double().eval()
            require_as_in_one_process(model, mesh, case.input(torch.float64), (case.name, name))
            count += 1
            seen.add(name)
    assert count >= 60
    assert seen == MODELS.keys()


def spaces(rank, mesh, folder):
    """Means of probabilities and of logits, with impossible classes too."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(27, 4)

        def forward(self, x):
            y = self.linear(x.flatten(1))
            # One class is impossible for all copies, another one for some.
            gone = torch.stack([x[:, 0, 0, 0] > 0, x[:, 0, 0, 0] > 9], dim=1)
            return torch.cat([y[:, :2].masked_fill(gone, -torch.inf), y[:, 2:]], dim=1)

    x = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    for space in (Probabilities(), Logits()):
        backbone = Masked() if space == Probabilities() else Mlp(27, (4,)).eval()
        for weighting in (None, Learned(AnyWeightNet())):
            model = Symmetrized(backbone, ImageAction(d4()), weighting=weighting, space=space)
            model = copy.deepcopy(model).double()
            one, split = model(x), copy.deepcopy(model)
            split.runner = OrbitParallel(mesh)
            found = split(x)
            torch.testing.assert_close(found, one, rtol=1e-12, atol=1e-12)
            for y in (one, found):
                y.clamp(min=-50).square().mean().backward()
            for grad, p in zip(averaged(split.parameters()), model.parameters(), strict=True):
                torch.testing.assert_close(grad, p.grad, rtol=1e-12, atol=1e-12)


class Labels(nn.Module):
    """Decisions for each pixel."""

    def forward(self, x):
        return (x[:, 0] * torch.linspace(1, 2, x.shape[-1])).argsort(-1)


def integers(rank, mesh, folder):
    """Those of the first best copy, from whichever process has it; a mean is refused."""
    case = ImageAction(d4())
    model = EquiZero(Labels(), case, case, proxy_loss=lambda y: y.double()[..., 0, 0])
    split = EquiZero(Labels(), case, case, proxy_loss=lambda y: y.double()[..., 0, 0])
    split.runner = OrbitParallel(mesh)
    for x in torch.randn(3, 9, 1, 4, 4), torch.randn(3, 9, 1, 4, 6):
        for batch in x:
            assert torch.equal(split(batch), model(batch))
            assert split(batch).dtype == torch.int64
    with pytest.raises(TypeError, match="cannot be averaged over the group"):
        Symmetrized(Labels(), case, case, runner=OrbitParallel(mesh))(x[0])


def few_that_count(rank, mesh, folder):
    """A batch of one, of which one copy counts: the other processes take part all the same."""
    for name in ("d4, 5x7, dense", "c4, 6x6, logits"):
        case = BY_NAME[name]
        model = WRAPPERS["Canonicalize"](case.backbone(), case.input_action, case.output_action)
        x = case.input(torch.float64)
        for one in x.split(1):
            require_as_in_one_process(model.double().eval(), mesh, one, name)


def features(rank, mesh, folder):
    """Regular features and a head, and a cut, from which each process goes on alike."""
    case = BY_NAME["d4, 5x7, logits"]
    torch.manual_seed(0)
    model = RegularFeatures(case.backbone().eval(), case.input_action).double()
    split, x = copy.deepcopy(model), case.input(torch.float64)
    split.runner = OrbitParallel(mesh)
    one, found = model(x), split(x)
    require_close(found, one, "features")
    for y in (one, found):
        y.flatten(1).cumsum(1).square().mean().backward()
    for grad, p in zip(averaged(split.parameters()), model.parameters(), strict=True):
        require_close(grad, p.grad, "features")
    case = BY_NAME["d4, 6x6, logits"]
    cut = LambdaEquiTune(
        case.backbone().eval(),
        case.input_action,
        case.input_action,
        weight_net=AnyWeightNet(),
        submodule="features",
    )
    cut = cut.double().eval()
    require_as_in_one_process(cut, mesh, x[..., :5, :5], "cut")


def decoders(rank, mesh, folder):
    """Copies are averaged, or weighed, at each step of a decoder."""
    for name, case in DECODERS.items():
        if case.source.group.order % mesh.size() or isinstance(case.inputs, dict) or case.given(2):
            continue
        for weighting in (None, Learned(AnyWeightNet()), Best(mean_entropy)):
            model = SymmetrizedSeq2Seq(
                case.decoder(), case.source, case.tokens, weighting=copy.deepcopy(weighting)
            )
            split = copy.deepcopy(model.double().eval())
            split.runner = OrbitParallel(mesh, split.runner)
            x = case.sources()
            one, found = model(x, length=5), split(x, length=5)
            assert torch.equal(found.tokens, one.tokens), name
            torch.testing.assert_close(found.scores, one.scores, rtol=1e-12, atol=1e-12)


def refused(rank, mesh, folder):
    """Each with a message that names the argument, in all processes."""
    image, x = ImageAction(c4()), torch.randn(3, 3, 6, 6)
    backbone = BY_NAME["c4, 6x6, logits"].backbone().eval()
    said = (
        "`mesh` must have a number of processes that divides the 3 elements of the group, "
        f"got {mesh.size()}; use one of [1, 3]"
    )
    with pytest.raises(ValueError, match=re.escape(said)):
        Symmetrized(backbone, corners_of_three(), runner=OrbitParallel(mesh))
    model = LambdaEquiTune(backbone, image, weight_net=Attention())
    with pytest.raises(ValueError, match="`weight_net` must see one copy at a time"):
        model.runner = OrbitParallel(mesh)
    model = Symmetrized(backbone, image, runner=OrbitParallel(mesh))
    assert repr(model.runner) == f"OrbitParallel({mesh.size()} processes, Batches(chunk_size=None))"
    with pytest.raises(ValueError, match="`backbone` must hold no BatchNorm in train mode"):
        model.train()(x)
    model.eval()
    with pytest.raises(ValueError, match="`the batch` must be the same in all processes"):
        model(x + rank)
    with pytest.raises(ValueError, match="`the batch` must be the same in all processes"):
        model(x[rank % 2 :])
    with pytest.raises(ValueError, match="must be on the type of device of the mesh, 'cpu'"):
        model(x.to("meta"))
    learned = LambdaEquiTune(backbone, image, weight_net=nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(108), nn.Linear(108, 1)))  # fmt: skip
    learned.runner = OrbitParallel(mesh)
    learned.train().freeze_backbone()
    with pytest.raises(ValueError, match="`backbone` must hold no BatchNorm in train mode"):
        learned(x)
    # Images that are turned, and not turned back, on which no two processes agree.
    dense = BY_NAME["c4, 5x7, dense"]
    wrong = Symmetrized(dense.backbone().eval(), image, runner=OrbitParallel(mesh))
    with pytest.raises(ValueError, match=r"one shape|cannot be combined"):
        wrong(torch.randn(2, 3, 5, 7))
    fused = Symmetrized(nn.Linear(5, 2), corners(5, -1), runner=MatrixProducts())
    if fused.group.order % mesh.size() == 0:
        fused.runner = OrbitParallel(mesh, MatrixProducts())
        with pytest.raises(ValueError, match="`runner` must add up the copies of all processes"):
            fused(torch.randn(3, 5))


def corners_of_three():
    return BY_NAME["cyclic(3), permutation"].input_action


def copies(rank, mesh, folder):
    """A deep copy has the same mesh; a pickle runs in one process, with the same outputs."""
    case = BY_NAME["c4, 6x6, logits"]
    model = Symmetrized(
        case.backbone().eval(), case.input_action, runner=OrbitParallel(mesh, Loop())
    )
    x = case.input(torch.float32)
    again = copy.deepcopy(model)
    assert again.runner.mesh is mesh
    assert copy.copy(model.runner) is model.runner
    assert torch.equal(again(x), model(x))
    loaded = pickle.loads(pickle.dumps(model))
    assert isinstance(loaded.runner, Loop)
    torch.testing.assert_close(loaded(x), model(x))
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    assert isinstance(torch.load(file, weights_only=False).runner, Loop)
    ema = torch.optim.swa_utils.AveragedModel(model)
    ema.update_parameters(model)
    assert torch.equal(ema(x), model(x))


class Plain(nn.Module):
    """Without BatchNorm, which is refused while it trains."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(27, 8), nn.Tanh())
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.features(x))


def model_of(name):
    torch.manual_seed(0)
    action = ImageAction(d4())
    return {
        "EquiTune": lambda: EquiTune(Plain(), action),
        "EquiZero": lambda: EquiZero(Plain(), action, proxy_loss=proxy),
        "LambdaEquiTune": lambda: LambdaEquiTune(
            Plain(), action, weight_net=nn.Linear(8, 1), weight_input="features"
        ),
    }[name]().double()


def pictures():
    return torch.randn(6, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def sgd(model):
    """With SGD gradients of another scale end elsewhere."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(explaining, optimizer, x, steps=2):
    for _ in range(steps):
        explanation = explaining(x)
        loss = explanation.output.square().mean()
        if explanation.weights.requires_grad:
            loss = loss + upright_loss(explanation.scores)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def trained(name, steps=2):
    """The model after some steps in one process."""
    model = model_of(name)
    train(Explaining(model), sgd(model), pictures(), steps)
    return model


def full(model):
    """The parameters, those of FSDP2 put together."""
    return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]


def engines(rank, mesh, folder):
    """Two steps of training under DDP and FSDP2, the batch split too, are those of one process."""
    size = dist.get_world_size()
    names = {"mesh_dim_names": ("data", "orbit")}
    whole = init_device_mesh("cpu", (size // 2, 2), **names)
    part = pictures().chunk(size // 2)[whole["data"].get_local_rank()]
    for name in ("EquiTune", "EquiZero", "LambdaEquiTune"):
        one = trained(name)
        for engine in ("ddp", "fsdp2 over all", "fsdp2 over the orbit, replicas over data"):
            model = model_of(name)
            model.runner = OrbitParallel(whole["orbit"])
            explaining = Explaining(model)
            if engine == "ddp":
                train(DistributedDataParallel(explaining), sgd(model), part)
            else:
                over = {"mesh": whole} if "replicas" in engine else {}
                fully_shard(model.backbone, **over)
                fully_shard(explaining, **over)
                train(explaining, sgd(model), part)
            for p, q in zip(full(model), one.parameters(), strict=True):
                require_close(p, q, (name, engine))


def sharded(mesh):
    """A model whose weights are split over all processes, and its optimizer."""
    explaining = Explaining(model_of("LambdaEquiTune"))
    explaining.model.runner = OrbitParallel(mesh)
    fully_shard(explaining.model.backbone)
    fully_shard(explaining)
    return explaining, sgd(explaining)


def saves(rank, mesh, folder):
    """A checkpoint of a model that is split over all processes, by the names of the wrapper."""
    explaining, optimizer = sharded(mesh)
    train(explaining, optimizer, pictures())
    weights, state = get_state_dict(explaining.model, optimizer)
    assert {"backbone.head.weight", "weighting.weight_net.weight"} <= weights.keys()
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / "checkpoint")


def loads(rank, mesh, folder):
    """A checkpoint of another number of processes, from which training goes on."""
    explaining, optimizer = sharded(mesh)
    model = explaining.model
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder / "checkpoint")
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    train(explaining, optimizer, pictures(), steps=1)
    for p, q in zip(full(model), trained("LambdaEquiTune", 3).parameters(), strict=True):
        require_close(p, q, "loaded")


def of_three(rank, mesh, folder):
    """Groups of order 3 and 6 on three of the four processes."""
    of_three = DeviceMesh("cpu", [0, 1, 2])
    if rank == 3:
        with pytest.raises(ValueError, match="`mesh` must hold this process"):
            OrbitParallel(of_three)
        return
    for name in ("cyclic(3), permutation", "symmetric(3), set", "cyclic(3), tokens"):
        case = BY_NAME[name]
        for kind, make in MODELS.items():
            torch.manual_seed(0)
            model = make(case.backbone(), case.input_action, case.output_action).double().eval()
            split, x = copy.deepcopy(model), case.input(torch.float64)
            split.runner = OrbitParallel(of_three, split.runner)
            require_close(leaves(split(x)), leaves(model(x)), (name, kind))


BOTH = (table, spaces, integers, few_that_count, features, decoders, refused, copies, engines)
CHECKS = {2: (*BOTH, saves), 4: (*BOTH, of_three, loads)}


def worker(rank, size, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{size}", rank=rank,
                            world_size=size, timeout=timedelta(seconds=60))  # fmt: skip
    mesh = init_device_mesh("cpu", (size,))
    found = {}
    for check in CHECKS[size]:
        torch.manual_seed(0)
        start = time.perf_counter()
        try:
            check(rank, mesh, folder)
            found[check.__name__] = ""
        # Some errors of checkpoints are a BaseException alone.
        except BaseException:
            found[check.__name__] = traceback.format_exc()
        if os.environ.get("DEV"):
            print(size, rank, check.__name__, round(time.perf_counter() - start, 2), flush=True)
    torch.save(found, folder / f"found_{size}_{rank}.pt")
    dist.barrier()
    if size == 2:
        dies(rank, mesh, folder)
    dist.destroy_process_group()


def dies(rank, mesh, folder):
    """One process ends in the middle of a step; the other one says so, and ends too."""
    model = model_of("EquiTune")
    model.runner = OrbitParallel(mesh)
    if rank == 1:
        os._exit(13)
    try:
        model(pictures())
    except RuntimeError:
        (folder / "died.txt").write_text(traceback.format_exc())
        os._exit(1)


def launch(size, folder):
    """What each check said in each process, and how the processes ended."""
    processes = mp.start_processes(
        worker, (size, folder), nprocs=size, join=False, start_method="spawn"
    ).processes
    for process in processes:
        process.join(timeout=300)
    found = [torch.load(folder / f"found_{size}_{rank}.pt") for rank in range(size)]
    return found, [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("orbit")


@pytest.fixture(scope="module")
def two(folder):
    return launch(2, folder)


@pytest.fixture(scope="module")
def four(two, folder):
    return launch(4, folder)


@pytest.mark.parametrize("check", CHECKS[2], ids=lambda check: check.__name__)
def test_two_processes(two, check):
    assert [found[check.__name__] for found in two[0]] == [""] * 2


@pytest.mark.parametrize("check", CHECKS[4], ids=lambda check: check.__name__)
def test_four_processes(four, check):
    assert [found[check.__name__] for found in four[0]] == [""] * 4
    assert four[1] == [0] * 4


def test_a_process_that_dies_ends_the_others(two, folder):
    assert two[1] == [1, 13]
    said = (folder / "died.txt").read_text()
    assert "OrbitParallel: rank 0 waited for the copies of the ranks [0, 1]" in said


@pytest.fixture
def alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone", "two")
def test_a_checkpoint_of_two_processes_loads_in_one(folder):
    expected = trained("LambdaEquiTune")
    model = model_of("LambdaEquiTune")
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=folder / "checkpoint")
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        require_close(p, q, "loaded")
    plain = Plain().double()
    weights = {f"backbone.{name}": value for name, value in plain.state_dict().items()}
    dcp.load({"model": weights}, checkpoint_id=folder / "checkpoint")
    for p, q in zip(plain.parameters(), expected.backbone.parameters(), strict=True):
        require_close(p, q, "plain")


@pytest.mark.usefixtures("alone")
def test_meshes_are_checked():
    with pytest.raises(TypeError, match="`mesh` must be a DeviceMesh, got 4"):
        OrbitParallel(4)
    both = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "orbit"))
    with pytest.raises(ValueError, match=r"`mesh` must have one dimension.*\(1, 1\).*'orbit'"):
        OrbitParallel(both)
    with pytest.raises(TypeError, match="`runner` must be a Runner, got 'Loop'"):
        OrbitParallel(both["orbit"], "Loop")
    assert isinstance(OrbitParallel(both["orbit"], Loop()).runner, Loop)
    assert isinstance(OrbitParallel(both["data"]).runner, Batches)


def test_the_example_trains_in_two_processes(tmp_path):
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(root / "examples" / "distributed_training.py"), "--orbit", "2", "--epochs", "1",
         "--images", "64", "--checkpoint", str(tmp_path / "saved")],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    upright, turned = re.search(
        r"mesh \(1, 2\).* upright (.*)%, turned (.*)%", done.stdout
    ).groups()
    assert upright == turned
    assert (tmp_path / "saved" / ".metadata").exists()
