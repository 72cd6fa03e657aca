"""Equal copies are run once, and all else is as if they had been run one by one."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn

from cases import CASES, TOKENS, WRAPPERS, ConvNet, Mlp
from equitune import (
    EquiTune,
    FiniteGroup,
    ImageAction,
    MatrixAction,
    RegularFeatures,
    Symmetrized,
    TokenAction,
    c4,
    d4,
)
from equitune.runners import Batches, Loop, MatrixProducts, Runner, Tuned
from equitune.scaling import Distinct, OneDrawn, Subset, Transversal, _distinct
from equitune.scaling._around import Around
from equitune.seq2seq import Lockstep
from equitune.testing import assert_equivariant, assert_matches_formula
from kits import KITS
from test_kits import WEIGHTINGS, total

D4 = ImageAction(d4())


def fixed_by(action, x, g):
    """A sample that an element leaves as it is, exactly: a sum of whole numbers."""
    x, power = torch.round(4 * x), g
    total = x.clone()
    while power:
        total += action.transform(x, power)
        power = action.group.compose(g, power)
    return total


def symmetric_batch(case):
    """Two random samples, one that all elements fix, and one for each generator."""
    action, x = case.input_action, case.input(torch.float64)
    rows = [x[:2], torch.zeros_like(x[:1])]
    if not isinstance(action, TokenAction | MatrixAction) and case.square:
        rows += [fixed_by(action, x[:1], g) for g in action.group.generators]
    return torch.cat(rows)


def orders(action, x):
    """How many elements fix each sample."""
    copies = [action.transform(x, g) for g in action.group.elements]
    same = [
        [torch.equal(a, b) for a, b in zip(y, x, strict=True)] for y in copies if y.shape == x.shape
    ]
    return [sum(column) for column in zip(*same, strict=True)]


def rows_of(module):
    rows = []
    module.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    return rows


def pair(case, wrapper):
    """The model with all copies, and with distinct ones."""
    model = WRAPPERS[wrapper](case.backbone(), case.input_action, case.output_action)
    model = model.double().eval()
    other = copy.deepcopy(model)
    other.runner = Distinct(model.runner)
    return model, other


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def flat(output):
    leaves = output.values() if isinstance(output, dict) else [output]
    return torch.cat([leaf.flatten() for leaf in leaves])


def assert_close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_weights_and_gradients_are_those_of_all_copies(case, wrapper):
    every, distinct = pair(case, wrapper)
    x, rows = symmetric_batch(case), rows_of(distinct.backbone)
    expected, found = every.explain(x), distinct.explain(x)
    assert_close(found, expected)
    group = case.input_action.group
    most = sum(group.order // n for n in orders(case.input_action, x))
    if wrapper == "Canonicalize":
        # The best copies are equal, so that one of them is enough.
        assert sum(rows) == len(x) if case.square else sum(rows) >= len(x)
    else:
        assert sum(rows) == (most if case.square else group.order * len(x))
    direction = torch.cos(torch.arange(flat(found.output).numel(), dtype=torch.float64))
    one, other = [gradients(m, flat(y.output) @ direction)
                  for m, y in ((every, expected), (distinct, found))]  # fmt: skip
    assert one.keys() == other.keys()
    assert one
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("wrapper", ["EquiTune", "EquiZero", "LambdaEquiTune of the input"])
@pytest.mark.parametrize("case", [c for c in CASES if c.square], ids=str)
def test_it_is_the_formula(case, wrapper):
    _, distinct = pair(case, wrapper)
    assert_matches_formula(distinct, symmetric_batch(case))


def test_it_is_equivariant_at_symmetric_inputs():
    case = next(c for c in CASES if c.name == "d4, 6x6, dense")
    x = symmetric_batch(case)
    for wrapper in ("EquiTune", "EquiZero", "Canonicalize"):
        assert_equivariant(pair(case, wrapper)[1], x, D4, D4)


@pytest.mark.parametrize("name", ["d4, 6x6, dense", "symmetric(3), set", "dihedral(5), polygon"])
def test_right_cosets_of_the_stabiliser_would_be_wrong(name, monkeypatch):
    case = next(c for c in CASES if c.name == name)
    _, distinct = pair(case, "EquiTune")
    x = symmetric_batch(case)
    assert_matches_formula(distinct, x)
    own = _distinct._first_equals

    def first_equals(call, elements):
        # The same elements with the other product.
        opposite = FiniteGroup(zip(*call.group.cayley_table, strict=True))
        return own(dataclasses.replace(call, group=opposite), elements)

    monkeypatch.setattr(_distinct, "_first_equals", first_equals)
    with pytest.raises(AssertionError, match="fn is not EquiTuneFormula"):
        assert_matches_formula(distinct, x)


@pytest.mark.parametrize(
    "kit",
    [k for k in KITS if type(k.build(None).runner).__module__.startswith("equitune.runners")],
    ids=str,
)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_kits_that_run_in_one_pass(kit, name):
    if name == "learned" and not kit.features:
        return
    every, distinct = [kit.build(WEIGHTINGS[name](kit)).eval() for _ in range(2)]
    distinct.load_state_dict(every.state_dict())
    distinct.runner = Distinct(every.runner)
    x = torch.cat([kit.input, torch.zeros_like(kit.input[:1])])
    rows = rows_of(distinct.backbone)
    expected, found = every.explain(x), distinct.explain(x)
    assert_close(found, expected)
    one, other = [gradients(m, total(kit, y.output))
                  for m, y in ((every, expected), (distinct, found))]  # fmt: skip
    assert_close(other, one)
    order = kit.input_action.group.order
    # A pass that goes on after a cut may have one more.
    assert sum(rows) - (distinct.submodule is not None) == order * len(kit.input) + 1


@pytest.mark.parametrize("inner", [Loop, lambda: Batches(2), lambda: Subset(1), MatrixProducts])
def test_any_runner_runs_the_distinct_copies(inner):
    case = next(c for c in CASES if c.name == "symmetric(3), regular")
    every, distinct = pair(case, "EquiZero")
    distinct.runner = Distinct(inner())
    x = symmetric_batch(case)
    assert_close(distinct.explain(x), every.explain(x))


def test_regular_features():
    case = next(c for c in CASES if c.name == "d4, 6x6, dense")
    every = RegularFeatures(case.backbone(), D4, D4).double().eval()
    distinct = copy.deepcopy(every)
    distinct.runner = Distinct()
    x = symmetric_batch(case)
    assert_close(distinct(x), every(x))


def test_arguments_that_differ_between_samples_count():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = ConvNet(3, 4, dense=False)

        def forward(self, image, other=None):
            return self.net(image) if other is None else self.net(image) * self.net(other)

    every = EquiTune(Two(), {"image": D4, "other": D4}).double().eval()
    distinct = copy.deepcopy(every)
    distinct.runner = Distinct()
    plain, x = torch.ones(2, 3, 6, 6).double(), torch.randn(2, 3, 6, 6).double()
    rows = rows_of(distinct.backbone)
    for args in ((plain,), (plain, x), (plain, plain)):
        assert_close(distinct(*args), every(*args))
    assert rows == [2, 16, 2]


def test_tokens_without_swapped_words_are_one_copy():
    case = next(c for c in CASES if c.name == "cyclic(3), tokens")
    every, distinct = pair(case, "EquiTune")
    # 0, 5 and 6 are not swapped, 4 is.
    x, rows = torch.tensor([[0, 5, 6, 0, 5], [5, 6, 4, 0, 0]]), rows_of(distinct.backbone)
    assert_close(distinct(x), every(x))
    assert rows == [1 + 3]
    assert TOKENS.group.order == 3


def test_the_gradient_of_the_input_is_that_of_all_copies(monkeypatch):
    case = next(c for c in CASES if c.name == "d4, 6x6, logits")
    every, distinct = pair(case, "EquiTune")
    x = symmetric_batch(case)

    def gradient(model):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)[0]

    def tangent(model):
        return torch.func.jvp(model, (x,), (x.roll(1, 0).cumsum(-1),))[1]

    for derivative in (gradient, tangent):
        assert_close(derivative(distinct), derivative(every))
    leaf, rows = x.clone().requires_grad_(), rows_of(distinct.backbone)
    with torch.no_grad():
        assert_close(distinct(leaf), every(leaf))
    assert sum(rows) < 8 * len(x)
    # Each copy has a direction of its own: one cannot stand for others.
    monkeypatch.setattr(_distinct, "_learns", lambda _: False)
    for derivative in (gradient, tangent):
        assert (derivative(distinct) - derivative(every)).abs().max() > 1e-3


def test_all_copies_run_while_the_backbone_trains():
    case = next(c for c in CASES if c.name == "d4, 6x6, logits")
    every, distinct = pair(case, "EquiTune")
    x, rows = symmetric_batch(case), rows_of(distinct.backbone)
    assert_close(distinct.train()(x), every.train()(x))
    assert_close(distinct.state_dict(), every.state_dict())
    assert rows == [8 * len(x)]
    distinct.freeze_backbone()(x)
    assert rows[1] < 8 * len(x)


def test_batches_without_samples_or_symmetry():
    case = next(c for c in CASES if c.name == "d4, 6x6, logits")
    every, distinct = pair(case, "EquiTune")
    rows, x = rows_of(distinct.backbone), case.input(torch.float64)
    assert torch.equal(distinct(x), every(x))
    assert rows == [8 * len(x)]
    assert distinct(x[:0]).shape == every(x[:0]).shape
    x[:, :, 0, 0] = torch.nan
    assert torch.equal(distinct(x).isnan(), every(x).isnan())


def test_compiled_and_exported_models_run_all_copies():
    torch._dynamo.reset()
    case = next(c for c in CASES if c.name == "symmetric(3), regular")
    _, distinct = pair(case, "EquiTune")
    x = symmetric_batch(case)
    compiled = torch.compile(distinct, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), distinct(x))
    exported = torch.export.export(distinct, (x,), dynamic_shapes=({0: torch.export.Dim("b")},))
    assert_close(exported.module()(x[1:]), distinct(x[1:]))
    torch._dynamo.reset()


def test_copies_of_the_model():
    case = next(c for c in CASES if c.name == "symmetric(3), regular")
    distinct = EquiTune(Mlp(6, (6,)), case.input_action, case.output_action).double().eval()
    distinct.runner = Distinct(Batches(5))
    x = symmetric_batch(case)
    for other in (copy.deepcopy(distinct), pickle.loads(pickle.dumps(distinct))):
        assert torch.equal(other(x), distinct(x))
        assert repr(other.runner) == "Distinct(Batches(chunk_size=5))"


def test_runners_that_do_not_make_one_mean_are_refused():
    half = d4().subgroup([4])
    for inner in (Lockstep(), OneDrawn(), Subset(2, Lockstep()), Transversal(half, OneDrawn())):
        with pytest.raises(ValueError, match="`runner` must make one mean of all copies"):
            Distinct(inner)
    with pytest.raises(TypeError, match="`runner` must be a Runner, got 3"):
        Distinct(3)


def test_what_the_inner_runner_does_not_offer_is_refused():
    class Blind(Runner):
        offers = frozenset({"input"})

        def run(self, call, mix, elements):
            return Batches().run(call, mix, elements)

    case = next(c for c in CASES if c.name == "symmetric(3), regular")
    model = WRAPPERS["EquiZero"](case.backbone(), case.input_action, case.output_action)
    with pytest.raises(ValueError, match="which the runner offers"):
        model.runner = Distinct(Blind())
    assert isinstance(model.runner, Tuned)


def test_parts_of_the_group():
    """Where an outer runner hands on some elements, equal ones among them run once."""

    class Some(Around):
        def run(self, call, mix, elements):
            return self.runner.run(call, mix, [1, 2, 3])

    x = torch.ones(2, 1, 4, 4).double()
    x[1, :, 0] = x[1, :, 3] = 5
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double().eval()
    every, distinct = [
        Symmetrized(net, ImageAction(c4()), runner=Some(inner)) for inner in (Batches(), Distinct())
    ]
    rows = rows_of(net)
    assert_close(distinct(x), every(x))
    # The half turn fixes the second sample: 1 and 3 are equal, and 2 is by itself.
    assert rows == [1 + 2, 6]
