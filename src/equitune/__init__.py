"""Make any pretrained model equivariant to a finite group, without touching its weights."""

from equitune.actions import (
    Action,
    Drop,
    ImageAction,
    MatrixAction,
    PermutationAction,
    ProductAction,
    RegularAction,
    RegularFeatureAction,
    TokenAction,
    TreeAction,
    TrivialAction,
    VectorFieldAction,
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
from equitune.wrappers import (
    EquiTune,
    EquiZero,
    Explanation,
    LambdaEquiTune,
    OrbitModule,
    RegularFeatures,
    Symmetrizer,
)

__version__ = "0.1.0"

__all__ = [
    "Action",
    "Drop",
    "Embedding",
    "EquiTune",
    "EquiZero",
    "Explanation",
    "FiniteGroup",
    "ImageAction",
    "LambdaEquiTune",
    "MatrixAction",
    "OrbitModule",
    "PermutationAction",
    "ProductAction",
    "RegularAction",
    "RegularFeatureAction",
    "RegularFeatures",
    "Symmetrizer",
    "TokenAction",
    "TreeAction",
    "TrivialAction",
    "VectorFieldAction",
    "c4",
    "cyclic",
    "d4",
    "dihedral",
    "generate_permutations",
    "symmetric",
    "trivial",
]
