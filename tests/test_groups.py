"""Groups: constructors, products, subgroups, cosets, and one near-group for each axiom."""

import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equitune import (
    Embedding,
    FiniteGroup,
    MatrixAction,
    c4,
    cyclic,
    d4,
    dihedral,
    generate_permutations,
    symmetric,
    trivial,
)
from equitune.testing import assert_group
from equitune.testing.strategies import elements, finite_groups

GROUPS = {
    "trivial": (trivial(), 1, True),
    "cyclic(2)": (cyclic(2), 2, True),
    "cyclic(3)": (cyclic(3), 3, True),
    "c4": (c4(), 4, True),
    "klein": (dihedral(2), 4, True),
    "dihedral(1)": (dihedral(1), 2, True),
    "d4": (d4(), 8, False),
    "symmetric(3)": (symmetric(3), 6, False),
    "symmetric(4)": (symmetric(4), 24, False),
    "dihedral(5)": (dihedral(5), 10, False),
    "c4 x cyclic(2)": (c4() * cyclic(2), 8, True),
    "symmetric(3) x cyclic(3)": (symmetric(3) * cyclic(3), 18, False),
}

permutations = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.permutations(range(n)), min_size=1, max_size=2)
)


@pytest.mark.parametrize(("group", "order", "abelian"), GROUPS.values(), ids=GROUPS)
def test_the_named_groups(group, order, abelian):
    assert group.order == order == len(group.names) == len(set(group.names))
    assert group.is_abelian is abelian
    assert group.identity == 0
    assert_group(group)
    assert group.subgroup(group.generators).subgroup == group


@pytest.mark.parametrize(("group", "order", "abelian"), GROUPS.values(), ids=GROUPS)
def test_groups_are_values(group, order, abelian):
    clone = pickle.loads(pickle.dumps(group))
    assert clone == group
    assert hash(clone) == hash(group)
    assert clone.names == group.names
    with pytest.raises(AttributeError):
        group.cayley_table = ()


def test_names_do_not_count():
    assert FiniteGroup([[0]], ["one"]) == trivial()
    assert c4() == cyclic(4)
    assert c4() != dihedral(2)


def test_dihedral_relations():
    group = dihedral(5)
    r, s = 1, 5
    assert group.compose(s, s) == 0
    assert group.compose(group.compose(s, r), s) == group.inverse(r)
    assert group.compose(s, r) == 6
    assert group.names[:2] == ("e", "r")
    assert group.names[5:7] == ("s", "s r")


@given(permutations)
def test_generated_groups(generators):
    rows = generate_permutations(generators)
    group = FiniteGroup.from_generators(generators)
    assert_group(group)
    assert group.order == len(rows)
    for g, h in itertools.product(group.elements, repeat=2):
        product = tuple(rows[g][i] for i in rows[h])
        assert rows[group.compose(g, h)] == product


def test_elements_are_called_by_words():
    group = FiniteGroup.from_generators([(1, 2, 3, 0), (0, 3, 2, 1)], names=["r", "s"])
    assert group.order == 8
    named = dict(zip(group.names, group.elements, strict=True))
    r, s = named["r"], named["s"]
    assert named["e"] == 0
    assert named["r^2"] == group.compose(r, r)
    assert named["s r"] == group.compose(s, r)
    assert len(named) == 8
    assert FiniteGroup.from_generators([(1, 2, 3, 0), (0, 3, 2, 1)]) == group
    assert FiniteGroup.from_generators([(0, 1)], names=["s"]).names == ("e",)


SIGNED = [[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64, torch.int8])
def test_groups_of_matrices(dtype):
    table = torch.tensor(SIGNED, dtype=dtype)
    assert FiniteGroup.from_matrices(table, names=["e", "r", "h", "l"]) == c4()
    for rows in (SIGNED, list(table), table.numpy()):
        assert FiniteGroup.from_matrices(rows) == c4()


@given(finite_groups(max_order=12))
def test_groups_of_matrices_are_those_of_permutations(group):
    table = torch.eye(group.order, dtype=torch.float64)[torch.tensor(group.cayley_table)].mT
    assert FiniteGroup.from_matrices(table) == group
    random = torch.randn(group.order, group.order, dtype=torch.float64) + 4 * torch.eye(group.order)
    MatrixAction(FiniteGroup.from_matrices(random @ table @ random.inverse()), table)


def test_rotations_by_thirds_are_a_group_up_to_rounding():
    angles = 2 * math.pi * torch.arange(12, dtype=torch.float64) / 12
    table = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).view(
        12, 2, 2
    )
    assert FiniteGroup.from_matrices(table) == cyclic(12)
    assert FiniteGroup.from_matrices(table.float()) == cyclic(12)
    with pytest.raises(ValueError, match="be closed"):
        FiniteGroup.from_matrices(torch.cat([table[:1], table[1:] + 1e-6]))


@given(finite_groups(), st.data())
def test_subgroups_and_cosets(group, data):
    chosen = data.draw(st.lists(elements(group), max_size=2))
    embedding = group.subgroup(chosen)
    members = set(embedding.elements)
    assert members >= {0, *chosen}
    assert group.order % len(members) == 0
    for g, h in itertools.product(members, repeat=2):
        assert group.compose(g, h) in members
    for cosets, product in (
        (group.left_cosets(embedding), lambda g, h: group.compose(g, h)),
        (group.right_cosets(embedding), lambda g, h: group.compose(h, g)),
    ):
        assert sorted(itertools.chain(*cosets)) == list(group.elements)
        for coset in cosets:
            assert set(coset) == {product(coset[0], h) for h in members}
    transversal = group.right_transversal(embedding)
    assert len(transversal) * len(members) == group.order


