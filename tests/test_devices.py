"""The one batch on an accelerator needs no round trip to the host.

Without a GPU at hand, wrappers run on the meta device, where they go the ways of an accelerator,
and what would make the host wait for one is refused.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cases import CASES, ConvNet, Mlp, corners
from equitune import EquiTune, ImageAction, Symmetrized, Weighting, d4
from graph_cases import MODELS, build, possible, tensors

VALUES = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select",
    "unique_consecutive", "unique_dim", "_unique2", "bincount",
}  # fmt: skip
"""What looks at values."""


class RoundTripError(Exception):
    """The host waits for the accelerator."""


class NoRoundTrips(TorchDispatchMode):
    """Refuses what looks at values, and copies between devices."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given, options, name = [*found((args, kwargs))], kwargs or {}, func.overloadpacket.__name__
        masked = name.startswith("index") and any(x.dtype == torch.bool for x in given[1:])
        counted = name == "repeat_interleave" and options.get("output_size") is None
        if name in VALUES or masked or counted:
            raise RoundTripError(name)
        result = func(*args, **options)
        devices = {x.device for x in (*given, *found(result)) if x.dim()}
        if len(devices) > 1:
            raise RoundTripError(f"{name} from device to device")
        return result


def found(value: Any) -> Iterator[Tensor]:
    """The tensors in the arguments of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from found(part)


def without_round_trips(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs of the second call on the meta device; the first one may fetch what it keeps."""
    model, x = model.to("meta"), x.to("meta")
    model(x)
    with NoRoundTrips():
        return tensors(model(x))


# Which copies Canonicalize runs depends on the data.
NAMES = [name for name in MODELS if name != "Canonicalize" and "head" not in name]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_batch_makes_no_round_trip(case, training):
    x = case.input(torch.float32)
    for name in NAMES:
        if not possible(name, case):
            continue
        model = build(name, case).train(training)
        expected = [(y.shape, y.dtype) for y in tensors(model(x))]
        outputs = without_round_trips(model, x)
        assert [(y.shape, y.dtype) for y in outputs] == expected, name
        sum(y.square().sum() for y in outputs).backward()
        assert all(p.grad is not None for p in model.unwrap().parameters())


class Looking(Weighting):
    """A weighting that looks at a value."""

    reads = "output"

    def score(self, copies):
        return copies.scores(lambda outputs: outputs.sum(-1))

    def weigh(self, scores, copies):
        return scores.softmax(0) if scores.max().item() < 9 else None


class Masked(nn.Module):
    def forward(self, x):
        x[x[:, 0] > 0] = x.new_ones(5)
        return x


class Fetched(nn.Module):
    def forward(self, x):
        return x + torch.ones(5).to(x.device)


@pytest.mark.parametrize(("model", "said"), [
    (Symmetrized(Mlp(5, (5,)), corners(5), weighting=Looking()), "_local_scalar_dense"),
    (EquiTune(Masked(), corners(5)), "index"),
    (EquiTune(Fetched(), corners(5)), "from device to device"),
    (MODELS["Canonicalize"](Mlp(5, (5,)), corners(5)), "nonzero"),
], ids=["item", "mask", "copy", "Canonicalize"])  # fmt: skip
def test_a_round_trip_is_noticed(model, said):
    x = torch.randn(3, 5)
    model(x)
    with NoRoundTrips(), pytest.raises(RoundTripError, match=said):
        model.to("meta")(x.to("meta")) if "device" in said else model(x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_a_cuda_graph_replays_it(name):
    action = ImageAction(d4())
    model = MODELS[name](ConvNet(3, 4, True), action, action).cuda().eval()
    x, graph, aside = torch.randn(4, 3, 6, 6).cuda(), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.no_grad():
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            model(x)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph):
            y = model(x)
        x.copy_(torch.randn(4, 3, 6, 6))
        graph.replay()
        torch.testing.assert_close(y, model(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_canonicalize_is_a_cuda_graph_once_it_is_compiled():
    action, x = ImageAction(d4()), torch.randn(4, 3, 6, 6).cuda()
    model = MODELS["Canonicalize"](ConvNet(3, 4, True), action, action).cuda().eval()
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
