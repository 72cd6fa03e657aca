"""One element of each right coset of a subgroup that the model respects, and nothing less."""

import copy
import itertools

import pytest
import torch
from torch import nn

import cases
from cases import CASES, ConvNet, Mlp, corners
from equitune import (
    Best,
    Canonical,
    Embedding,
    EquiTune,
    ImageAction,
    Learned,
    Symmetrized,
    Uniform,
    c4,
    cyclic,
    d4,
    dihedral,
)
from equitune.runners import Batches, Loop
from equitune.scaling import Distinct, Subset, Transversal
from equitune.testing import assert_equivariant, assert_matches_formula
from test_distinct import assert_close, flat, gradients, rows_of
from test_weightings import TopK

D4 = ImageAction(d4())


class Size(nn.Module):
    """A logit that no action of the cases changes: the sum of squares of a flat batch."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, copies):
        return self.scale * copies.flatten(1).to(self.scale.dtype).square().mean(1)


def size(outputs):
    return cases.first_logits(outputs).flatten(2).square().mean(-1)


WEIGHTINGS = {
    "equal": Uniform,
    "best": lambda: Best(size),
    "best, its own gradient": lambda: Best(size, gradient="selected"),
    "best, that of the identity": lambda: Best(size, gradient="identity"),
    "learned": lambda: Learned(Size(), "output"),
    "learned of the input": lambda: Learned(Size()),
    "canonical": lambda: Canonical(Size()),
}


def subgroups(group):
    """The proper subgroups that one element generates."""
    found = {group.subgroup([g]).elements: group.subgroup([g]) for g in group.elements[1:]}
    return [h for h in found.values() if h.subgroup.order < group.order]


ROWS = [(c, h) for c in CASES for h in subgroups(c.input_action.group)[:3]]
IDS = [f"{case}, {h.subgroup.names}" for case, h in ROWS]


def pair(case, subgroup, weighting=Uniform, runner=None):
    """A model whose backbone respects the subgroup, with all copies, and with a transversal."""
    out = case.output_action
    inner = EquiTune(
        case.backbone(), case.input_action.restrict(subgroup),
        None if out is None else out.restrict(subgroup),
    )  # fmt: skip
    every = Symmetrized(inner, case.input_action, out, weighting=weighting()).double().eval()
    some = copy.deepcopy(every)
    some.runner = Transversal(subgroup, runner)
    return every, some


@pytest.mark.parametrize(("case", "subgroup"), ROWS, ids=IDS)
def test_outputs_weights_and_gradients_are_those_of_all_copies(case, subgroup):
    group, x = case.input_action.group, case.input(torch.float64)[:3]
    for name, weighting in WEIGHTINGS.items():
        every, some = pair(case, subgroup, weighting)
        some.runner.check(some, x)
        rows = rows_of(some.backbone)
        expected, found = every.explain(x), some.explain(x)
        assert_close(found.output, expected.output)
        index = [group.order // subgroup.subgroup.order, len(x)]
        assert [*found.weights.shape] == index
        if not every.weighting.sparse:
            assert sum(rows) == index[0] * index[1]
        shares = [expected.weights[[*c]].sum(0) for c in group.right_cosets(subgroup)]
        assert_close(found.weights, torch.stack(shares))
        if name == "best, that of the identity":
            # Its gradient is that of M(x), which is in each transversal.
            assert some.runner.elements[0] == 0
        direction = torch.cos(torch.arange(flat(found.output).numel(), dtype=torch.float64))
        one, other = [gradients(m, flat(y.output) @ direction)
                      for m, y in ((every, expected), (some, found))]  # fmt: skip
        assert one.keys() == other.keys()
        for key, gradient in one.items():
            torch.testing.assert_close(other[key], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("case", "subgroup"), ROWS[::3], ids=IDS[::3])
def test_it_is_the_formula_and_equivariant(case, subgroup):
    x = case.input(torch.float64)[:3]
    _, some = pair(case, subgroup)
    assert_matches_formula(some, x)
    assert_equivariant(some, x, case.input_action, case.output_action)


def test_the_gradient_of_the_input():
    every, some = pair(next(c for c in CASES if c.name == "d4, 6x6, flow"), d4().subgroup([4]))
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    one, other = [torch.autograd.grad(m(x)[..., 0, 1].sum(), x)[0] for m in (every, some)]
    assert_close(other, one)


@pytest.mark.parametrize("name", ["d4, 6x6, dense", "symmetric(3), set", "dihedral(5), polygon"])
def test_left_cosets_are_wrong(name):
    case = next(c for c in CASES if c.name == name)
    group, x = case.input_action.group, case.input(torch.float64)[:3]
    tried = 0
    for subgroup in subgroups(group):
        _, some = pair(case, subgroup)
        right = [{*coset} for coset in group.right_cosets(subgroup)]
        lefts = itertools.product(*group.left_cosets(subgroup))
        left = next((t for t in lefts if not all({*t} & coset for coset in right)), None)
        if left is None:
            # Cosets of a normal subgroup have no sides.
            continue
        assert_matches_formula(some, x)
        some.runner.elements = left
        with pytest.raises(AssertionError, match="fn is not EquiTuneFormula"):
            assert_matches_formula(some, x)
        tried += 1
    assert tried


def test_a_model_that_does_not_respect_the_subgroup_is_found():
    case = next(c for c in CASES if c.name == "d4, 6x6, dense")
    turns, x = d4().subgroup([2]), case.input(torch.float64)[:3]
    plain = Symmetrized(case.backbone(), D4, D4, runner=Transversal(turns)).double().eval()
    said = r"`subgroup` must be one that the model respects.* h = r\^2, off by .* at sample \d"
    with pytest.raises(ValueError, match=said):
        plain.runner.check(plain, x)
    with pytest.raises(AssertionError, match="fn is not EquiTuneFormula"):
        assert_matches_formula(plain, x)
    _, some = pair(case, d4().subgroup([4]))
    some.runner = Transversal(turns)
    with pytest.raises(ValueError, match=said):
        some.runner.check(some, x)


def test_the_check_names_the_sample():
    class Nearly(nn.Module):
        """Respects the half turn, but for one pixel of bright images."""

        def forward(self, x):
            return x.sum((2, 3)) + torch.where(x.amax((2, 3)) > 50, x[:, :, 0, 0], 0)

    model = Symmetrized(Nearly(), ImageAction(c4()), runner=Transversal(c4().subgroup([2]))).eval()
    x = torch.rand(4, 1, 4, 4)
    model.runner.check(model, x)
    x[2, 0, 1, 0] = 60
    with pytest.raises(ValueError, match=r"h = r\^2, off by .* at sample 2, where"):
        model.runner.check(model, x)


def test_scores_that_tell_copies_of_a_coset_apart_are_found():
    case = next(c for c in CASES if c.name == "d4, 6x6, dense")
    turns, x = d4().subgroup([2]), case.input(torch.float64)[:3]
    for weighting in (
        lambda: Best(cases.proxy), lambda: Learned(cases.AnyWeightNet(), "output"),
        lambda: Learned(cases.AnyWeightNet()), lambda: Canonical(cases.AnyWeightNet()),
    ):  # fmt: skip
        every, some = pair(case, turns, weighting)
        said = r"`weighting` must score .* alike, got scores for which h = r\^2, off by .* sample"
        with pytest.raises(ValueError, match=said):
            some.runner.check(some, x)
        assert (flat(every(x)) - flat(some(x))).abs().max() > 1e-6


def test_weightings_that_count_copies_count_cosets():
    case = next(c for c in CASES if c.name == "d4, 6x6, logits")
    every, some = pair(case, d4().subgroup([2]), lambda: TopK(size, 2))
    x = case.input(torch.float64)[:3]
    some.runner.check(some, x)
    # The two best copies are one best coset.
    assert (every(x) - some(x)).abs().max() > 1e-6
    some.weighting = TopK(size, 1)
    assert_close(some(x), every(x))


@pytest.mark.parametrize("inner", [lambda: Batches(5), Loop, Distinct, lambda: Subset(2)])
def test_around_any_runner(inner):
    case = next(c for c in CASES if c.name == "d4, 6x6, dict")
    every, some = pair(case, d4().subgroup([1]), lambda: Best(size), inner())
    x = torch.cat([case.input(torch.float64)[:2], torch.ones(1, 3, 6, 6, dtype=torch.float64)])
    assert_close(some(x), every(x))


def test_inside_of_other_runners():
    case = next(c for c in CASES if c.name == "d4, 6x6, dense")
    turns = d4().subgroup([1])
    every, some = pair(case, turns)
    x = case.input(torch.float64)[:3]
    rows = rows_of(some.backbone)
    for outer in (Subset(3, Transversal(turns)), Distinct(Transversal(turns))):
        some.runner = outer
        assert_close(some(x), every(x))
    # A part of the group runs as it is, so that nothing is counted twice; without symmetric
    # samples, `Distinct` hands on the whole group.
    assert rows == [2 * 3, 2 * 3]
    some.runner = Subset(3, Transversal(turns))
    assert some.train().explain(x).weights.shape == (3, 3)
    some.runner = Transversal(turns, Subset(1))
    assert some.explain(x).weights.shape == (1, 3)


def test_up_to_a_submodule():
    class Parts(nn.Module):
        def __init__(self, first):
            super().__init__()
            self.first, self.rest = first, ConvNet(2, 3, dense=False)

        def forward(self, x):
            return self.rest(self.first(x))

    turns = d4().subgroup([1])
    first = EquiTune(ConvNet(3, 2, dense=True), D4.restrict(turns), D4.restrict(turns))
    model = Symmetrized(Parts(first), D4, D4, submodule="first", runner=Transversal(turns))
    model, x = model.double().eval(), torch.randn(3, 3, 6, 6, dtype=torch.float64)
    model.runner.check(model, x)
    assert_matches_formula(model, x)


def test_it_compiles_and_exports():
    torch._dynamo.reset()
    case = next(c for c in CASES if c.name == "symmetric(3), regular")
    _, some = pair(case, case.input_action.group.subgroup([1]), lambda: Best(size))
    x = case.input(torch.float64)
    assert_close(torch.compile(some, fullgraph=True, backend="aot_eager")(x), some(x))
    exported = torch.export.export(some, (x,), dynamic_shapes=({0: torch.export.Dim("b")},))
    assert_close(exported.module()(x[2:]), some(x[2:]))
    torch._dynamo.reset()


def test_what_is_no_subgroup_of_the_group_is_refused():
    with pytest.raises(TypeError, match=r"`subgroup` must be an Embedding, got a list"):
        Transversal([0, 2])
    # A subset that is not closed is no subgroup.
    with pytest.raises(ValueError, match="elements"):
        Transversal(Embedding(cyclic(2), c4(), [0, 1]))
    net = Mlp(5, (5,))
    said = r"`subgroup` must be one of the model's group of order 10, got .* order 8"
    with pytest.raises(ValueError, match=said):
        Symmetrized(net, corners(5), corners(5), runner=Transversal(d4().subgroup([1])))
    model = Symmetrized(net, corners(5), runner=Transversal(dihedral(5).subgroup([1])))
    with pytest.raises(ValueError, match="the model's group"):
        model.runner = Subset(2, Transversal(d4().subgroup([1])))
    assert repr(model.runner) == f"Transversal({{{', '.join(dihedral(5).names[:5])}}}, {Batches()})"
    x = torch.randn(3, 5)
    with pytest.raises(ValueError, match="`model` must be in eval mode"):
        model.runner.check(model.train(), x)
    with pytest.raises(TypeError, match="`model` must be a Symmetrized"):
        model.runner.check(net, x)
    other = Symmetrized(nn.Flatten(), D4).eval()
    with pytest.raises(ValueError, match="the model's group"):
        model.runner.check(other, torch.randn(2, 1, 4, 4))


def test_the_rows_hold_non_abelian_groups_and_subgroups_that_are_not_normal():
    groups = [case.input_action.group for case, _ in ROWS]
    assert not all(group.is_abelian for group in groups)
    sides = [(c.input_action.group, h) for c, h in ROWS]
    assert any(group.left_cosets(h) != group.right_cosets(h) for group, h in sides)
