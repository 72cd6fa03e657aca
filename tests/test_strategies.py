"""What the strategies draw, how far it reaches, and what it shrinks to."""

import pytest
import torch
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from torch import nn

from equitune import (
    EquiTune,
    FiniteGroup,
    ImageAction,
    MatrixAction,
    OneOf,
    PermutationAction,
    ProductAction,
    RegularAction,
    RegularFeatureAction,
    TokenAction,
    TreeAction,
    TrivialAction,
    VectorFieldAction,
    c4,
    cyclic,
    d4,
    dihedral,
    symmetric,
)
from equitune.testing import assert_action, assert_equivariant, assert_group
from equitune.testing.strategies import (
    arrays,
    element_batches,
    elements,
    finite_groups,
    images,
    permutation_actions,
    small_models,
    token_batches,
)

C4, D4 = ImageAction(c4()), ImageAction(d4())
TOKENS = TokenAction.cyclic_swaps(9, [(1, 2, 3), (4, 7, 8)])
SWAP = PermutationAction(cyclic(2), [(0, 1), (1, 0)], dim=-3)
SEARCH = settings(
    max_examples=1000, deadline=None, database=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def smallest(strategy, condition):
    return find(strategy, condition, settings=SEARCH)


@given(finite_groups(max_order=24))
def test_groups_are_groups(group):
    assert_group(group)
    assert len(set(group.names)) == group.order


@pytest.mark.parametrize(("condition", "order"), [
    (lambda group: True, 1),
    (lambda group: group.order > 1, 2),
    (lambda group: not group.is_abelian, 6),
    # Neither cyclic, nor dihedral, nor abelian: the quaternions have one involution.
    (lambda group: not group.is_abelian
     and sum(group.compose(g, g) == 0 for g in group.elements) == 2, 8),
    (lambda group: group.order >= 4 and len(group.generators) >= 2, 4),
])  # fmt: skip
def test_groups_shrink_to_the_smallest(condition, order):
    group = smallest(finite_groups(max_order=24), condition)
    assert group.order == order


def test_elements_come_in_any_order():
    moved = smallest(finite_groups(), lambda group: group.order == 4 and group not in (
        c4(), cyclic(2) * cyclic(2)))  # fmt: skip
    assert_group(moved)


def test_orders_can_be_bounded():
    with pytest.raises(ValueError, match=r"`min_order` and `max_order` must span .* 25 to 30"):
        smallest(finite_groups(min_order=25, max_order=30), bool)


@given(finite_groups(), st.data())
def test_elements(group, data):
    assert data.draw(elements(group)) in group.elements
    batch = data.draw(element_batches(group, 5))
    assert batch.shape == (5,)
    assert batch.dtype == torch.int64
    assert 0 <= int(batch.min()) <= int(batch.max()) < group.order


@given(
    st.sampled_from(
        [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64,
         torch.int64, torch.int8, torch.uint8, torch.bool]
    ),
    st.data(),
)  # fmt: skip
def test_arrays(dtype, data):
    x = data.draw(arrays(st.tuples(st.integers(0, 3), st.integers(1, 40)), dtype))
    assert x.dtype == dtype
    assert x.dim() == 2
    if dtype.is_floating_point:
        assert torch.equal(x.double().to(dtype), x)
        assert bool((x.double().abs() <= 8).all())


def test_arrays_shrink_entry_by_entry():
    x = smallest(arrays((2, 3, 4)), lambda x: bool((x > 1).any()))
    assert x.sum() == 1.125
    assert (x != 0).sum() == 1
    # Too large to draw each entry.
    assert bool((smallest(arrays((2, 3, 400)), lambda x: bool((x > 1).any())) > 1).any())


@given(st.sampled_from([C4, D4, ImageAction.horizontal_flip()]), st.data())
def test_images_are_not_symmetric(action, data):
    x = data.draw(images(action, torch.float64, 2, None, max_batch=3, channels=2))
    assert 1 <= x.shape[0] <= 3
    assert x.shape[1] == 2
    assert all(2 <= side <= 8 for side in x.shape[2:])
    for g in action.group.elements[1:]:
        moved = action.transform(x, g)
        assert moved.shape != x.shape or not torch.equal(moved, x)


def test_sides():
    some = images(c4(), square=True, min_side=3, max_side=4, max_batch=2)
    assert smallest(some, lambda x: True).shape == (1, 1, 3, 3)
    oblong = smallest(images(c4(), square=False, max_side=4, max_batch=2), lambda x: True)
    assert sorted(oblong.shape[2:]) == [2, 3]
    with pytest.raises(ValueError, match="`min_side` must be 2 or more, got 1"):
        smallest(images(c4(), min_side=1), bool)
    with pytest.raises(ValueError, match="`elements` must say"):
        smallest(images(cyclic(3)), bool)


def test_a_failing_example_ends_in_the_smallest_image():
    """Wrong from the third column on: three columns are left, and one entry that is not 0."""

    def fails(x):
        try:
            assert_equivariant(lambda x: x * (torch.arange(x.shape[-1]) < 2), x, D4, D4)
        except AssertionError:
            return True
        return False

    x = smallest(images(d4()), fails)
    assert x.shape[:2] == (1, 1)
    assert sorted(x.shape[2:]) == [2, 3]
    # One would do for fails(), but every flip and rotation has to change something.
    assert (x != 0).sum() <= 2


def test_a_failing_example_ends_in_the_smallest_group():
    """Order two cannot see a missing inverse."""
    pairs = finite_groups().flatmap(lambda group: st.tuples(
        permutation_actions(group), arrays((2, 12), torch.float64)))  # fmt: skip
    net = nn.Linear(12, 12).double()

    def fails(pair):
        action, x = pair
        if action.size > 12:
            return False
        x = x[:, : action.size]

        def fn(x):
            raw = [action.transform(x, g) @ net.weight[: action.size, : action.size]
                   for g in action.group.elements]  # fmt: skip
            return sum(action.transform(y, g) for g, y in enumerate(raw))

        try:
            assert_equivariant(fn, x, action, action, rtol=1e-9)
        except AssertionError:
            return True
        return False

    action, _ = smallest(pairs, fails)
    assert (action.group.order, action.size) == (3, 3)


@given(st.integers(1, 20), st.data())
def test_tokens(vocabulary, data):
    ids = data.draw(token_batches(vocabulary, st.integers(0, 4)))
    assert ids.dtype == torch.int64
    assert 0 <= ids.shape[1] <= 4
    assert ids.numel() == 0 or 0 <= int(ids.min()) <= int(ids.max()) < vocabulary


@given(token_batches(TOKENS, 3))
def test_tokens_of_an_action_move(ids):
    assert not torch.equal(TOKENS.transform(ids, 1), ids)


@given(finite_groups(), st.data())
def test_permutation_actions(group, data):
    action = data.draw(permutation_actions(group))
    assert action.group == group
    assert 1 <= action.size <= 24
    assert_action(action, torch.randn(3, action.size))


def test_permutation_actions_reach_far():
    group = symmetric(3)
    assert smallest(permutation_actions(group), lambda a: True).size == 1
    faithful = smallest(permutation_actions(group), lambda a: len(set(a.permutations)) == 6)
    assert faithful.size == 3
    regular = smallest(
        permutation_actions(group),
        lambda a: a.size == 6 and len({row[0] for row in a.permutations}) == 6,
    )
    assert regular.size == 6


HEADS = TreeAction({"logits": TrivialAction(d4()), "map": D4})
SET = PermutationAction(symmetric(3), [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1),
                                       (2, 1, 0)])  # fmt: skip
