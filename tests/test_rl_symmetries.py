"""Symmetries by name: what is built is an action, and what is none is refused."""

import pickle
import subprocess
import sys

import gymnasium
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gridworld
import rl_cases as cases
from equitune import (
    PermutationAction,
    RegularAction,
    TrivialAction,
    c4,
    cyclic,
    symmetric,
)
from equitune.rl import (
    Move,
    Symmetry,
    acrobot_mirror,
    cartpole_mirror,
    continuous_symmetry,
    discrete_symmetry,
)
from equitune.testing import assert_action, assert_group

MIRROR = Move({"a": "-a"}, {"l": "r"})
THREE = ["a", "b", "c"]


def matrix(action, g, size):
    """What element g does, as a matrix."""
    return action.transform(torch.eye(size, dtype=torch.float64), g).T


def assert_symmetry(symmetry, size, actions):
    assert_group(symmetry.group)
    assert symmetry.on_observations.group == symmetry.on_actions.group
    assert len(set(symmetry.group.names)) == symmetry.group.order
    assert_action(symmetry.on_observations, torch.randn(5, size))
    assert_action(symmetry.on_actions, torch.randn(5, actions))


@pytest.mark.parametrize(
    "name", [name for name, (place, _) in cases.RIGHT.items() if place != "pixels"]
)
def test_what_is_built_is_an_action(name):
    environment, symmetry = cases.RIGHT[name]
    env = cases.ENVIRONMENTS[environment][0]()
    space = env.action_space
    actions = space.n if isinstance(space, gymnasium.spaces.Discrete) else space.shape[0]
    assert_symmetry(symmetry, env.observation_space.shape[0], int(actions))


def test_the_named_ones_are_what_the_paper_says():
    cart = cartpole_mirror()
    assert torch.equal(matrix(cart.on_observations, 1, 4), -torch.eye(4, dtype=torch.float64))
    assert cart.on_actions.permutations == ((0, 1), (1, 0))
    acrobot = acrobot_mirror()
    assert matrix(acrobot.on_observations, 1, 6).diag().tolist() == [1, -1, 1, -1, -1, -1]
    assert acrobot.on_actions.permutations == ((0, 1, 2), (2, 1, 0))
    assert cart.group.names == acrobot.group.names == ("e", "mirror")


def test_an_exchange_may_be_written_once():
    once = discrete_symmetry(THREE, ["l", "r"], [Move({"a": "-b"}, {"l": "r"})])
    twice = discrete_symmetry(
        THREE, ["l", "r"], [Move({"a": "-b", "b": "-a"}, {"l": "r", "r": "l"})]
    )
    assert once == twice
    assert matrix(once.on_observations, 1, 3).tolist() == [[0, -1, 0], [-1, 0, 0], [0, 0, 1]]


def test_a_cycle_of_three():
    cycle = Move({"a": "b", "b": "c", "c": "a"}, {"x": "y", "y": "z", "z": "x"}, "turn")
    symmetry = discrete_symmetry(THREE, ["x", "y", "z"], [cycle])
    assert symmetry.group == cyclic(3)
    assert symmetry.group.names == ("e", "turn", "turn^2")
    assert symmetry.on_actions == PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
    # What was a is b now.
    moved = symmetry.on_observations.transform(torch.tensor([[10.0, 20.0, 30.0]]), 1)
    assert moved.tolist() == [[30, 10, 20]]


def test_parts_of_different_orders():
    """The observation part has order 2 and the action part order 3: both are of one group."""
    move = Move({"a": "-a"}, {"x": "y", "y": "z", "z": "x"})
    symmetry = discrete_symmetry(["a"], ["x", "y", "z"], [move])
    assert symmetry.group == cyclic(6)
    assert_symmetry(symmetry, 1, 3)


