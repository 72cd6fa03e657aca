"""The benchmark of reinforcement learning from end to end, with very little training."""

import json
import math
import shutil
import statistics

import gymnasium
import numpy as np
import pytest
import torch

import rl
import rl_speed
import rl_statistics
import rl_training
from equitune.testing import assert_equivariant

ONE = ["--env", "CartPole", "--net", "64-64", "--seed", "0"]
RUN = rl.Run("CartPole", "64-64", 0)
CARTPOLE = rl_training.ENVIRONMENTS["CartPole"]
RECIPE = rl_training.Recipe((8,), 240, first=200, every=20)


@pytest.fixture(autouse=True)
def threads():
    """Runs use one thread each; other tests may have more."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def call(tmp_path):
    return [
        *("--workers", "1", "--steps", "300", "--first", "200", "--every", "100"),
        *("--episodes", "3", "--curve-episodes", "2"),
        *("--more-steps", "60", "--curve-every", "30"),
        *("--output", str(tmp_path / "results"), "--checkpoints", str(tmp_path / "checkpoints")),
    ]


def stored(folder):
    return json.loads((folder / "results" / "rl.json").read_text())["rows"]


def test_one_run(call, tmp_path, monkeypatch, capsys):
    rl.main([*call, *ONE])
    rows = stored(tmp_path)
    (row,) = rows.values()
    assert (row["env"], row["net"], row["seed"]) == ("CartPole", "64-64", 0)
    stages = row["stages"]
    assert stages["pretrained"]["parameters"] == 4 * 64 + 64 + 64 * 64 + 64 + 64 * 2 + 2
    steps = stages["zero-shot"]["steps"]
    assert list(steps) == ["200", "300"]
    for found in steps.values():
        assert list(found) == ["plain", "EquiTune", "EquiZero"]
        for outcome in found.values():
            assert 1 <= outcome["mean"] <= 500
            assert outcome["ended"] == 1
    best = max(steps, key=lambda step: steps[step]["plain"]["mean"])
    for method in rl.METHODS:
        further = stages[f"continued, {method}"]
        assert list(further["steps"]) == ["0", "30", "60"]
        assert further["settings"]["from"] == int(best)

    # What is done is not done again, and a stage that is missing is made of the checkpoint.
    monkeypatch.setattr(rl_training, "pretrain", _unwanted)
    monkeypatch.setattr(rl_training, "go_on", _unwanted)
    path = tmp_path / "results" / "rl.json"
    record = json.loads(path.read_text())
    del record["rows"][RUN.name]["stages"]["zero-shot"]
    path.write_text(json.dumps(record))
    rl.main([*call, *ONE])
    assert stored(tmp_path)[RUN.name]["stages"]["zero-shot"]["steps"] == steps
    monkeypatch.setattr(rl_training, "play", _unwanted)
    # Without checkpoints what is stored counts.
    shutil.move(tmp_path / "checkpoints", tmp_path / "elsewhere")
    rl.main([*call, *ONE])
    shutil.move(tmp_path / "elsewhere", tmp_path / "checkpoints")
    # Unless the settings are others.
    with pytest.raises(AssertionError, match="again"):
        rl.main([*call, *ONE, "--episodes", "4"])
    with pytest.raises(AssertionError, match="again"):
        rl.main([*call, *ONE, "--more-steps", "90"])
    with pytest.raises(AssertionError, match="again"):
        rl.main([*call, *ONE, "--every", "50"])
    capsys.readouterr()


def _unwanted(*_, **__):
    raise AssertionError("it is done again")


def test_another_plain_model_takes_what_was_made_of_the_last_one_along(call, tmp_path):
    rl.main([*call, *ONE, "--stages", "pretrained", "zero-shot"])
    rl.main([*call, *ONE, "--stages", "pretrained", "--every", "50"])
    assert set(stored(tmp_path)[RUN.name]["stages"]) == {"pretrained"}


def test_processes_find_what_one_process_finds(call, tmp_path):
    rl.main([*call, *ONE, "--stages", "zero-shot"])
    alone = stored(tmp_path)[RUN.name]["stages"]
    other = tmp_path / "other"
    places = ["--output", str(other / "results"), "--checkpoints", str(other / "checkpoints")]
    rl.main([*call, *ONE, "--stages", "zero-shot", "--workers", "2", *places])
    found = stored(other)[RUN.name]["stages"]
    assert list(found) == list(alone) == ["pretrained", "zero-shot"]
    assert found["zero-shot"]["steps"] == alone["zero-shot"]["steps"]


def test_nothing_goes_on_before_all_seeds_are_there(call, tmp_path, capsys):
    rl.main([*call, *ONE, "--stages", "pretrained", "zero-shot"])
    rl.main([*call, "--env", "CartPole", "--net", "64-64", "--stages", "continued"])
    assert "CartPole: nothing is trained further" in capsys.readouterr().out
    assert list(stored(tmp_path)) == [RUN.name]
    assert set(stored(tmp_path)[RUN.name]["stages"]) == {"pretrained", "zero-shot"}


def test_runs():
    runs = rl.todo(rl.parse([]))
    assert len(runs) == len(set(runs)) == 3 * 2 * 5
    # The small network first, on all environments.
    assert [run.net for run in runs[:15]] == ["64-64"] * 15
    assert rl.todo(rl.parse(ONE)) == [RUN]


def test_the_protocol_is_that_of_the_paper():
    arguments = rl.parse([])
    steps = {"Gridworld": 100_000, "CartPole": 100_000, "Acrobot": 70_000}
    for run in rl.todo(arguments):
        recipe = rl.Work(run, arguments).recipe
        assert recipe.steps == steps[run.env] == recipe.kept[-1]
        assert recipe.kept == list(range(50_000, steps[run.env] + 1, 10_000))
        assert recipe.learning_rate == 1e-4
        model = rl_training.new_model(rl_training.ENVIRONMENTS[run.env], recipe, run.seed)
        size = {"64-64": (4_600, 4_900), "316-316": (102_000, 104_000)}[run.net]
        assert size[0] <= rl_training.parameters(model) <= size[1]
        model.env.close()


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = rl_training.new_model(CARTPOLE, RECIPE, seed=0)
    return model, rl_training.pretrain(model, RECIPE, "trained", silent=True)


def test_checkpoints_are_of_their_steps(trained):
    model, known = trained
    assert list(known["checkpoints"]) == [200, 220, 240]
    states = [known["checkpoints"][step]["policy"]["q_net.q_net.0.weight"] for step in (200, 240)]
    assert not torch.equal(*states)
    adam = [known["checkpoints"][step]["optimizer"]["state"][0]["step"] for step in (200, 240)]
    assert adam[1] - adam[0] == 40 / 4
    # The last update is behind the last checkpoint.
    assert not torch.equal(states[1], model.policy.state_dict()["q_net.q_net.0.weight"])
    again = rl_training.restored(CARTPOLE, RECIPE, known, 240, seed=1)
    assert torch.equal(again.policy.state_dict()["q_net.q_net.0.weight"], states[1])
    assert again.num_timesteps == 240


@pytest.mark.parametrize("method", rl.METHODS)
def test_going_on(trained, method):
    _, known = trained
    model = rl_training.restored(CARTPOLE, RECIPE, known, 220, seed=1)
    model = rl_training.symmetric(model, CARTPOLE, method)
    # It begins with what the plain model has seen up to there, and no more.
    seen = known["transitions"]["observations"]
    before = [p.detach().clone() for p in model.q_net.parameters()]
    heard, rates, positions = [], [], []

    def measure(done):
        heard.append(done)
        rates.append(model.exploration_rate)
        positions.append(model.replay_buffer.pos)

    rl_training.go_on(model, known["transitions"], 60, 20, measure, "on", silent=True)
    assert heard == [20, 40, 60]
    assert model.num_timesteps == 280
    # A transition is stored after the call of its step.
    assert positions == [239, 259, 279]
    stored = torch.from_numpy(model.replay_buffer.observations[:300])
    assert torch.equal(stored[:220], seen[:220])
    assert not torch.equal(stored[220:240], seen[220:240])
    assert not stored[280:].any()
    assert rates == [model.exploration_final_eps] * 3
    changed = zip(before, model.q_net.parameters(), strict=True)
    assert not any(torch.equal(*pair) for pair in changed)
    if method != "plain":
        symmetry = CARTPOLE.symmetry()
        model.policy.set_training_mode(False)
        x = torch.randn(20, 4)
        assert_equivariant(model.q_net, x, symmetry.on_observations, symmetry.on_actions)


class Countdown(gymnasium.Env):
    """Lasts for as many steps as its seed says, each with a reward of 1."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.left = seed
        self.resets = getattr(self, "resets", 0) + 1
        return self.observation, {}

    @property
    def observation(self):
        return np.array([self.left], np.float32)

    def step(self, action):
        assert self.left > 0, "it goes on behind its end"
        assert action == self.left % 2, "it gets the action of another episode"
        self.left -= 1
        return self.observation, 1.0, self.left == 0, False, {}


