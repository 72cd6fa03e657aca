"""Which of the usual causes an inequivariant function looks like."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import final

import torch
from torch import Tensor

from equitune.actions import (
    Action,
    ImageAction,
    PermutationAction,
    RegularAction,
    RegularFeatureAction,
    VectorFieldAction,
)
from equitune.groups import FiniteGroup
from equitune.testing.comparison import Gap
from equitune.testing.trial import Trial, is_trivial

__all__ = ["find_causes"]

SLACK = 10.0
"""A cause explains the outputs if it does so within this many times what is allowed."""

LARGEST_TABLE = 64
"""The order of the largest group whose elements are all tried for each other."""

SHIFTS = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]


def find_causes(trial: Trial) -> tuple[str, ...]:
    """The causes that fit what was measured, the likeliest first; none if none fits."""
    if trial.nan_sample() is not None:
        return ()
    if not bool(trial.repeat_gap.passes.all()):
        return tuple(_randomness(trial))
    found = list(_mixing(trial))
    if not found and not _mismatching(trial):
        matches = _Matches(trial)
        searches: tuple[Callable[[Trial, _Matches], Iterable[str]], ...] = (
            _symmetric_samples, _movement, _other_hand, _subgroup, _border,
        )  # fmt: skip
        for search in searches:
            found += search(trial, matches)
    return (*found, *_layers(trial))


@final
class _Matches:
    """Which element's action on fn(x) explains fn(gx): ``self[g, h]`` is (B,) bool."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._known: dict[tuple[int, int], Tensor] = {}
        self.group = trial.group

    def __getitem__(self, pair: tuple[int, int]) -> Tensor:
        if pair not in self._known:
            g, h = pair
            self._known[pair] = _explained(self._trial.gap_to(self._trial.outputs[g], h))
        return self._known[pair]

    def all_by(self, mapping: Callable[[int], int]) -> bool:
        """Whether every fn(gx) is mapping(g) fn(x)."""
        return all(bool(self[g, mapping(g)].all()) for g in self.group.elements)

    def right(self) -> list[int]:
        """The elements that are respected."""
        return [g for g in self.group.elements if bool(self._trial.gaps[g].passes.all())]

    def wrong(self) -> list[int]:
        """The elements that are not."""
        right = self.right()
        return [g for g in self.group.elements if g not in right]


def _explained(gap: Gap) -> Tensor:
    return gap.absolute <= SLACK * gap.allowed


def _mismatching(trial: Trial) -> bool:
    return any(gap.mismatch is not None for gap in (*trial.gaps, trial.mixed_gap))


def _randomness(trial: Trial) -> Iterable[str]:
    dropouts = trial.layers.active_dropouts()
    if dropouts:
        yield f"dropout is active in {_listed(dropouts)}; call .eval() first"
    elif trial.layers.training():
        yield "the module is in train mode; call .eval() first"
    else:
        yield "fn draws random numbers; give it a generator with a fixed seed for each call"


def _mixing(trial: Trial) -> Iterable[str]:
    """Right for whole batches, wrong where each sample has its own element."""
    if all(bool(gap.passes.all()) for gap in trial.gaps) and not bool(trial.mixed_gap.passes.all()):
        norms = trial.layers.training_batch_norms()
        if norms:
            yield (
                f"BatchNorm is in train mode in {_listed(norms)}, so that its statistics mix the "
                "samples of a batch; call .eval(), or send all copies through in one batch"
            )
        else:
            yield (
                "the samples of a batch influence each other: one element is chosen for the whole "
                "batch, or a statistic is taken over it"
            )


def _symmetric_samples(trial: Trial, matches: _Matches) -> Iterable[str]:
    fixed = torch.tensor(trial.fixed())
    stabilised = fixed[1:].any(dim=0)
    failing = torch.stack([~gap.passes for gap in trial.gaps]).any(dim=0)
    if bool(failing.any()) and bool(stabilised[failing].all()) and not bool(stabilised.all()):
        sample = int(failing.nonzero()[0])
        g = int(fixed[1:, sample].nonzero()[0]) + 1
        yield (
            f"only samples that are symmetric themselves fail, such as sample {sample}, which "
            f"element {g} ({trial.group.names[g]}) does not change: where several copies are "
            "equally good, one is taken instead of the mean of all of them"
        )


