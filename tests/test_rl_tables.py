"""The tables and pictures of reinforcement learning, from a small record that is made up."""

import copy

import pytest

import pictures
import render
import rl
import rl_speed
import rl_tables
import rl_training

SETTINGS = {
    "widths": [64, 64], "steps": 300, "first": 100, "every": 100, "learning_rate": 0.0001,
    "environment": {},
}  # fmt: skip
GRID = {"size": 5, "max_episode_steps": 20}


def outcome(mean, ended=1.0):
    return {"mean": mean, "deviation": 1.0, "ended": ended}


def run(env, net, seed, means, further=None, environment=None):
    """A row of these mean returns: by step those of plain, EquiTune and EquiZero."""
    settings = {**SETTINGS, "environment": environment or {}}
    steps = {
        str(step): {
            method: outcome(mean, ended=0.5 + 0.1 * k)
            for k, (method, mean) in enumerate(zip(rl.METHODS, three, strict=True))
        }
        for step, three in means.items()
    }
    stages = {
        "pretrained": {"parameters": 4610, "seconds": 60.0, "settings": settings},
        "zero-shot": {"steps": steps, "seconds": 2.0, "settings": {**settings, "episodes": 7}},
    }
    for method, curve in (further or {}).items():
        made = {**settings, "from": 200, "more_steps": 20, "curve_every": 10, "episodes": 3}
        steps = {str(at): outcome(mean) for at, mean in curve.items()}
        stages[f"continued, {method}"] = {"steps": steps, "seconds": 1.0, "settings": made}
    return {"env": env, "net": net, "seed": seed, "stages": stages}


@pytest.fixture
def results():
    rows = [
        # At step 300 EquiZero is best, but the plain agents are so at 200.
        run("CartPole", "64-64", 0, {200: (10, 20, 30), 300: (9, 10, 80)},
            {"plain": {0: 10, 10: 20}, "EquiZero": {0: 30, 10: 40}}),
        run("CartPole", "64-64", 1, {200: (14, 22, 30), 300: (9, 10, 90)},
            {"plain": {0: 14, 10: 26}}),
        run("Gridworld", "64-64", 0, {200: (-10, -9, -8), 300: (-12, -7, -5)},
            environment=GRID),
    ]  # fmt: skip
    return {
        "rows": {f"{row['env']}, {row['net']}, {row['seed']}": row for row in rows},
        "command": "python benchmarks/rl.py", "seed": 0, "stable_baselines3": "2",
        "versions": {"torch": "2"}, "machine": "m",
    }  # fmt: skip


def test_the_names_are_those_of_the_benchmark():
    assert tuple(rl_training.ENVIRONMENTS) == rl_tables.ENVIRONMENTS
    assert tuple(rl_training.NETS) == rl_tables.NETS
    assert tuple(rl_training.METHODS) == rl_tables.METHODS
    assert set(rl_tables.SUCCESS) < set(rl_training.ENVIRONMENTS)
    assert (rl_tables.ZERO_SHOT, rl_tables.CONTINUED) == (rl.ZERO_SHOT, rl.CONTINUED)


def test_returns(results):
    table = rl_tables.rl_returns(results)
    lines = table.splitlines()
    assert "(../images/rl_returns.png)" in lines[0]
    assert lines[2] == (
        "|  | steps | plain | EquiTune | EquiZero | EquiTune minus plain | "
        "EquiZero minus plain | EquiZero minus EquiTune |"
    )
    # Student's t with one degree of freedom: 12.706 of the standard error.
    assert (
        "| CartPole, 4,610 parameters | 200 | 12.0 ± 25.4 | 21.0 ± 12.7 | 30.0 ± 0.0 "
        "| +9.0 ± 12.7 | +18.0 ± 25.4 | +9.0 ± 12.7 |"
    ) in lines
    grid = "| Gridworld, 4,610 parameters | 200 | -10.0 (1 seed) | -9.0 (1 seed) | -8.0 (1 seed) "
    assert f"{grid}| +1.0 | +2.0 | +1.0 |" in lines
    share = "| successful episodes, % | 200 | 50.0 (1 seed) | 60.0 (1 seed) | 70.0 (1 seed) "
    assert f"{share}| +10.0 | +20.0 | +10.0 |" in lines
    assert (
        "\nCartPole, hidden layers of 64 and 64: 300 steps at a learning rate of 0.0001, 7 "
        "episodes for each checkpoint and agent, 2 seeds.\n"
    ) in table
    assert "1 seed, 5 x 5 cells and at most 20 moves.\n" in table
    assert "`python benchmarks/rl.py`, seeds 0, 1, stable-baselines3 2, torch 2, m." in table
    assert {line.count("|") for line in lines if line.startswith("|")} == {9}


def test_the_order_of_means_is_told(results):
    def told():
        return [line for line in rl_tables.rl_returns(results).splitlines() if "order" in line
                or line.startswith("EquiZero")]  # fmt: skip

    both = "Gridworld (64-64), CartPole (64-64)."
    assert told() == [
        f"EquiZero at least EquiTune, and EquiTune at least plain: {both}",
        "Not in this order: none.",
        # 18.0 are less than 25.4, and a single seed has no interval.
        "EquiZero above plain, by more than the interval: none.",
        "EquiZero below plain, by more than the interval: none.",
    ]
    steps = [results["rows"][f"CartPole, 64-64, {seed}"]["stages"]["zero-shot"]["steps"]
             for seed in (0, 1)]  # fmt: skip
    for step in steps:
        step["200"]["EquiZero"]["mean"] = step["200"]["plain"]["mean"] + 2
    assert told()[1:3] == [
        "Not in this order: CartPole (64-64).",
        "EquiZero above plain, by more than the interval: CartPole (64-64).",
    ]
    for step in steps:
        step["200"]["EquiZero"]["mean"] = step["200"]["plain"]["mean"] - 2
    assert told()[3] == "EquiZero below plain, by more than the interval: CartPole (64-64)."


