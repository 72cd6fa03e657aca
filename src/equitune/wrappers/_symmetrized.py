"""The weighted Reynolds operator of any weighting, runner and space."""

from __future__ import annotations

from typing import Any, NamedTuple, Self, final

from torch import Tensor, nn

from equitune._checks import require, require_type
from equitune._submodules import Watch
from equitune.actions import Action
from equitune.runners import Runner
from equitune.runners._base import Mixing, Stacking
from equitune.runners._tuned import limited
from equitune.spaces import Space, Values
from equitune.weightings import Uniform, Weighting
from equitune.wrappers._inputs import Actions
from equitune.wrappers._orbit_module import OrbitModule


@final
class Explanation(NamedTuple):
    """How a wrapper came to its output; a named tuple of tensors.

    Attributes:
        output: What ``forward`` returns.
        weights: (|G|, B), the weight of each copy; their sum over the group is 1.
        scores: (|G|, B), what the weights were made from: the logits of lambda, the negated proxy
            losses of EquiZero; a copy with a larger score counts more. None for equal weights.
        elements: (B,) int64, the element with the largest weight, the first of several.
    """

    output: Any
    weights: Tensor
    scores: Tensor | None
    elements: Tensor


class Symmetrized(OrbitModule):
    """A weighted Reynolds operator: f(x) = sum_g w_g(x) g^-1 M(gx), where the weights sum to 1.

    This is test-time augmentation by a whole group, with the inverse action on outputs. With
    weights that choose it is canonicalization. ``EquiTune``, ``LambdaEquiTune``, ``EquiZero`` and
    ``Canonicalize`` are this class with a weighting of their own.

    Args:
        backbone: The module M. It is registered and never modified.
        input_action: How the group acts on the first argument of the backbone, or a mapping from
            argument names to actions.
        output_action: How it acts on the output; None means one invariant tensor. With
            ``submodule``, how it acts on the activation there.
        weighting: How much each copy counts. Default equal weights.
        runner: How the backbone is evaluated on the copies. Default
            :class:`equitune.runners.Tuned`.
        space: The space in which copies are averaged. Default the values themselves.
        submodule: The dotted name of a submodule of the backbone, up to whose output it is
            symmetrised; the rest then runs once, on the result. None for the whole backbone. An
            invariant activation is always exact; one that moves is exact where the rest is
            invariant or equivariant itself, which ``equitune.testing.assert_equivariant`` checks.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the actions are of different groups, no submodule has the name, or the
            runner does not offer what the weighting reads. Calls raise it for a tensor argument
            without an action, for shapes that do not fit, and where something passes the
            submodule by.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, Symmetrized, Uniform, c4
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = Symmetrized(backbone, ImageAction(c4()), weighting=Uniform())
        >>> x = torch.rand(2, 1, 8, 8)
        >>> torch.allclose(model(x), model(x.rot90(1, (-2, -1))), atol=1e-6)
        True
    """

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Actions,
        output_action: Action | None = None,
        *,
        weighting: Weighting | None = None,
        runner: Runner | None = None,
        space: Space | None = None,
        submodule: str | None = None,
    ) -> None:
        super().__init__(backbone, input_action, output_action, runner=runner)
        self.weighting: Weighting = Uniform() if weighting is None else weighting
        self.space: Space = Values() if space is None else space
        if submodule is not None:
            self.watches["submodule"] = Watch(self, backbone, submodule, "submodule")
        self._bind()

    @property
    def submodule(self) -> str | None:
        """The submodule up to which the backbone is symmetrised; None for the whole of it."""
        watch = self.watches.get("submodule")
        return None if watch is None else watch.name

    def forward(self, x: Any = None, /, *args: Any, **kwargs: Any) -> Any:
        if self._fast is not None and not args and not kwargs:
            output = self._fast(x)
            if output is not None:
                return output
        return self.run(Mixing(self.weighting, self.space), x, args, kwargs)

    def explain(self, x: Any = None, /, *args: Any, **kwargs: Any) -> Explanation:
        """Calls the wrapper as ``forward`` does, and says how it came to its output.

        Returns:
            The output, with the weights, scores and elements of each sample.
        """
        mix = Mixing(self.weighting, self.space)
        output = self.run(mix, x, args, kwargs)
        weights = mix.equal_weights() if mix.weights is None else mix.weights
        return Explanation(output, weights, mix.scores, weights.argmax(dim=0))

    def freeze_weighting(self) -> Self:
        """Keeps the weighting in eval mode, also under ``train()``, and its parameters fixed.

        Returns:
            The wrapper itself.
        """
        self.weighting.freeze()
        return self

    def unfreeze_weighting(self) -> Self:
        """Undoes :meth:`freeze_weighting`: what had gradients before has them again.

        Returns:
            The wrapper itself.
        """
        self.weighting.unfreeze()
        return self.train(self.training)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_fast"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # What a runner binds may be a function, which knows this model and not its copies.
        self._fast = self.runner.bind(self)

    def refit(self) -> None:
        super().refit()
        self._bind()

    def _bind(self) -> None:
        """Fits the weighting, the space and the runner together."""
        use = "a weighting such as Uniform(), or None for equal weights"
        reads = require_type("weighting", self.weighting, Weighting, use).reads
        require_type("space", self.space, Space, "a space such as Values(), or None")
        kind = reads if reads in (None, "input", "output", "likelihood") else "submodule"
        offers = self.runner.offers
        must = f"read one of {sorted(offers)}, which the runner offers"
        use = "another weighting, or another runner"
        require(kind is None or kind in offers, "weighting", must, repr(reads), use)
        # At the cut, the activation is the output.
        tapped = reads if kind == "submodule" and reads != self.submodule else None
        if "weight_input" in self.watches and self.watches["weight_input"].name != tapped:
            self.watches.pop("weight_input").end()
        if tapped is not None and "weight_input" not in self.watches:
            others = "'input', 'output' or "
            watch = Watch(self, self.backbone, tapped, "weight_input", others)
            self.watches["weight_input"] = watch
        self._fast = self.runner.bind(self)

    def extra_repr(self) -> str:
        cut = "" if self.submodule is None else f", submodule={self.submodule!r}"
        space = "" if self.space == Values() else f", space={self.space}"
        return super().extra_repr() + space + cut


