"""What runners around another runner have in common."""

from __future__ import annotations

from typing import Any

from equitune._checks import require_type
from equitune.runners import Batches, Runner


class Around(Runner):
    """A runner that says what another one has to run.

    Args:
        runner: The other runner; None for one batch.

    Raises:
        TypeError: If ``runner`` is not a runner.
    """

    def __init__(self, runner: Runner | None = None) -> None:
        use = "a runner such as Batches(chunk_size=64), or None for one batch"
        inner = Batches() if runner is None else require_type("runner", runner, Runner, use)
        self.runner: Runner = inner
        self.offers, self.in_distribution = inner.offers, inner.in_distribution

    def literal(self, formula: Any, x: Any) -> Any:
        return self.runner.literal(formula, x)

    def compared(self, formula: Any, output: Any) -> Any:
        return self.runner.compared(formula, output)

    def bind(self, model: Any) -> None:
        # For its checks: what it makes fast is the call of all copies.
        self.runner.bind(model)
