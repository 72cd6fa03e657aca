"""The benchmark of SCAN from end to end, with tiny models and few examples."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import scan
import scan_training
from equitune.seq2seq import GreedyDecoder
from recurrent import BOS, EOS, PAD
from scan_data import Examples, Symmetry

ONE = ["--split", "add_jump", "--cell", "LSTM", "--seed", "0"]
RUN = scan.Run("add_jump", "LSTM", 0)


@pytest.fixture
def call(tmp_path):
    return [
        *("--size", "4", "--limit", "60", "--output", str(tmp_path / "results")),
        *("--pretraining-examples", "960", "--finetuning-examples", "240"),
        *("--checkpoints", str(tmp_path / "checkpoints")),
    ]


def stored(tmp_path):
    return json.loads((tmp_path / "results" / "scan.json").read_text())["rows"]


def test_one_run(call, tmp_path, monkeypatch):
    scan.main([*call, *ONE])
    rows = stored(tmp_path)
    (row,) = rows.values()
    assert (row["split"], row["cell"], row["seed"]) == ("add_jump", "LSTM", 0)
    stages = row["stages"]
    for name in ("plain", "equi-tuned", "equizero-tuned", "G", "any copy right",
                 "zero-shot EquiSeq2Seq, lockstep", "zero-shot EquiSeq2Seq, independent",
                 "zero-shot EquiZeroSeq2Seq, mean_entropy, symmetric(4)"):  # fmt: skip
        stage = stages[name]
        assert 0 <= stage["validation"] <= 1 >= stage["test"] >= 0 <= stage["seconds"]
    plain = stages["plain"]["settings"]
    assert (plain["examples"], plain["batch_size"], plain["iterations"]) == (960, 32, 30)
    curve = row["curve"]
    assert curve["iterations"][0] == 0
    assert curve["iterations"][-1] == stages["equi-tuned"]["settings"]["iterations"]
    for name in ("equi-tuned", "equizero-tuned"):
        assert len(curve[name]) == len(curve["iterations"]) == len(curve["examples"])
        assert curve[name][-1] == stages[name]["test"]

    # What is done is not done again, and a stage that is missing is read from its checkpoint.
    monkeypatch.setattr(scan, "train_model", _unwanted)
    monkeypatch.setattr(scan.Work, "measured", _unwanted)
    path = tmp_path / "results" / "scan.json"
    record = json.loads(path.read_text())
    del record["rows"][RUN.name]["stages"]["G"]
    path.write_text(json.dumps(record))
    scan.main([*call, *ONE])
    assert stored(tmp_path) == rows
    # Without checkpoints what is stored counts.
    shutil.move(tmp_path / "checkpoints", tmp_path / "elsewhere")
    scan.main([*call, *ONE])
    shutil.move(tmp_path / "elsewhere", tmp_path / "checkpoints")
    # Unless it is asked for, or the settings are others.
    with pytest.raises(AssertionError, match="again"):
        scan.main([*call, *ONE, "--size", "5"])
    with pytest.raises(AssertionError, match="again"):
        scan.main([*call, *ONE, "--fresh"])
    assert stored(tmp_path)[RUN.name]["stages"] == {}


def _unwanted(*_, **__):
    raise AssertionError("it is done again")


def test_another_plain_model_takes_what_was_made_of_the_last_one_along(call, tmp_path):
    scan.main([*call, *ONE, "--stages", "plain", "equi-tuned", "G"])
    scan.main([*call, *ONE, "--stages", "plain", "--pretraining-examples", "640"])
    assert set(stored(tmp_path)[RUN.name]["stages"]) == {"plain", "G"}
    assert not list((tmp_path / "checkpoints").glob("*-equi-tuned.pt"))


def test_rows_of_other_runs_are_kept(call, tmp_path):
    other = ["--split", "around_right", "--cell", "RNN", "--seed", "3"]
    for run in (ONE, other):
        scan.main([*call, *run, "--stages", "plain"])
    scan.main([*call, *ONE, "--stages", "plain", "--fresh"])
    assert list(stored(tmp_path)) == ["add_jump, LSTM, 0", "around_right, RNN, 3"]


def test_processes_lose_no_rows(tmp_path):
    stores = [scan.Store(str(tmp_path / "scan"), "command") for _ in range(8)]

    def write(store, number):
        store.update(
            scan.Run("add_jump", "GRU", number), lambda row: row["stages"].update(G={"a": number})
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, stores * 4, range(32)))
    rows = json.loads((tmp_path / "scan.json").read_text())["rows"]
    assert {row["seed"]: row["stages"]["G"]["a"] for row in rows.values()} == {
        number: number for number in range(32)
    }


def test_a_checkpoint_of_another_cell_is_refused(call, tmp_path):
    scan.main([*call, "--split", "add_jump", "--cell", "GRU", "--seed", "0", "--stages", "plain"])
    folder = tmp_path / "checkpoints"
    shutil.copy(folder / "add_jump-GRU-0-plain.pt", folder / "add_jump-LSTM-0-plain.pt")
    with pytest.raises(ValueError, match=r"one of nn\.GRU, but this model has nn\.LSTM"):
        scan.main([*call, *ONE, "--stages", "plain"])


def test_runs():
    runs = scan.todo(scan.parse([]))
    assert len(runs) == len(set(runs)) == 2 * 3 * 3
    assert scan.todo(scan.parse(ONE)) == [RUN]


class Echo(nn.Module):
    """Knows every command that it was told, and says how it moves words."""

    def __init__(self, examples):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.known = {
            self.key(t): s for t, s in zip(examples.commands, examples.targets, strict=True)
        }

    def key(self, commands):
        return tuple(commands[commands != PAD].tolist())

    def encode(self, commands):
        nothing = torch.tensor([EOS])
        return [self.known.get(self.key(row), nothing) for row in commands], 0

    def step(self, tokens, state):
        rows, place = state
        now = [int(row[place]) if place < len(row) else PAD for row in rows]
        return nn.functional.one_hot(torch.tensor(now), 9).float() + self.weight, (rows, place + 1)


def decoder(model, limit=50):
    return GreedyDecoder(model, bos=BOS, eos=EOS, pad=PAD, max_length=limit)


def test_what_counts_as_right():
    pairs = [("jump", "I_JUMP"), ("walk thrice", "I_WALK I_WALK I_WALK"), ("look", "I_LOOK")]
    examples = Examples.of(pairs)
    assert scan_training.right(decoder(Echo(examples)), examples).tolist() == [True] * 3
    told = Examples.of([("jump", "I_JUMP I_JUMP"), ("walk thrice", "I_WALK I_WALK"),
                        ("look", "I_LOOK")])  # fmt: skip
    found = scan_training.right(decoder(Echo(told)), examples)
    assert found.tolist() == [False, False, True]
    assert scan_training.accuracy(decoder(Echo(told)), examples) == pytest.approx(1 / 3)
    # A sequence that never ends is not right.
    assert scan_training.right(decoder(Echo(examples), limit=3), examples)[1].item() is False


def test_the_ceiling(call):
    # It knows run only: a copy of "jump" is right, none of "jump and run" is.
    examples = Examples.of([("jump", "I_JUMP"), ("jump and run", "I_JUMP I_RUN"), ("run", "I_RUN")])
    echo = decoder(Echo(Examples.of([("run", "I_RUN")])))
    work = scan.Work(RUN, scan.parse(call), None)
    work.data = type("Split", (), {"validation": examples[:1], "test": examples})
    assert work.ceiling(echo, Symmetry.verb_swap()) == {
        "validation": 1.0,
        "test": pytest.approx(2 / 3),
    }


def test_batches_see_every_example_once_before_any_twice():
    recipe = scan_training.Recipe(examples=40, batch_size=5)
    rows = list(scan_training._batches(20, recipe, torch.Generator().manual_seed(0)))
    assert len(rows) == recipe.iterations == 8
    for half in (rows[:4], rows[4:]):
        assert torch.cat(half).sort().values.tolist() == list(range(20))
    assert not torch.equal(torch.cat(rows[:4]), torch.cat(rows[4:]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_with_label_smoothing(smoothing):
    targets = torch.randint(0, 4, (3, 5))
    targets[1, 3:] = PAD
    scores = torch.randn(3, 5, 4).log_softmax(dim=-1)
    expected = torch.nn.functional.cross_entropy(
        scores.flatten(0, 1), targets.flatten(), ignore_index=PAD, label_smoothing=smoothing
    )
    torch.testing.assert_close(scan_training.loss_of(scores, targets, smoothing), expected)


def test_weights_decay_where_they_are_asked_to():
    data = scan.load_split("add_jump", limit=40).train
    norms = []
    for decay in (0.0, 50.0):
        torch.manual_seed(0)
        model = GreedyDecoder(
            scan.Recurrent(torch.nn.RNN, 16, 9, size=4), bos=1, eos=2, pad=0, max_length=50
        )
        recipe = scan_training.Recipe(16, batch_size=4, weight_decay=decay)
        scan_training.train(model, data, recipe, seed=0, name="decay")
        norms.append(sum(float(p.detach().square().sum()) for p in model.parameters()))
    assert norms[1] < 0.9 * norms[0]
