"""Plans that are measured before the first call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from equitune._checks import require, require_type
from equitune.runners import Batches, Call, Mix, Runner, Tuned
from equitune.wrappers import OrbitModule


def fastest_plan(model: Any, *args: Any, **kwargs: Any) -> Batches:
    """Measures on an example how a model runs its copies fastest on this CPU.

    Runs the copies several times, without their mean. If ``model.runner`` is a
    :class:`equitune.runners.Tuned`, it keeps the plan for its calls. As ``model.runner``
    the plan is fixed: it runs all shapes, and nothing is measured any more.

    Args:
        model: A wrapper in eval mode.
        *args: The arguments of the wrapper by position.
        **kwargs: Those by name.

    Returns:
        The plan, which is exact up to rounding; one batch where nothing is measured, such as on
        accelerators.

    Raises:
        TypeError: If ``model`` is not a wrapper.
        ValueError: If a module of the backbone trains.

    Example:
        >>> import torch
        >>> from equitune import EquiTune, ImageAction, c4
        >>> from equitune.runners import Batches
        >>> from equitune.scaling import fastest_plan
        >>> backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten())
        >>> model = EquiTune(backbone, ImageAction(c4())).eval()
        >>> model.runner = fastest_plan(model, torch.rand(2, 3, 16, 16))
        >>> isinstance(model.runner, Batches)
        True
    """
    require_type("model", model, OrbitModule, "a wrapper such as EquiTune")
    tuned = model.runner if isinstance(model.runner, Tuned) else Tuned()
    first, *others = args or (None,)
    # Nothing is made of the copies.
    plan: Batches = model.run(None, first, others, kwargs, _Planning(tuned))
    return plan


@final
class _Planning(Runner):
    """Measures in place of a run."""

    def __init__(self, tuned: Tuned) -> None:
        self._tuned = tuned

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        use = "model.eval(), since plans are for inference"
        require(not call.training, "model", "be in eval mode", "one that trains", use)
        return self._tuned.plan(call, elements)
