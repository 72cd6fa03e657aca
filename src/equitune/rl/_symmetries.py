"""How a group acts on observations and on actions: named for known environments, or by names."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import naming, require, require_entries, require_strings, require_type
from equitune.actions import Action, MatrixAction, PermutationAction
from equitune.groups import Embedding, FiniteGroup, generate_permutations
from equitune.groups._permutations import Permutation
from equitune.rl._spaces import check_action_space, check_observation_space

LARGEST = 1000
"""Moves that generate more elements than this contain a mistake: no network has so many copies."""


@final
@dataclass(frozen=True)
class Symmetry:
    """One group that acts on the observations and on the actions of an environment.

    Attributes:
        on_observations: How it acts on batches of observations, (B, ...).
        on_actions: How it acts on batches of actions, (B, A): a ``PermutationAction`` of the scores
            of A discrete actions, where g turns action a into ``permutations[g][a]``; for
            continuous ones a ``MatrixAction``, or another that does not permute.
        names: What the entries of an observation vector are called in reports; None for numbers.

    Raises:
        TypeError: If one of the first two is not an action.
        ValueError: If they are of different groups.
    """

    on_observations: Action
    on_actions: Action
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("on_observations", "on_actions"):
            require_type(name, getattr(self, name), Action, "one such as a MatrixAction")
        if self.names is not None:
            names = require_strings("names", self.names, "a name for each entry of an observation")
            object.__setattr__(self, "names", names)
        first, second = self.on_observations.group, self.on_actions.group
        got = f"one of order {second.order} beside one of order {first.order}"
        must, use = "be of the group of on_observations", "two actions of one group"
        require(first == second, "on_actions", must, got, use)

    @property
    def group(self) -> FiniteGroup:
        """The group that acts."""
        return self.on_observations.group

    def check_spaces(self, observation_space: Any, action_space: Any) -> None:
        """Refuses spaces of gymnasium that the group does not act on.

        Args:
            observation_space: That of an environment; a ``Box``.
            action_space: That of an environment; ``Discrete`` or a ``Box``.

        Raises:
            TypeError: If a space is of another kind, or discrete actions meet an action that is
                for continuous ones, or the other way round.
            ValueError: If a shape or the number of actions does not fit, or an element does not
                keep the bounds of a ``Box``.
        """
        check_observation_space(observation_space, self.on_observations)
        check_action_space(action_space, self.on_actions)

    def restrict(self, embedding: Embedding) -> Symmetry:
        """The same symmetry, of a subgroup only.

        Example:
            >>> from equitune.rl import Move, discrete_symmetry
            >>> after = {"east": "north", "north": "west", "west": "south", "south": "east"}
            >>> turn = Move({"x": "y", "y": "-x"}, after)
            >>> symmetry = discrete_symmetry(["x", "y"], list(after), [turn])
            >>> half_turns = symmetry.restrict(symmetry.group.subgroup([2]))
            >>> half_turns.on_actions.permutations
            ((0, 1, 2, 3), (2, 3, 0, 1))
        """
        first, second = self.on_observations, self.on_actions
        return Symmetry(first.restrict(embedding), second.restrict(embedding), self.names)


@final
@dataclass(frozen=True)
class Move:
    """Where one element sends the named entries of observations and actions.

    ``{"left hip": "right hip"}`` puts what was the left hip in the place of the right one, and
    a minus negates it: ``{"roll": "-roll"}``. An exchange may be written once, also a negated one:
    ``{"x": "-y"}`` sends y to -x. Names that are left out stay.

    Attributes:
        observation: The entries of observations that move.
        action: The actions, or entries of actions, that move.
        name: What the element is called in reports.

    Raises:
        TypeError: If an argument is not what it should be, or something moves that is not a name.
    """

    observation: Mapping[str, str] = field(default_factory=dict)
    action: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        require_type("name", self.name, str, "what the element is called in reports")
        for kind in ("observation", "action"):
            use = 'a mapping of names to names, such as {"left": "right"}'
            moved = require_type(kind, getattr(self, kind), Mapping, use)
            require_strings(kind, itertools.chain.from_iterable(moved.items()), use)


def require_symmetry(symmetry: Any) -> Symmetry:
    """The symmetry itself; refuses anything else."""
    checked: Symmetry = require_type(
        "symmetry", symmetry, Symmetry, "one such as cartpole_mirror()"
    )
    return checked


def discrete_symmetry(
    observation: Sequence[str], actions: Sequence[str], moves: Iterable[Move]
) -> Symmetry:
    """The group that some moves of named observation entries and discrete actions generate.

    Args:
        observation: The names of the entries of an observation vector, in order.
        actions: The names of the actions, in order.
        moves: What generates the group.

    Returns:
        The symmetry; with one move, element k of the group is its k-th power.

    Raises:
        TypeError: If an argument is not what it should be.
        ValueError: If a name is unknown or given twice, a move is not one-to-one, or it negates
            a discrete action.

    Example:
        >>> from equitune.rl import Move, discrete_symmetry
        >>> symmetry = discrete_symmetry(
        ...     observation=["position", "velocity"],
        ...     actions=["left", "stay", "right"],
        ...     moves=[
        ...         Move(
        ...             observation={"position": "-position", "velocity": "-velocity"},
        ...             action={"left": "right"},
        ...         )
        ...     ],
        ... )
        >>> symmetry.on_actions.permutations
        ((0, 1, 2), (2, 1, 0))
    """
    moves = _checked_moves(moves)
    negated = [image for move in moves for image in move.action.values() if image.startswith("-")]
    got, use = f"{negated[:1]}, which negates one", "other names, or continuous_symmetry"
    require(not negated, "moves", "send discrete actions to actions", got, use)
    group, entries, scores = _generated(observation, actions, moves)
    permutations = PermutationAction(group, [row[: len(actions)] for row in scores])
    return Symmetry(MatrixAction(group, _matrices(entries)), permutations, observation)


def continuous_symmetry(
    observation: Sequence[str], actions: Sequence[str], moves: Iterable[Move]
) -> Symmetry:
    """The group that some moves of named entries of observations and continuous actions generate.

    Args:
        observation: The names of the entries of an observation vector, in order.
        actions: The names of the entries of an action vector, in order, such as torques.
        moves: What generates the group.

    Returns:
        The symmetry; with one move, element k of the group is its k-th power.

    Raises:
        TypeError: If an argument is not what it should be.
        ValueError: If a name is unknown or given twice, or a move is not one-to-one.

    Example:
        >>> from equitune.rl import Move, continuous_symmetry
        >>> mirror = Move(
        ...     observation={"left hip": "right hip", "roll": "-roll"},
        ...     action={"left torque": "right torque"},
        ... )
        >>> symmetry = continuous_symmetry(
        ...     observation=["left hip", "right hip", "roll"],
        ...     actions=["left torque", "right torque"],
        ...     moves=[mirror],
        ... )
        >>> symmetry.group.order
        2
    """
    group, entries, torques = _generated(observation, actions, _checked_moves(moves))
    first, second = (MatrixAction(group, _matrices(rows)) for rows in (entries, torques))
    return Symmetry(first, second, observation)


def cartpole_mirror() -> Symmetry:
    """The reflection of CartPole: the state negated, left and right exchanged.

    Observations are (cart position, cart velocity, pole angle, pole angular velocity), actions 0
    (left) and 1 (right).
    """
    entries = ["cart position", "cart velocity", "pole angle", "pole angular velocity"]
    negated = {name: f"-{name}" for name in entries}
    mirror = Move(negated, {"left": "right"}, "mirror")
    return discrete_symmetry(entries, ["left", "right"], [mirror])


def acrobot_mirror() -> Symmetry:
    """The reflection of Acrobot: sines and angular velocities negated, the torque reversed.

    Observations are the cosine and sine of both angles and both angular velocities, actions 0, 1
    and 2, the torques -1, 0 and 1.
    """
    entries = ["cos 1", "sin 1", "cos 2", "sin 2", "velocity 1", "velocity 2"]
    negated = {name: f"-{name}" for name in entries if not name.startswith("cos")}
    torques = ["torque -1", "torque 0", "torque 1"]
    return discrete_symmetry(entries, torques, [Move(negated, {"torque -1": "torque 1"}, "mirror")])


def _checked_moves(moves: Iterable[Move]) -> list[Move]:
    use = "a list of Moves, such as [Move(observation={...}, action={...})]"
    found = require_entries("moves", moves, use, least=1)
    return [require_type(f"moves[{i}]", move, Move, use) for i, move in enumerate(found)]


def _generated(
    observation: Sequence[str], actions: Sequence[str], moves: Sequence[Move]
) -> tuple[FiniteGroup, list[Permutation], list[Permutation]]:
    """The group, and how its elements permute the signed entries of observations and actions."""
    for kind, names in (("observation", observation), ("actions", actions)):
        _check_names(kind, names)
    size = 2 * len(observation)
    generators: dict[str, Permutation] = {}
    for k, move in enumerate(moves):
        first = _signed(observation, move.observation, "observation")
        second = _signed(actions, move.action, "action")
        permutation = (*first, *(size + image for image in second))
        name = move.name or (f"m{k + 1}" if len(moves) > 1 else "m")
        moved = permutation != tuple(range(len(permutation)))
        require(moved, "moves", "move something", f"{name}, which does not", "the others alone")
        new = name not in generators
        require(new, "moves", "have different names", f"{name!r} twice", "one name for each")
        generators[name] = permutation
    with naming("moves"):
        rows = generate_permutations(generators.values(), LARGEST)
        group = FiniteGroup.from_generators(generators.values(), generators)
    return group, [row[:size] for row in rows], [tuple(i - size for i in r[size:]) for r in rows]


def _check_names(kind: str, names: Sequence[str]) -> None:
    use = "the names of its entries, in order"
    checked = require_strings(kind, require_entries(kind, names, use, least=1), use)
    for name in checked:
        plain = bool(name) and not name.startswith("-")
        require(plain, kind, "have names without a minus in front", f"{name!r}", use)
        require(checked.count(name) == 1, kind, "have different names", f"{name!r} twice", use)


def _signed(names: Sequence[str], moved: Mapping[str, str], kind: str) -> list[int]:
    """Where 2n signed entries go: +i is number i, -i number n + i."""
    images, must = dict(moved), f"have the names {', '.join(names)} in a move"
    for name, image in moved.items():
        plain = image.removeprefix("-")
        for known in (name, plain):
            require(known in names, kind, must, f"{known!r}", "one of them")
        # An exchange that is written once.
        images.setdefault(plain, image.removesuffix(plain) + name)
    for target in names:
        sources = [name for name in names if images.get(name, name).removeprefix("-") == target]
        if len(sources) > 1:
            unsaid = [f", so say where {name!r} goes" for name in sources if name not in moved]
            got = f"{' and '.join(map(repr, sources))} both sent to {target!r}{''.join(unsaid[:1])}"
            raise ValueError(f"`{kind}` of a move must be one-to-one, got {got}")
    count, signed = len(names), [*names, *(f"-{name}" for name in names)]
    targets = [signed.index(images.get(name, name)) for name in names]
    return targets + [(target + count) % (2 * count) for target in targets]


def _matrices(rows: Sequence[Permutation]) -> Tensor:
    """Permutations of n signed entries as matrices, (|G|, n, n) in float64."""
    count = len(rows[0]) // 2
    images = torch.tensor(rows, device="cpu")[:, None, :count]
    signs = (1 - 2 * (images // count)).double()
    empty = signs.new_zeros(len(rows), count, count)
    return empty.scatter_(1, images % count, signs)
