"""How a group acts on tensors and on structures of tensors."""

from equitune.actions.base import Action, TrivialAction
from equitune.actions.image import ImageAction, VectorFieldAction
from equitune.actions.matrix import MatrixAction
from equitune.actions.permutation import (
    PermutationAction,
    RegularAction,
    RegularFeatureAction,
    TokenAction,
)
from equitune.actions.product import ProductAction
from equitune.actions.tree import Drop, OneOf, TreeAction

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
    "TokenAction",
    "TreeAction",
    "TrivialAction",
    "VectorFieldAction",
]
