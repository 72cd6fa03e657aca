"""Equal weights: EquiTune, and the regular features before they are combined."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from equitune.wrappers._orbit import OrbitModule, OrbitPass, Symmetrizer

__all__ = ["EquiTune", "RegularFeatures"]


@final
class EquiTune(Symmetrizer):
    """The mean over the group, f(x) = 1/|G| sum_g g^-1 M(gx) (first paper, equation 3).

    Args:
        backbone: The module M.
        input_action: How the group acts on the first argument of the backbone, or a mapping from
            argument names to actions.
        output_action: How it acts on the output; None means one invariant tensor.
        chunk_size: The most copies in one pass of the backbone; None for no limit.
        at: The dotted name of a submodule of the backbone up to whose output it is symmetrised,
            with ``output_action`` the action there; the rest runs once, on the result.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the actions are of different groups, ``chunk_size`` is below 1 or the
            backbone cannot be cut at ``at``. Calls
            raise it for a tensor argument without an action, or shapes that do not fit.

    Example:
        >>> import torch
        >>> from equitune import EquiTune, ImageAction, d4
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = EquiTune(backbone, ImageAction(d4()))
        >>> x = torch.rand(2, 1, 8, 8)
        >>> torch.allclose(model(x), model(x.rot90(1, (-2, -1))), atol=1e-6)
        True
    """

    def weigh(self, passes: list[OrbitPass]) -> tuple[Tensor | None, Tensor | None]:
        return None, None


@final
class RegularFeatures(OrbitModule):
    """The regular features g^-1 M(gx) of Algorithms 1 and 2 (first paper), as (B, |G|, ...).

    A module of its own, so that ``nn.Sequential(RegularFeatures(...), head)`` trains like any
    other. The features move by :class:`equitune.RegularFeatureAction` of the output action.

    Args:
        backbone: The module M.
        input_action: As for :class:`EquiTune`.
        output_action: As for :class:`EquiTune`.
        chunk_size: As for :class:`EquiTune`.

    Raises:
        TypeError: As :class:`EquiTune`.
        ValueError: As :class:`EquiTune`.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, RegularFeatures, c4
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> RegularFeatures(backbone, ImageAction(c4()))(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 4, 10])
    """

    def forward(self, x: Any = None, /, *args: Any, **kwargs: Any) -> Any:
        call = self._bind(x, args, kwargs)
        stacks = self._combine_copies(self._run_orbit(call), lambda stack: stack.movedim(0, 1))
        return call.annotations.on(stacks)
