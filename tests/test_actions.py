"""Actions: conventions against other ways to compute them, hypothesis, and near-actions refused."""

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cases import ORDERS, SHIFTS, corners, rotations, turns
from equitune import (
    Drop,
    EquiTune,
    FiniteGroup,
    ImageAction,
    MatrixAction,
    PermutationAction,
    ProductAction,
    RegularAction,
    RegularFeatureAction,
    SignedPermutationAction,
    TokenAction,
    TreeAction,
    TrivialAction,
    VectorFieldAction,
    WholeBatchAction,
    c4,
    cyclic,
    d4,
    dihedral,
    generate_permutations,
    symmetric,
    trivial,
)
from equitune.testing import assert_action, assert_equivariant, strategies
from equitune.vision import BoxAction, KeypointAction

S3 = symmetric(3)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


ACTIONS = strategies.finite_groups(max_order=8).flatmap(strategies.permutation_actions)
TENSORS = st.sampled_from(DTYPES)


@st.composite
def image_actions(draw):
    embedding = d4().subgroup(draw(st.lists(st.integers(0, 7), max_size=2)))
    return ImageAction(d4()).restrict(embedding)


@st.composite
def vocabularies(draw):
    size = draw(st.integers(2, 12))
    length = draw(st.integers(1, min(4, size)))
    tokens = draw(st.permutations(range(size)))
    count = draw(st.integers(1, size // length))
    cycles = [tokens[k * length : (k + 1) * length] for k in range(count)]
    return TokenAction.cyclic_swaps(size, cycles)


@given(ACTIONS, st.data())
def test_permutations(action, data):
    dims = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    x = data.draw(strategies.arrays((*dims, action.size), TENSORS))
    assert_action(action, x)
    for g, row in enumerate(action.permutations):
        moved = action.transform(x, g)
        assert moved.dtype == x.dtype
        for i, target in enumerate(row):
            assert torch.equal(moved[..., target], x[..., i])


@given(image_actions(), strategies.arrays(st.tuples(*[st.integers(1, 5)] * 4), TENSORS))
def test_images(action, x):
    assert_action(action, x)


@given(image_actions(), st.data())
def test_vector_fields(action, data):
    shape = data.draw(st.tuples(st.integers(1, 4), st.just(4), *[st.integers(1, 5)] * 2))
    x = data.draw(strategies.arrays(shape, st.sampled_from([torch.float64, torch.int64])))
    assert_action(VectorFieldAction(action.group, action.elements), x)


@given(vocabularies(), st.data())
def test_tokens(action, data):
    x = data.draw(strategies.token_batches(action.vocabulary_size, st.integers(1, 5)))
    padding = data.draw(strategies.arrays(x.shape, torch.bool))
    assert_action(action, x.masked_fill(padding, -100))
    logits = torch.randn(len(x), action.vocabulary_size)
    assert_action(action.on_logits(), logits)
    # The score of id i is, after g, the score of the id that i becomes.
    for g in action.group.elements:
        moved = action.on_logits().transform(logits, g)
        for i in range(action.vocabulary_size):
            target = action.transform(torch.tensor([[i]]), g).item()
            assert torch.equal(moved[:, target], logits[:, i])


@given(ACTIONS, image_actions())
def test_products(first, second):
    first = PermutationAction(first.group, first.permutations, dim=-3)
    product = ProductAction(first, second)
    assert product.group == first.group * second.group
    assert_action(product, torch.randn(3, len(first.permutations[0]), 3, 4))


@pytest.mark.parametrize("shape", [(5, 5), (4, 6)], ids=str)
def test_d4_is_what_numpy_says(shape):
    x = torch.randn(2, 3, *shape)
    action = ImageAction(d4())
    for k in range(4):
        turned = np.rot90(x.numpy(), k, axes=(-2, -1))
        assert np.array_equal(action.transform(x, k).numpy(), turned)
        assert np.array_equal(action.transform(x, 4 + k).numpy(), turned[..., ::-1])


def test_the_named_flips():
    x = torch.arange(6).view(1, 2, 3)
    for action, expected in (
        (ImageAction.horizontal_flip(), [[2, 1, 0], [5, 4, 3]]),
        (ImageAction.vertical_flip(), [[3, 4, 5], [0, 1, 2]]),
        (ImageAction.rotation_180(), [[5, 4, 3], [2, 1, 0]]),
    ):
        assert action.group == cyclic(2)
        assert action.transform(x, 1).tolist() == [expected]
    three = (ImageAction.horizontal_flip(), ImageAction.vertical_flip(), ImageAction.rotation_180())
    assert len(set(three)) == 3


def test_channels_last_dims():
    x = torch.randn(2, 4, 6, 3)
    action = ImageAction(d4(), dims=(-3, -2))
    usual = ImageAction(d4())
    for g in d4().elements:
        expected = usual.transform(x.permute(0, 3, 1, 2), g).permute(0, 2, 3, 1)
        assert torch.equal(action.transform(x, g), expected)
    assert action != usual


@pytest.mark.parametrize("each", [False, True])
def test_the_memory_format_is_preserved(each):
    x = torch.randn(8, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    for action in (ImageAction(d4()), VectorFieldAction(d4())):
        if isinstance(action, VectorFieldAction):
            x = torch.randn(8, 4, 6, 6).contiguous(memory_format=torch.channels_last)
        for g in [torch.arange(8)] if each else action.group.elements:
            moved = action.transform(x, g)
            assert moved.is_contiguous(memory_format=torch.channels_last)


def test_gradients_of_images_are_vector_fields():
    def gradient(images):
        return torch.cat(torch.gradient(images, dim=(-2, -1)), dim=1)

    images = torch.randn(8, 1, 7, 7, dtype=torch.float64)
    field = VectorFieldAction(d4(), components=(-2, -1))
    assert_equivariant(gradient, images, ImageAction(d4()), field)
    with pytest.raises(AssertionError):
        assert_equivariant(gradient, images, ImageAction(d4()), VectorFieldAction(d4()))


def test_optical_flow_points_to_the_right():
    flow = torch.zeros(1, 2, 3, 3)
    flow[:, 0, 1, 2] = 1.0
    action = VectorFieldAction(d4())
    upwards = action.transform(flow, 1)
    assert upwards[0, :, 0, 1].tolist() == [0.0, -1.0]
    assert action.transform(flow, 4)[0, :, 1, 0].tolist() == [-1.0, 0.0]


@st.composite
def signed_permutations(draw):
    """Sources and signs of all products of some signed permutations."""
    size = draw(st.integers(1, 3))
    generator = st.permutations(range(2 * size)).filter(
        lambda p: all((p[i] + size) % (2 * size) == p[i + size] for i in range(size))
    )
    generators = draw(st.lists(generator, min_size=1, max_size=2))
    group = FiniteGroup.from_generators(generators)
    rows = torch.tensor(generate_permutations(generators))[:, :size]
    targets, signs = rows % size, 1 - 2 * (rows // size)
    # Entry i goes to targets[i] with a sign: read where it comes from.
    sources = targets.argsort(dim=1)
    return group, sources, signs.gather(1, sources)


@given(signed_permutations(), st.data())
def test_signed_permutations(parts, data):
    group, sources, signs = parts
    size = sources.shape[1]
    x = data.draw(strategies.arrays((3, size, 2), st.sampled_from([torch.float64, torch.int64])))
    action = SignedPermutationAction(group, sources, signs, dim=1)
    assert_action(action, x)
    assert (action.exact, action.linear, action.permutes) == (True, True, False)
    matrices = torch.zeros(group.order, size, size, dtype=torch.float64)
    matrices.scatter_(2, sources.unsqueeze(2), signs.double().unsqueeze(2))
    same = MatrixAction(group, matrices, dim=1)
    for g in group.elements:
        assert torch.equal(action.transform(x.double(), g), same.transform(x.double(), g))
    assert_action(action.restrict(group.subgroup([group.order - 1])), x)
    assert pickle.loads(pickle.dumps(action)) == action


@pytest.mark.parametrize("size", [(1.0, 1.0), (31.7, 48.1)])
def test_offsets_move_coordinates(size):
    half = ImageAction(dihedral(2), (0, 2, 4, 6))
    boxes = BoxAction(half, image_size=size)
    height, width = size
    points = SignedPermutationAction(
        half.group, [(0, 1)] * 4, [(1, 1), (-1, -1), (-1, 1), (1, -1)],
        [(0, 0), (width, height), (width, 0), (0, height)],
    )  # fmt: skip
    x = torch.rand(8, 2, dtype=torch.float64) * min(size)
    assert_action(points, x)
    assert not points.exact
    assert not points.linear
    for g in half.group.elements:
        moved = points.transform(x, g)
        corner = boxes.transform(torch.cat([x, x], dim=1), g)
        assert torch.equal(moved, corner[:, :2])
        assert torch.equal(moved, corner[:, 2:])


def test_signed_permutations_keep_half_precision():
    flip = SignedPermutationAction(cyclic(2), [(0,), (0,)], [(1,), (-1,)])
    for dtype in (torch.bfloat16, torch.float16, torch.int8, torch.complex64):
        x = torch.ones(2, 1, dtype=dtype)
        assert torch.equal(flip.transform(x, 1), -x)


WHOLE = [torch.tensor(0.5), torch.rand(2, 7), 3, "prompt", None, {"a": [torch.rand(3)]}]


@pytest.mark.parametrize("value", WHOLE, ids=lambda value: type(value).__name__)
def test_what_belongs_to_the_whole_batch_passes(value):
    action = WholeBatchAction(c4())
    assert action.flatten(value) == []
    assert action.unflatten(value, []) is value
    for g in (3, torch.tensor([0, 1])):
        assert action.transform(value, g) is value
    assert action.orbit(value) is value
    assert action.inverse_orbit(value) is value
    assert action.restrict(c4().subgroup([2])) == WholeBatchAction(cyclic(2))
    assert pickle.loads(pickle.dumps(action)) == action
    both = TreeAction([ImageAction(c4()), action])
    moved = both.transform([torch.zeros(1, 2, 3), value], 1)
    assert moved[0].shape == (1, 3, 2)
    assert moved[1] is value


def test_reprs_tell_actions_apart():
    three = (ImageAction.horizontal_flip(), ImageAction.vertical_flip(), ImageAction.rotation_180())
    assert len({repr(action) for action in three}) == 3
    assert "elements=(0, 4)" in repr(ImageAction.horizontal_flip())
    assert repr(PermutationAction(cyclic(3), SHIFTS, 2)) == (
        "PermutationAction(group of order 3, dim=2)"
    )


def test_regular_conventions():
    group = symmetric(3)
    x = torch.randn(4, 6)
    regular, features = RegularAction(group), RegularFeatureAction(TrivialAction(group))
    for h, g in itertools.product(group.elements, repeat=2):
        assert torch.equal(regular.transform(x, h)[:, group.compose(h, g)], x[:, g])
        assert torch.equal(features.transform(x, h)[:, g], x[:, group.compose(g, h)])


def test_matrices_multiply_in_float32_at_least():
    action = rotations(3)
    x = torch.randn(5, 2).to(torch.bfloat16)
    precise = action.transform(x.double(), 1).to(torch.bfloat16)
    torch.testing.assert_close(action.transform(x, 1), precise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = x.float()
        assert torch.equal(action.transform(y, 1), rotations(3).transform(y, 1))
        assert action.transform(y, 1).dtype == torch.float32


def test_products_of_commuting_swaps_on_one_dimension():
    left = PermutationAction(cyclic(2), [(0, 1, 2, 3), (1, 0, 3, 2)])
    right = PermutationAction(cyclic(2), [(0, 1, 2, 3), (2, 3, 0, 1)])
    assert_action(ProductAction(left, right), torch.randn(5, 4))
    gender = TokenAction.cyclic_swaps(9, [(1, 2), (3, 4)])
    colour = TokenAction.cyclic_swaps(9, [(5, 6, 7)])
    assert_action(ProductAction(gender, colour), torch.randint(0, 9, (6, 4)))


def test_restricted_regular_features():
    action = RegularFeatureAction(RegularAction(S3)).restrict(S3.subgroup([1]))
    assert_action(action, torch.randn(4, 6, 6))
    model = EquiTune(torch.nn.Flatten(), action, None)
    assert model(torch.randn(2, 6, 6)).shape == (2, 36)


def test_products_of_two_pairs_of_dims():
    first, second = ImageAction(c4(), dims=(-2, -1)), ImageAction(c4(), dims=(-4, -3))
    assert_action(ProductAction(first, second), torch.randn(2, 2, 3, 4, 5))


def test_products_of_any_fitting_kinds():
    shift = [[(i + 2 * k) % 6 for i in range(6)] for k in range(3)]
    vectors = ProductAction(VectorFieldAction(c4()), PermutationAction(cyclic(3), shift, dim=-3))
    assert_action(vectors, torch.randn(13, 6, 3, 4))
    swap = TokenAction.cyclic_swaps(9, [(1, 2)])
    assert_action(ProductAction(swap, RegularAction(cyclic(3), dim=1)), torch.randint(0, 9, (7, 3)))


def test_the_order_of_fields_does_not_matter():
    a, b = ImageAction(c4()), TrivialAction(c4())
    assert TreeAction({"a": a, "b": b}) == TreeAction({"b": b, "a": a})
    assert hash(TreeAction({"a": a, "b": b})) == hash(TreeAction({"b": b, "a": a}))
    assert TreeAction({"a": a, "b": b}) != TreeAction({"a": b, "b": a})


def test_right_cosets_are_enough_for_a_model_that_respects_a_subgroup():
    group = d4()
    action = ImageAction(group)
    embedding = group.subgroup([4])
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3)).double()
    flips = EquiTune(backbone, action.restrict(embedding))
    x = torch.randn(5, 1, 6, 6, dtype=torch.float64)
    copies = torch.stack([flips(action.transform(x, g)) for g in group.elements])
    for coset in group.right_cosets(embedding):
        for g in coset:
            torch.testing.assert_close(copies[g], copies[coset[0]])
    mean = copies[list(group.right_transversal(embedding))].mean(0)
    torch.testing.assert_close(mean, EquiTune(backbone, action)(x))
    left = [coset[0] for coset in group.left_cosets(embedding)]
    right = group.right_cosets(embedding)
    assert any(sum(g in coset for g in left) != 1 for coset in right) or left == list(
        group.right_transversal(embedding)
    )


@pytest.mark.parametrize("n", [3, 4, 12])
def test_tables_of_rotations_are_taken_however_they_are_given(n):
    table = torch.tensor(turns(n), dtype=torch.float64)
    exact = MatrixAction(cyclic(n), table)
    for rows in (turns(n), tuple(turns(n)), list(table), [list(m) for m in table.numpy()],
                  table.numpy()):  # fmt: skip
        assert MatrixAction(cyclic(n), rows) == exact
    for rows in (table.float(), table.float().numpy(), list(table.float())):
        action = MatrixAction(cyclic(n), rows)
        assert action.rounding == torch.finfo(torch.float32).eps
        # A table of a subgroup is as exact as that of the group.
        assert action.restrict(cyclic(n).subgroup([n // 2 or 1])).rounding == action.rounding
        assert pickle.loads(pickle.dumps(action)) == action


def test_lists_of_floats_do_not_depend_on_the_default_dtype():
    try:
        torch.set_default_dtype(torch.float16)
        action = MatrixAction(cyclic(3), turns(3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert action == rotations(3)


# Each is an exact table of its group, in units that differ by a factor of 1e4.
SCALES = torch.tensor([1.0, 1e4], dtype=torch.float64)
SCALED = {
    n: SCALES[:, None] * torch.tensor(turns(n), dtype=torch.float64) / SCALES for n in (3, 4, 6)
}
SCALED[2] = torch.tensor([[[1, 0], [0, 1]], [[0, 1e4], [1e-4, 0]]], dtype=torch.float64)


@pytest.mark.parametrize("n", SCALED)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_what_a_table_may_be_off_goes_by_the_rounding_of_each_entry(n, dtype):
    table = SCALED[n].to(dtype)
    MatrixAction(cyclic(n), table)
    # Far above the rounding of the entry, far below the square of the largest one.
    off = 1e-6 if dtype == torch.float64 else 1.0
    near = table.clone()
    near[1, 0, 1] += off
    assert near[1, 0, 1] != table[1, 0, 1]
    use = "use other matrices of these" if dtype == torch.float64 else "use the matrices in float64"
    with pytest.raises(
        ValueError, match=f"`matrices` must multiply as the group does, got .*; {use}"
    ):
        MatrixAction(cyclic(n), near)


def test_products_take_tables_by_their_rounding_too():
    turn, identity = torch.tensor(turns(3), dtype=torch.float64), torch.eye(2).double()
    sixth = torch.stack([identity, -identity])
    for dtype in (torch.float64, torch.float32):
        product = ProductAction(
            MatrixAction(cyclic(3), turn.to(dtype)), MatrixAction(cyclic(2), sixth.to(dtype))
        )
        assert product.rounding == torch.finfo(dtype).eps
        third = MatrixAction(cyclic(3), turn.to(dtype), dim=-2)
        assert ProductAction(product, third).group.order == 18
    # A reflection that commutes with the half turn up to 1e-7 only.
    skew = torch.tensor([[1 + 1e-7, 2e-7], [-1e-7, 1 - 1e-7]], dtype=torch.float64)
    half = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    moved = skew @ half @ torch.linalg.inv(skew)
    with pytest.raises(ValueError, match="must commute"):
        ProductAction(
            MatrixAction(cyclic(2), torch.stack([identity, half])),
            MatrixAction(cyclic(2), torch.stack([identity, moved])),
        )


IDS = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64,
       torch.uint64]  # fmt: skip


@pytest.mark.parametrize("dtype", IDS, ids=str)
@pytest.mark.parametrize("ignore_index", [-100, None])
def test_ids_of_every_dtype_move_as_int64_or_are_refused(dtype, ignore_index):
    largest = torch.iinfo(dtype).max
    for size in (100, 128, 129, 256, 257, 300, 32_768, 32_769, 65_536, 65_537):
        action = TokenAction.cyclic_swaps(size, [(1, size - 1)], ignore_index)
        ids = torch.tensor([[0, 1, 50]])
        if size - 1 > largest:
            with pytest.raises(
                TypeError, match=rf"all {size} ids, got dtype {dtype}; use x.long\(\)"
            ):
                action.transform(ids.to(dtype), 1)
            continue
        for g in (1, torch.tensor([1])):
            moved = action.transform(ids.to(dtype), g)
            assert moved.dtype == dtype
            assert moved.tolist() == [[0, size - 1, 50]]
        assert action.orbit(ids.to(dtype)).tolist() == action.orbit(ids).tolist()
    with pytest.raises(ValueError, match="got the id 101"):
        TokenAction.cyclic_swaps(100, [(1, 2)]).transform(torch.tensor([[101]]).to(dtype), 1)


@pytest.mark.parametrize("dtype", [d for d in IDS if d.is_signed], ids=str)
def test_ignored_ids_of_every_dtype_pass(dtype):
    action = TokenAction.cyclic_swaps(100, [(1, 2)])
    assert action.transform(torch.tensor([[-100, 1]]).to(dtype), 1).tolist() == [[-100, 2]]


FORMATS = {torch.channels_last: (8, 4, 6, 6), torch.channels_last_3d: (8, 4, 3, 6, 6)}


def dense_actions(memory_format):
    """Actions on (B, 4, ..., H, W)."""
    four = [(0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2)]
    shape = FORMATS[memory_format]
    return {
        "images": ImageAction(d4()),
        "vectors": VectorFieldAction(d4(), channel_dim=1 - len(shape)),
        "permutations": PermutationAction(c4(), four, dim=1),
        "matrices": MatrixAction(c4(), torch.eye(4)[torch.tensor(four)].mT, dim=1),
        "regular": RegularAction(c4(), dim=1),
        "regular features": RegularFeatureAction(TrivialAction(c4())),
        "tokens": TokenAction.cyclic_swaps(9, [(1, 2, 3, 4)]),
        "products": ProductAction(ImageAction(c4()), PermutationAction(c4(), four, 1 - len(shape))),
        "trivial": TrivialAction(c4()),
    }


@pytest.mark.parametrize("name", dense_actions(torch.channels_last))
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("square", [True, False])
def test_memory_formats_are_kept(name, memory_format, square):
    action, shape = dense_actions(memory_format)[name], list(FORMATS[memory_format])
    shape[-1] -= 0 if square else 2
    tokens = torch.randint(0, 9, shape)
    x = tokens if name == "tokens" else torch.randn(shape)
    plain, x = x, x.contiguous(memory_format=memory_format)
    for g in [*action.group.elements, torch.arange(8) % action.group.order]:
        if not square and name in ("images", "vectors", "products") and not isinstance(g, int):
            continue
        moved = action.transform(x, g)
        assert moved.is_contiguous(memory_format=memory_format)
        assert torch.equal(moved, action.transform(plain, g))
    for elements in action.shape_classes(x):
        stack = action.orbit(x, elements)
        undone = action.inverse_orbit(stack, elements)
        for entry in (*stack, *undone):
            assert entry.is_contiguous(memory_format=memory_format)
        assert torch.equal(undone, x.expand_as(undone))


@pytest.mark.parametrize("name", dense_actions(torch.channels_last))
def test_empty_batches(name):
    action = dense_actions(torch.channels_last)[name]
    x = torch.zeros(0, 4, 6, 6, dtype=torch.int64 if name == "tokens" else torch.float32)
    stack = action.orbit(x)
    assert stack.shape == (action.group.order, *x.shape)
    assert action.inverse_orbit(stack).shape == stack.shape


def per_sample(action, x):
    """The orbit of each sample by itself, under vmap."""
    return torch.func.vmap(lambda sample: action.orbit(sample[None]).squeeze(1), out_dims=1)(x)


@pytest.mark.parametrize("name", dense_actions(torch.channels_last))
@pytest.mark.parametrize("last", [True, False])
def test_actions_can_be_mapped_over(name, last):
    action = dense_actions(torch.channels_last)[name]
    x = torch.randn(8, 4, 6, 6) if name != "tokens" else torch.randint(0, 9, (8, 4, 6, 6))
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(per_sample(action, x), action.orbit(x))
    g = torch.arange(8) % action.group.order
    each = torch.func.vmap(lambda sample, h: action.transform(sample[None], h[None])[0])(x, g)
    assert torch.equal(each, action.transform(x, g))


@pytest.mark.parametrize("action", [
    BoxAction(ImageAction(d4())),
    BoxAction(ImageAction(d4()), "cxcywh", (32, 32)),
    KeypointAction(ImageAction(d4()), 4, [(0, 1)]),
], ids=["boxes", "boxes in pixels", "keypoints"])  # fmt: skip
def test_coordinates_can_be_mapped_over(action):
    corners = torch.rand(8, 4, 2, dtype=torch.float64)
    boxes = torch.cat([corners.min(1).values, corners.max(1).values], dim=-1)
    x = corners if isinstance(action, KeypointAction) else boxes
    assert torch.equal(per_sample(action, x), action.orbit(x))
    g = torch.arange(8)
    each = torch.func.vmap(lambda sample, h: action.transform(sample[None], h[None])[0])(x, g)
    assert torch.equal(each, action.transform(x, g))


def test_gradients_of_each_sample_of_a_model_of_tokens():
    action = TokenAction.cyclic_swaps(10, [(1, 2)])
    net = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 10))
    model = EquiTune(net, action, action.on_logits()).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    ids = torch.randint(0, 10, (3, 5))

    def loss(parameters, ids):
        return torch.func.functional_call(model, parameters, (ids[None],)).logsumexp(-1).sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, ids)
    for i, sample in enumerate(ids):
        for name, gradient in torch.func.grad(loss)(parameters, sample).items():
            torch.testing.assert_close(found[name][i], gradient)


def test_values_are_still_checked_outside_of_vmap():
    action = TokenAction.cyclic_swaps(10, [(1, 2)])
    with pytest.raises(ValueError, match="the id 10"):
        torch.func.grad(lambda w: w * action.transform(torch.tensor([[10]]), 1).sum())(
            torch.tensor(1.0)
        )


def mirror(normal):
    """The reflection at the plane with a normal vector."""
    n = torch.tensor(normal, dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64) - 2 * torch.outer(n, n) / (n @ n)
    return MatrixAction(cyclic(2), torch.stack([torch.eye(3, dtype=torch.float64), matrix]))


NEAR_ACTIONS = {
    "no permutation": (
        lambda: PermutationAction(cyclic(2), [(0, 1), (0, 0)]),
        r"permutations\[1\]",
    ),
    "identity moves": (
        lambda: PermutationAction(cyclic(2), [(1, 0), (0, 1)]),
        r"permutations\[0\]",
    ),
    "order 3 for 2": (
        lambda: PermutationAction(cyclic(2), [(0, 1, 2), (1, 2, 0)]),
        "element 1 after element 1",
    ),
    # The inverses: an action from the right.
    "right action": (
        lambda: PermutationAction(S3, [np.argsort(p).tolist() for p in sorted(ORDERS)]),
        "must multiply as the group does, got .* for element",
    ),
    "rows": (lambda: PermutationAction(cyclic(3), SHIFTS[:2]), r"shape \(2, 3\)"),
    "ragged": (
        lambda: PermutationAction(cyclic(2), [(0, 1), (0,)]),
        "`permutations` must be a table",
    ),
    "batch": (
        lambda: PermutationAction(cyclic(3), SHIFTS, dim=0),
        "`dim` must be another dimension than the batch, got 0",
    ),
    "regular batch": (
        lambda: RegularAction(cyclic(3), dim=0),
        "`dim` must be another dimension than the batch",
    ),
    "matrix batch": (
        lambda: MatrixAction(cyclic(1), [[[1.0]]], dim=0),
        "`dim` must be another dimension than the batch",
    ),
    "matrices": (
        lambda: MatrixAction(cyclic(2), [[[1.0]], [[2.0]]]),
        "element 1 after element 1",
    ),
    "nan": (lambda: MatrixAction(cyclic(2), [[[1.0]], [[float("nan")]]]), "infinities or NaN"),
    "matrix identity": (lambda: MatrixAction(cyclic(2), [[[2.0]], [[1.0]]]), r"matrices\[0\]"),
    "matrix shape": (lambda: MatrixAction(cyclic(2), [[1.0], [1.0]]), r"shape \(2, 1\)"),
    "half-precision matrices": (
        lambda: MatrixAction(cyclic(3), torch.tensor(turns(3)).half()),
        "use the matrices in float64",
    ),
    "float32 matrices": (
        lambda: MatrixAction(cyclic(2), torch.tensor([[[1.0]], [[2.0]]])),
        "of 3 for element 1 after .*; use the matrices in float64",
    ),
    "float64 matrices": (
        lambda: MatrixAction(cyclic(2), [[[1.0]], [[2.0]]]),
        "of 3 for element 1 after .*; use other matrices of these elements",
    ),
    "integer matrices": (
        lambda: MatrixAction(cyclic(2), [[[1]], [[2]]]),
        "of 3 for element 1 after .*; use other matrices of these elements",
    ),
    "no default": (lambda: ImageAction(cyclic(2)), "`elements` must say which element of d4"),
    "no default for a product": (
        lambda: ImageAction(c4() * cyclic(2)),
        "`elements` must say which element of d4",
    ),
    "rotate 0/90": (
        lambda: ImageAction(cyclic(2), [0, 1]),
        r"got r\^2 in place of e for element 1 after element 1",
    ),
    "not d4": (
        lambda: ImageAction(cyclic(2), [0, 8]),
        r"`elements\[1\]` must be an element .* got 8",
    ),
    "image elements": (
        lambda: ImageAction(c4(), [0, 1]),
        "`elements` must have .* 4 elements, got 2 entries",
    ),
    "dims": (lambda: ImageAction(c4(), dims=(-1, -1)), "`dims` must be two different dimensions"),
    "mixed dims": (
        lambda: ImageAction(c4(), dims=(2, -1)),
        "`dims` must be two different dimensions",
    ),
    "components": (
        lambda: VectorFieldAction(c4(), components=(-1, -3)),
        "`components` must be the two dims",
    ),
    "channel": (
        lambda: VectorFieldAction(c4(), channel_dim=-1),
        "`channel_dim` must be another dimension than height and width",
    ),
    "ignore_index": (
        lambda: TokenAction(cyclic(2), [(0, 1), (1, 0)], ignore_index=1),
        "`ignore_index` must lie outside of the vocabulary of 2 ids, got 1",
    ),
    "cycle lengths": (
        lambda: TokenAction.cyclic_swaps(9, [(1, 2), (3, 4, 5)]),
        r"lengths \[2, 3\]",
    ),
    "signs": (
        lambda: SignedPermutationAction(cyclic(2), [(0,), (0,)], [(1,), (2,)]),
        "`signs` must hold 1 or -1",
    ),
    "signs of another shape": (
        lambda: SignedPermutationAction(cyclic(2), [(0,), (0,)], [(1, 1), (1, 1)]),
        "`signs` must hold 1 or -1 for each of the sources",
    ),
    "offsets": (
        lambda: SignedPermutationAction(
            cyclic(2), [(0,), (0,)], [(1,), (-1,)], [(0,), (math.nan,)]
        ),
        "`offsets` must hold a number",
    ),
    "offsets that do not come back": (
        lambda: SignedPermutationAction(cyclic(2), [(0,), (0,)], [(1,), (1,)], [(0,), (1,)]),
        "for element 1 after element 1",
    ),
    "signs that do not multiply": (
        lambda: SignedPermutationAction(cyclic(3), [(0,)] * 3, [(1,), (-1,), (1,)]),
        "for element 1 after element 2",
    ),
    "sources": (
        lambda: SignedPermutationAction(cyclic(2), [(0, 1), (0, 0)], [(1, 1)] * 2),
        r"`sources\[1\]` must be a permutation",
    ),
    "no cycles": (lambda: TokenAction.cyclic_swaps(9, []), "lengths"),
    "shared token": (lambda: TokenAction.cyclic_swaps(9, [(1, 2), (2, 3)]), "token 2 twice"),
    "outside": (lambda: TokenAction.cyclic_swaps(9, [(1, 9)]), "token 9"),
    "not commuting": (
        lambda: ProductAction(
            PermutationAction(cyclic(2), [(0, 1, 2), (1, 0, 2)]),
            PermutationAction(cyclic(3), SHIFTS),
        ),
        "must commute with first, got .* element 1 of the first and element 1",
    ),
    "images": (
        lambda: ProductAction(ImageAction(c4()), ImageAction.horizontal_flip()),
        "must commute",
    ),
    "sizes": (
        lambda: ProductAction(PermutationAction(cyclic(3), SHIFTS), corners(5)),
        "got 5 and 3 entries along dim -1",
    ),
    "mixed ends": (
        lambda: ProductAction(PermutationAction(cyclic(3), SHIFTS, dim=1), ImageAction(c4())),
        "must count dims from the end that first does",
    ),
    "vocabularies": (
        lambda: ProductAction(
            TokenAction.cyclic_swaps(4, [(1, 2)]), TokenAction.cyclic_swaps(5, [(1, 2)])
        ),
        "vocabularies of 4 and 5 ids",
    ),
    "tree of groups": (
        lambda: TreeAction({"a": TrivialAction(c4()), "b": TrivialAction(d4())}),
        "got different groups, of order 4",
    ),
    "empty tree": (lambda: TreeAction({}), "`actions` must hold an action"),
    "only drops": (lambda: TreeAction({"a": Drop()}), "`actions` must hold an action"),
    "mirrors": (
        # They agree on (0, 1, 2), so that no single vector tells that they do not commute.
        lambda: ProductAction(mirror([1.0, 0.0, 0.0]), mirror([1.0, 2.0, -1.0])),
        "must commute",
    ),
    "channels are rows": (
        lambda: VectorFieldAction(c4(), channel_dim=2).transform(torch.zeros(1, 2, 4, 4), 1),
        "which is height or width",
    ),
    "image dims": (
        lambda: ImageAction(c4(), dims=(-1,)),
        "`dims` must be two different dimensions",
    ),
    "restrict": (lambda: ImageAction(c4()).restrict(d4().subgroup([1])), "group of order 8"),
    "restrict trivial": (lambda: TrivialAction(c4()).restrict(d4().subgroup([1])), "order 8"),
}


@pytest.mark.parametrize(("make", "message"), NEAR_ACTIONS.values(), ids=NEAR_ACTIONS)
def test_near_actions_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


X = torch.randn(2, 3, 4, 6)

BAD_CALLS = {
    "size": (
        lambda: PermutationAction(cyclic(3), SHIFTS).transform(X, 1),
        "3 entries along dim -1",
    ),
    "matrix size": (lambda: rotations(3).transform(X, 1), "2 entries along dim -1"),
    "rank": (
        lambda: ImageAction(c4()).transform(torch.zeros(4, 4), 1),
        "a dim -2 after the batch dimension",
    ),
    "channels": (lambda: VectorFieldAction(c4()).transform(X[:, [0] * 5], 1), "5 channels"),
    "element": (lambda: ImageAction(c4()).transform(X, 4), "`g` must be an element of .* got 4"),
    "elements": (
        lambda: ImageAction(c4()).transform(X, torch.tensor([0, 7])),
        "`g` must be an element of a group of order 4, got 7",
    ),
    "one each": (
        lambda: ImageAction(c4()).transform(X, torch.tensor([0])),
        "one element per sample",
    ),
    "two shapes": (
        lambda: ImageAction(c4()).transform(X, torch.tensor([0, 1])),
        "must give copies of one shape",
    ),
    "stack of two shapes": (lambda: ImageAction(c4()).orbit(X), "shape_classes"),
    "stack": (lambda: ImageAction(c4()).inverse_orbit(X), "an entry for each of 4 elements"),
    "trivial stack": (
        lambda: TrivialAction(c4()).inverse_orbit(X),
        "an entry for each of 4 elements",
    ),
    "scalar": (lambda: TrivialAction(c4()).flatten(torch.tensor(1.0)), "scalar"),
    "id": (
        lambda: TokenAction.cyclic_swaps(4, [(1, 2)]).transform(torch.tensor([[0, 4]]), 1),
        "vocabulary of 4 ids, got the id 4",
    ),
    "negative id": (
        lambda: TokenAction.cyclic_swaps(4, [(1, 2)]).transform(torch.tensor([[-1]]), 1),
        "the id -1",
    ),
    "no ignored id": (
        lambda: TokenAction.cyclic_swaps(4, [(1, 2)], ignore_index=None).transform(
            torch.tensor([[-100]]), 1
        ),
        "the id -100",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


BAD_TYPES = {
    "float tokens": (
        lambda: TokenAction.cyclic_swaps(4, [(1, 2)]).transform(torch.zeros(1, 4), 1),
        "on_logits",
    ),
    "integer vectors": (lambda: rotations(3).transform(torch.zeros(1, 2).long(), 1), "floating"),
    "unsigned vectors": (
        lambda: VectorFieldAction(c4()).transform(torch.zeros(1, 2, 3, 3).byte(), 1),
        "signed",
    ),
    "float permutations": (lambda: PermutationAction(cyclic(1), [[0.0]]), "must be integers"),
    "signs of bytes": (
        lambda: SignedPermutationAction(cyclic(1), [(0,)], [(1,)]).transform(
            torch.ones(1, 1).byte(), 0
        ),
        "signed",
    ),
    "offsets of integers": (
        lambda: SignedPermutationAction(
            cyclic(2), [(0,)] * 2, [(1,), (-1,)], [(0,), (1,)]
        ).transform(torch.ones(1, 1).long(), 0),
        "floating-point",
    ),
    "complex matrices": (lambda: MatrixAction(cyclic(1), [[[1j]]]), "complex"),
    "g": (lambda: ImageAction(c4()).transform(X, "r"), "`g` must be a tensor"),
    "g dtype": (lambda: ImageAction(c4()).transform(X, torch.zeros(2)), "int64"),
    "x": (lambda: ImageAction(c4()).flatten([X]), "TreeAction"),
    "entry": (
        lambda: TreeAction({"a": "image"}),
        "must be an action, or .*, got 'image'",
    ),
    "factor": (lambda: ProductAction(ImageAction(c4()), 3), "`second` must be an Action, got 3"),
    "tree factor": (
        lambda: ProductAction(ImageAction(c4()), TreeAction([TrivialAction(c4())])),
        "`second` must act on one tensor, got a TreeAction",
    ),
    "a constructor": (lambda: ImageAction(c4), r"such as c4\(\)"),
    "trivial": (lambda: TrivialAction(c4), r"such as c4\(\)"),
    "permutation": (lambda: PermutationAction(3, SHIFTS), "`group` must be a FiniteGroup, got 3"),
    "regular": (lambda: RegularAction(None), "`group` must be a FiniteGroup, got None"),
    "matrix": (lambda: MatrixAction(c4, [[[1.0]]]), r"such as c4\(\)"),
    "fiber": (lambda: RegularFeatureAction(c4()), "`fiber` must be an Action, got a FiniteGroup"),
    "dim": (lambda: PermutationAction(cyclic(3), SHIFTS, dim="a"), "`dim` must be an int, got 'a'"),
    "matrix dim": (lambda: MatrixAction(cyclic(1), [[[1.0]]], dim="x"), "`dim` must be an int"),
    "channel dim": (lambda: VectorFieldAction(c4(), channel_dim="x"), "`channel_dim` must be an"),
    "structure": (lambda: ImageAction(c4()).transform({"x": X}, 1), "TreeAction"),
    "float elements": (lambda: ImageAction(cyclic(2), [0, 4.7]), "must be an int, got 4.7"),
    "no structure": (lambda: TreeAction([TrivialAction(c4())]).transform(3, 1), "got 3"),
}


@pytest.mark.parametrize(("call", "message"), BAD_TYPES.values(), ids=BAD_TYPES)
def test_bad_types_are_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


RESTRICTED = [
    TrivialAction(c4()), ImageAction(c4()), VectorFieldAction(c4()), RegularAction(c4()),
    RegularFeatureAction(TrivialAction(c4())), RegularFeatureAction(ImageAction(c4())),
    MatrixAction(c4(), turns(4)), TokenAction.cyclic_swaps(9, [(1, 2, 3, 4)]),
    ProductAction(TrivialAction(trivial()), ImageAction(c4())),
    TreeAction({"a": ImageAction(c4()), "b": Drop()}),
]  # fmt: skip


@pytest.mark.parametrize("action", RESTRICTED, ids=lambda action: type(action).__name__)
def test_all_restrictions_refuse_the_same(action):
    for wrong in (None, 1, "c4", c4(), [0, 1]):
        with pytest.raises(TypeError, match="`embedding` must be an Embedding, got"):
            action.restrict(wrong)
    with pytest.raises(ValueError, match="got one into a group of order 8"):
        action.restrict(d4().subgroup([1]))
    assert action.restrict(c4().subgroup([2])).group.order == 2


def test_large_vocabularies_are_checked_quickly():
    action = TokenAction.cyclic_swaps(50_000, [(10, 20, 30), (49_998, 5, 49_999)])
    assert action.transform(torch.tensor([[49_999, 7]]), 1).tolist() == [[49_998, 7]]
    assert hash(action.on_logits()) == hash(action.on_logits())


def test_polygons_are_dihedral():
    assert corners(5).group == dihedral(5)
    assert_action(corners(5), torch.randn(11, 5))
