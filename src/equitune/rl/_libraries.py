"""The libraries of this kit, with a message that says what to install."""

from __future__ import annotations

from typing import Any

from equitune._extras import installed

gymnasium: Any = installed("gymnasium", '"equitune[rl]"')
sb3: Any = installed("stable_baselines3", '"equitune[rl]"')
classic_control: Any = installed("gymnasium.envs.classic_control", '"equitune[rl]"')