class Parity:
    def predict(self, observations, deterministic):
        assert deterministic
        return (observations[:, 0] % 2).astype(int), None


def test_every_episode_counts_once():
    environments = [gymnasium.wrappers.TimeLimit(Countdown(), 8) for _ in range(10)]
    outcome = rl_training.play(Parity(), environments, first_seed=1)
    returns = [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
    assert outcome.mean == statistics.fmean(returns)
    assert outcome.deviation == pytest.approx(statistics.stdev(returns))
    # The eighth ends by itself at the limit, the last two do not.
    assert outcome.ended == 0.8
    assert [env.unwrapped.resets for env in environments] == [1] * 10


def test_agents_get_the_same_starts(trained):
    model, _ = trained
    environments = rl_training.set_up(CARTPOLE, 40)
    first = rl_training.play(model, environments, 7)
    assert rl_training.play(model, environments, 7) == first
    assert rl_training.play(model, environments, 8) != first


def test_with_two_actions_and_a_mirror_both_wrappers_choose_the_same():
    """Why the table has equal numbers for CartPole; with three actions they differ."""
    shares = []
    for name in ("CartPole", "Acrobot"):
        environment = rl_training.ENVIRONMENTS[name]
        model = rl_training.new_model(environment, RECIPE, seed=0)
        observations = np.random.default_rng(0).standard_normal(
            (500, *model.observation_space.shape)
        )
        found = [
            rl_training.symmetric(model, environment, method).predict(
                observations.astype(np.float32), deterministic=True
            )[0]
            for method in ("EquiTune", "EquiZero")
        ]
        shares.append((found[0] == found[1]).mean())
        model.env.close()
    assert shares[0] == 1 > shares[1]


def test_all_agents_are_measured_on_the_same_episodes(call, monkeypatch):
    heard = []

    def play(model, environments, first_seed):
        heard.append((type(model.policy).__name__, len(environments), first_seed))
        return rl_training.Outcome(1.0, 0.0, 0.0)

    monkeypatch.setattr(rl_training, "play", play)
    rl.main([*call, *ONE])
    plain, wrapped = "DQNPolicy", "SymmetricDQNPolicy"
    zero_shot = [(name, 3, rl.START_SEED) for name in (plain, wrapped, wrapped)]
    further = [(name, 2, rl.START_SEED) for name in (plain, wrapped, wrapped) for _ in range(3)]
    assert heard == 2 * zero_shot + further


def test_intervals():
    mean, half = rl_statistics.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert half == pytest.approx(2.776 * math.sqrt(2.5 / 5))
    assert rl_statistics.interval([4.0, 4.0]) == (4, 0)
    assert math.isnan(rl_statistics.interval([4.0])[1])
    for values in ([], [0.0] * 11):
        with pytest.raises(ValueError, match="1 to 10 seeds"):
            rl_statistics.interval(values)


def test_the_headline_is_the_plain_agents_best_step():
    assert rl_statistics.headline({50: [1, 5], 60: [4, 4], 70: [0, 6]}) == 60
    # The first of equal ones, whatever their order.
    assert rl_statistics.headline({70: [2, 3], 50: [1, 4]}) == 50
    assert rl_statistics.headline({50: [-9], 60: [-3]}) == 60
    for plain in ({}, {50: [1, 2], 60: [3]}, {50: []}):
        with pytest.raises(ValueError, match="same seeds"):
            rl_statistics.headline(plain)


def test_the_headline_of_runs_is_chosen_by_plain_alone(call, tmp_path, monkeypatch):
    outcomes = {"plain": {200: 3.0, 300: 2.0}, "EquiTune": {200: 1.0, 300: 9.0}}
    store = rl.store_of(rl.parse(call))
    (tmp_path / "results").mkdir()
    arguments = rl.parse([*call, *ONE])
    steps = {
        str(step): {method: {"mean": means[step]} for method, means in outcomes.items()}
        for step in (200, 300)
    }
    known = {"steps": steps, "settings": rl.Work(RUN, arguments).settings("zero-shot")}
    store.update(RUN, lambda row: row["stages"].update({"zero-shot": known}))
    assert rl.best_step("CartPole", "64-64", arguments) == 200
    assert rl.best_step("Acrobot", "64-64", rl.parse([*call, "--env", "Acrobot"])) is None


def test_rows_of_other_runs_are_kept(call, tmp_path):
    (tmp_path / "results").mkdir()
    store = rl.store_of(rl.parse(call))
    for seed in (1, 0):
        run = rl.Run("Gridworld", "64-64", seed)
        store.update(run, lambda row, seed=seed: row["stages"].update(pretrained={"a": seed}))
    assert {name: row["stages"]["pretrained"]["a"] for name, row in store.rows().items()} == {
        "Gridworld, 64-64, 0": 0,
        "Gridworld, 64-64, 1": 1,
    }


def test_speed(tmp_path, capsys):
    rl_speed.main(["--rounds", "1", "--calls", "2", "--output", str(tmp_path)])
    record = json.loads((tmp_path / "rl_speed.json").read_text())
    assert len(record["rows"]) == 5 * 3 * 2
    assert all(ratio > 0 for ratio in record["rows"].values())
    assert len(capsys.readouterr().out.splitlines()) == 5 * 3 * 2


def test_what_is_written_by_hand_has_the_values_of_the_wrappers():
    plain, *wrapped = rl_speed.agents().values()
    written = rl_speed.by_hand(plain.q_net.q_net, wrapped[-1].q_net.q_net.weighting.weight_net)
    x = torch.rand(5, 4)
    for function, model in zip(written.values(), wrapped, strict=True):
        torch.testing.assert_close(function(x), model.q_net(x), rtol=1e-5, atol=1e-6)


def test_speed_compares_like_with_like():
    shapes = {}
    for title, runs in rl_speed.contestants(calls=1).items():
        shapes[title] = set(runs)
    assert all(names == {"plain", *rl_speed.WRAPPERS} for names in shapes.values())
    plain, *wrapped = rl_speed.agents().values()
    for model in wrapped:
        assert rl_training.parameters(plain) <= rl_training.parameters(model)
        state = dict(model.q_net.named_parameters())
        given = plain.q_net.q_net[0].weight
        assert any(torch.equal(given, p) for p in state.values() if p.shape == given.shape)
