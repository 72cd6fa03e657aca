"""
An agent that sees mirror images alike
======================================

A pole that falls to the left is the mirror image of one that falls to the right. An agent that
was trained for a short while has learned one side better than the other. ``symmetrize`` gives it
the symmetry, without further training.
"""

# %%
# A trained agent
# ---------------
#
# A few seconds of PPO on CartPole, with Stable-Baselines3. Yours would be ``PPO.load("cartpole",
# env=...)``.

import gymnasium
import matplotlib.pyplot as plt
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from equitune import EquiTune
from equitune.rl import cartpole_mirror, check_symmetry, symmetrize

environment = Monitor(gymnasium.make("CartPole-v1"))
agent = PPO(
    "MlpPolicy",
    environment,
    n_steps=512,
    n_epochs=5,
    learning_rate=1e-3,
    policy_kwargs={"activation_fn": torch.nn.ReLU},
    seed=1,
    device="cpu",
)
agent = agent.learn(3072)

# %%
# Is it a symmetry of the environment?
# ------------------------------------
#
# The mirror negates all four observations and exchanges left and right. ``check_symmetry`` steps
# the environment from mirrored states and compares.

mirror = cartpole_mirror()
print(check_symmetry(gymnasium.make("CartPole-v1"), mirror))

# %%
# The symmetric agent
# -------------------
#
# It has its own weights and its own optimizer, and could be trained further like the agent
# itself. One agent shows little: the page of results has five seeds, and the gain is not the same
# for each.

symmetric = symmetrize(agent, mirror, EquiTune)
agents = {"plain": agent, "EquiTune": symmetric}
returns = {}
for name, model in agents.items():
    environment.reset(seed=1)
    returns[name], _ = evaluate_policy(
        model, environment, n_eval_episodes=20, return_episode_rewards=True
    )
    print(f"{name}: mean return {np.mean(returns[name]):.0f} of 500")

# %%
# What it does
# ------------
#
# The probability to push to the right, for each angle and angular velocity of the pole, with the
# cart in the middle. A half turn of the picture exchanges mirrored states: for a symmetric agent
# it exchanges the colours and changes nothing else. The black line is where the agent is
# undecided; the symmetric agent's passes through the middle.

angles, speeds = np.meshgrid(np.linspace(-0.2, 0.2, 81), np.linspace(-1.5, 1.5, 81))
states = np.zeros((angles.size, 4), dtype=np.float32)
states[:, 2], states[:, 3] = angles.ravel(), speeds.ravel()

plt.style.use("equitune.viz.style")
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.5), sharey=True)
for axis, (name, model) in zip(axes, agents.items(), strict=True):
    with torch.no_grad():
        distribution = model.policy.get_distribution(torch.tensor(states)).distribution
    right = distribution.probs[:, 1].reshape(angles.shape).numpy()
    asymmetry = np.abs(right + right[::-1, ::-1] - 1).max()
    shown = axis.pcolormesh(angles, speeds, right, cmap="PuOr", vmin=0, vmax=1)
    axis.contour(angles, speeds, right, [0.5], colors="black", linewidths=1)
    axis.plot(0, 0, "+", color="black", ms=8)
    title = f"{name}: mean return {np.mean(returns[name]):.0f}\nasymmetry {asymmetry:.1g}"
    axis.set(title=title, xlabel="angle of the pole")
axes[0].set_ylabel("angular velocity")
figure.colorbar(shown, ax=axes, label="probability to push right")
plt.show()
