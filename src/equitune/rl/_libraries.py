"""The libraries of this kit, with a message that says what to install."""

from __future__ import annotations

from typing import Any

from equitune._extras import require

gymnasium: Any = require("gymnasium", '"equitune[rl]"')
sb3: Any = require("stable_baselines3", '"equitune[rl]"')
classic_control: Any = require("gymnasium.envs.classic_control", '"equitune[rl]"')
