"""Hypothesis strategies for groups, actions, batches and models; needs ``equitune[test]``.

What they draw shrinks towards the smallest group, the fewest samples and the smallest image. Use
them with ``@settings(deadline=None)``: the first call of a network takes torch a while.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor, nn

from equitune._checks import require, require_flag, require_int, require_ints, require_type
from equitune.actions import Action, ImageAction, PermutationAction, TokenAction
from equitune.actions._arguments import require_group
from equitune.groups import FiniteGroup, cyclic, dihedral, generate_permutations, symmetric, trivial
from equitune.groups._axioms import generated
from equitune.testing._models import Architecture, model_family

__all__ = [
    "arrays",
    "element_batches",
    "elements",
    "finite_groups",
    "images",
    "permutation_actions",
    "small_models",
    "token_batches",
]

LARGEST_ORDER = 24
MOST_POINTS = 24
MOST_DRAWN = 1024
SHARES = 64

# A drawn permutation would not fit any more when what it permutes shrinks; a seed always does.
SEEDS = st.integers(0, 2**16)


@lru_cache(maxsize=1)
def _known_groups() -> tuple[FiniteGroup, ...]:
    quaternions = generate_permutations([(1, 2, 3, 0, 5, 6, 7, 4), (4, 7, 6, 5, 2, 1, 0, 3)])
    groups = [
        trivial(),
        *(cyclic(n) for n in range(2, 13)),
        cyclic(2) * cyclic(2),
        cyclic(2) * cyclic(4),
        cyclic(3) * cyclic(3),
        cyclic(2) * cyclic(2) * cyclic(2),
        *(dihedral(n) for n in range(3, 13)),
        cyclic(2) * symmetric(3),
        FiniteGroup.from_permutations(quaternions),
        FiniteGroup.from_generators([(1, 2, 0, 3), (0, 2, 3, 1)]),
        symmetric(4),
    ]
    return tuple(sorted(groups, key=lambda group: group.order))


@st.composite
def finite_groups(draw: st.DrawFn, *, min_order: int = 1, max_order: int = 12) -> FiniteGroup:
    """Finite groups, abelian or not, their elements in any order with the identity first.

    Cyclic and dihedral groups, products, the quaternions, the alternating and the symmetric group
    on four letters. Shrinks to the group of the smallest order, in its usual order of elements.

    Args:
        min_order: The smallest order.
        max_order: The largest order, at most 24.

    Raises:
        ValueError: If no group of these has such an order.

    Example:
        >>> from hypothesis import given, settings
        >>> from equitune.testing import assert_group
        >>> from equitune.testing.strategies import finite_groups
        >>> @settings(max_examples=20, deadline=None)
        ... @given(finite_groups())
        ... def test(group):
        ...     assert_group(group)
        >>> test()
    """
    require_int("min_order", min_order, "the smallest order")
    require_int("max_order", max_order, "the largest order")
    orders = sorted({group.order for group in _known_groups()})
    known = [group for group in _known_groups() if min_order <= group.order <= max_order]
    got, passed = f"{min_order} to {max_order}", bool(known) and max_order <= LARGEST_ORDER
    require(passed, "min_order` and `max_order", "span known orders", got, f"some of {orders}")
    group = _first_chosen(draw, known)
    order = [0, *(1 + i for i in _shuffled(draw(SEEDS), group.order - 1))]
    place = {g: i for i, g in enumerate(order)}
    return FiniteGroup(
        [[place[group.compose(g, h)] for h in order] for g in order],
        [group.names[g] for g in order],
    )


def _first_chosen(draw: st.DrawFn, groups: Sequence[FiniteGroup]) -> FiniteGroup:
    """One of some groups, such that shrinking tries each one that comes before it.

    A drawn index would shrink in small steps, and stop where its neighbour does not fail.
    """
    passed_over = [draw(st.integers(0, len(groups) // 2 + 1)) > 0 for _ in groups]
    return groups[passed_over.index(False) if False in passed_over else -1]


def _shuffled(seed: int, count: int) -> list[int]:
    """The numbers below ``count`` in some order; seed 0 leaves them as they are."""
    numbers = list(range(count))
    if seed:
        random.Random(seed).shuffle(numbers)
    return numbers


def elements(group: FiniteGroup) -> st.SearchStrategy[int]:
    """The elements of a group; shrinks to the identity."""
    require_group(group)
    return st.integers(0, group.order - 1)


def element_batches(group: FiniteGroup, size: int) -> st.SearchStrategy[Tensor]:
    """An element for each of ``size`` samples, (size,) int64."""
    size = require_int("size", size, "the number of samples", least=0)
    drawn = st.lists(elements(group), min_size=size, max_size=size)
    return drawn.map(lambda each: torch.tensor(each, dtype=torch.int64))


@st.composite
def arrays(
    draw: st.DrawFn,
    shape: Sequence[int] | st.SearchStrategy[Sequence[int]],
    dtype: torch.dtype | st.SearchStrategy[torch.dtype] = torch.float32,
) -> Tensor:
    """Tensors of a shape and dtype, with small numbers that every dtype holds exactly.

    Args:
        shape: The shape, or a strategy of shapes.
        dtype: The dtype, or a strategy of dtypes. Floating-point entries are multiples of 1/8
            from -8 to 8; integers are from -8 to 8 (0 to 16 without a sign).

    Example:
        >>> import torch
        >>> from hypothesis import given, settings
        >>> from equitune.testing.strategies import arrays
        >>> @settings(max_examples=20, deadline=None)
        ... @given(arrays((2, 3), torch.float64))
        ... def test(x):
        ...     torch.testing.assert_close(x.T.T, x)
        >>> test()
    """
    given = draw(shape) if isinstance(shape, st.SearchStrategy) else shape
    size = require_ints("shape", given, "the size of each dimension, or a strategy of them")
    kind = draw(dtype) if isinstance(dtype, st.SearchStrategy) else dtype
    require_type("dtype", kind, torch.dtype, "one such as torch.float32")
    if kind == torch.bool:
        return torch.from_numpy(draw(npst.arrays(np.bool_, size)))
    if kind.is_complex:
        parts = [draw(arrays(size, kind.to_real())) for _ in range(2)]
        return torch.complex(*parts)
    eighths = kind.is_floating_point
    low, high = (0, 16) if not kind.is_signed else (-64, 64) if eighths else (-8, 8)
    # Entries that are drawn one by one shrink one by one; in large arrays that takes too long.
    fill = st.nothing() if math.prod(size) <= MOST_DRAWN else None
    some = npst.arrays(np.int64, size, elements=st.integers(low, high), fill=fill)
    numbers = torch.from_numpy(draw(some))
    return (numbers / 8).to(kind) if eighths else numbers.to(kind)


@st.composite
def images(
    draw: st.DrawFn,
    group: FiniteGroup | ImageAction,
    dtype: torch.dtype | st.SearchStrategy[torch.dtype] = torch.float32,
    min_side: int = 2,
    square: bool | None = None,
    *,
    max_side: int = 8,
    max_batch: int = 4,
    channels: int | None = None,
) -> Tensor:
    """Batches of images, (B, C, H, W), that no element of the group leaves as they are.

    Each element changes at least one sample, so that a missing invariance can be seen from it.
    Shrinks to one sample, one channel and the smallest image.

    Args:
        group: c4, d4, or the image action of another group.
        dtype: As for :func:`arrays`.
        min_side: The smallest height and width, at least 2.
        square: Whether H = W; None for either.
        max_side: The largest height and width.
        max_batch: The largest number of samples.
        channels: The number of channels; None for 1 to 3.

    Raises:
        ValueError: If ``min_side`` is below 2, since one pixel is always symmetric, or leaves no
            choice, or if ``max_batch`` or ``channels`` is below 1.
    """
    action = group if isinstance(group, Action) else ImageAction(group)
    require_int("min_side", min_side, "the smallest height and width", least=2)
    if square is not None:
        require_flag("square", square)
    least = min_side + (square is False)
    use = "min_side or more, and another number where images are not square"
    require_int("max_side", max_side, use, least=least)
    require_int("max_batch", max_batch, "the largest number of samples", least=1)
    if channels is not None:
        require_int("channels", channels, "the number of channels, or None", least=1)
    batch = draw(st.integers(1, max_batch))
    depth = draw(st.integers(1, 3)) if channels is None else channels
    height = draw(st.integers(min_side, max_side))
    widths = [side for side in range(min_side, max_side + 1) if square is None or side != height]
    width = height if square else draw(st.sampled_from(widths))
    probe = torch.arange(6, device="cpu").view(1, 1, 2, 3)
    moving = [g for g in action.group.elements if _all_change(action, [g], probe)]
    some = arrays((batch, depth, height, width), dtype)
    return draw(some.filter(lambda x: _all_change(action, moving, x)))


def _all_change(action: Action, elements: Sequence[int], x: Tensor) -> bool:
    moved = (action.transform(x, g) for g in elements)
    return all(y.shape != x.shape or not torch.equal(y, x) for y in moved)


@st.composite
def token_batches(
    draw: st.DrawFn,
    vocab: int | TokenAction,
    length: int | st.SearchStrategy[int],
    *,
    max_batch: int = 4,
) -> Tensor:
    """Batches of token ids, (B, length) int64.

    Args:
        vocab: The number of ids; or an action on them, and then each element that moves any id
            moves one of the batch.
        length: The number of tokens, or a strategy of numbers.
        max_batch: The largest number of samples.

    Raises:
        ValueError: If a number is below 1, so that nothing could move.
    """
    use, several = "the number of ids, or an action on them", "a number of tokens, or a strategy"
    action = None if isinstance(vocab, int) else require_type("vocab", vocab, TokenAction, use)
    if not isinstance(length, int):
        require_type("length", length, st.SearchStrategy, several)
    require_int("max_batch", max_batch, "the largest number of samples", least=1)
    known = vocab if action is None else action.vocabulary_size
    size = require_int("vocab", known, "1 id or more", least=1)
    rows: Sequence[object] = () if action is None else action.permutations
    moving = [g for g, row in enumerate(rows) if row != rows[0]]
    steps = length if isinstance(length, int) else draw(length)
    require_int("length", steps, "the number of tokens", least=1 if moving else 0)
    shape = (draw(st.integers(1, max_batch)), steps)
    ids = npst.arrays(np.int64, shape, elements=st.integers(0, size - 1)).map(torch.from_numpy)
    return draw(ids if action is None else ids.filter(lambda x: _all_change(action, moving, x)))


@st.composite
def permutation_actions(
    draw: st.DrawFn, group: FiniteGroup, *, dim: int = -1, max_orbits: int = 3
) -> PermutationAction:
    """Actions on up to 24 points: unions of actions on cosets of subgroups, renumbered.

    Every permutation action is such a union. Here the subgroups are those with one or two
    generators, and for groups of more than 24 elements those with one, besides the group itself.
    Shrinks to one point that stands still.

    Args:
        group: The group that acts.
        dim: The dimension that it permutes.
        max_orbits: The largest number of orbits.
    """
    require_int("max_orbits", max_orbits, "the largest number of orbits", least=1)
    kinds = _coset_actions(require_group(group))
    # As shares of the list, so that what was drawn for one group still fits a smaller one.
    drawn = draw(st.lists(st.integers(0, SHARES - 1), min_size=1, max_size=max_orbits))
    orbits = [kinds[share * len(kinds) // SHARES] for share in drawn]
    rows: list[list[int]] = [[] for _ in group.elements]
    for kind in orbits:
        start = len(rows[0])
        if start and start + len(kind[0]) > MOST_POINTS:
            break
        for g in group.elements:
            rows[g] += [start + point for point in kind[g]]
    numbers = _shuffled(draw(SEEDS), len(rows[0]))
    places = sorted(range(len(numbers)), key=numbers.__getitem__)
    return PermutationAction(group, [[numbers[row[i]] for i in places] for row in rows], dim)


@lru_cache(maxsize=256)
def _coset_actions(group: FiniteGroup) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The actions on the cosets of subgroups with one or two generators, the smallest first."""
    table = group.cayley_table
    repeat = 2 if group.order <= LARGEST_ORDER else 1
    pairs = itertools.combinations_with_replacement(group.elements, repeat)
    subgroups = {frozenset(generated(table, pair)) for pair in pairs} | {frozenset(group.elements)}
    actions = []
    for members in subgroups:
        cosets = group.left_cosets(group.subgroup(members))
        place = {g: i for i, coset in enumerate(cosets) for g in coset}
        firsts = [coset[0] for coset in cosets]
        rows = (tuple(place[table[g][first]] for first in firsts) for g in group.elements)
        actions.append(tuple(rows))
    # By the rows as well, so that the order does not depend on that of a set.
    return tuple(sorted(actions, key=lambda rows: (len(rows[0]), rows)))


