"""Assertions for symmetric models, actions and groups, of any origin; they need torch only.

``equitune.testing.strategies`` has the hypothesis strategies, and needs hypothesis.
"""

import importlib
from typing import Any

from equitune.testing._assertions import assert_equivariant, assert_invariant, equivariance_report
from equitune.testing._axioms import assert_action, assert_group
from equitune.testing._comparison import RELATIVE_TOLERANCES
from equitune.testing._formulas import (
    CanonicalizeFormula,
    EquiTuneFormula,
    EquiZeroFormula,
    Formula,
    LambdaEquiTuneFormula,
    RegularFeaturesFormula,
    WeightingFormula,
)
from equitune.testing._literal import assert_matches_formula
from equitune.testing._report import ElementErrors, EquivarianceReport

__all__ = [
    "RELATIVE_TOLERANCES",
    "CanonicalizeFormula",
    "ElementErrors",
    "EquiTuneFormula",
    "EquiZeroFormula",
    "EquivarianceReport",
    "Formula",
    "LambdaEquiTuneFormula",
    "RegularFeaturesFormula",
    "WeightingFormula",
    "assert_action",
    "assert_equivariant",
    "assert_group",
    "assert_invariant",
    "assert_matches_formula",
    "equivariance_report",
]


def __getattr__(name: str) -> Any:
    # It needs hypothesis, and is imported when it is first asked for.
    if name == "strategies":
        return importlib.import_module("equitune.testing.strategies")
    raise AttributeError(f"module 'equitune.testing' has no attribute {name!r}")
