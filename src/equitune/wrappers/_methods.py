"""The methods of the papers: each one a weighting and its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn

from equitune.actions import Action
from equitune.runners._tuned import limited
from equitune.weightings import Best, Canonical, Learned
from equitune.weightings._best import Gradient
from equitune.wrappers._inputs import Actions
from equitune.wrappers._symmetrized import Symmetrized


@final
class EquiTune(Symmetrized):
    """The mean over the group, f(x) = 1/|G| sum_g g^-1 M(gx) (first paper, equation 3).

    Args:
        backbone: The module M.
        input_action: How the group acts on the first argument of the backbone, or a mapping from
            argument names to actions.
        output_action: How it acts on the output; None means one invariant tensor.
        chunk_size: The most copies in one pass of the backbone; None for what is fastest, see
            :class:`equitune.runners.Tuned`.
        submodule: The dotted name of a submodule of the backbone up to whose output it is
            symmetrised, with ``output_action`` the action there; the rest runs once, on the result.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the actions are of different groups, ``chunk_size`` is below 1 or no
            submodule has the name. Calls raise it for a tensor argument without an action, and for
            shapes that do not fit.

    Example:
        >>> import torch
        >>> from equitune import EquiTune, ImageAction, d4
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = EquiTune(backbone, ImageAction(d4()))
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
        chunk_size: int | None = None,
        submodule: str | None = None,
    ) -> None:
        super().__init__(
            backbone, input_action, output_action, runner=limited(chunk_size), submodule=submodule
        )