def _movement(trial: Trial, matches: _Matches) -> Iterable[str]:
    """The output moves, but by another element than it should."""
    group, names = trial.group, trial.group.names
    if is_trivial(trial.output_action, trial.outputs[0]):
        if _moves_like_input(trial):
            yield "the output moves as the input does; give output_action=input_action"
        return
    if matches.all_by(lambda g: 0):
        yield (
            "the output does not move at all: fn(gx) is fn(x); the inverse action on the outputs "
            "is missing, or the output is invariant and output_action should be None"
        )
    elif matches.all_by(group.inverse):
        yield (
            "the output is not inverted: fn(gx) is g^-1 fn(x); act on each output with the "
            "inverse of what its input was moved by"
        )
    elif group.order <= LARGEST_TABLE:
        yield from _other_elements(matches, group, names)


def _other_elements(matches: _Matches, group: FiniteGroup, names: tuple[str, ...]) -> Iterable[str]:
    wrong = matches.wrong()
    acts_as = {g: [h for h in group.elements if bool(matches[g, h].all())] for g in wrong}
    if all(acts_as.values()):
        if len(wrong) == 2 and wrong[0] in acts_as[wrong[1]] and wrong[1] in acts_as[wrong[0]]:
            yield f"two elements are swapped: {names[wrong[0]]} and {names[wrong[1]]}"
        else:
            moves = [f"{names[g]} as {names[hs[0]]}" for g, hs in acts_as.items()]
            yield f"other elements act on the output than on the input: {_listed(moves)}"
        return
    # In many groups every element is conjugate to its inverse, and the two look the same.
    inverted = all(_acts_as_conjugate(matches, g, group.inverse(g)) for g in wrong)
    other_side = all(_acts_as_conjugate(matches, g, g) for g in wrong)
    if inverted and not other_side:
        yield "the output is not inverted: fn(gx) is k fn(x) with k conjugate to g^-1"
    elif other_side and not inverted:
        yield (
            "left and right action are mixed up: fn(gx) is k fn(x) with k conjugate to g, but not "
            "g itself"
        )
    elif inverted:
        yield (
            "the output is not inverted, or left and right action are mixed up: fn(gx) is k fn(x) "
            "with k conjugate to g and to g^-1"
        )


def _acts_as_conjugate(matches: _Matches, g: int, target: int) -> bool:
    """Whether each sample of fn(gx) is k fn(x), k conjugate to an element."""
    group = matches.group
    conjugates = {group.compose(group.compose(k, target), group.inverse(k)) for k in group.elements}
    return bool(torch.stack([matches[g, h] for h in conjugates]).any(dim=0).all())


def _moves_like_input(trial: Trial) -> bool:
    try:
        gaps = [trial.gap_to(trial.outputs[g], g, trial.input_action) for g in trial.group.elements]
    except (TypeError, ValueError):
        # The input action does not fit the output.
        return False
    return all(gap.mismatch is None and bool(_explained(gap).all()) for gap in gaps)


def _other_hand(trial: Trial, matches: _Matches) -> Iterable[str]:
    move = _other_handed(trial.output_action)
    if move is None:
        return
    action, reference, tolerance = trial.output_action, trial.outputs[0], trial.tolerance
    gaps = [
        Gap.between(action, trial.outputs[g], move(reference, g), tolerance)
        for g in trial.group.elements
    ]
    if all(bool(_explained(gap).all()) for gap in gaps):
        yield (
            "left and right action are mixed up: the output moves by the other regular action; "
            "RegularAction sends entry h to gh, RegularFeatureAction, for stacks of g^-1 M(gx), "
            "sends it to hg^-1"
        )