FLIP = MatrixAction(cyclic(2), torch.stack([torch.eye(4), -torch.eye(4)]), dim=1)
MODELS = {
    "images, scores": (D4, None, (3, 2, 5, 6)),
    "images, images": (D4, D4, (3, 2, 5, 6)),
    "images, flow": (D4, VectorFieldAction(d4()), (3, 2, 5, 6)),
    "flow, images": (VectorFieldAction(d4()), D4, (3, 4, 5, 6)),
    "images, dict": (D4, HEADS, (3, 2, 5, 6)),
    "images, product": (ProductAction(C4, SWAP), ProductAction(C4, SWAP), (3, 2, 5, 6)),
    "images, corners": (C4, PermutationAction(c4(), [(0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1),
                                                     (3, 0, 1, 2)]), (3, 2, 5, 5)),
    "sets": (SET, SET, (4, 5, 3)),
    "regular": (RegularAction(dihedral(5), dim=1), RegularAction(dihedral(5), dim=1), (4, 10)),
    "matrices": (FLIP, FLIP, (4, 4, 3)),
    "tokens, scores": (TOKENS, None, None),
    "tokens, logits": (TOKENS, TOKENS.on_logits(), None),
}  # fmt: skip


@pytest.mark.parametrize(("action", "output", "shape"), MODELS.values(), ids=MODELS)
@given(data=st.data())
@settings(max_examples=8)
def test_models_fit_their_actions_and_are_not_equivariant(action, output, shape, data):
    x = torch.randint(0, 9, (4, 6)) if shape is None else torch.randn(shape, dtype=torch.float64)
    if shape is None:
        x[0, 0] = 1
    model = data.draw(small_models(action, output)).double()
    assert not model.training
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(model, x, action, output)
    assert_equivariant(EquiTune(model, action, output).eval(), x, action, output)


