"""How a group acts on observations and on actions: named for known environments, or by names."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import require_entries, require_strings, require_type
from equitune.actions import Action, MatrixAction, PermutationAction
from equitune.groups import Embedding, FiniteGroup
from equitune.groups._permutations import Permutation, multiply
from equitune.rl._spaces import check_action_space, check_observation_space

__all__ = [
    "Move",
    "Symmetry",
    "acrobot_mirror",
    "cartpole_mirror",
    "continuous_symmetry",
    "discrete_symmetry",
]

LARGEST = 1000
"""More elements than a network is ever symmetrised by: moves that make them have a slip."""


@final
@dataclass(frozen=True)
class Symmetry:
    """One group that acts on the observations and on the actions of an environment.

    Attributes:
        observation: How it acts on batches of observations, (B, ...).
        action: How it acts on batches of actions, (B, A): a ``PermutationAction`` of the scores
            of A discrete actions, where g turns action a into ``permutations[g][a]``; for
            continuous ones a ``MatrixAction``, or another that is no permutation.
        names: What the entries of an observation vector are called in reports; None for numbers.

    Raises:
        TypeError: If one of them is no action.
        ValueError: If they are of different groups.
    """

    observation: Action
    action: Action
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("observation", "action"):
            given = getattr(self, name)
            if not isinstance(given, Action):
                raise TypeError(
                    f"{name} is a {type(given).__name__}; use an action such as MatrixAction"
                )
        if self.names is not None:
            require_strings("names", self.names, "what each entry of an observation is called")
        if self.observation.group != self.action.group:
            raise ValueError(
                f"observation is one of a group of order {self.observation.group.order}, action "
                f"one of another group, of order {self.action.group.order}; use two actions of "
                "one group"
            )

    @property
    def group(self) -> FiniteGroup:
        """The group that acts."""
        return self.observation.group

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
        check_observation_space(observation_space, self.observation)
        check_action_space(action_space, self.action)

    def restrict(self, embedding: Embedding) -> Symmetry:
        """The same symmetry, of a subgroup only.

        Example:
            >>> from equitune.rl import Move, discrete_symmetry
            >>> after = {"east": "north", "north": "west", "west": "south", "south": "east"}
            >>> turn = Move({"x": "y", "y": "-x"}, after)
            >>> symmetry = discrete_symmetry(["x", "y"], list(after), [turn])
            >>> half_turns = symmetry.restrict(symmetry.group.subgroup([2]))
            >>> half_turns.action.permutations
            ((0, 1, 2, 3), (2, 3, 0, 1))
        """
        return Symmetry(
            self.observation.restrict(embedding), self.action.restrict(embedding), self.names
        )


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
        TypeError: If something moves that is no name.
    """

    observation: Mapping[str, str] = field(default_factory=dict)
    action: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        require_type("name", self.name, str, "what the element is called in reports")
        for kind in ("observation", "action"):
            given = getattr(self, kind)
            if not isinstance(given, Mapping):
                raise TypeError(
                    f"{kind} is a {type(given).__name__}; use a mapping of names to names, such "
                    'as {"left": "right"}'
                )
            for name in itertools.chain.from_iterable(given.items()):
                if not isinstance(name, str):
                    raise TypeError(f"{kind} moves {name!r}; use the names of entries")


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
        TypeError: If a move is none.
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
        >>> symmetry.action.permutations
        ((0, 1, 2), (2, 1, 0))
    """
    moves = _checked_moves(moves)
    for move in moves:
        for name, image in move.action.items():
            if image.startswith("-"):
                raise ValueError(
                    f"a move sends the action {name!r} to {image!r}, but discrete actions cannot "
                    "be negated; use the name of another action, or continuous_symmetry"
                )
    rows, group = _generated(observation, actions, moves)
    count, size = len(actions), len(observation)
    permutations = [[row[2 * size + i] - 2 * size for i in range(count)] for row in rows]
    return Symmetry(
        MatrixAction(group, _matrices(rows, 0, size)),
        PermutationAction(group, permutations),
        tuple(observation),
    )


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
        TypeError: If a move is none.
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
    rows, group = _generated(observation, actions, _checked_moves(moves))
    size = len(observation)
    return Symmetry(
        MatrixAction(group, _matrices(rows, 0, size)),
        MatrixAction(group, _matrices(rows, 2 * size, len(actions))),
        tuple(observation),
    )


def cartpole_mirror() -> Symmetry:
    """The reflection of CartPole: the state negated, left and right exchanged.

    Observations are (cart position, cart velocity, pole angle, pole angular velocity), actions 0
    (left) and 1 (right).
    """
    entries = ["cart position", "cart velocity", "pole angle", "pole angular velocity"]
    negated = {name: f"-{name}" for name in entries}
    return discrete_symmetry(
        entries, ["left", "right"], [Move(negated, {"left": "right"}, "mirror")]
    )


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
    found = require_entries("moves", moves, "a list of Moves")
    for move in found:
        if not isinstance(move, Move):
            raise TypeError(
                f"moves has a {type(move).__name__}; use Move(observation={{...}}, action={{...}})"
            )
    if not found:
        raise ValueError("moves is empty; use at least one Move")
    return found


def _generated(
    observation: Sequence[str], actions: Sequence[str], moves: Sequence[Move]
) -> tuple[tuple[Permutation, ...], FiniteGroup]:
    """The permutations of all signed entries, observations first, and their group."""
    for kind, names in (("observation", observation), ("actions", actions)):
        _check_names(kind, names)
    observed, acted = list(observation), list(actions)
    generators: list[tuple[str, Permutation]] = []
    for k, move in enumerate(moves):
        first = _signed(observed, move.observation, "observation")
        second = _signed(acted, move.action, "action")
        permutation = (*first, *(len(first) + image for image in second))
        name = move.name or (f"m{k + 1}" if len(moves) > 1 else "m")
        if permutation == tuple(range(len(permutation))):
            raise ValueError(f"move {name} leaves everything where it is; leave it out")
        if name in dict(generators):
            raise ValueError(f"two moves have the name {name!r}; names tell elements apart")
        generators.append((name, permutation))
    words = _words(generators)
    names = [_spelled(word) for word in words.values()]
    (name, count), *_ = Counter(names).most_common(1)
    if count > 1:
        raise ValueError(
            f"two elements of the group would have the name {name!r}; use other names for the moves"
        )
    return tuple(words), FiniteGroup.from_permutations(words, names)


def _words(generators: Sequence[tuple[str, Permutation]]) -> dict[Permutation, list[str]]:
    """All products, each with the names of its factors, the last one to act first."""
    words: dict[Permutation, list[str]] = {tuple(range(len(generators[0][1]))): []}
    queue = list(words)
    for current in queue:
        for name, generator in generators:
            product = multiply(generator, current)
            if product not in words:
                words[product] = [name, *words[current]]
                queue.append(product)
        if len(queue) > LARGEST:
            raise ValueError(
                f"the moves generate a group of more than {LARGEST} elements; check where they "
                "send the entries"
            )
    return words


def _spelled(word: Sequence[str]) -> str:
    runs = [(name, len(list(run))) for name, run in itertools.groupby(word)]
    return " ".join(name if n == 1 else f"{name}^{n}" for name, n in runs) or "e"


def _check_names(kind: str, names: Sequence[str]) -> None:
    if not isinstance(names, str):
        names = require_entries(kind, names, "the names of its entries, in order")
    if isinstance(names, str) or not names:
        raise ValueError(f"{kind} is {names!r}; use the names of its entries, in order")
    for name in names:
        if not isinstance(name, str) or not name or name.startswith("-"):
            raise ValueError(f"{kind} has the name {name!r}; use text that has no minus in front")
        if list(names).count(name) > 1:
            raise ValueError(f"{kind} has the name {name!r} twice; names tell entries apart")


def _signed(names: list[str], moved: Mapping[str, str], kind: str) -> list[int]:
    """Where 2n signed entries go: +i is number i, -i number n + i."""
    count, images = len(names), dict(moved)
    for name, image in moved.items():
        for known in (name, image.removeprefix("-")):
            if known not in names:
                raise ValueError(
                    f"a move of the {kind} has the name {known!r}; there are {', '.join(names)}"
                )
    for name, image in moved.items():
        plain = image.removeprefix("-")
        # An exchange that is written once.
        images.setdefault(plain, name if plain == image else f"-{name}")
    targets = list(range(count))
    for name, image in images.items():
        plain = image.removeprefix("-")
        targets[names.index(name)] = names.index(plain) + (count if plain != image else 0)
    for target in range(count):
        sources = [
            name for name, taken in zip(names, targets, strict=True) if taken % count == target
        ]
        if len(sources) > 1:
            unsaid = [name for name in sources if name not in moved]
            raise ValueError(
                f"a move of the {kind} sends {' and '.join(map(repr, sources))} to "
                f"{names[target]!r}; it has to be one-to-one"
                + (f", so say where {unsaid[0]!r} goes" if unsaid else "")
            )
    return targets + [(target + count) % (2 * count) for target in targets]


def _matrices(rows: Sequence[Sequence[int]], start: int, count: int) -> Tensor:
    matrices = torch.zeros(len(rows), count, count, dtype=torch.float64, device="cpu")
    for g, row in enumerate(rows):
        for i in range(count):
            image = row[start + i] - start
            matrices[g, image % count, i] = 1 if image < count else -1
    return matrices