def test_left_and_right_cosets_differ():
    group = symmetric(3)
    embedding = group.subgroup([1])
    assert group.left_cosets(embedding) != group.right_cosets(embedding)


def test_direct_products_are_componentwise():
    left, right = symmetric(3), cyclic(4)
    product = left.direct_product(right)
    for a, b, c, d in itertools.product(left.elements, right.elements, repeat=2):
        found = product.compose(a * 4 + b, c * 4 + d)
        assert found == left.compose(a, c) * 4 + right.compose(b, d)


QUASIGROUP = [[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]]

BAD_TABLES = {
    "empty": ([], "`cayley_table` must have a row per element, got none"),
    "not square": ([[0, 1], [1]], "must be square, got row 1 with 1 entries"),
    "not closed": ([[0, 1], [1, 2]], "must be closed, got 2 as the product of 1 and 1"),
    "negative": ([[0, -1], [1, 0]], "must be closed, got -1 as the product of 0 and 1"),
    "no identity": ([[1, 0], [0, 1]], r"have the identity 0, got 1 for 0\*0"),
    "no inverse": ([[0, 1], [1, 1]], "have inverses, got none for element 1"),
    "not associative": (
        QUASIGROUP,
        r"be associative, got \d for \(\d\*\d\)\*\d and \d for \d\*\(\d",
    ),
}


@pytest.mark.parametrize(("table", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_near_groups_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        FiniteGroup(table)


BAD_CALLS = {
    "names": (lambda: FiniteGroup([[0]], ["a", "b"]), "`names` must have 1 entries, got 2 entries"),
    "no permutation": (lambda: FiniteGroup.from_permutations([(0, 0)]), r"permutations\[0\]"),
    "identity first": (lambda: FiniteGroup.from_permutations([(1, 0), (0, 1)]), "be the identity"),
    "twice": (
        lambda: FiniteGroup.from_permutations([(0, 1), (0, 1)]),
        r"`permutations\[1\]` must be new, got permutations\[0\] again",
    ),
    "lengths": (
        lambda: FiniteGroup.from_permutations([(0, 1), (1, 2, 0)]),
        "must move 2 indices, got 3",
    ),
    # Rotations by 0 and 90 degrees only.
    "not closed": (
        lambda: FiniteGroup.from_permutations([(0, 1, 2, 3), (1, 2, 3, 0)]),
        "product of element 1 and element 1",
    ),
    "no permutations": (
        lambda: FiniteGroup.from_permutations([]),
        "`permutations` must have 1 or more entries",
    ),
    "no generators": (
        lambda: generate_permutations([]),
        "`generators` must have 1 or more entries",
    ),
    "generator lengths": (
        lambda: generate_permutations([(0,), (1, 0)]),
        "must move 1 indices, got 2",
    ),
    "names of generators": (
        lambda: FiniteGroup.from_generators([(1, 0)], names=["a", "b"]),
        "`names` must have 1 entries",
    ),
    "ambiguous names": (
        lambda: FiniteGroup.from_generators([(1, 2, 0, 3, 4), (0, 1, 2, 4, 3)], names=["a", "a"]),
        "`names` must tell elements apart",
    ),
    "largest": (
        lambda: generate_permutations([(1, 2, 3, 0), (1, 0, 2, 3)], largest=20),
        "at most largest=20",
    ),
    "matrices that are not closed": (
        lambda: FiniteGroup.from_matrices(SIGNED[:2]),
        "`matrices` must be closed, got no product of element 1 and element 1",
    ),
    "matrices twice": (
        lambda: FiniteGroup.from_matrices([[[1]], [[1]]]),
        r"`matrices\[1\]` must be new, got matrices\[0\] again",
    ),
    "identity of matrices": (
        lambda: FiniteGroup.from_matrices([[[-1]], [[1]]]),
        r"`matrices\[0\]` must be the identity",
    ),
    "singular matrices": (lambda: FiniteGroup.from_matrices([[[0]]]), "must be the identity"),
    "no matrices": (lambda: FiniteGroup.from_matrices([]), "`matrices` must be"),
    "size": (lambda: cyclic(0), "`n` must be 1 or more, got 0"),
    "element": (lambda: c4().compose(0, 4), "`h` must be an element of a group of order 4, got 4"),
    "negative element": (lambda: c4().inverse(-1), "`g` must be an element .* got -1"),
    "subgroup": (lambda: c4().subgroup([7]), r"`generators\[0\]` must be .* got 7"),
    "coset": (lambda: c4().left_cosets(d4().subgroup([1])), "group of order 8"),
    "embedding size": (
        lambda: Embedding(cyclic(2), c4(), [0]),
        "`elements` must be 2 different ones",
    ),
    "embedding twice": (
        lambda: Embedding(cyclic(2), c4(), [0, 0]),
        "`elements` must be 2 different ones",
    ),
    "embedding": (lambda: Embedding(cyclic(2), c4(), [0, 1]), "got 2 in place of 0 for element 1"),
    "embedding range": (
        lambda: Embedding(cyclic(2), c4(), [0, 9]),
        r"`elements\[1\]` must be .* got 9",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


BAD_TYPES = {
    "float table": lambda: FiniteGroup([[0, 1.7], [1.2, 0]]),
    "float permutations": lambda: FiniteGroup.from_permutations([(0.4, 1), (1.9, 0)]),
    "float size": lambda: cyclic(2.5),
    "product": lambda: c4() * 2,
    "coset": lambda: c4().left_cosets([0, 2]),
}


@pytest.mark.parametrize("call", BAD_TYPES.values(), ids=BAD_TYPES)
def test_bad_types_are_refused(call):
    with pytest.raises(TypeError):
        call()
