"""Fixed seeds, and hypothesis profiles: `ci` is fixed and short, `long` for make test-long."""

import math
import os

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester", "pytest_equitune"]

settings.register_profile(
    "ci",
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("long", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each process has a core of its own, and so has what it starts.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _one_batch():
    """Plans follow from the time that passes take, which tests must not depend on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("equitune.runners._tuned.LEAST", math.inf)
        yield


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
