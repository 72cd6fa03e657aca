"""Plans: what is fastest by a clock of the tests, equal to one batch, and off where it must be."""

import copy
import math
import pickle
import threading

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cases import CASES, WRAPPERS, AnyWeightNet, ConvNet
from equitune import (
    Canonicalize,
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    RegularFeatures,
    Symmetrized,
    c4,
    d4,
)
from equitune.losses import entropy
from equitune.runners import Batches, Loop, Tuned
from equitune.scaling import fastest_plan
from equitune.testing import assert_equivariant

C4, LAST = ImageAction(c4()), torch.channels_last
ONE = "Batches(chunk_size=None)"


@pytest.fixture(autouse=True)
def _measured(monkeypatch):
    """As users have it: calls measure."""
    monkeypatch.setattr("equitune.runners._tuned.LEAST", 2**16)


def is_last(x):
    return x.stride(1) == 1


class Passes:
    """The passes of a module, and a clock that they move: pieces of ``best`` are fastest.

    Attributes:
        sizes: The copies in each pass, negative with the channels last.
    """

    def __init__(self, module, best=4, unit=1.0, last=0.5):
        self.best, self.unit, self.last, self.now, self.sizes = best, unit, last, 0.0, []
        module.register_forward_pre_hook(self)

    def __call__(self, module, args):
        rows, last = len(args[0]), args[0].dim() == 4 and is_last(args[0])
        self.sizes.append(-rows if last else rows)
        distance = abs(math.log2(max(rows, 1) / self.best))
        self.now += self.unit * rows * (1 + distance) * (self.last if last else 1)

    def clock(self):
        return self.now

    def of(self, call):
        """The passes of one call."""
        self.sizes.clear()
        call()
        return list(self.sizes)


def tuned(make=EquiTune, action=C4, output_action=None, *, net=None, **clock):
    """A wrapper in float64 whose clock is moved by the passes of its backbone."""
    net = ConvNet(3, 4, output_action is not None) if net is None else net
    model = make(net, action, output_action).double().eval()
    passes = Passes(model.backbone, **clock)
    model.runner = Tuned(passes.clock)
    return model, passes


def images(batch=2, side=64, width=None):
    return torch.randn(batch, 3, side, width or side, dtype=torch.float64)


@pytest.mark.parametrize("name", [n for n in WRAPPERS if "pieces" not in n])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_plans_are_equal_to_one_batch(case, name):
    model = WRAPPERS[name](case.backbone(), case.input_action, case.output_action).double().eval()
    assert type(model.runner) is Tuned
    x = case.input(torch.float64)
    model.runner = Batches()
    expected = model.explain(x)
    passes = Passes(model.backbone, best=2)
    model.runner = Tuned(passes.clock)
    model.runner = fastest_plan(model, x)
    assert model.runner.chunk_size is not None
    assert (model.runner.memory_format is LAST) == (x.dim() == 4 and x.shape[1] > 1)
    torch.testing.assert_close(model.explain(x), expected, rtol=1e-12, atol=1e-12)
    assert_equivariant(model, x, case.input_action, case.output_action)


def test_the_first_call_measures_and_later_ones_follow_its_plan():
    model, passes = tuned()
    x = images()
    state, given = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    first = passes.of(lambda: model(x))
    assert first[0] == 8
    assert {*first} == {4, -4, 8, -8}
    assert first[-2:] == [-4] * 2
    assert repr(model.runner) == (
        "Tuned(4 x [2, 3, 64, 64]: Batches(chunk_size=4, memory_format=torch.channels_last))"
    )
    assert passes.of(lambda: model(x)) == passes.of(lambda: model.explain(x)) == [-4] * 2
    # Nothing but the plan has changed.
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model.state_dict(), given, rtol=0, atol=0)
    assert torch.equal(model(x), model(x))
    torch.testing.assert_close(model(x), EquiTune(model.backbone, C4, chunk_size=8)(x))