@st.composite
def small_models(
    draw: st.DrawFn, input_action: Action, output_action: Action | None = None
) -> nn.Module:
    """Random networks in eval mode, float32, that know nothing of the symmetry.

    They take whatever the input action can act on, of any size, and return what the output action
    can act on. Two to six channels, one or two layers, with or without BatchNorm; shrinks to the
    narrowest without. The weights come from a drawn seed, not from torch's global one.

    Args:
        input_action: An action on images, vectors or tokens, or a product of them.
        output_action: The same, or a TreeAction over them for a dict; None for scores (B, n).

    Raises:
        ValueError: If no model fits between these two.

    Example:
        >>> import torch
        >>> from hypothesis import given, settings
        >>> from equitune import EquiTune, ImageAction, d4
        >>> from equitune.testing import assert_equivariant
        >>> from equitune.testing.strategies import images, small_models
        >>> action = ImageAction(d4())
        >>> @settings(max_examples=20, deadline=None)
        ... @given(small_models(action, action), images(action, torch.float64))
        ... def test(model, x):
        ...     assert_equivariant(EquiTune(model.double(), action, action), x, action, action)
        >>> test()
    """
    require_type("input_action", input_action, Action, "the action on what the models take")
    if output_action is not None:
        require_type("output_action", output_action, Action, "an action, or None for scores")
    build = model_family(input_action, output_action)
    architecture = Architecture(
        width=draw(st.integers(2, 6)),
        depth=draw(st.integers(1, 2)),
        batch_norm=draw(st.booleans()),
        activation=draw(st.sampled_from((nn.Tanh, nn.ReLU, nn.GELU))),
        outputs=draw(st.integers(2, 5)),
    )
    seed = draw(SEEDS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(architecture).eval()
