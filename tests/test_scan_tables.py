"""The tables and the picture of SCAN, from a small record that is made up."""

import copy

import pytest

import pictures
import render
import scan
import scan_tables

SCRATCH = {
    "examples": 200, "batch_size": 4, "learning_rate": 0.001, "teacher": 0.5, "iterations": 50,
    "size": 8, "limit": None, "weight_decay": 0.0, "smoothing": 0.0,
}  # fmt: skip
FINETUNING = {**SCRATCH, "examples": 80, "iterations": 20}
ZERO_SHOT = {"limit": None}


def stage(validation, test, settings=ZERO_SHOT, seconds=90.0):
    return {
        "validation": validation, "test": test, "seconds": seconds, "settings": dict(settings)
    }  # fmt: skip


@pytest.fixture
def results():
    rows = {}
    for seed, test in enumerate((0.5, 0.7)):
        stages = {
            "plain": stage(0.99, 0.001, SCRATCH),
            "zero-shot EquiSeq2Seq, lockstep": stage(0.9, test),
            "zero-shot EquiSeq2Seq, lockstep, symmetric(4)": stage(0.8, test - 0.1),
            "zero-shot EquiSeq2Seq, independent": stage(0.6, 0.07),
            "zero-shot EquiZeroSeq2Seq, mean_entropy": stage(0.95, test + 0.1),
            "any copy right": stage(0.96, 0.77),
            "equi-tuned": stage(1, test + 0.25, FINETUNING, 30),
        }
        curve = {"iterations": [0, 20], "examples": [0, 80], "equi-tuned": [0.1 * seed, test]}
        rows[f"add_jump, LSTM, {seed}"] = {
            "split": "add_jump", "cell": "LSTM", "seed": seed, "stages": stages, "curve": curve
        }  # fmt: skip
    rows["around_right, GRU, 0"] = {
        "split": "around_right", "cell": "GRU", "seed": 0,
        "stages": {"plain": stage(0.98, 0.25, SCRATCH), "G": stage(1, 0.875, SCRATCH)},
    }  # fmt: skip
    return {
        "rows": rows, "command": "python benchmarks/scan.py", "seed": 0,
        "versions": {"torch": "2"}, "machine": "m",
    }  # fmt: skip


def test_the_names_are_those_of_the_benchmark():
    assert set(scan_tables.CELLS) == set(scan.CELLS)
    assert set(scan_tables.SPLITS) == set(scan.SPLITS)
    proxies = {f"zero-shot EquiZeroSeq2Seq, {proxy.__name__}" for proxy in scan.PROXIES}
    assert proxies < set(scan_tables.ZERO_SHOT)
    assert set(scan_tables.FINETUNED) < set(scan.STAGES)
    assert set(scan_tables.TUNED) == set(scan.TUNED)
    named = {*scan_tables.FINETUNED, *filter(None, scan_tables.ZERO_SHOT.values())}
    assert set(scan_tables.PAPERS) == {(s, c) for s in scan.SPLITS for c in scan.CELLS}
    assert all(set(figures) == named for figures in scan_tables.PAPERS.values())


def test_zero_shot(results):
    table = scan_tables.scan_zero_shot(results)
    assert table.splitlines()[0] == (
        "| add jump, LSTM, 2 seeds | papers' swap: validation | test | papers' test | "
        "symmetric(4): validation | test |"
    )
    assert "| plain | 99.0 (0.0) | 0.1 (0.0) | 0.0 (0.0) |  |  |" in table
    lockstep = "| EquiSeq2Seq, lockstep | 90.0 (0.0) | 60.0 (14.1) |  | 80.0 (0.0) | 50.0 (14.1) |"
    assert lockstep in table
    assert "| EquiSeq2Seq, independent | 60.0 (0.0) | 7.0 (0.0) | 7.1 (1.3) |  |  |" in table
    assert "| any copy right | 96.0 (0.0) | 77.0 (0.0) |  |  |  |" in table
    # What is not measured has no row, and who has no zero-shot rows has no table.
    assert "mean_error_probability" not in table
    assert "GRU, 1 seed" not in table
    assert "seeds 0, 1 (LSTM), 0 (GRU), torch 2" in table
    cells = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert cells == {7}


