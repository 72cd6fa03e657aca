"""A seeded bug, and the parts that bugs are built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equitune import Action, ImageAction, c4, d4
from equitune.testing import Formula, assert_equivariant, assert_invariant, assert_matches_formula
from equitune.testing._models import Architecture, model_family

IMAGE = (-2, -1)
C4, D4 = ImageAction(c4()), ImageAction(d4())
Function = Callable[[Any], Any]


@dataclass(frozen=True)
class Mutant:
    """A bug, the right code, and the check that has to tell them apart."""

    name: str
    right: Function
    wrong: Function
    check: Callable[[Function], None]

    def objection(self) -> str | None:
        """What the check says of the wrong code, or None; it must accept the right code."""
        self.check(self.right)
        try:
            self.check(self.wrong)
        except AssertionError as error:
            return str(error)
        return None


def network(
    input_action: Action, output_action: Action | None = None, norm: bool = False
) -> nn.Module:
    """A random network without symmetry, float64."""
    build = model_family(input_action, output_action)
    return build(Architecture(5, 2, norm, nn.Tanh, 4)).double().eval()


def symmetric_check(
    x: Any, input_action: Action, output_action: Action | None = None
) -> Callable[[Function], None]:
    return lambda fn: assert_equivariant(fn, x, input_action, output_action)


def invariance_check(x: Any, action: Action) -> Callable[[Function], None]:
    return lambda fn: assert_invariant(fn, x, action)


def formula_check(x: Any, formula: Formula) -> Callable[[Function], None]:
    return lambda fn: assert_matches_formula(fn, x, formula)


def copies(net: nn.Module, x: Any, action: Action) -> Tensor:
    """M(gx) for every g, one call each."""
    return torch.stack([net(action.transform(x, g)) for g in action.group.elements])


def undone(raw: Tensor, action: Action) -> Tensor:
    """g^-1 M(gx)."""
    return torch.stack([action.transform(y, action.group.inverse(g)) for g, y in enumerate(raw)])