def test_two_moves_of_a_square_robot():
    legs = ["front left", "front right", "back right", "back left"]
    after = dict(zip(legs, legs[1:] + legs[:1], strict=True))
    turn = Move(after, {f"lift {leg}": f"lift {other}" for leg, other in after.items()}, "turn")
    mirror = Move(
        {"front left": "front right", "back left": "back right", "roll": "-roll"},
        {"lift front left": "lift front right", "lift back left": "lift back right"},
        "mirror",
    )
    entries, lifts = [*legs, "roll"], [f"lift {leg}" for leg in legs]
    symmetry = continuous_symmetry(entries, lifts, [turn, mirror])
    assert symmetry.group.order == 8
    assert not symmetry.group.is_abelian
    assert symmetry.group.names[:3] == ("e", "turn", "mirror")
    assert_symmetry(symmetry, 5, 4)
    # The names say which moves make an element, the last one first.
    turned, mirrored = (symmetry.group.names.index(name) for name in ("turn", "mirror"))
    both = symmetry.group.names.index("mirror turn")
    assert symmetry.group.compose(mirrored, turned) == both


def test_all_orders_of_three_arms():
    first, second = (Move({a: b}, {f"pull {a}": f"pull {b}"}) for a, b in ("ab", "bc"))
    symmetry = discrete_symmetry(THREE, [f"pull {a}" for a in THREE], [first, second])
    assert symmetry.group.order == symmetric(3).order
    assert not symmetry.group.is_abelian
    assert symmetry.group.names == ("e", "m1", "m2", "m2 m1", "m1 m2", "m1 m2 m1")
    assert_symmetry(symmetry, 3, 3)


@st.composite
def signed_permutations(draw, letters):
    images = draw(st.permutations(letters))
    minus = draw(st.lists(st.booleans(), min_size=len(letters), max_size=len(letters)))
    return {
        name: "-" * sign + image for name, image, sign in zip(letters, images, minus, strict=True)
    }


@given(st.data())
def test_random_moves_generate_an_action(data):
    names = "abcde"[: data.draw(st.integers(1, 5))]
    torques = "xyz"[: data.draw(st.integers(1, 3))]
    places = data.draw(signed_permutations(names))
    forces = data.draw(signed_permutations(torques))
    if all(map(str.__eq__, [*places, *forces], [*places.values(), *forces.values()])):
        with pytest.raises(ValueError, match="must move something"):
            continuous_symmetry(list(names), list(torques), [Move(places, forces)])
        return
    symmetry = continuous_symmetry(list(names), list(torques), [Move(places, forces)])
    assert_symmetry(symmetry, len(names), len(torques))
    # Element k is the k-th power of the move, whose matrix is written out here.
    for action, moved, letters in (
        (symmetry.on_observations, places, names),
        (symmetry.on_actions, forces, torques),
    ):
        once = torch.zeros(len(letters), len(letters), dtype=torch.float64)
        for name, image in moved.items():
            once[letters.index(image[-1]), letters.index(name)] = -1 if image[0] == "-" else 1
        for k in symmetry.group.elements:
            power = torch.linalg.matrix_power(once, k)
            assert torch.equal(matrix(action, k, len(letters)), power)


def test_a_symmetry_is_a_value():
    symmetry = gridworld.rotations()
    assert symmetry == gridworld.rotations()
    assert symmetry != gridworld.pixel_rotations()
    assert hash(symmetry) == hash(gridworld.rotations())
    assert pickle.loads(pickle.dumps(symmetry)) == symmetry
    with pytest.raises(AttributeError):
        symmetry.names = None


def test_subgroups_keep_the_names():
    symmetry = gridworld.rotations()
    half = symmetry.restrict(symmetry.group.subgroup([2]))
    assert half.names == symmetry.names
    assert half.group.names == ("e", "r^2")
    assert torch.equal(matrix(half.on_observations, 1, 4), -torch.eye(4, dtype=torch.float64))


def built(places, moves, names=THREE, actions=("l", "r")):
    return lambda: discrete_symmetry(names, actions, [Move(places, moves)])


NUMBERS = list("abcdefgh")

