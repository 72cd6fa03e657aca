"""How a group acts on tensors and on structures of tensors."""

from equitune.actions._base import Action, TrivialAction
from equitune.actions._image import ImageAction, VectorFieldAction
from equitune.actions._matrix import MatrixAction
from equitune.actions._permutation import (
    PermutationAction,
    RegularAction,
    RegularFeatureAction,
    SignedPermutationAction,
)
from equitune.actions._product import ProductAction
from equitune.actions._tokens import TokenAction
from equitune.actions._tree import Drop, OneOf, TreeAction, WholeBatchAction

__all__ = [
    "Action",
    "Drop",
    "ImageAction",
    "MatrixAction",
    "OneOf",
    "PermutationAction",
    "ProductAction",
    "RegularAction",
    "RegularFeatureAction",
    "SignedPermutationAction",
    "TokenAction",
    "TreeAction",
    "TrivialAction",
    "VectorFieldAction",
    "WholeBatchAction",
]
