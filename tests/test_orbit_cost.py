"""The arithmetic of the page on many devices."""

import pytest

from orbit_cost import ORDER, Cluster, Network, all_reduce, orbit_cost, orbit_parallel, step

SMALL = Network("small", {1: 0.1, 2: 0.2, 4: 0.4, 8: 0.7}, parameters=10**6)
RESULTS = {
    "model": "a model", "seed": 0, "command": "a command", "machine": "a machine",
    "versions": {"torch": "2.14.1"}, "parameters": 10**6,
    "seconds_of_a_step": {"1": 0.1, "8": 0.7},
    "rows": {"a row": {"ratio": 0.551, "seconds_of_one": 1.0}},
}  # fmt: skip


def test_seconds_lie_between_those_that_were_measured():
    assert [SMALL.of(n) for n in (1, 2, 8)] == [0.1, 0.2, 0.7]
    assert SMALL.of(3) == pytest.approx(0.3)
    assert SMALL.of(80) == pytest.approx(7.0)
    assert SMALL.times(50).of(3) == pytest.approx(15)


def test_a_sum_in_a_ring():
    cluster = Cluster(node=4, inside=100.0, between=10.0, latency=0.0)
    assert all_reduce(60, 1, cluster) == (0, 0)
    assert all_reduce(60, 4, cluster) == pytest.approx((90, 0.9))
    assert all_reduce(60, 6, cluster) == pytest.approx((100, 10))


@pytest.mark.parametrize("devices", [8, 64])
@pytest.mark.parametrize("network", [SMALL, SMALL.times(1000)], ids=["small", "large"])
def test_the_batch_is_split_where_there_are_samples_enough(network, devices):
    for batch in (devices, 8 * devices):
        one, other = (step(network, devices, n, batch, Cluster()) for n in (1, ORDER))
        assert one.copies == other.copies
        assert one.seconds <= other.seconds
        assert one.sent <= other.sent


def test_the_group_is_split_where_samples_are_few_and_the_work_is_large():
    large = SMALL.times(1000)
    one, other = (step(large, 8, n, 1, Cluster()) for n in (1, ORDER))
    assert (one.copies, other.copies) == (ORDER, 1)
    assert other.seconds < one.seconds
    assert other.answer < one.answer
    # Nothing takes less than the least time of a step.
    assert step(SMALL, 8, ORDER, 1, Cluster(floor=1.0)).seconds >= 1


def test_the_tables_name_what_is_assumed():
    text = orbit_cost(RESULTS)
    assert "Assumed: a device is 300 times as fast as the measured thread" in text
    assert "resnet18, 8 devices, 1 sample |" in text
    assert "| a row | 0.55 | 1.00 s |" in orbit_parallel(RESULTS)