@final
class LambdaEquiTune(Symmetrized):
    """Weights learned by a network, lambda-equitune (second paper, equation 4).

    f(x) = sum_g lambda(gx) g^-1 M(gx) / sum_h lambda(hx), where log lambda is what the weight
    network returns: the weights are the softmax of its logits over the group. See
    :class:`equitune.weightings.Learned`.

    Args:
        backbone: The module M.
        input_action: How the group acts on the first argument of the backbone, or a mapping from
            argument names to actions.
        output_action: How it acts on the output; None means one invariant tensor.
        weight_net: A module that sees single copies as a flat batch (N, ...) and returns one
            logit each, (N,) or (N, 1); or an :class:`equitune.weightings.OrbitWeightNet`.
        weight_input: What the network sees: ``"input"``, the copies gx of the first moved tensor
            of the backbone's signature (the paper's lambda(gx)); ``"output"``, the first tensor of
            the raw outputs M(gx); or the dotted name of a submodule of the backbone, whose
            activation is then read in the pass that runs anyway.
        chunk_size: The most copies in one pass of the backbone; None for what is fastest, see
            :class:`equitune.runners.Tuned`.
        submodule: As in :class:`EquiTune`; ``"output"`` is then the activation there.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: As :class:`EquiTune`. Calls raise it if the weight network returns another
            shape.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, LambdaEquiTune, c4
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> weight_net = torch.nn.Linear(10, 1)
        >>> model = LambdaEquiTune(
        ...     backbone, ImageAction(c4()), weight_net=weight_net, weight_input="output"
        ... )
        >>> model.explain(torch.rand(2, 1, 8, 8)).weights.shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Actions,
        output_action: Action | None = None,
        *,
        weight_net: nn.Module,
        weight_input: str = "input",
        chunk_size: int | None = None,
        submodule: str | None = None,
    ) -> None:
        super().__init__(
            backbone, input_action, output_action, weighting=Learned(weight_net, weight_input),
            runner=limited(chunk_size), submodule=submodule,
        )  # fmt: skip


@final
class EquiZero(Symmetrized):
    """The copy with the smallest proxy loss, equizero (second paper, equation 2).

    f(x) = g*^-1 M(g* x), where g* minimises the proxy loss l(M(gx)). Several minimisers share
    the weight, so that inputs that are symmetric themselves stay equivariant. See
    :class:`equitune.weightings.Best`.

    Args:
        backbone: The module M.
        input_action: How the group acts on the first argument of the backbone, or a mapping from
            argument names to actions.
        output_action: How it acts on the output; None means one invariant tensor.
        proxy_loss: Maps the raw outputs M(gx), (|G|, B, ...) or a structure of such stacks, in
            float32 or higher, to losses (|G|, B); the smallest wins. See ``equitune.losses``.
        gradient: Whose gradient the selected copy has: ``"equitune"``, that of the mean;
            ``"identity"``, that of M(x); ``"selected"``, its own; None for no gradient.
        tie_tolerance: Losses closer than this to the minimum, relative to it, count as ties.
            Default by the dtype of the raw outputs.
        chunk_size: The most copies in one pass of the backbone; None for what is fastest, see
            :class:`equitune.runners.Tuned`.
        submodule: As in :class:`EquiTune`; the proxy loss then reads the activation there.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: As :class:`EquiTune`, and for another ``gradient`` or a negative
            ``tie_tolerance``. Calls raise it if the proxy loss returns another shape.

    Example:
        >>> import torch
        >>> from equitune import EquiZero, ImageAction, c4
        >>> from equitune.losses import entropy
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = EquiZero(backbone, ImageAction(c4()), proxy_loss=entropy)
        >>> model.explain(torch.rand(2, 1, 8, 8)).elements.shape
        torch.Size([2])
    """

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Actions,
        output_action: Action | None = None,
        *,
        proxy_loss: Callable[[Any], Tensor],
        gradient: Gradient | None = "equitune",
        tie_tolerance: float | None = None,
        chunk_size: int | None = None,
        submodule: str | None = None,
    ) -> None:
        super().__init__(
            backbone, input_action, output_action,
            weighting=Best(proxy_loss, gradient, tie_tolerance), runner=limited(chunk_size),
            submodule=submodule,
        )  # fmt: skip


@final
class Canonicalize(Symmetrized):
    """Turns the input to the copy that a weight network prefers, and runs the backbone once.

    f(x) = g*^-1 M(g* x), where g* maximises the logit of gx. The network sees all copies, the
    backbone only the chosen one; where several are equally good, as for inputs that are symmetric
    themselves, it sees these and takes their mean. A weight network that was trained in
    :class:`LambdaEquiTune` with ``weight_input="input"`` fits; the choice has no gradient, so that
    it does not learn here, and it runs in eval mode. The backbone can be fine-tuned.

    Compiled or exported, it runs exactly one copy of each sample. Where several different copies
    are equally good, the first counts; symmetric inputs stay exact.

    Args:
        backbone: The module M.
        input_action: How the group acts on the first argument of the backbone, or a mapping from
            argument names to actions.
        output_action: How it acts on the output; None means one invariant tensor.
        weight_net: As in :class:`LambdaEquiTune`: from the copies gx of the first moved tensor as a
            flat batch (N, ...) to one logit each; or an ``OrbitWeightNet``.
        tie_tolerance: Logits closer than this to the largest, relative to the largest in size,
            count as ties. Default by the dtype of the input.
        chunk_size: The most copies in one pass of the backbone; None for what is fastest, see
            :class:`equitune.runners.Tuned`.
        submodule: As in :class:`EquiTune`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: As :class:`EquiTune`, and for a negative ``tie_tolerance``. Calls raise it if
            the weight network returns another shape.

    Example:
        >>> import torch
        >>> from equitune import Canonicalize, ImageAction, c4
        >>> from equitune.weight_nets import MlpWeightNet
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = Canonicalize(backbone, ImageAction(c4()), weight_net=MlpWeightNet(64))
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
        weight_net: nn.Module,
        tie_tolerance: float | None = None,
        chunk_size: int | None = None,
        submodule: str | None = None,
    ) -> None:
        super().__init__(
            backbone, input_action, output_action, weighting=Canonical(weight_net, tie_tolerance),
            runner=limited(chunk_size), submodule=submodule,
        )  # fmt: skip