def test_models_shrink_and_do_not_touch_the_global_seed():
    state = torch.get_rng_state()
    model = smallest(small_models(D4), lambda m: True)
    assert torch.equal(torch.get_rng_state(), state)
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    normed = smallest(
        small_models(D4), lambda m: any(isinstance(k, nn.BatchNorm2d) for k in m.modules())
    )
    norms = [m for m in normed.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 1
    assert norms[0].num_features == 2
    # The statistics do something.
    assert not torch.equal(norms[0].running_var, torch.ones(2))


@pytest.mark.parametrize(("action", "output", "message"), [
    (TreeAction({"x": D4}), None, "`input_action` must be one of a tensor, got a TreeAction"),
    (D4, TreeAction([TrivialAction(d4()), D4]), "name for every field, got a TreeAction"),
    (D4, TreeAction(others=D4), "name for every field, got a TreeAction"),
    (D4, OneOf([D4, TreeAction([D4])]), "`output_action` must be one of a tensor, .* got an OneOf"),
    (D4, VectorFieldAction(d4(), channel_dim=1), "dims that count from the end"),
    (SET, ImageAction(symmetric(3), [0] * 6), "`output_action` must act on images only where"),
    (D4, RegularFeatureAction(D4), "`output_action` must .* got a RegularFeatureAction"),
    (ImageAction(d4(), dims=(1, 2)), None, r"`dims` must be .* got \(1, 2\)"),
])  # fmt: skip
def test_models_that_do_not_exist(action, output, message):
    if output is not None and output.group != action.group:
        pytest.fail("the row is wrong")
    with pytest.raises(ValueError, match=message):
        smallest(small_models(action, output), lambda m: isinstance(m(torch.randn(2, 3)), object))


def test_groups_from_a_product_are_drawn_too():
    group = smallest(finite_groups(), lambda g: g == cyclic(2) * cyclic(2))
    assert isinstance(group, FiniteGroup)


@pytest.mark.parametrize(("strategy", "error", "message"), [
    (lambda: finite_groups(min_order=13, max_order=13), ValueError, "must span known orders"),
    (lambda: finite_groups(max_order=100), ValueError, "got 1 to 100; use some of"),
    (lambda: permutation_actions(4), TypeError, "`group` must be a FiniteGroup, got 4"),
    (lambda: small_models(d4()), TypeError, "`input_action` must be an Action"),
    (lambda: arrays((2,), "float32"), TypeError, "`dtype` must be a dtype, got 'float32'; use one"),
    (lambda: token_batches(0, 3), ValueError, "`vocab` must be 1 or more, got 0"),
    (lambda: token_batches(5, -1), ValueError, "`length` must be 0 or more, got -1"),
    (lambda: token_batches(TOKENS, 0), ValueError, "`length` must be 1 or more, got 0"),
    (lambda: images(c4(), max_batch=0), ValueError, "`max_batch` must be 1 or more, got 0"),
    (lambda: images(c4(), channels=0), ValueError, "`channels` must be 1 or more, got 0"),
    (lambda: images(c4(), max_side=2, square=False), ValueError,
     "`max_side` must be 3 or more, got 2; .* not square"),
    (lambda: elements(4), TypeError, "`group` must be a FiniteGroup, got 4"),
])  # fmt: skip
def test_bad_input(strategy, error, message):
    with pytest.raises(error, match=message):
        smallest(strategy(), lambda drawn: True)


def test_no_elements_are_integers_too():
    assert smallest(element_batches(c4(), 0), lambda g: True).dtype == torch.int64


def test_unsigned_integers_do_not_wrap():
    x = smallest(arrays((3,), torch.uint16), lambda x: int(x.long().max()) > 8)
    assert int(x.long().max()) == 9


def test_the_regular_action_of_a_group_with_many_subgroups():
    regular = smallest(
        permutation_actions(symmetric(4)),
        lambda a: a.size == 24 and len({row[0] for row in a.permutations}) == 24,
    )
    assert_action(regular, torch.randn(2, 24))


def test_elements_that_move_nothing_do_not_stop_the_images():
    action = ImageAction(cyclic(4), [0, 2, 0, 2])
    x = smallest(images(action), lambda x: True)
    assert not torch.equal(action.transform(x, 1), x)
