"""What a runner is, and what it asks while it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, final

import torch
from torch import Tensor

from equitune._checks import require
from equitune.runners._call import Call
from equitune.spaces import Space
from equitune.weightings import Copies, Weighting


class Mix(Protocol):
    """What becomes of the copies that a runner has run."""

    @property
    def reads(self) -> str | None:
        """What the weighting reads."""

    def ask(self, copies: Copies) -> Tensor | None:
        """Asks for the weights with copies of the input alone, before the model runs.

        Returns:
            The weights (K, B) if they are known and most are 0, so that the copies whose weight is
            0 need not run; else None.
        """

    def __call__(self, copies: Copies) -> Any:
        """Combines the copies: once, or once for each step of a decoder."""


class Runner(ABC):
    """How the model is evaluated on the copies: which, in what pieces, in what order, where.

    A runner drives. It chooses which elements run, asks ``mix.ask`` with copies of the input if
    ``mix.reads`` is ``"input"``, calls the model, and hands what it has to ``mix``. It knows
    nothing of weights.

    Attributes:
        offers: What a weighting may read: ``"input"``, ``"output"``, and ``"submodule"`` for the
            name of one.
        in_distribution: Whether its outputs are random, and exact in distribution only.

    Example:
        >>> import torch
        >>> from equitune import EquiTune, ImageAction, Symmetrized, Uniform, c4
        >>> from equitune.runners import Orbit, Runner
        >>> class OneByOne(Runner):
        ...     def run(self, call, mix, elements):
        ...         each = [[g] for g in elements]
        ...         copies = [[s.flatten(0, 1) for s in call.copies(one)] for one in each]
        ...         return call.evaluate(copies, lambda ran: mix(Orbit.of(call, each, ran)))
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = Symmetrized(backbone, ImageAction(c4()), runner=OneByOne())
        >>> x = torch.rand(2, 1, 8, 8)
        >>> torch.allclose(model(x), EquiTune(backbone, ImageAction(c4()))(x), atol=1e-6)
        True
    """

    offers: frozenset[str] = frozenset({"input", "output", "submodule"})
    in_distribution: bool = False

    @abstractmethod
    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        """The output of the symmetrised model.

        Args:
            call: The call: its copies, and the model.
            mix: What combines copies; called with :class:`equitune.weightings.Copies` of the
                elements, in their order.
            elements: The elements of the group to run.
        """

    def literal(self, formula: Any, x: Any) -> Any:
        """What :meth:`run` has to give for one sample: the definition that tests hold it to.

        It is the formula itself. A runner of a kit makes an output of several sums, such as one for
        each token, and says which.

        Args:
            formula: An ``equitune.testing.Formula``, whose ``mean(x)`` is the weighted mean of the
                copies of a sample x, each run by itself.
            x: A batch of one sample.
        """
        return formula.mean(x)

    def compared(self, formula: Any, output: Any) -> Any:
        """What of an output of the model the definition is about, as :meth:`literal` returns it."""
        return output

    def bind(self, model: Any) -> Any:
        """A function of one tensor that does what :meth:`run` does, and faster; None for none.

        It returns None for a tensor that it is not made for.

        Raises:
            ValueError: If the runner does not fit the model, which is then refused.
        """
        return None


@final
class Mixing:
    """The weighted mean: what a symmetrised model makes of its copies.

    Attributes:
        weights: (K, B), the weights of the call; None for equal ones.
        scores: (K, B), the scores that they come from; None if there are none.
    """

    def __init__(self, weighting: Weighting, space: Space) -> None:
        self.weighting, self.space, self.reads = weighting, space, weighting.reads
        self.weights: Tensor | None = None
        self.scores: Tensor | None = None
        self._known, self._count, self._first = False, 0, torch.empty(0)

    def ask(self, copies: Copies) -> Tensor | None:
        if self.reads not in (None, "input"):
            return None
        self._decide(copies)
        # Only copies whose weight is not 0 will have run: no other means may be asked for.
        plain = type(self.weighting).combine is Weighting.combine
        if self.weights is None or not (self.weighting.sparse and plain):
            return None
        # What depends on the data has no place in a graph, but for one copy of each sample.
        if torch.compiler.is_compiling() and not self.weighting.chooses:
            return None
        return copies.own(self.weights)

    def __call__(self, copies: Copies) -> Any:
        if not self._known:
            self._decide(copies)
        combine, weights = self.weighting.combine, self.weights
        tensors = [combine(mean, weights) for mean in copies.means(self.space)]
        self._count = copies.count
        self._first = tensors[0] if tensors else torch.empty(copies.batch_size)
        return copies.rebuild(tensors)

    def equal_weights(self) -> Tensor:
        """(K, B), in the dtype of the first output; those that are averaged have a mean."""
        return self._first.real.new_full((self._count, len(self._first)), 1 / self._count)

    def _decide(self, copies: Copies) -> None:
        self.weights, self.scores = weighed(self.weighting, copies)
        # A likelihood is asked again at each step.
        self._known = self.reads != "likelihood"


def weighed(weighting: Weighting, copies: Copies) -> tuple[Tensor | None, Tensor | None]:
    """The weights and the scores; refuses anything but one weight per copy and sample."""
    weights, scores = weighting(copies)
    count = copies.count if scores is None else scores.shape[0]
    if weights is not None and (weights.dim() < 2 or weights.shape[0] != count):
        got = f"weights of shape {tuple(weights.shape)} for {count} copies"
        use = f"(|G|, B), as {type(weighting).__name__}.weigh has to return"
        require(False, "weighting", "return one weight per copy and sample", got, use)
    return weights, scores


@final
class Stacking:
    """The copies g^-1 M(gx) themselves, as (B, K, ...): regular features."""

    reads = None

    def ask(self, copies: Copies) -> Tensor | None:
        return None

    def __call__(self, copies: Any) -> Any:
        count = len(copies.dtypes)
        return copies.rebuild([copies.undone(leaf).movedim(0, 1) for leaf in range(count)])
