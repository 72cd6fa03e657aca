"""Environments, with maps that are symmetries of them and maps that are not."""

import gymnasium
import numpy as np
import pytest
import torch

import gridworld
from equitune import (
    ImageAction,
    MatrixAction,
    PermutationAction,
    RegularAction,
    TrivialAction,
    c4,
    cyclic,
    d4,
)
from equitune.actions import Action
from equitune.rl import (
    Move,
    Symmetry,
    acrobot_mirror,
    cartpole_mirror,
    continuous_symmetry,
    discrete_symmetry,
)

CARTPOLE = cartpole_mirror().names
ACROBOT = acrobot_mirror().names
GRID = gridworld.rotations().names
TORQUES = ["back", "none", "forth"]
MOVES = ["right", "up", "left", "down"]


class PointMass(gymnasium.Env):
    """A mass on a square table with rough walls, drawn to the middle: the symmetries are d4."""

    def __init__(self, noise=0.0, wind=0.0, any_mass=False):
        self.observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.noise, self.wind, self.any_mass, self.mass = noise, wind, any_mass, 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2)
        self.speed = self.np_random.uniform(-0.5, 0.5, 2)
        if self.any_mass:
            self.mass = self.np_random.uniform(1, 2)
        return self._observed(), {}

    def step(self, action):
        force = np.clip(action, -1, 1) + self.noise * self.np_random.normal(size=2)
        self.speed = np.clip(0.9 * self.speed + 0.2 * force / self.mass, -1, 1)
        self.place = np.clip(self.place + 0.1 * self.speed + [self.wind, 0], -1, 1)
        near = float(np.abs(self.place).max())
        return self._observed(), -near - 0.1 * float(force @ force), near < 0.1, False, {}

    def _observed(self):
        return np.array([*self.place, *self.speed], dtype=np.float32)

    def set_state(self, observation):
        self.place = np.array(observation[:2], dtype=np.float64)
        self.speed = np.array(observation[2:], dtype=np.float64)