def _other_handed(action: Action) -> Callable[[Tensor, int], Tensor] | None:
    """The regular action from the other side; None for an action that is not regular."""
    group = action.group
    if isinstance(action, RegularFeatureAction):
        places, fiber = RegularAction(group, dim=1), action.fiber

        def move(x: Tensor, g: int) -> Tensor:
            moved = places.transform(x, g)
            entries: Tensor = fiber.transform(moved.flatten(0, 1), g)
            stack: Tensor = entries.unflatten(0, moved.shape[:2])
            return stack

        return move
    if not isinstance(action, PermutationAction | RegularAction):
        return None
    left = group.cayley_table
    right = tuple(tuple(left[h][group.inverse(g)] for h in group.elements) for g in group.elements)
    other = {left: right, right: left}.get(action.permutations)
    return None if other is None else PermutationAction(group, other, action.dim).transform


def _subgroup(trial: Trial, matches: _Matches) -> Iterable[str]:
    group, right = trial.group, set(matches.right())
    found = _largest_subgroup(group, right)
    # Elements that do not change x are no evidence.
    seen = [g for g in found if not all(trial.fixed()[g])]
    if seen and len(found) < group.order:
        embedding = group.subgroup(found)
        generators = [group.names[embedding.elements[k]] for k in embedding.subgroup.generators]
        names = ", ".join(group.names[g] for g in embedding.elements)
        yield (f"only a subgroup is respected, {{{names}}}, generated by {_listed(generators)}")


def _largest_subgroup(group: FiniteGroup, allowed: set[int]) -> tuple[int, ...]:
    """The largest subgroup within a set of elements, grown from its cyclic subgroups."""
    queue: list[tuple[int, ...]] = [(0,)]
    seen = set(queue)
    for members in queue:
        for g in sorted(allowed - set(members)):
            grown = group.subgroup([*members, g]).elements
            if grown not in seen and allowed.issuperset(grown):
                seen.add(grown)
                queue.append(grown)
    return max(seen, key=len)


def _border(trial: Trial, matches: _Matches) -> Iterable[str]:
    """Outputs that are images may be right inside, or a pixel off."""
    for k, (action, reference) in enumerate(trial.output_action.flatten(trial.outputs[0])):
        if not isinstance(action, ImageAction | VectorFieldAction):
            continue
        height, width = action.dims
        leaf = functools.partial(_leaf, trial, k)
        pairs = [(leaf(g), action.transform(reference, g)) for g in matches.wrong()]
        for margin in range(1, min(reference.shape[d] for d in (height, width)) // 3 + 1):
            if all(_same_inside(trial, *pair, (height, width), margin, (0, 0)) for pair in pairs):
                yield (
                    f"only a border of {margin} pixels is wrong: padding that differs from side to "
                    "side, or a position that the model reads off the border"
                )
                break
            if all(
                any(_same_inside(trial, *pair, (height, width), margin, s) for s in SHIFTS)
                for pair in pairs
            ):
                yield (
                    "the output is a pixel off: an even kernel, a stride or pooling on a size "
                    "that it does not divide symmetrically, or padding on one side only"
                )
                break


def _leaf(trial: Trial, k: int, g: int) -> Tensor:
    return trial.output_action.flatten(trial.outputs[g])[k][1]


def _same_inside(
    trial: Trial,
    found: Tensor,
    expected: Tensor,
    dims: tuple[int, int],
    margin: int,
    shift: tuple[int, int],
) -> bool:
    if found.shape != expected.shape:
        return False
    moved = expected.roll(shift, dims)
    for dim in dims:
        length = found.shape[dim] - 2 * margin
        found, moved = (y.narrow(dim, margin, length) for y in (found, moved))
    scale = float(expected.abs().max())
    allowed = SLACK * trial.tolerance.allowed(found.real.dtype, scale)
    return bool(((found - moved).abs() <= allowed).all())


def _layers(trial: Trial) -> Iterable[str]:
    lopsided = [
        f"{name} ({why})" for name, why in trial.layers.lopsided().items()
    ] if _acts_on_images(trial) else []  # fmt: skip
    if lopsided:
        yield (
            "padding or stride of an unfit size; these layers do not lie symmetrically on their "
            f"input: {_listed(lopsided)}"
        )


def _acts_on_images(trial: Trial) -> bool:
    leaves = trial.input_action.flatten(trial.x)
    return any(leaf.dim() >= 3 and leaf.is_floating_point() for _, leaf in leaves)


def _listed(names: Iterable[str], most: int = 5) -> str:
    shown = list(names)
    rest = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + rest
