"""What a weighting is, and what it sees of the copies."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from equitune._checks import require
from equitune._modes import Flags, freeze, learning, restore
from equitune.actions._tree import mapped
from equitune.functional import widened
from equitune.spaces import LOCAL, Space, Sums

Mean = Callable[[Tensor | None], Tensor]
"""The mean of the copies of one tensor of the output, as a function of the weights."""


class Copies(ABC):
    """Some copies of each sample, as a runner hands them to a weighting.

    There are K slots for each of B samples. A slot is a copy that the runner has run: for the whole
    group slot g belongs to element g; a runner that takes a part of the group has fewer.

    Attributes:
        count: The number K of slots.
        dtypes: The dtypes of the raw outputs, or before the model has run those of the inputs.
        sums: Where copies are that this process does not have.
    """

    count: int
    dtypes: tuple[torch.dtype, ...]
    sums: Sums = LOCAL

    @property
    def batch_size(self) -> int:
        """The number B of samples."""
        return self.read("output")[0][1].shape[1]

    @abstractmethod
    def read(self, what: str) -> list[tuple[Sequence[int], Tensor]]:
        """The stacks that a weighting reads, one for each shape of copies.

        Args:
            what: ``"input"``, the first moved argument; ``"output"``, the first tensor of the raw
                outputs; or the name of the submodule that the weighting declares to read.

        Returns:
            For each shape the slots and the stack (E, B, ...).
        """

    @abstractmethod
    def outputs(self) -> list[tuple[Sequence[int], Any]]:
        """The raw outputs M(gx), in their structure, in float32 or higher, as :meth:`read` does."""

    @abstractmethod
    def means(self, space: Space) -> list[Mean]:
        """For each tensor of the output, the mean of g^-1 M(gx) as a function of the weights."""

    @abstractmethod
    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        """The structure of the output around other tensors."""

    def scores(self, function: Callable[[Any], Tensor], name: str = "proxy_loss") -> Tensor:
        """A function of the raw outputs, for all slots.

        Args:
            function: From raw outputs, (E, B, ...) or a structure of such stacks, to (E, B).
            name: What the user calls it, for messages.

        Returns:
            (K, B), in float32 or higher.

        Raises:
            ValueError: If the function returns something else than (E, B).
        """
        pairs = zip(self.read("output"), self.outputs(), strict=True)
        parts = [(slots, scored(function, y, stack, name)) for (slots, stack), (_, y) in pairs]
        return self.gathered(widened(join(parts, name)))

    def logits(self, net: Callable[[Tensor], Tensor], what: str) -> Tensor:
        """What a weight network makes of each copy by itself, for all slots.

        Args:
            net: From single copies, (N, ...), to (N,) or (N, 1).
            what: What it reads, as for :meth:`read`.

        Returns:
            (K, B), in float32 or higher.

        Raises:
            ValueError: If the network returns another shape.
        """
        pairs = [(slots, s.flatten(0, 1), s.shape[:2]) for slots, s in self.read(what)]
        parts = [(slots, logits_of(net, rows, what).reshape(kb)) for slots, rows, kb in pairs]
        return self.gathered(join(parts, "weight_net"))

    def noisy_scores(
        self, function: Callable[[Any], Tensor], rounding: float
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """A function of the raw outputs, and what their rounding makes of it.

        Args:
            function: From raw outputs to (E, B), as for :meth:`scores`.
            rounding: How far the entries of the raw outputs may be off, relative to their size.

        Returns:
            The scores, and the least and the most that they may be, (K, B) each.
        """
        scores = self.scores(function)
        moved = self.scores(lambda y: function(mapped(y, lambda x: _shaken(x, rounding))))
        noise = (moved - scores).abs().nan_to_num(0.0, 0.0)
        return scores, (scores - noise, scores + noise)

    def gathered(self, scores: Tensor) -> Tensor:
        """The scores of all slots, those of other processes included."""
        return scores

    def own(self, weights: Tensor) -> Tensor:
        """The rows of weights of all slots that belong to the slots at hand."""
        return weights


class Weighting(nn.Module, ABC):
    """How much each copy counts: the w_g(x) of f(x) = sum_g w_g(x) g^-1 M(gx).

    A subclass says how copies are scored and what weights follow from the scores. For the wrapper
    to be equivariant, copies must be treated alike: the score of a copy depends on that copy alone,
    or on the others without regard to their order.

    Attributes:
        reads: What it looks at: None, ``"input"`` (it is then asked before the model runs),
            ``"output"`` or the dotted name of a submodule of the backbone.
        sparse: Whether most weights are 0. A weighting that is asked before the model runs then
            saves the passes of the copies that do not count.
        chooses: Whether the weights are a choice of one copy, or of those that tie with it, which
            has no gradient.
        equal: Whether all copies always count alike, so that a runner need not ask.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, Symmetrized, Weighting, c4
        >>> from equitune.losses import entropy
        >>> class Sure(Weighting):
        ...     reads = "output"
        ...
        ...     def score(self, copies):
        ...         return -copies.scores(entropy)
        ...
        ...     def weigh(self, scores, copies):
        ...         return scores.softmax(0)
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = Symmetrized(backbone, ImageAction(c4()), weighting=Sure())
        >>> model.explain(torch.rand(2, 1, 8, 8)).weights.shape
        torch.Size([4, 2])
    """

    reads: str | None = None
    sparse: bool = False
    chooses: bool = False
    equal: bool = False
    # What the flags of parameters are once it is unfrozen; None while it is not frozen.
    _flags: Flags | None = None

    @abstractmethod
    def score(self, copies: Copies) -> Tensor | None:
        """The scores of the copies, (K, B): a copy with a larger one counts more.

        Args:
            copies: What the runner has run.
        """

    @abstractmethod
    def weigh(self, scores: Tensor, copies: Copies) -> Tensor | None:
        """The weights, (K, B), whose sum over the copies is 1; None for equal ones.

        Args:
            scores: (K, B), those of :meth:`score`.
            copies: What they were made from.
        """

    def forward(self, copies: Copies) -> tuple[Tensor | None, Tensor | None]:
        """The weights and the scores that they come from."""
        scores = self.score(copies)
        return None if scores is None else self.weigh(scores, copies), scores

    def combine(self, mean: Mean, weights: Tensor | None) -> Tensor:
        """The result for one tensor of the output; other means are for other gradients."""
        return mean(weights)

    @property
    def learned(self) -> bool:
        """Whether it has modules or parameters that a loss on the output reaches."""
        parts = itertools.chain(self.children(), self.parameters())
        return not self.chooses and any(True for _ in parts)

    @property
    def frozen(self) -> bool:
        """Whether it is frozen."""
        return self._flags is not None

    @property
    def learning(self) -> tuple[str, ...]:
        """The names of the parameters that learn, or will once it is unfrozen."""
        return learning(self, self._flags)

    def freeze(self, learning: Sequence[str] | None = None) -> Self:
        """Keeps it in eval mode, also under ``train()``, and its parameters fixed.

        Args:
            learning: The names of the parameters that :meth:`unfreeze` lets learn; None for those
                that learn now.

        Returns:
            The weighting itself.
        """
        self._flags = freeze(self, self.learning if learning is None else learning)
        return self

    def unfreeze(self) -> Self:
        """Undoes :meth:`freeze`: what had gradients before has them again.

        Returns:
            The weighting itself.
        """
        restore(self, self._flags or {})
        self._flags = None
        return self

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; it stays in eval mode if all its parameters are fixed."""
        own = [*self.parameters()]
        fixed = bool(own) and not any(p.requires_grad for p in own)
        return super().train(mode and not fixed)