@pytest.mark.parametrize("shape", [(2, 64, 64), (2, 48, 64)])
@pytest.mark.parametrize("make", [
    EquiTune,
    RegularFeatures,
    lambda *a: EquiZero(*a, proxy_loss=lambda y: entropy(y, dim=2)),
    lambda *a: LambdaEquiTune(*a, weight_net=AnyWeightNet()),
    lambda *a: LambdaEquiTune(*a, weight_net=AnyWeightNet(), weight_input="features"),
    lambda *a: Canonicalize(*a, weight_net=AnyWeightNet()),
    lambda *a: EquiTune(*a, submodule="features"),
], ids=["mean", "features", "zero", "input", "tap", "canonical", "cut"])  # fmt: skip
def test_calls_are_those_of_one_batch(make, shape):
    model, passes = tuned(make, ImageAction(d4()), ImageAction(d4()))
    x = images(*shape).requires_grad_()
    found = [model(x), model(x)]
    assert "channels_last" in repr(model.runner)
    assert passes.sizes[-1] < 0
    model.runner = Batches()
    expected = model(x)
    for y in found:
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    slope = torch.randn_like(expected)
    (found_gradient,) = torch.autograd.grad((found[1] * slope).sum(), x)
    (gradient,) = torch.autograd.grad((expected * slope).sum(), x)
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-11, atol=1e-11)


def test_each_shape_dtype_and_mode_is_measured():
    model, _ = tuned()
    x = images(6, 32)

    def plans():
        model(x)
        return repr(model.runner).count("chunk_size")

    assert plans() == plans() == 1
    with torch.no_grad():
        assert plans() == 2
    with torch.inference_mode():
        assert plans() == 3
    x = images(7, 32)
    assert plans() == 4
    x, model = images(7, 32).float(), model.float()
    assert plans() == 5
    with torch.autocast("cpu", torch.bfloat16):
        assert plans() == 6
    model.backbone = copy.deepcopy(model.backbone)
    assert plans() == 7
    for batch in range(10, 22):
        x = images(batch, 32).float()
        count = plans()
    assert count == 16
    passes = Passes(model.backbone)
    assert passes.of(lambda: model(x)) == [4 * 21]


def test_the_threads_of_torch_count():
    model, _ = tuned()
    before = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            model(images())
    finally:
        torch.set_num_threads(before)
    assert repr(model.runner).count("chunk_size") == 2


def test_copies_and_pickles_measure_anew():
    model, _ = tuned()
    given = {*model.state_dict()}
    model(images())
    assert {*model.state_dict()} == given
    assert repr(copy.deepcopy(model).runner) == "Tuned()"
    plain = EquiTune(ConvNet(3, 4, False).double().eval(), C4)
    fastest_plan(plain, images(1, 6))
    assert "chunk_size" in repr(plain)
    assert repr(pickle.loads(pickle.dumps(plain)).runner) == "Tuned()"


@pytest.mark.parametrize("off", ["small", "training", "a part that trains", "short"])
def test_one_pass_where_nothing_is_measured(off):
    model, passes = tuned(unit=1e-6 if off == "short" else 1.0)
    if off == "training":
        model.train()
    elif off == "a part that trains":
        model.backbone.features[1].train()
    x = images(2, 16) if off == "small" else images()
    sizes = passes.of(lambda: model(x))
    short = off == "short"
    assert sizes == ([8, 8] if short else [8])
    assert repr(model.runner) == (f"Tuned(4 x [2, 3, 64, 64]: {ONE})" if short else "Tuned()")


def test_a_plan_is_off_as_soon_as_a_part_trains():
    model, passes = tuned()
    x = images()
    model(x)
    assert passes.of(lambda: model(x)) == [-4] * 2
    model.backbone.features[1].train()
    assert passes.of(lambda: model(x)) == [8]