def test_all_checkpoints(results):
    lines = rl_tables.rl_checkpoints(results).splitlines()
    assert lines[2].startswith("| Gridworld, 4,610 parameters | 200 | -10.0 (1 seed) |")
    assert lines[3].startswith("|  | 300 | -12.0 (1 seed) | -7.0 (1 seed) |")
    assert lines[5] == (
        "|  | 300 | 9.0 ± 0.0 | 10.0 ± 0.0 | 85.0 ± 63.5 | +1.0 ± 0.0 | +76.0 ± 63.5 "
        "| +75.0 ± 63.5 |"
    )


def test_curves(results):
    table = rl_tables.rl_curves(results)
    assert "| CartPole, 4,610 parameters, further steps after 200 | 0 | 10 |" in table
    assert "| plain, 2 seeds | 12.0 ± 25.4 | 23.0 ± 38.1 |" in table
    assert "| EquiZero, 1 seed | 30.0 | 40.0 |" in table
    assert "EquiTune" not in table
    assert "Gridworld" not in table
    # Training that went on from another step than the headline's is left out.
    for row in results["rows"].values():
        row["stages"].get("continued, EquiZero", {"settings": {}})["settings"]["from"] = 300
    assert "EquiZero" not in rl_tables.rl_curves(results)


def test_other_settings_are_refused(results):
    for stage, name in (("zero-shot", "episodes"), ("continued, plain", "more_steps")):
        trial = copy.deepcopy(results)
        trial["rows"]["CartPole, 64-64, 1"]["stages"][stage]["settings"][name] = 1
        for table in (rl_tables.rl_returns, rl_tables.rl_checkpoints, rl_tables.rl_curves):
            with pytest.raises(ValueError, match=f"64-64, {stage}: the seeds have different"):
                table(trial)


def test_what_is_not_measured_is_left_out(results):
    tables = (rl_tables.rl_returns, rl_tables.rl_checkpoints, rl_tables.rl_curves)
    assert all(table({}) == "" for table in tables)
    assert rl_tables.rl_speed({}) == ""
    del results["rows"]["CartPole, 64-64, 1"]["stages"]["zero-shot"]
    assert "| 10.0 (1 seed) | 20.0 (1 seed) |" in rl_tables.rl_returns(results)


def test_speed():
    record = {
        "rows": {"one, predict, EquiTune": 1.234, "one, predict, EquiZero": 2, "all, EquiTune": 3,
                 "all, EquiZero": 4},
        "model": "small", "command": "c", "seed": 0, "versions": {"torch": "2"}, "machine": "m",
    }  # fmt: skip
    table = rl_tables.rl_speed(record)
    assert table.splitlines()[0] == "| small | EquiTune | EquiZero |"
    assert "| one, predict | 1.23 | 2.00 |" in table
    assert "| all | 3.00 | 4.00 |" in table
    assert rl_speed.NAME in render.RENDERERS


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    found = []

    def new_figure(*size):
        found.append(made(*size))
        return found[-1]

    made = pictures.new_figure
    monkeypatch.setattr(pictures, "new_figure", new_figure)
    monkeypatch.setattr(pictures, "IMAGES", tmp_path)
    return found


def points(axes):
    return [line for line in axes.get_lines() if not line.get_label().startswith("_")]


def test_the_picture_of_returns(results, drawn, tmp_path):
    pictures.draw_rl_returns(results)
    assert (tmp_path / "rl_returns.png").stat().st_size > 1000
    grid, cart = drawn[0].axes
    assert [axes.get_title() for axes in (grid, cart)] == ["Gridworld", "CartPole"]
    assert [y for line in points(grid) for y in line.get_ydata()] == [-10, -9, -8]
    assert [y for line in points(cart) for y in line.get_ydata()] == [12, 21, 30]
    # No bars, which would hang from the top where returns are negative.
    assert not grid.patches
    assert grid.get_ylim()[1] < 0
    # Intervals where there are several seeds.
    assert (len(grid.containers), len(cart.containers)) == (0, 3)
    pictures.draw_rl_returns({})
    assert len(drawn) == 1


def test_the_picture_of_curves(results, drawn, tmp_path):
    pictures.draw_rl_curves(results)
    assert (tmp_path / "rl_curves.png").stat().st_size > 1000
    (cart,) = drawn[0].axes
    lines = {line.get_label(): list(line.get_ydata()) for line in cart.get_lines()}
    assert lines == {"plain": [12, 23], "EquiZero": [30, 40]}
    assert len(cart.collections) == 1
    pictures.draw_rl_curves({})
    assert len(drawn) == 1


def test_pages_show_them(results, monkeypatch):
    monkeypatch.setattr(render.record, "load", lambda name: {"rl": results}[name])
    names = ("rl_returns", "rl_checkpoints", "rl_curves")
    page = "".join(f"<!-- results:{name} -->\nold\n<!-- end -->\n" for name in names)
    found = render.rendered(page)
    assert "old" not in found
    for name in names:
        assert getattr(rl_tables, name)(results) in found
    assert render.rendered(found) == found
