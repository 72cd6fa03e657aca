"""The bar charts of the notebooks and of the benchmarks."""

import re
import statistics

import numpy as np
import pytest

from bars import draw_bars


def heights(axes):
    return [bar.get_height() for bar in axes.patches]


def test_bars_show_mean_spread_and_seeds():
    results = {
        "none": {"plain": [0.7, 0.8, 0.75], "d4": [0.9, 0.9]},
        "c4": {"plain": [0.81], "c4": [0.85, 0.87]},
    }
    figure = draw_bars(results, ylabel="accuracy")
    (axes,) = figure.axes
    containers = {c.get_label(): c for c in axes.containers if (c.get_label() or "_")[0] != "_"}
    seen = {name: [bar.get_height() for bar in container] for name, container in containers.items()}
    assert list(seen) == ["plain", "d4", "c4"]
    assert np.allclose(seen["plain"], [0.75, 0.81])
    assert np.allclose(seen["d4"], [0.9])
    assert np.allclose(seen["c4"], [0.86])
    places = {name: [b.get_x() + b.get_width() / 2 for b in c] for name, c in containers.items()}
    assert places["plain"][0] < 0 < places["plain"][1] < places["c4"][0]
    assert abs(places["d4"][0]) < 1e-12
    dots = [d.get_offsets()[:, 1].tolist() for d in axes.collections
            if type(d).__name__ == "PathCollection"]  # fmt: skip
    assert sorted(dots) == sorted(v for bars in results.values() for v in bars.values())
    spreads = [c for c in axes.containers if type(c).__name__ == "ErrorbarContainer"]
    ends = sorted(tuple(c[2][0].get_segments()[0][:, 1]) for c in spreads)
    several = [v for bars in results.values() for v in bars.values() if len(v) > 1]
    expected = sorted(
        (statistics.mean(v) - statistics.stdev(v), statistics.mean(v) + statistics.stdev(v))
        for v in several
    )
    assert np.allclose(ends, expected)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["none", "c4"]
    assert [t.get_text() for t in figure.legends[0].texts] == ["plain", "d4", "c4"]
    assert sorted(t.get_text() for t in axes.texts) == ["0.75", "0.81", "0.86", "0.9"]
    assert axes.get_ylabel() == "accuracy"
    assert axes.get_ylim()[0] == 0


def test_bars_below_zero():
    axes = draw_bars({"a": {"x": [-1.0, -3.0]}}).axes[0]
    assert heights(axes) == [-2.0]
    (text,) = axes.texts
    assert text.xy[1] == -2 - statistics.stdev([-1, -3])


BAD_RESULTS = [
    ([1.0], TypeError, "results is a list"),
    ({}, ValueError, "results is empty"),
    ({"a": [1.0]}, TypeError, "results['a'] is a list"),
    ({"a": {}}, ValueError, "results['a'] is empty"),
    ({"a": {"x": 1.0}}, TypeError, "results['a']['x'] is a float"),
    ({"a": {"x": "high"}}, TypeError, "results['a']['x'] is a str"),
    ({"a": {"x": []}}, ValueError, "results['a']['x'] is empty"),
    ({"a": {"x": ["1"]}}, TypeError, "results['a']['x'] holds a str"),
    ({"a": {"x": [1.0, float("nan")]}}, ValueError, "results['a']['x'] holds nan"),
]


@pytest.mark.parametrize(("results", "error", "message"), BAD_RESULTS)
def test_bad_results_are_refused(results, error, message):
    with pytest.raises(error, match=re.escape(message)):
        draw_bars(results)