def test_off_while_compiling_and_exporting():
    model, _ = tuned(net=ConvNet(3, 4, False))
    x = images()
    expected = model(x)
    plain = EquiTune(model.backbone, C4).eval()
    plain.runner = model.runner
    for hook in [*model.backbone._forward_pre_hooks]:
        del model.backbone._forward_pre_hooks[hook]
    before = repr(model.runner)
    assert "chunk_size=4" in before
    compiled = torch.compile(plain, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(plain, (x,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(exported(x), expected)
    torch.testing.assert_close(exported(x[:1]), plain(x[:1]))
    torch._dynamo.reset()


def test_a_compiled_backbone_is_not_compiled_for_each_size():
    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return graph.forward

    backbone = torch.compile(ConvNet(3, 4, False).double().eval(), backend=backend)
    model = EquiTune(backbone, C4).eval()
    ticks = iter([0.0, 1.0, *range(2, 1000)])
    model.runner = Tuned(lambda: next(ticks))
    model(images())
    assert repr(model.runner) == f"Tuned(4 x [2, 3, 64, 64]: {ONE})"
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_off_under_vmap_and_without_values():
    model, passes = tuned()
    x = images(2)
    expected = model(x)
    assert torch.func.vmap(model)(x[None]).squeeze(0).shape == expected.shape
    assert passes.sizes[-1] == 8
    torch.testing.assert_close(torch.func.vmap(model)(x[None])[0], expected)
    # A fixed plan runs there, too.
    model.runner = Batches(4, LAST)
    torch.testing.assert_close(torch.func.vmap(model)(x[None])[0], expected)
    model.runner = Tuned()
    model.to("meta")(images().to("meta"))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = EquiTune(ConvNet(3, 4, False).eval(), C4)
        fake(mode.from_tensor(images().float()))
    assert repr(fake.runner) == repr(model.runner) == "Tuned()"


def test_off_in_a_process_group(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    model, passes = tuned()
    assert passes.of(lambda: model(images())) == [8]


def test_a_wrapper_within_a_measurement_runs_one_batch():
    flip = ImageAction.horizontal_flip()
    inner, passes = tuned(EquiTune, flip, flip)
    outer = Symmetrized(inner, C4, C4).eval()
    outer.runner = Tuned(passes.clock)
    x = images()
    expected = Symmetrized(inner, C4, C4, runner=Batches())(x)
    torch.testing.assert_close(outer(x), expected)
    torch.testing.assert_close(outer(x), expected)
    assert "chunk_size=" in repr(outer.runner)


class OfBatch(ConvNet):
    """Looks at other copies: in pieces it is another function."""

    def forward(self, x):
        return super().forward(x - x.mean(0))


class Views(ConvNet):
    """Takes contiguous images alone."""

    def forward(self, x):
        return super().forward(x.view(len(x), -1).view(x.shape))


class Noisy(ConvNet):
    def forward(self, x):
        return super().forward(x + torch.rand_like(x))


class Sizes(ConvNet):
    """Takes no batch but of 8 copies."""

    def forward(self, x):
        return super().forward(x.view(8, 3, 64, 64))


class Labels(ConvNet):
    def forward(self, x):
        return super().forward(x).argmax(-1)


@pytest.mark.parametrize(("kind", "plan"), [
    (ConvNet, "Batches(chunk_size=4, memory_format=torch.channels_last)"),
    (Labels, "Batches(chunk_size=4, memory_format=torch.channels_last)"),
    (OfBatch, "Batches(chunk_size=None, memory_format=torch.channels_last)"),
    (Sizes, "Batches(chunk_size=None, memory_format=torch.channels_last)"),
    (Views, "Batches(chunk_size=4)"), (Noisy, ONE),
], ids=lambda value: getattr(value, "__name__", ""))  # fmt: skip
def test_only_plans_that_give_the_same_are_taken(kind, plan):
    model, _ = tuned(net=kind(3, 4, False).double().eval())
    assert repr(fastest_plan(model, images())) == plan


@pytest.mark.parametrize(("last", "plan"), [(0.9, LAST), (0.97, None), (1.1, None)])
def test_a_small_gain_is_not_worth_it(last, plan):
    model, _ = tuned(best=8, last=last)
    assert fastest_plan(model, images()).memory_format is plan


def test_an_error_of_the_backbone_is_the_users_and_ends_the_measurement():
    model, passes = tuned()
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.randn(2, 4, 64, 64, dtype=torch.float64))
    assert repr(model.runner) == "Tuned()"
    assert passes.of(lambda: model(images()))[-1] == -4


def test_a_weight_network_is_asked_once():
    net = AnyWeightNet()
    calls = []
    net.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    model, passes = tuned(lambda *a: Canonicalize(*a, weight_net=net))
    model(images())
    assert calls == [8]
    assert passes.of(lambda: model(images())) == [-2]


def test_threads_share_a_plan():
    model, _ = tuned()
    x, ready, found = images(), threading.Barrier(4), []

    def work():
        ready.wait()
        found.extend(model(x) for _ in range(5))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 20
    for y in found:
        torch.testing.assert_close(y, found[0], rtol=1e-12, atol=1e-12)
    assert repr(model.runner).count("chunk_size") == 1


def test_while_a_thread_measures_others_run_one_batch():
    model, passes = tuned()
    x, seen = images(), []

    def clock():
        if not seen:
            seen.append(None)
            worker = threading.Thread(target=lambda: seen.append(passes.of(lambda: model(x))))
            worker.start()
            worker.join()
        return passes.now

    model.runner = Tuned(clock)
    model(x)
    assert seen[1] == [8]


class InPlace(nn.Module):
    def forward(self, x):
        return x.mul_(2).sum((-2, -1))


@pytest.mark.parametrize("size", [None, 3])
def test_a_fixed_plan_copies_for_backbones_that_work_in_place(size):
    x = images(3, 6)
    given = x.clone()
    model = Symmetrized(InPlace(), C4, runner=Batches(size, LAST)).eval()
    torch.testing.assert_close(model(x), 2 * x.sum((-2, -1)))
    assert torch.equal(x, given)


def test_a_fixed_plan_leaves_other_tensors_as_they_are():
    seen = []

    class Takes(nn.Module):
        def forward(self, x, volume):
            seen.append((is_last(x), volume.is_contiguous()))
            return x.sum((1, 2, 3)) + volume.sum((1, 2, 3, 4))

    actions = {"x": C4, "volume": C4}
    model = Symmetrized(Takes(), actions, runner=Batches(2, LAST)).eval()
    model(images(2, 6), torch.randn(2, 2, 3, 6, 6, dtype=torch.float64))
    assert seen == [(True, True)] * 4
    last = Batches(None, torch.channels_last_3d)
    seen.clear()
    model.runner = last
    model(images(2, 6), torch.randn(2, 2, 3, 6, 6, dtype=torch.float64))
    assert seen == [(False, False)]
    assert repr(last) == "Batches(chunk_size=None, memory_format=torch.channels_last_3d)"


def test_training_with_a_memory_format_runs_whole_orbits():
    net = ConvNet(3, 4, False).double()
    other = copy.deepcopy(net)
    x = images(3, 6)
    found = Symmetrized(net, C4, runner=Batches(4, LAST)).train()(x)
    torch.testing.assert_close(found, EquiTune(other, C4, chunk_size=4).train()(x))


@pytest.mark.parametrize("wrong", [torch.contiguous_format, "channels_last", True])
def test_other_memory_formats_are_refused(wrong):
    with pytest.raises(TypeError, match=r"`memory_format` must .*use torch\.channels_last"):
        Batches(4, wrong)


def test_plans_are_for_wrappers_in_eval_mode():
    with pytest.raises(TypeError, match="`model` must be an OrbitModule"):
        fastest_plan(nn.Linear(2, 2), images())
    with pytest.raises(ValueError, match="`model` must be in eval mode"):
        fastest_plan(EquiTune(ConvNet(3, 4, False).double(), C4), images())


def test_a_plan_of_a_model_with_another_runner():
    model, _ = tuned()
    model.runner = Loop()
    assert isinstance(fastest_plan(model, images(1, 6)), Batches)
    assert isinstance(model.runner, Loop)