@final
class Explaining(nn.Module):
    """A module whose ``forward`` returns the explanation of a wrapper.

    Engines such as DistributedDataParallel, FSDP and accelerate see calls of ``forward`` only:
    train ``Explaining(model)`` where a loss reads weights or scores.

    Args:
        model: A wrapper, or another module with ``explain``.

    Raises:
        TypeError: If it has none.

    Example:
        >>> import torch
        >>> from equitune import EquiTune, Explaining, ImageAction, c4
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> explaining = Explaining(EquiTune(backbone, ImageAction(c4())))
        >>> explaining(torch.rand(2, 1, 8, 8)).weights.shape
        torch.Size([4, 2])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        explains = isinstance(model, nn.Module) and callable(getattr(model, "explain", None))
        must, use = "be a module with explain", "a wrapper such as EquiTune"
        require(explains, "model", must, type(model).__name__, use, TypeError)
        self.model: Any = model

    def forward(self, *args: Any, **kwargs: Any) -> Explanation:
        explanation: Explanation = self.model.explain(*args, **kwargs)
        return explanation


@final
class RegularFeatures(OrbitModule):
    """The regular features g^-1 M(gx) of Algorithms 1 and 2 (first paper), as (B, |G|, ...).

    A module of its own, so that ``nn.Sequential(RegularFeatures(...), head)`` trains like any
    other. The features move by :class:`equitune.actions.RegularFeatureAction` of the output action.

    Args:
        backbone: The module M.
        input_action: How the group acts on the first argument of the backbone, or a mapping from
            argument names to actions.
        output_action: How it acts on the output; None means one invariant tensor.
        chunk_size: The most copies in one pass of the backbone; None for what is fastest, see
            :class:`equitune.runners.Tuned`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the actions are of different groups, or ``chunk_size`` is below 1.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, RegularFeatures, c4
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> RegularFeatures(backbone, ImageAction(c4()))(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 4, 10])
    """

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Actions,
        output_action: Action | None = None,
        *,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(backbone, input_action, output_action, runner=limited(chunk_size))

    def forward(self, x: Any = None, /, *args: Any, **kwargs: Any) -> Any:
        return self.run(Stacking(), x, args, kwargs)
