"""
Fewer passes: boards that are symmetric
=======================================

The eight ways to turn and mirror a board of noughts and crosses give eight copies, and a wrapper
runs the network on each of them. An empty board has only one copy, though, and some positions have
four. The network may respect the rotations by itself; then two copies tell all that there is. And
a player who draws moves by chance needs one. The runners of ``equitune.scaling`` run no more than
these.
"""

# %%
# All positions of a game
# -----------------------
#
# After n moves, ``(n + 1) // 2`` crosses and ``n // 2`` noughts are on the board.

import itertools

import matplotlib.pyplot as plt
import torch
from torch import nn

from equitune import EquiTune, ImageAction, Symmetrized, d4
from equitune.scaling import Distinct, OneDrawn, Subset, Transversal


def positions(moves):
    boards = []
    for crosses in itertools.combinations(range(9), (moves + 1) // 2):
        free = [cell for cell in range(9) if cell not in crosses]
        for noughts in itertools.combinations(free, moves // 2):
            board = torch.zeros(9)
            board[list(crosses)], board[list(noughts)] = 1, -1
            boards.append(board.view(1, 3, 3))
    return torch.stack(boards)


torch.manual_seed(0)
action, turns = ImageAction(d4()), d4().subgroup([1])
network = nn.Sequential(
    nn.Flatten(), nn.Linear(9, 64), nn.Tanh(), nn.Linear(64, 9), nn.Unflatten(1, (1, 3, 3))
)
respects_turns = EquiTune(network, action.restrict(turns), action.restrict(turns))

# %%
# Count the passes
# ----------------
#
# A hook counts the boards that the wrapper hands to its model. The exact runners give what all
# eight copies give.

counted = []


def passes(backbone, runner, boards, training=False):
    model = Symmetrized(backbone, action, action, runner=runner).train(training)
    hook = backbone.register_forward_hook(lambda module, x, y: counted.append(len(y)))
    with torch.no_grad():
        output = model(boards)
    hook.remove()
    return counted.pop() / len(boards), output


every = [positions(moves) for moves in range(10)]
distinct = [passes(network, Distinct(), boards)[0] for boards in every]

game = torch.cat(every)
expected = passes(network, None, game)[1]
assert torch.allclose(passes(network, Distinct(), game)[1], expected, atol=1e-5)

shares = {
    "all copies": passes(network, None, game)[0],
    "Distinct": passes(network, Distinct(), game)[0],
    "Transversal": passes(respects_turns, Transversal(turns), game)[0],
    "both": passes(respects_turns, Transversal(turns, Distinct()), game)[0],
    "Subset(2), training": passes(network, Subset(2), game, training=True)[0],
    "OneDrawn": passes(network, OneDrawn(), game)[0],
}

# %%
# The picture
# -----------
#
# Above, four positions and how many of their copies differ. Below on the left, the average over all
# positions after each move: the opening is symmetric. On the right, over all 6,046 positions.

plt.style.use("equitune.viz.style")
figure = plt.figure(figsize=(7.5, 5))
above = figure.add_gridspec(2, 1, height_ratios=(1, 2))
row = above[0].subgridspec(1, 4)
shown = [[0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, -1, 0, 0, 0, 1], [1, -1, 0, 0, 0, 0, 0, 0, 0],
         [0, 1, 0, -1, 1, -1, 0, 1, 0]]  # fmt: skip
for place, cells in zip(row, shown, strict=True):
    axis, board = figure.add_subplot(place), torch.tensor(cells).float().view(1, 1, 3, 3)
    axis.set_title(f"{passes(network, Distinct(), board)[0]:.0f} of 8")
    for k, cell in enumerate(cells):
        if cell:
            axis.plot(k % 3, k // 3, "x" if cell == 1 else "o", color="C0", fillstyle="none", ms=9)
    axis.set(xlim=(-0.5, 2.5), ylim=(2.5, -0.5), xticks=(0.5, 1.5), yticks=(0.5, 1.5), aspect=1)
    axis.tick_params(length=0, labelbottom=False, labelleft=False)
    axis.grid(True)
left, right = (figure.add_subplot(place) for place in above[1].subgridspec(1, 2))
left.plot(range(10), distinct, "o-")
left.set(xlabel="moves", ylabel="passes for a board, Distinct", ylim=(0, 8.4), xticks=range(10))
right.barh([*shares], [*shares.values()])
right.bar_label(right.containers[0], fmt="%.1f", padding=2)
right.set(xlabel="passes for a board", xlim=(0, 9), xticks=range(0, 9, 2))
right.invert_yaxis()
plt.show()
