"""The benchmark of speed: contenders do the same work, rows are resumed, tables are right."""

import json

import pytest
import torch

import in_turns
import record
import speed
import speed_tables
from speed_contenders import BY_HAND, Contest
from speed_tables import LOOP, ON_B, ONE_BATCH

SMALL = {
    "resnet18": (8, 32),
    "unet": (4, 8),
    "llama": (3, 5),
    "small_cnn": (6, 12),
    "q_network": (2, 4),
}


@pytest.fixture
def clock(monkeypatch):
    """Time passes only where a run says so."""
    now = [0.0]
    monkeypatch.setattr(in_turns.time, "perf_counter", lambda: now[0])

    def takes(seconds):
        def run():
            now[0] += seconds

        return run

    return takes


@pytest.mark.parametrize("between", [1, 2, 5])
def test_ratios_are_to_the_neighbours(clock, between):
    runs = {"a": clock(2.0), "plain": clock(1.0), "b": clock(0.5), "c": clock(3.0)}
    found = in_turns.ratios_to("plain", runs, 3, "", between=between)
    assert found == {"a": 2.0, "b": 0.5, "c": 3.0}


def test_short_runs_are_repeated(clock):
    assert in_turns.block_of(clock(1.0)) == (1, 1.0)
    calls, each = in_turns.block_of(clock(in_turns.BLOCK / 7.5))
    assert (calls, each) == (8, pytest.approx(in_turns.BLOCK / 7.5))
    assert in_turns.seconds(clock(0.25), calls=4) == 0.25


def test_slow_machines_do_not_change_the_ratios(clock):
    """A machine that gets slower all the time: each run is seen beside its neighbours."""
    rounds = iter(1.0 + 0.01 * n for n in range(1000))
    paces = {"plain": 1.0, "a": 2.0, "b": 3.0}
    runs = {name: lambda pace=pace: clock(pace * next(rounds))() for name, pace in paces.items()}
    found = in_turns.ratios_to("plain", runs, 5, "")
    assert found == pytest.approx({"a": 2.0, "b": 3.0}, rel=1e-3)


def test_peak_memory():
    mib = 2**18  # floats
    assert in_turns.peak_mib(lambda: torch.ones(4 * mib) + 1) == pytest.approx(8, abs=0.01)
    kept = torch.ones(16 * mib)
    assert in_turns.peak_mib(lambda: kept[:mib] * 2) == pytest.approx(1, abs=0.01)
    assert in_turns.peak_mib(lambda: None) == 0


@pytest.mark.parametrize("name", SMALL)
@torch.inference_mode()
def test_contenders_do_the_same_work(name):
    order, size = SMALL[name]
    contest = Contest(name, order, 2, size)
    wrappers, x = contest.wrappers(), contest.x
    expected = contest.loop(contest.plain)(x)
    torch.testing.assert_close(wrappers["EquiTune"](x), expected, rtol=1e-3, atol=1e-4)
    # Each sample of the plain batch is a copy that the wrapper runs, and the average is not plain.
    assert len(contest.copies) == order * len(x)
    assert not torch.allclose(contest.plain(x), expected, rtol=1e-3, atol=1e-4)
    if "ttach" in contest.others:
        torch.testing.assert_close(contest.ttach()(x), expected, rtol=1e-3, atol=1e-4)
    assert {ONE_BATCH, ON_B, LOOP, *wrappers} <= set(contest.others)
    for run in (*contest.others.values(), *contest.splits.values()):
        run()


@pytest.mark.parametrize("name", ["unet", "llama", "small_cnn", "q_network"])
def test_steps_have_gradients_and_leave_none(name):
    order, size = SMALL[name]
    contest = Contest(name, order, 2, size, training=True)
    for model in (contest.plain, contest.backbone):
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(lambda p: seen.add(p))
    for name_of_run, run in contest.others.items():
        seen = set()
        run()
        assert seen or name_of_run == BY_HAND  # which has a copy in its own memory format
        assert all(p.grad is None for p in seen)