class Line(gymnasium.Env):
    """A walker between two walls, whose two actions are called 1 (left) and 2 (right)."""

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-3, 3, (1,), np.float64)
        self.action_space = gymnasium.spaces.Discrete(2, start=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.integers(-2, 3)
        return np.array([float(self.place)]), {}

    def step(self, action):
        assert action in (1, 2)
        self.place += 2 * int(action) - 3
        return np.array([float(self.place)]), 0.0, abs(self.place) == 3, False, {}

    def set_state(self, observation):
        self.place = round(float(observation[0]))


class Opposite(Action):
    """1 - x in the place of x: an action that is not linear."""

    group = cyclic(2)

    def transform(self, x, g):
        return 1 - x if g else x

    def restrict(self, embedding):
        return self if embedding.subgroup == self.group else TrivialAction(embedding.subgroup)

    def _state(self):
        return ()


def refusals(value_errors, type_errors):
    """What a test of refusals is given: the kind of each error, the call and the words."""
    kinds = ((ValueError, value_errors), (TypeError, type_errors))
    return [
        pytest.param(kind, *case, id=f"{kind.__name__}, {name}")
        for kind, cases in kinds
        for name, case in cases.items()
    ]


def put(env, observation):
    env.unwrapped.set_state(observation)


def put_pendulum(env, observation):
    cos, sin, speed = np.asarray(observation, dtype=np.float64)
    env.unwrapped.state = np.array([np.arctan2(sin, cos), speed])


# Name: how it is made, and set_state where the library has none.
ENVIRONMENTS = {
    "cartpole": (lambda: gymnasium.make("CartPole-v1"), None),
    "acrobot": (lambda: gymnasium.make("Acrobot-v1"), None),
    "grid": (lambda: gymnasium.make("equitune/Gridworld-v0"), gridworld.set_state),
    "even grid": (lambda: gymnasium.make("equitune/Gridworld-v0", size=4), gridworld.set_state),
    "pixels": (lambda: gymnasium.make("equitune/PixelGridworld-v0", size=4), gridworld.set_state),
    "pendulum": (lambda: gymnasium.make("Pendulum-v1"), put_pendulum),
    "point mass": (PointMass, put),
    "line": (Line, put),
}


def signs(names, negated, actions, exchanged):
    """Some entries negated; actions exchanged where discrete."""
    move = Move({names[i]: f"-{names[i]}" for i in negated}, exchanged, "mirror")
    return discrete_symmetry(names, actions, [move])


def cart(*negated, exchanged=True):
    return signs(CARTPOLE, negated, ["left", "right"], {"left": "right"} if exchanged else {})


def acro(*negated, exchanged=None):
    return signs(ACROBOT, negated, TORQUES, {"back": "forth"} if exchanged is None else exchanged)


def grid(places, moves):
    """``places`` and ``moves`` say where what was there goes; a mapping each."""
    return discrete_symmetry(GRID, MOVES, [Move(places, moves, "g")])


AGENT_TURN = {"agent x": "agent y", "agent y": "-agent x"}
GOAL_TURN = {"goal x": "goal y", "goal y": "-goal x"}
TURN = AGENT_TURN | GOAL_TURN
MOVES_TURN = dict(zip(MOVES, MOVES[1:] + MOVES[:1], strict=True))
MOVES_BACK = {after: before for before, after in MOVES_TURN.items()}
DIAGONAL = {"agent x": "agent y", "goal x": "goal y"}
FLIP = {"agent x": "-agent x", "goal x": "-goal x"}

MASS = ["x", "y", "speed x", "speed y"]
FORCES = ["force x", "force y"]
MASS_TURN = {"x": "y", "y": "-x", "speed x": "speed y", "speed y": "-speed x"}
MASS_FLIP = {"x": "-x", "speed x": "-speed x"}


def mass(places, forces):
    return continuous_symmetry(MASS, FORCES, [Move(places, forces, "g")])


def swing(places, torque):
    return continuous_symmetry(
        ["cos", "sin", "speed"], ["torque"], [Move(places, torque, "mirror")]
    )


def by_hand():
    """The mirror of CartPole, with a RegularAction of its two actions."""
    matrices = torch.stack([torch.eye(4), -torch.eye(4)])
    return Symmetry(MatrixAction(cyclic(2), matrices), RegularAction(cyclic(2)))


def half_turns(symmetry):
    return symmetry.restrict(symmetry.group.subgroup([2]))


def quarter_turns_of_d4():
    moves = [(0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2),
             (2, 1, 0, 3), (1, 0, 3, 2), (0, 3, 2, 1), (3, 2, 1, 0)]  # fmt: skip
    return Symmetry(ImageAction(d4()), PermutationAction(d4(), moves))


def on_pictures(elements, shift):
    """``elements`` of d4 for those of c4, and moves that are shifted by so many quarter turns."""
    moves = [[(move + shift * g) % 4 for move in range(4)] for g in range(4)]
    return Symmetry(ImageAction(c4(), elements), PermutationAction(c4(), moves))


def channels():
    """Red and blue exchanged, which leaves every move as it is."""
    both = PermutationAction(cyclic(2), [(0, 1, 2), (2, 1, 0)], dim=1)
    return Symmetry(both, PermutationAction(cyclic(2), [range(4)] * 2))


RIGHT = {
    "cartpole, named": ("cartpole", cartpole_mirror()),
    "cartpole, by hand": ("cartpole", by_hand()),
    "acrobot, named": ("acrobot", acrobot_mirror()),
    "grid, named": ("grid", gridworld.rotations()),
    "grid of even size": ("even grid", gridworld.rotations()),
    "grid, half turns": ("grid", half_turns(gridworld.rotations())),
    "grid, a flip": ("grid", grid(FLIP, {"left": "right"})),
    "grid, a diagonal": ("grid", grid(DIAGONAL, {"right": "up", "left": "down"})),
    "grid, all of the square": (
        "grid",
        discrete_symmetry(
            GRID, MOVES, [Move(TURN, MOVES_TURN, "r"), Move(FLIP, {"left": "right"}, "s")]
        ),
    ),
    "pixels, named": ("pixels", gridworld.pixel_rotations()),
    "pixels, half turns": ("pixels", half_turns(gridworld.pixel_rotations())),
    "pixels, all of the square": ("pixels", quarter_turns_of_d4()),
    "pendulum": ("pendulum", swing({"sin": "-sin", "speed": "-speed"}, {"torque": "-torque"})),
    "point mass, turned": (
        "point mass", mass(MASS_TURN, {"force x": "force y", "force y": "-force x"})),
    "point mass, all of the square": (
        "point mass",
        continuous_symmetry(
            MASS,
            FORCES,
            [
                Move(MASS_TURN, {"force x": "force y", "force y": "-force x"}, "r"),
                Move(MASS_FLIP, {"force x": "-force x"}, "s"),
            ],
        ),
    ),
    "line": ("line", discrete_symmetry(["place"], ["left", "right"],
                                       [Move({"place": "-place"}, {"left": "right"})])),
}  # fmt: skip

# Name: the environment, the map, and something the report has to name. All of them are actions of
# a group on both sides, so that nothing but the environment can tell.
WRONG = {
    "cartpole, state stays": ("cartpole", cart(), "pole angular velocity"),
    "cartpole, actions stay": ("cartpole", cart(0, 1, 2, 3, exchanged=False), "cart velocity"),
    "cartpole, places only": ("cartpole", cart(0, 2), "pole angle"),
    "cartpole, velocities only": ("cartpole", cart(1, 3), "pole angle"),
    "cartpole, cart only": ("cartpole", cart(0, 1), "pole angular velocity"),
    "cartpole, pole only": ("cartpole", cart(2, 3), "cart velocity"),
    "cartpole, all but the cart's place": ("cartpole", cart(1, 2, 3), "cart position"),
    "cartpole, all but the cart's velocity": ("cartpole", cart(0, 2, 3), "cart position"),
    "cartpole, all but the pole's angle": ("cartpole", cart(0, 1, 3), "pole angle"),
    "cartpole, all but the pole's velocity": ("cartpole", cart(0, 1, 2), "pole angle"),
    "cartpole, both velocities negated alone, actions stay": (
        "cartpole", cart(1, 3, exchanged=False), "cart position"),
    "acrobot, torques stay": ("acrobot", acro(1, 3, 4, 5, exchanged={}), "velocity 2"),
    "acrobot, sines stay": ("acrobot", acro(4, 5), "sin 1"),
    "acrobot, velocities stay": ("acrobot", acro(1, 3), "velocity 2"),
    "acrobot, torques only": ("acrobot", acro(), "velocity 2"),
    "acrobot, one link only": ("acrobot", acro(1, 4), "velocity 2"),
    "acrobot, one sine stays": ("acrobot", acro(1, 4, 5), "sin 2"),
    "acrobot, upside down": ("acrobot", acro(0, 1, 3, 4, 5), "velocity 1"),
    "acrobot, cosines too": ("acrobot", acro(0, 1, 2, 3, 4, 5), "velocity 1"),
    "acrobot, other torques": (
        "acrobot", acro(1, 3, 4, 5, exchanged={"back": "none"}), "velocity 2"),
    "grid, moves turned backwards": ("grid", grid(TURN, MOVES_BACK), "agent x"),
    "grid, moves stay": ("grid", grid(TURN, {}), "agent x"),
    "grid, places stay": ("grid", grid({}, MOVES_TURN), "agent y"),
    "grid, agent alone": ("grid", grid(AGENT_TURN, MOVES_TURN), "the reward"),
    "grid, goal alone": ("grid", grid(GOAL_TURN, {}), "the reward"),
    "grid, x and y exchanged, moves turned": ("grid", grid(DIAGONAL, MOVES_TURN), "agent y"),
    "grid, flipped, up and down exchanged": ("grid", grid(FLIP, {"up": "down"}), "agent y"),
    "grid, flipped, half a turn of moves": (
        "grid", grid(FLIP, {"up": "down", "left": "right"}), "agent y"),
    "grid, agent and goal exchanged": (
        "grid", grid({"agent x": "goal x", "agent y": "goal y"}, {}), "agent x"),
    "pixels, clockwise": ("pixels", on_pictures((0, 3, 2, 1), 1), "observation["),
    "pixels, moves stay": ("pixels", on_pictures((0, 1, 2, 3), 0), "observation["),
    "pixels, pictures stay": ("pixels", on_pictures((0, 0, 0, 0), 1), "observation["),
    "pixels, half turns and quarter turns": (
        "pixels", on_pictures((0, 2, 0, 2), 1), "observation["),
    "pixels, colours": ("pixels", channels(), "the state"),
    "pendulum, torque stays": ("pendulum", swing({"sin": "-sin", "speed": "-speed"}, {}), "speed"),
    "pendulum, speed stays": ("pendulum", swing({"sin": "-sin"}, {"torque": "-torque"}), "speed"),
    "pendulum, upside down": (
        "pendulum",
        swing({"cos": "-cos", "sin": "-sin", "speed": "-speed"}, {"torque": "-torque"}), "sin"),
    "point mass, forces backwards": (
        "point mass", mass(MASS_TURN, {"force x": "-force y", "force y": "force x"}), "speed x"),
    "point mass, speeds stay": (
        "point mass", mass({"x": "-x", "y": "-y"}, {"force x": "-force x", "force y": "-force y"}),
        "x"),
    "point mass, one force": (
        "point mass", mass(MASS_FLIP, {"force x": "-force x", "force y": "-force y"}), "speed y"),
    "line, actions stay": (
        "line", discrete_symmetry(["place"], ["left", "right"], [Move({"place": "-place"})]),
        "place"),
    "line, place stays": (
        "line", Symmetry(TrivialAction(cyclic(2)), RegularAction(cyclic(2))), "observation[0]"),
}  # fmt: skip