def test_finetuned(results):
    table = scan_tables.scan_finetuned(results)
    assert "| add jump, LSTM, 2 seeds | plain | 99.0 (0.0) | 0.1 (0.0) | 0.0 (0.0) |" in table
    assert "|  | equi-tuned | 100.0 (0.0) | 85.0 (14.1) | 97.9 (1.0) |" in table
    assert "| around right, GRU, 1 seed | plain | 98.0 | 25.0 | 0.1 (0.1) |" in table
    assert "|  | G-GRU | 100.0 | 87.5 | 82.7 (5.8) |" in table
    assert "equizero-tuned" not in table
    assert "\nPretrained: 200 examples in batches of 4, 50 iterations, 8 hidden units" in table
    assert "\nG-models: 200 examples in batches of 4, 50 iterations, 8 hidden units" in table
    assert "\nFine-tuned: 80 examples in batches of 4, 20 iterations" in table


def test_a_seed_that_is_missing_is_noted(results):
    del results["rows"]["add_jump, LSTM, 1"]["stages"]["equi-tuned"]
    table = scan_tables.scan_finetuned(results)
    assert "|  | equi-tuned | 100.0, 1 seed | 75.0, 1 seed | 97.9 (1.0) |" in table
    assert len(scan_tables.scan_curves(results)["equi-tuned"]) == 1


def test_other_settings_are_noted(results):
    settings = results["rows"]["around_right, GRU, 0"]["stages"]["plain"]["settings"]
    settings |= {"learning_rate": 0.5, "weight_decay": 0.1, "smoothing": 0.2}
    table = scan_tables.scan_finetuned(results)
    assert "\nPretrained, add jump, LSTM, plain: 200 examples" in table
    other = "\nPretrained, around right, GRU, plain: 200 examples in batches of 4, 50 iterations, "
    assert (
        other
        + ("8 hidden units, learning rate up to 0.5, weight decay 0.1, label smoothing 0.2, with ")
        in table
    )


def test_trials_are_left_out(results):
    first = copy.deepcopy(results)
    for row in first["rows"].values():
        for found in row["stages"].values():
            found["settings"]["limit"] = 100
    for table in (
        scan_tables.scan_zero_shot,
        scan_tables.scan_finetuned,
        scan_tables.scan_curve,
    ):
        assert table(results)
        assert table(first) == table({}) == ""
    some = copy.deepcopy(results)
    some["rows"]["add_jump, LSTM, 1"]["stages"]["equi-tuned"]["settings"]["limit"] = 100
    assert "| 75.0, 1 seed |" in scan_tables.scan_finetuned(some)


def test_the_curve(results, monkeypatch, tmp_path):
    expected = [{0: 0.0, 80: 50.0}, {0: pytest.approx(10), 80: pytest.approx(70)}]
    assert scan_tables.scan_curves(results) == {"equi-tuned": expected}
    table = scan_tables.scan_curve(results)
    assert "| examples of fine-tuning | 0 | 80 |" in table
    assert "| equi-tuned, 2 seeds | 5.0 (7.1) | 60.0 (14.1) |" in table
    assert "(../images/scan_curve.png)" in table

    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    drawn = []

    def new_figure(*size):
        drawn.append(made(*size))
        return drawn[-1]

    made = pictures.new_figure
    monkeypatch.setattr(pictures, "new_figure", new_figure)
    monkeypatch.setattr(pictures, "IMAGES", tmp_path)
    pictures.draw_scan_curve(results)
    assert (tmp_path / "scan_curve.png").stat().st_size > 1000
    lines = drawn[0].axes[0].get_lines()
    shown = [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]
    assert shown == [([0, 80], pytest.approx(y)) for y in ([0, 50], [10, 70], [5, 60])]
    assert len({line.get_color() for line in lines}) == 1
    (tmp_path / "scan_curve.png").unlink()
    pictures.draw_scan_curve({})
    assert not list(tmp_path.iterdir())


def test_pages_show_them(results, monkeypatch):
    monkeypatch.setattr(render.record, "load", lambda name: {"scan": results}[name])
    page = "<!-- results:scan_finetuned -->\nold\n<!-- end -->\n"
    page += "<!-- results:scan_curve -->\n<!-- end -->\n"
    found = render.rendered(page)
    assert "old" not in found
    assert scan_tables.scan_finetuned(results) in found
    assert scan_tables.scan_curve(results) in found
    assert render.rendered(found) == found
