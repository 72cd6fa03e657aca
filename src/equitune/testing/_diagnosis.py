"""Which of the usual causes an inequivariant function looks like."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from equitune.actions import Action
from equitune.groups import FiniteGroup
from equitune.groups._axioms import generated
from equitune.testing._batches import tensors_of
from equitune.testing._comparison import Gap, magnitudes
from equitune.testing._interactions import INFLUENCE
from equitune.testing._matches import Matches, explained, find_border
from equitune.testing._trial import Trial

LEFT_AND_RIGHT = "left and right action are mixed up"

LARGEST_TABLE = 64
"""The order of the largest group whose elements are all tried for each other."""


def find_causes(trial: Trial) -> tuple[str, ...]:
    """The causes that fit what was measured, the likeliest first; none if none fits."""
    if trial.draws or not trial.repeat_gap.within:
        return tuple(_randomness(trial))
    mixing = () if trial.interactions.within else tuple(_influences(trial))
    if trial.within or trial.mismatch is not None:
        return mixing
    whole = [*_rounding(trial)] or [*_mixing(trial)]
    if whole:
        return tuple(whole)
    matches = Matches(trial)
    whole = [*_symmetric_samples(trial), *_movement(trial, matches), *_other_hand(trial)]
    parts = [*_subgroup(trial, matches), *find_border(trial, matches)]
    rest = () if whole else [*_after_the_submodule(trial)] or _layers(trial)
    return (*mixing, *whole, *parts, *rest)


def _rounding(trial: Trial) -> Iterable[str]:
    """Differences that are hardly more than what is allowed, or than nothing."""
    if all(bool(explained(gap).all()) for gap in trial.all_gaps):
        yield (
            "the differences are hardly larger than what is allowed, as rounding is: run it in "
            "float64, or give a larger rtol"
        )
    inputs = tensors_of(trial.input_action, trial.x)
    failing = {int(k) for gap in trial.all_gaps for k in gap.tensor[~gap.passes]}
    outputs = [tensors_of(trial.output_action, trial.reference)[k] for k in sorted(failing)]
    if not all(y.is_floating_point() for y in (*inputs, *outputs)):
        return
    scale = max(float(magnitudes(leaf).max()) for leaf in inputs)
    sizes = [float(magnitudes(y).max()) for y in outputs]
    noise = [100 * scale * torch.finfo(y.dtype).eps for y in outputs]
    if all(0 < size <= most for size, most in zip(sizes, noise, strict=True)):
        yield (
            f"the output is rounding noise around 0, at most {max(sizes):.1e} where x is up to "
            f"{scale:.1e}; use atol"
        )


def _randomness(trial: Trial) -> Iterable[str]:
    dropouts = trial.layers.active_dropouts()
    if dropouts:
        yield f"dropout is active in {_listed(dropouts)}; call .eval() first"
    elif trial.layers.training():
        yield "the module is in train mode; call .eval() first"
    else:
        yield "fn draws random numbers; use a generator with a fixed seed for each call"


def _mixing(trial: Trial) -> Iterable[str]:
    """Right for whole batches, wrong where each sample has its own element."""
    if trial.mixed_gap.within or not all(gap.within for gap in trial.gaps):
        return
    norms = trial.layers.training_batch_norms()
    if norms:
        yield (
            f"BatchNorm is in train mode in {_listed(norms)}, so that its statistics mix the "
            "samples of a batch; call .eval(), or send all copies through in one batch"
        )
    else:
        over_it = "one element is chosen for the whole batch, or a statistic is taken over it"
        yield f"{INFLUENCE}: {over_it}"
        yield from _layouts(trial)


def _influences(trial: Trial) -> Iterable[str]:
    """The output for a sample depends on the others of its batch."""
    cause = (
        "a statistic, a similarity or attention runs over the first dimension, where a wrapper "
        "puts the copies of all samples; wrap the part of the model before that, or check in which "
        "order (|G|, B) is flattened"
    )
    # The failure says it where nothing else is wrong.
    yield cause if trial.within else f"{INFLUENCE}: {cause} ({trial.interactions})"
    yield from _layouts(trial)


def _layouts(trial: Trial) -> Iterable[str]:
    """What is known to mix samples, where they were seen to be mixed."""
    if trial.interactions.within:
        return
    second = trial.layers.batch_second()
    if second:
        yield (
            f"these layers have batch_first=False, where the batch is dim 1: {_listed(second)}; "
            "make them with batch_first=True, or transpose before and after"
        )
    batch, order = len(trial.each), trial.group.order
    leaves = tensors_of(trial.output_action, trial.reference)
    for shape in dict.fromkeys(tuple(leaf.shape) for leaf in leaves):
        if order * batch in shape[1:]:
            yield (
                f"the output has shape {shape} for a batch of {batch}: one dimension counts the "
                f"{order} copies of all samples, as where a model compares its samples with each "
                "other"
            )


def _after_the_submodule(trial: Trial) -> Iterable[str]:
    """A wrapper that is exact up to its submodule has the failure after it."""
    if trial.submodule is not None:
        yield (
            f"what follows the submodule {trial.submodule!r} does not respect the symmetry, such "
            "as a flattened grid: use a later submodule, or leave output_action out, so that its "
            "activation is invariant"
        )


def _symmetric_samples(trial: Trial) -> Iterable[str]:
    stabilised = trial.fixed[1:].any(dim=0)
    failing = torch.stack([~gap.passes for gap in trial.gaps]).any(dim=0)
    if bool(failing.any()) and bool(stabilised[failing].all()) and not bool(stabilised.all()):
        sample = int(failing.nonzero()[0])
        g = int(trial.fixed[1:, sample].nonzero()[0]) + 1
        yield (
            f"only samples that are symmetric themselves fail, such as sample {sample}, which "
            f"element {g} ({trial.group.names[g]}) does not change: where several copies are "
            "equally good, one is taken instead of the mean of all of them"
        )


def _movement(trial: Trial, matches: Matches) -> Iterable[str]:
    """The output moves, but by another element than it should."""
    group = trial.group
    if trial.is_invariance:
        if _moves_by(trial, trial.input_action):
            yield "the output moves as the input does; use output_action=input_action"
    elif matches.all_by(lambda g: 0):
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
        yield from _other_elements(matches, group)


def _other_elements(matches: Matches, group: FiniteGroup) -> Iterable[str]:
    wrong, names = matches.wrong, group.names
    acts_as = {g: matches.others(g) for g in wrong}
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
    mistakes = {"the output is not inverted": inverted, LEFT_AND_RIGHT: other_side}
    found = ", or ".join(mistake for mistake, looks in mistakes.items() if looks)
    conjugate = "g and to g^-1" if inverted and other_side else "g^-1" if inverted else "g"
    if found:
        itself = "" if inverted else ", but not g itself"
        yield f"{found}: fn(gx) is k fn(x) with k conjugate to {conjugate}{itself}"


def _acts_as_conjugate(matches: Matches, g: int, target: int) -> bool:
    """Whether each sample of fn(gx) is k fn(x), k conjugate to an element."""
    group = matches.group
    conjugates = {group.compose(group.compose(k, target), group.inverse(k)) for k in group.elements}
    return bool(torch.stack([matches[g, h] for h in conjugates]).any(dim=0).all())


def _moves_by(trial: Trial, action: Action) -> bool:
    """Whether every fn(gx) is fn(x), moved by another action."""
    try:
        moves = [tensors_of(action, action.transform(trial.reference, g))
                 for g in trial.group.elements]  # fmt: skip
    except (TypeError, ValueError):
        # The action does not fit the output.
        return False
    pairs = zip(trial.outputs, moves, strict=True)
    return all(bool(explained(Gap.between(*pair, trial.tolerance)).all()) for pair in pairs)


def _other_hand(trial: Trial) -> Iterable[str]:
    other = trial.output_action.other_side()
    if other is not None and _moves_by(trial, other):
        yield (
            f"{LEFT_AND_RIGHT}: the output moves by the other regular action; RegularAction sends "
            "entry h to gh, RegularFeatureAction, for stacks of g^-1 M(gx), sends it to hg^-1"
        )


def _subgroup(trial: Trial, matches: Matches) -> Iterable[str]:
    group, names = trial.group, trial.group.names
    right = set(matches.right)
    found = _largest_subgroup(group, right)
    # Elements that do not change x show nothing.
    if len(found) == group.order or bool(trial.fixed[found].all()):
        return
    embedding, table = group.subgroup(found), group.cayley_table
    generators = [names[embedding.elements[k]] for k in embedding.subgroup.generators]
    members = _listed((names[g] for g in embedding.elements), most=12)
    yield f"only a subgroup is respected, {{{members}}}, generated by {_listed(generators)}"
    centre = {z for z in group.elements if all(table[z][g] == table[g][z] for g in group.elements)}
    if right == {z for z in centre if table[z][z] == 0} and not trial.is_invariance:
        yield (
            "these are the elements that commute with all others and are their own inverses: as "
            "where outputs are averaged after g instead of g^-1"
        )


def _largest_subgroup(group: FiniteGroup, allowed: set[int]) -> list[int]:
    """The largest subgroup within a set of elements, grown element by element."""
    found = [frozenset([0])]
    seen = set(found)
    for members in found:
        for g in allowed - members:
            grown = frozenset(generated(group.cayley_table, [*members, g]))
            if grown not in seen and grown <= allowed:
                seen.add(grown)
                found.append(grown)
    return max(map(sorted, found), key=len)


def _layers(trial: Trial) -> Iterable[str]:
    lopsided = [f"{name} ({why})" for name, why in trial.layers.lopsided.items()]
    actions = [action for action, _ in trial.input_action.flatten(trial.x)]
    # Others move neither pixels nor coordinates in images.
    if lopsided and any(a.image_dims or not (a.linear or a.exact) for a in actions):
        yield (
            "padding or stride of an unfit size may be a part of it; these layers do not lie "
            f"symmetrically on their input: {_listed(lopsided)}"
        )


def _listed(names: Iterable[str], most: int = 5) -> str:
    shown = list(names)
    rest = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + rest