@final
class Uniform(Weighting):
    """Equal weights, as in equi-tuning (first paper, equation 3)."""

    equal = True

    def __init__(self) -> None:
        super().__init__()

    def score(self, copies: Copies) -> None:
        """No scores."""

    def weigh(self, scores: Tensor, copies: Copies) -> None:
        """No weights."""


def scored(
    function: Callable[[Any], Tensor], outputs: Any, stack: Tensor, name: str = "proxy_loss"
) -> Tensor:
    """A function of raw outputs, whose first stack is (E, B, ...), to (E, B)."""
    return per_copy(name, function(outputs), "number per element and sample", stack.shape[:2])


def per_copy(name: str, found: Any, noun: str, *shapes: tuple[int, ...]) -> Tensor:
    """What a function or a module of the user returns; refuses all but one number per copy.

    Args:
        name: What the user calls it.
        found: What it returns.
        noun: What it has to return of each copy.
        shapes: The shapes that this has.

    Raises:
        ValueError: If what it returns has none of the shapes.
    """
    if not isinstance(found, Tensor) or found.shape not in shapes:
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        must = f"return one {noun}, {' or '.join(str(tuple(shape)) for shape in shapes)}"
        require(False, name, must, given, "one that does")
    return found  # type: ignore[no-any-return]


def logits_of(net: Callable[[Tensor], Tensor], copies: Tensor, what: str, dims: int = 1) -> Tensor:
    """The logits of copies whose first ``dims`` dimensions count them, in float32 or higher."""
    # A network may work in place, and raw outputs are still to be averaged.
    found = net(copies.clone() if what == "output" else copies)
    shapes = (copies.shape[:1], (copies.shape[0], 1)) if dims == 1 else (copies.shape[:dims],)
    # Whatever autocast or the backbone work in.
    return widened(per_copy("weight_net", found, "logit per copy", *shapes))


def shaking(x: Tensor, rounding: float) -> Tensor:
    """Factors by which entries (...) are off by a rounding, one up and the next one down."""
    signs = torch.ones(x.shape[2:], dtype=x.dtype, device=x.device).flatten()
    signs[::2] = -1
    return 1 + rounding * signs.view(x.shape[2:])


def _shaken(x: Tensor, rounding: float) -> Tensor:
    return x * shaking(x, rounding) if x.is_floating_point() else x


def require_one_shape(first: Tensor, other: Tensor, name: str) -> None:
    """Refuses stacks, or rows, of two shapes."""
    if first.shape[1:] != other.shape[1:]:
        raise ValueError(
            f"{name} has copies of the shapes {tuple(first.shape[1:])} and "
            f"{tuple(other.shape[1:])}, because the images are not square, and they cannot be "
            "combined; check that output_action is the action of the output"
        )


def join(parts: Sequence[tuple[Sequence[int], Tensor]], name: str) -> Tensor:
    """Joins the stacks (E, B, ...) of several shapes of copies to one, (K, B, ...).

    Raises:
        ValueError: If they differ in shape.
    """
    if len(parts) == 1:
        return parts[0][1]
    for _, stack in parts[1:]:
        require_one_shape(parts[0][1], stack, name)
    rows = {slot: row for slots, stack in parts for slot, row in zip(slots, stack, strict=True)}
    return torch.stack([rows[slot] for slot in sorted(rows)])
