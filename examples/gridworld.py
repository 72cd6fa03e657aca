"""An environment: a grid world with the symmetry of the square, in which an agent looks for a goal.

Importing this module registers ``equitune/Gridworld-v0``, which shows coordinates, and
``equitune/PixelGridworld-v0``, which shows pictures::

    import gymnasium
    import gridworld
    from equitune.rl import check_symmetry

    env = gymnasium.make("equitune/Gridworld-v0")
    print(check_symmetry(env, gridworld.rotations(), set_state=gridworld.set_state))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import gymnasium
import numpy as np

from equitune import ImageAction, c4
from equitune.rl import Move, Symmetry, discrete_symmetry

__all__ = [
    "CoordinateGridworld",
    "Gridworld",
    "PixelGridworld",
    "pixel_rotations",
    "rotations",
    "set_state",
]

Cell = tuple[int, int]

MOVES = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Right, up, left, down, as (x, y) with y upwards: each is the one before, turned."""

CELL, RENDERED_CELL = 8, 40
"""Pixels of the side of a cell, in observations and in what is rendered."""

GOAL, AGENT = (46, 160, 67), (9, 105, 218)
BACKGROUND, LINE = 255, 216


class Gridworld(gymnasium.Env, ABC):
    """An agent walks on a square grid to a goal; episodes put both on any two cells.

    Actions are 0 (right), 1 (up), 2 (left) and 3 (down); walls stop the agent. Each step costs 1,
    but the one that reaches the goal is free and ends the episode. Turning the grid
    counter-clockwise by 90 degrees turns right into up, up into left, and so on.

    The registered environments cut episodes off after 100 steps.

    Args:
        size: The cells of each side.
        render_mode: ``"rgb_array"`` for pictures, ``"ansi"`` for text, or None.

    Raises:
        ValueError: If ``size`` is below 2 or the render mode is another one. Steps raise it for
            another action.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array", "ansi"], "render_fps": 8}

    def __init__(self, size: int = 7, render_mode: str | None = None) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 2:
            raise ValueError(f"`size` must be an int of 2 or more, got {size!r}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"`render_mode` must be 'rgb_array', 'ansi' or None, got {render_mode!r}"
            )
        self.size = size
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Discrete(len(MOVES))
        self.observation_space = self._space()
        self.agent: Cell = (0, 0)
        self.goal: Cell = (size - 1, size - 1)

    @abstractmethod
    def _space(self) -> Any:
        """The space of observations."""

    @abstractmethod
    def _observe(self, agent: Cell, goal: Cell) -> Any:
        """The observation of two cells."""

    @abstractmethod
    def _cells(self, observation: Any) -> tuple[Cell, Cell] | None:
        """The cells of agent and goal; None, or any two, if it shows none."""

    def set_state(self, observation: Any) -> None:
        """Puts the agent and the goal where an observation says.

        Args:
            observation: One from before the end of an episode, as ``step`` and ``reset`` give it.

        Raises:
            ValueError: If it is none of this grid, or the agent stands on the goal.
        """
        given = np.asarray(observation)
        space = self.observation_space
        if given.shape != space.shape:
            raise ValueError(
                f"`observation` must be of shape {space.shape} on this grid, got {given.shape}"
            )
        cells = self._cells(given)
        # Put together again, so that nothing but agent and goal can be in it.
        if cells is None or not np.allclose(self._observe(*cells), given, rtol=0, atol=1e-4):
            raise ValueError(
                f"`observation` must show one agent and one goal on a grid of {self.size} x "
                f"{self.size} cells"
            )
        if cells[0] == cells[1]:
            raise ValueError(
                "`observation` shows the agent on the goal, where the episode has ended; use one "
                "from before the end"
            )
        self.agent, self.goal = cells

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Puts the agent and the goal on two cells by chance."""
        super().reset(seed=seed)
        first, second = self.np_random.choice(self.size**2, size=2, replace=False).tolist()
        self.agent, self.goal = divmod(first, self.size), divmod(second, self.size)
        return self._observe(self.agent, self.goal), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Goes one cell on."""
        if not self.action_space.contains(action):
            raise ValueError(
                f"`action` must be 0 (right), 1 (up), 2 (left) or 3 (down), got {action!r}"
            )
        (x, y), (right, up) = self.agent, MOVES[int(action)]
        last = self.size - 1
        self.agent = (min(max(x + right, 0), last), min(max(y + up, 0), last))
        found = self.agent == self.goal
        reward = 0.0 if found else -1.0
        return self._observe(self.agent, self.goal), reward, found, False, {}

    def render(self) -> Any:
        """The grid as a picture (H, W, 3) uint8, or as text with A for agent and G for goal."""
        if self.render_mode == "rgb_array":
            return _picture(self.size, self.agent, self.goal, RENDERED_CELL)
        if self.render_mode == "ansi":
            rows = [["."] * self.size for _ in range(self.size)]
            for (x, y), letter in ((self.goal, "G"), (self.agent, "A")):
                rows[self.size - 1 - y][x] = letter
            return "\n".join(" ".join(row) for row in rows)
        return None


@final
class CoordinateGridworld(Gridworld):
    """Shows (agent x, agent y, goal x, goal y), float32 from -1 to 1; 0 is the middle."""

    def _space(self) -> Any:
        return gymnasium.spaces.Box(-1.0, 1.0, shape=(4,), dtype=np.float32)

    def _observe(self, agent: Cell, goal: Cell) -> Any:
        last = self.size - 1
        return np.array([(2 * place - last) / last for place in (*agent, *goal)], dtype=np.float32)

    def _cells(self, observation: Any) -> tuple[Cell, Cell] | None:
        last = self.size - 1
        places = [(float(value) * last + last) / 2 for value in observation]
        if not all(-0.5 < place < last + 0.5 for place in places):
            return None
        x, y, goal_x, goal_y = map(round, places)
        return (x, y), (goal_x, goal_y)


@final
class PixelGridworld(Gridworld):
    """Shows pictures, (3, 8 size, 8 size) uint8, channels first.

    The agent is a blue disc, the goal a green square.
    """

    def _space(self) -> Any:
        side = self.size * CELL
        return gymnasium.spaces.Box(0, 255, shape=(3, side, side), dtype=np.uint8)

    def _observe(self, agent: Cell, goal: Cell) -> Any:
        picture = _picture(self.size, agent, goal, CELL)
        return np.ascontiguousarray(picture.transpose(2, 0, 1))

    def _cells(self, observation: Any) -> tuple[Cell, Cell] | None:
        found = []
        for colour in (AGENT, GOAL):
            shown = (observation == np.array(colour)[:, None, None]).all(axis=0)
            rows, columns = np.nonzero(shown)
            if not rows.size:
                return None
            found.append((int(columns[0]) // CELL, self.size - 1 - int(rows[0]) // CELL))
        agent, goal = found
        return agent, goal


def set_state(env: Any, observation: Any) -> None:
    """Puts a grid world, wrapped or not, into the state that an observation shows."""
    env.unwrapped.set_state(observation)


def rotations() -> Symmetry:
    """The rotations of the grid, counter-clockwise, on coordinates: c4."""
    turned = {"agent x": "agent y", "agent y": "-agent x", "goal x": "goal y", "goal y": "-goal x"}
    moves = ("right", "up", "left", "down")
    after = dict(zip(moves, moves[1:] + moves[:1], strict=True))
    return discrete_symmetry(list(turned), moves, [Move(turned, after, "r")])


def pixel_rotations() -> Symmetry:
    """The rotations of the grid, counter-clockwise, on pictures: c4."""
    return Symmetry(ImageAction(c4()), rotations().on_actions)


def _picture(size: int, agent: Cell, goal: Cell, cell: int) -> Any:
    """(size * cell, size * cell, 3) uint8; the picture of a turned grid is the turned picture."""
    side = size * cell
    picture = np.full((side, side, 3), BACKGROUND, dtype=np.uint8)
    # At both sides of a cell, so that a turned picture has the same lines.
    for edge in range(0, side, cell):
        for line in (edge, edge + cell - 1):
            picture[line], picture[:, line] = LINE, LINE
    distances = np.abs(np.arange(cell) - (cell - 1) / 2)
    square = np.maximum.outer(distances, distances) < 3 / 8 * cell
    disc = np.hypot.outer(distances, distances) < 3 / 8 * cell
    for (x, y), shape, colour in ((goal, square, GOAL), (agent, disc, AGENT)):
        top, left = (size - 1 - y) * cell, x * cell
        picture[top : top + cell, left : left + cell][shape] = colour
    return picture


def _register() -> None:
    for name, kind in (("Gridworld", CoordinateGridworld), ("PixelGridworld", PixelGridworld)):
        # gymnasium warns of a second registration, and modules may be loaded again.
        if f"equitune/{name}-v0" not in gymnasium.registry:
            gymnasium.register(
                f"equitune/{name}-v0",
                entry_point=f"{__name__}:{kind.__name__}",
                max_episode_steps=100,
            )


_register()
