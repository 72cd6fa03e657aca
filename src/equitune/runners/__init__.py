"""How a model is evaluated on the copies: runners, open for your own."""

from equitune.runners._base import Mix, Runner
from equitune.runners._batches import Batches
from equitune.runners._call import Call, Ran
from equitune.runners._loop import Loop
from equitune.runners._orbit import Orbit, Part
from equitune.runners._products import MatrixProducts
from equitune.runners._tuned import Tuned

__all__ = [
    "Batches", "Call", "Loop", "MatrixProducts", "Mix", "Orbit", "Part", "Ran", "Runner", "Tuned",
]  # fmt: skip