def test_rows_are_found_by_parts_of_their_names():
    cpu = torch.device("cpu")
    assert speed.chosen([], cpu) == list(speed.SHOWN)
    assert speed.chosen([], torch.device("cuda")) == list(speed.GRID)
    names = [row.name for row in speed.GRID]
    assert len(set(names)) == len(names)
    found = speed.chosen(["resnet18,d4,B=8,training", "growth"], cpu)
    assert {row.name for row in found} == {
        "resnet18,d4,B=8,size=224,training,eager",
        "resnet18,d4,B=8,size=224,training,compiled",
        "small_cnn,growth,B=4,size=48",
    }
    with pytest.raises(SystemExit, match="no row is named resnet19; --list shows"):
        speed.chosen(["resnet19"], cpu)


def test_rows_are_stored_and_not_run_again(tmp_path, monkeypatch):
    rows = (speed.Cell("q_network", 2, 1, 4), speed.Growth((2, 4), 1, 8), speed.Generation(True))
    monkeypatch.setattr(speed, "SHOWN", rows)
    monkeypatch.setattr(speed.generate_speed, "NEW", 2)
    monkeypatch.setattr(in_turns, "BLOCK", 0.001)
    words = ["--seconds", "0", "--output", str(tmp_path)]
    speed.main(words)
    stored = json.loads((tmp_path / "speed.json").read_text())["rows"]
    cell, growth, generation = (stored[row.name] for row in rows)
    assert cell["floor"] in (ONE_BATCH, "plain, pieces of 1")
    assert set(cell["peak_mib"]) == set(cell["ratios"])
    assert cell["device"].startswith("CPU")
    assert set(growth["per_element"]) == {ONE_BATCH, LOOP, "EquiTune"}
    assert all(costs[0] == 1 for costs in growth["per_element"].values())
    assert len(generation["ratios"]) == 3
    monkeypatch.setattr(speed.Cell, "measure", lambda *given: {"ratios": {}})
    speed.main(words)
    assert json.loads((tmp_path / "speed.json").read_text())["rows"] == stored
    speed.main([*words, "--again", "--rows", rows[0].name])
    assert json.loads((tmp_path / "speed.json").read_text())["rows"][rows[0].name]["ratios"] == {}


def test_a_row_that_fails_stops_no_other_one(tmp_path, monkeypatch):
    def measure(cell, device, budget):
        if cell.batch == 1:
            raise torch.OutOfMemoryError("too large\nby far")
        return {"ratios": {}}

    monkeypatch.setattr(speed.Cell, "measure", measure)
    rows = ["q_network,B=1,forward,eager", "q_network,B=8,forward,eager"]
    with pytest.raises(SystemExit, match=r"rows that failed:\nq_network,.*: too large$"):
        speed.main(["--output", str(tmp_path), "--rows", *rows])
    (stored,) = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert "B=8" in stored


def test_tables():
    ratios = {ONE_BATCH: 1.0, ON_B: 0.25, LOOP: 0.8, "plain, pieces of 4": 0.6, "EquiTune": 0.9,
              "LambdaEquiTune": 0.99, "EquiZero": 0.9, "Canonicalize": 0.5}  # fmt: skip
    cell = {"model": "net", "group": "c4", "batch": 2, "size": 8, "mode": "forward",
            "engine": "eager", "ratios": ratios, "floor": "plain, pieces of 4", "device": "a chip",
            "peak_mib": {ONE_BATCH: 1024.4}, "left_out": {"other": "not there"}}  # fmt: skip
    growth = {"orders": [2, 4], "per_element": {"EquiTune": [1.0, 1.25]}, "device": "a chip"}
    made = {"command": "c", "seed": 0, "versions": {"torch": "2"}, "machine": "m"}
    results = {"rows": {"cell": cell, "growth": growth}, **made}
    figures = speed_tables.speed_figures(results)
    assert "| net, c4, B=2, 8 | 0.90 | 1.50 | 1.10 | 1.00 | 2.00 | pieces of 4 |" in figures
    assert figures.endswith("`c`, seed 0, torch 2, m, a chip.\n")
    times = speed_tables.speed_times(results)
    assert "| plain, pieces of 4 | 0.60 |" in times
    assert "Not run: other (not there)." in times
    assert "| plain, one batch | 1,024 |" in speed_tables.speed_memory(results)
    assert "| EquiTune | 1.00 | 1.25 |" in speed_tables.speed_growth(results)


def test_the_record_has_every_row_of_the_tables():
    assert {row.name for row in speed.SHOWN} <= set(record.load("speed")["rows"])