VALUE_ERRORS = {
    "unknown entry": (
        built({"d": "a"}, {}),
        "`observation` must have the names a, b, c in a move, got 'd'",
    ),
    "unknown image": (built({"a": "-d"}, {}), "must have the names a, b, c in a move, got 'd'"),
    "unknown action": (
        built({}, {"l": "up"}),
        "`action` must have the names l, r in a move, got 'up'",
    ),
    "a minus in front of what moves": (
        built({"-a": "a"}, {}),
        "must have the names a, b, c in a move, got '-a'",
    ),
    "a negated action": (
        built({}, {"l": "-r"}),
        r"must send discrete actions to actions, got \['-r'\], which negates",
    ),
    "two to one": (
        built({"a": "c", "b": "c", "c": "a"}, {}),
        "one-to-one, got 'a' and 'b' both sent to 'c'",
    ),
    "a cycle that does not close": (built({"a": "b", "b": "c"}, {}), "say where 'c' goes"),
    "one that stays is taken": (built({"a": "b", "b": "b"}, {}), "both sent to 'b'$"),
    "a name twice": (
        built({}, {"l": "r"}, names=["a", "a"]),
        "`observation` must have different names, got 'a' twice",
    ),
    "an action twice": (
        built({}, {}, actions=["l", "l"]),
        "`actions` must have different names, got 'l' twice",
    ),
    "a name with a minus": (
        built({}, {}, names=["-a"]),
        "must have names without a minus in front, got '-a'",
    ),
    "an empty name": (
        built({}, {}, names=["a", ""]),
        "must have names without a minus in front, got ''",
    ),
    "no names": (built({}, {}, names=[]), "use the names of its entries"),
    "no moves": (
        lambda: discrete_symmetry(THREE, ["l"], []),
        "`moves` must have 1 or more entries",
    ),
    "nothing moves": (built({}, {}), "`moves` must move something, got m, which does not"),
    "it moves to itself": (built({"a": "a"}, {"l": "l"}), "must move something"),
    "a huge group": (
        lambda: discrete_symmetry(
            NUMBERS,
            ["l"],
            [
                Move(dict(zip(NUMBERS, NUMBERS[1:] + NUMBERS[:1], strict=True))),
                Move({"a": "b"}),
            ],
        ),
        "`moves`: .* must generate at most largest=1000 elements",
    ),
    "two names for two moves": (
        lambda: discrete_symmetry(
            THREE, ["l"], [Move({"a": "-a"}, name="m"), Move({"b": "-b"}, name="m")]
        ),
        "`moves` must have different names, got 'm' twice",
    ),
    "two groups": (
        lambda: Symmetry(TrivialAction(c4()), RegularAction(cyclic(2))),
        "`on_actions` must be .* of on_observations, got one of order 2 beside one of order 4",
    ),
    "two groups of one order": (
        lambda: Symmetry(TrivialAction(c4()), TrivialAction(cyclic(2) * cyclic(2))),
        "use two actions of one group",
    ),
}

TYPE_ERRORS = {
    "one name": (built({}, {}, names="abc"), "use the names of its entries"),
    "a dict for a move": (
        lambda: discrete_symmetry(THREE, ["l"], [{"a": "b"}]), "must be a Move, got a dict"),
    "a move for a list": (
        lambda: discrete_symmetry(THREE, ["l", "r"], MIRROR), "use a list of Moves"),
    "a list of pairs": (lambda: Move([("a", "b")]), "`observation` must be a Mapping, got a list"),
    "text": (lambda: Move({}, "left"), "`action` must be a Mapping, got 'left'"),
    "numbers": (lambda: Move({0: 1}), "`observation\\[0\\]` must be a string, got 0"),
    "no action": (lambda: Symmetry(TrivialAction(c4()), [(0, 1)]), "on_actions` must be an Action"),
    "a symmetry for an action": (
        lambda: Symmetry(cartpole_mirror(), RegularAction(cyclic(2))),
        "`on_observations` must be an Action, got a Symmetry",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("error", "call", "message"), cases.refusals(VALUE_ERRORS, TYPE_ERRORS))
def test_what_is_refused(error, call, message):
    with pytest.raises(error, match=message):
        call()


def test_the_kit_says_what_to_install():
    program = (
        "import sys; sys.modules['gymnasium'] = None; import equitune\n"
        "try:\n    import equitune.rl\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert 'pip install "equitune[rl]"' in done.stdout
