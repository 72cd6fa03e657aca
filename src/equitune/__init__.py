"""Make any pretrained model equivariant to a finite group, without touching its weights."""

import importlib
from typing import Any

from equitune.actions import (
    Action,
    Drop,
    ImageAction,
    MatrixAction,
    OneOf,
    PermutationAction,
    ProductAction,
    RegularAction,
    RegularFeatureAction,
    SignedPermutationAction,
    TokenAction,
    TreeAction,
    TrivialAction,
    VectorFieldAction,
    WholeBatchAction,
)
from equitune.groups import (
    Embedding,
    FiniteGroup,
    c4,
    cyclic,
    d4,
    dihedral,
    generate_permutations,
    symmetric,
    trivial,
)
from equitune.weightings import Best, Canonical, Learned, Uniform, Weighting
from equitune.wrappers import (
    Canonicalize,
    EquiTune,
    EquiZero,
    Explaining,
    Explanation,
    LambdaEquiTune,
    OrbitModule,
    RegularFeatures,
    Symmetrized,
)

__version__ = "0.1.0"

__all__ = [
    "Action",
    "Best",
    "Canonical",
    "Canonicalize",
    "Drop",
    "Embedding",
    "EquiTune",
    "EquiZero",
    "Explaining",
    "Explanation",
    "FiniteGroup",
    "ImageAction",
    "LambdaEquiTune",
    "Learned",
    "MatrixAction",
    "OneOf",
    "OrbitModule",
    "PermutationAction",
    "ProductAction",
    "RegularAction",
    "RegularFeatureAction",
    "RegularFeatures",
    "SignedPermutationAction",
    "Symmetrized",
    "TokenAction",
    "TreeAction",
    "TrivialAction",
    "Uniform",
    "VectorFieldAction",
    "Weighting",
    "WholeBatchAction",
    "c4",
    "cyclic",
    "d4",
    "dihedral",
    "generate_permutations",
    "symmetric",
    "trivial",
]

# Imported when they are first asked for: some need an extra.
_KITS = {"audit", "distributed", "heads", "losses", "rl", "scaling", "seq2seq", "testing", "text",
         "training", "vision", "viz", "weight_nets"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _KITS:
        return importlib.import_module(f"equitune.{name}")
    raise AttributeError(f"module 'equitune' has no attribute {name!r}")
