"""A valid call of every public function and constructor, for tests that spoil one argument each.

A new public name is one more row, or has a reason in ``NOT_CALLED``.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from torch import nn

import equitune
from equitune import (
    Best,
    Canonical,
    Canonicalize,
    Embedding,
    EquiTune,
    EquiZero,
    Explaining,
    FiniteGroup,
    ImageAction,
    LambdaEquiTune,
    Learned,
    MatrixAction,
    OneOf,
    PermutationAction,
    ProductAction,
    RegularAction,
    RegularFeatureAction,
    RegularFeatures,
    SignedPermutationAction,
    Symmetrized,
    TokenAction,
    TreeAction,
    TrivialAction,
    Uniform,
    VectorFieldAction,
    WholeBatchAction,
    audit,
    c4,
    cyclic,
    dihedral,
    functional,
    generate_permutations,
    heads,
    losses,
    rl,
    scaling,
    seq2seq,
    spaces,
    symmetric,
    testing,
    text,
    training,
    vision,
    viz,
    weight_nets,
)
from equitune.runners import Batches, Loop, Tuned
from equitune.spaces import Probabilities
from equitune.testing import strategies


@dataclass(frozen=True)
class Call:
    """A function with arguments that it takes.

    Attributes:
        function: Whose signature says what an argument may be.
        arguments: Makes them, by name.
        run: Calls the function and does what shows its errors, such as iterating.
        free: Arguments that may be of other kinds than the annotation says.
        handed_on: Arguments that are given to a user's model: its own errors pass as they are.
    """

    function: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    run: Callable[..., Any] | None = None
    free: tuple[str, ...] = ()
    handed_on: tuple[str, ...] = ()

    def __call__(self, **changes: Any) -> Any:
        return (self.run or self.function)(**{**self.arguments(), **changes})


def call(function: Callable[..., Any], /, free: tuple[str, ...] = (), **arguments: Any) -> Call:
    """A row whose arguments are values."""
    return Call(function, lambda: arguments, free=free)


def given(**arguments: Any) -> dict[str, Any]:
    """Arguments by name."""
    return arguments


C4, D2 = c4(), cyclic(2)
IMAGES = ImageAction(C4)
X = torch.rand(2, 1, 4, 4)
FEATURES = torch.rand(2, 4, 3)
STACK = torch.rand(4, 2, 3)
TURN = [(0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2)]
TOKENS = TokenAction.cyclic_swaps(9, [(4, 5)])
OUTPUT_TOKENS = TokenAction.cyclic_swaps(7, [(4, 5)])
POINTS = RegularFeatureAction(TrivialAction(C4))
MIRROR = rl.cartpole_mirror()


def net(outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, outputs))


def scorer() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 1))


def tuned() -> LambdaEquiTune:
    return LambdaEquiTune(
        net(), IMAGES, weight_net=weight_nets.MlpWeightNet(3), weight_input="output"
    )


CORE = {
    "groups.FiniteGroup": call(FiniteGroup, cayley_table=[[0, 1], [1, 0]], names=("e", "s")),
    "groups.FiniteGroup.from_permutations": call(
        FiniteGroup.from_permutations, permutations=[(0, 1), (1, 0)], names=("e", "s")
    ),
    "groups.FiniteGroup.from_generators": call(
        FiniteGroup.from_generators, generators=[(1, 2, 0)], names=["r"]
    ),
    "groups.FiniteGroup.from_matrices": call(
        FiniteGroup.from_matrices, matrices=[[[1.0]], [[-1.0]]], names=("e", "s")
    ),
    "groups.FiniteGroup.compose": call(C4.compose, g=1, h=2),
    "groups.FiniteGroup.inverse": call(C4.inverse, g=1),
    "groups.FiniteGroup.check_element": call(C4.check_element, g=1, free=("name",)),
    "groups.FiniteGroup.subgroup": call(C4.subgroup, generators=[2]),
    "groups.FiniteGroup.left_cosets": call(C4.left_cosets, embedding=C4.subgroup([2])),
    "groups.FiniteGroup.right_cosets": call(C4.right_cosets, embedding=C4.subgroup([2])),
    "groups.FiniteGroup.right_transversal": call(
        C4.right_transversal, embedding=C4.subgroup([2])
    ),
    "groups.FiniteGroup.direct_product": call(C4.direct_product, other=D2),
    "groups.Embedding": call(Embedding, subgroup=D2, group=C4, elements=[0, 2]),
    "groups.cyclic": call(cyclic, n=3),
    "groups.dihedral": call(dihedral, n=3),
    "groups.symmetric": call(symmetric, n=3),
    "groups.generate_permutations": call(
        generate_permutations, generators=[(1, 2, 0)], largest=3
    ),
    "actions.ImageAction": call(ImageAction, group=C4, elements=[0, 1, 2, 3], dims=(-2, -1)),
    "actions.ImageAction.horizontal_flip": call(ImageAction.horizontal_flip, dims=(-2, -1)),
    "actions.ImageAction.vertical_flip": call(ImageAction.vertical_flip, dims=(-2, -1)),
    "actions.ImageAction.rotation_180": call(ImageAction.rotation_180, dims=(-2, -1)),
    "actions.ImageAction.on_tokens": call(IMAGES.on_tokens, height=2, width=2, prefix=1),
    "actions.ImageAction.transform": call(IMAGES.transform, x=X, g=1),
    "actions.ImageAction.orbit": call(IMAGES.orbit, x=X, elements=[0, 1]),
    "actions.ImageAction.inverse_orbit": call(
        IMAGES.inverse_orbit, y=IMAGES.orbit(X), elements=range(4)
    ),
    "actions.ImageAction.shape_classes": call(IMAGES.shape_classes, x=X),
    "actions.VectorFieldAction": call(
        VectorFieldAction, group=C4, elements=[0, 1, 2, 3], dims=(-2, -1), channel_dim=-3,
        components=(-1, -2),
    ),
    "actions.VectorFieldAction.transform": call(
        VectorFieldAction(C4).transform, x=torch.rand(2, 2, 4, 4), g=1
    ),
    "actions.MatrixAction": call(
        MatrixAction, group=D2, matrices=[[[1.0]], [[-1.0]]], dim=-1
    ),
    "actions.MatrixAction.transform": call(
        MatrixAction(D2, [[[1.0]], [[-1.0]]]).transform, x=torch.rand(2, 1), g=1
    ),
    "actions.PermutationAction": call(PermutationAction, group=C4, permutations=TURN, dim=1),
    "actions.PermutationAction.transform": call(
        PermutationAction(C4, TURN).transform, x=torch.rand(2, 4), g=1
    ),
    "actions.SignedPermutationAction": call(
        SignedPermutationAction, group=D2, sources=[(0, 1), (1, 0)], signs=[(1, 1), (-1, -1)],
        offsets=[(0.0, 0.0), (1.0, 1.0)], dim=-1,
    ),
    "actions.SignedPermutationAction.transform": call(
        SignedPermutationAction(D2, [(0,), (0,)], [(1,), (-1,)]).transform, x=torch.rand(2, 1), g=1
    ),
    "actions.WholeBatchAction": call(WholeBatchAction, group=C4),
    "actions.RegularAction": call(RegularAction, group=C4, dim=1),
    "actions.RegularFeatureAction": call(RegularFeatureAction, fiber=TrivialAction(C4)),
    "actions.RegularFeatureAction.transform": call(POINTS.transform, x=FEATURES, g=1),
    "actions.RegularFeatureAction.shape_classes": call(POINTS.shape_classes, x=FEATURES),
    "actions.TokenAction": call(
        TokenAction, group=D2, permutations=[(0, 1), (1, 0)], ignore_index=-100
    ),
    "actions.TokenAction.cyclic_swaps": call(
        TokenAction.cyclic_swaps, vocabulary_size=9, cycles=[(1, 2)], ignore_index=-100
    ),
    "actions.TokenAction.on_logits": call(TOKENS.on_logits, dim=-1),
    "actions.TokenAction.transform": call(TOKENS.transform, x=torch.ones(2, 3).long(), g=1),
    "actions.ProductAction": call(
        ProductAction, first=IMAGES, second=PermutationAction(D2, [(0, 1), (1, 0)], dim=-3)
    ),
    "actions.ProductAction.simultaneous": call(
        ProductAction.simultaneous, first=IMAGES, second=PermutationAction(C4, TURN, dim=-3)
    ),
    "actions.OneOf": call(OneOf, actions=[IMAGES]),
    "actions.OneOf.transform": call(OneOf([IMAGES]).transform, x=X, g=1),
    "actions.TreeAction": call(TreeAction, actions={"x": IMAGES}, others=IMAGES),
    "actions.TreeAction.transform": call(TreeAction({"x": IMAGES}).transform, x={"x": X}, g=1),
    "actions.TrivialAction": call(TrivialAction, group=C4),
    "actions.TrivialAction.transform": call(TrivialAction(C4).transform, x=X, g=1),
    **{
        f"actions.{type(action).__name__}.restrict": call(
            action.restrict, embedding=C4.subgroup([2])
        )
        for action in (
            IMAGES, POINTS, TrivialAction(C4), VectorFieldAction(C4), RegularAction(C4),
            TreeAction({"x": IMAGES}), ProductAction(IMAGES, TrivialAction(cyclic(1))),
            MatrixAction(C4, torch.eye(2).expand(4, 2, 2)),
        )
    },
    "functional.can_be_averaged": call(functional.can_be_averaged, outputs=STACK),
    "functional.orbit": call(functional.orbit, x=X, action=IMAGES),
    "functional.reynolds": call(functional.reynolds, outputs=IMAGES.orbit(X), action=IMAGES),
    "functional.select_minimum": call(
        functional.select_minimum, scores=STACK[..., 0], tolerance=0,
        bounds=(STACK[..., 0], STACK[..., 0]),
    ),
    "functional.weighted_mean": call(
        functional.weighted_mean, stack=STACK, weights=torch.ones(4, 2)
    ),
    "functional.weighted_reynolds": call(
        functional.weighted_reynolds, outputs=IMAGES.orbit(X), weights=torch.ones(4, 2),
        action=IMAGES,
    ),
    "functional.matrices": call(functional.matrices, action=MIRROR.on_observations, size=4),
    "functional.widened": call(functional.widened, x=STACK),
}  # fmt: skip

WRAPPERS = {
    "wrappers.EquiTune": Call(
        EquiTune,
        lambda: given(
            backbone=net(), input_action=IMAGES, output_action=None, chunk_size=2, submodule="0"
        ),
    ),
    "wrappers.EquiZero": Call(
        EquiZero,
        lambda: given(
            backbone=net(), input_action=IMAGES, output_action=None, proxy_loss=losses.entropy,
            gradient="equitune", tie_tolerance=0.1, chunk_size=2, submodule="0",
        ),
    ),
    "wrappers.LambdaEquiTune": Call(
        LambdaEquiTune,
        lambda: given(
            backbone=net(), input_action=IMAGES, output_action=None, weight_net=scorer(),
            weight_input="input", chunk_size=2, submodule="0",
        ),
    ),
    "wrappers.Canonicalize": Call(
        Canonicalize,
        lambda: given(
            backbone=net(), input_action=IMAGES, output_action=None, weight_net=scorer(),
            tie_tolerance=0.1, chunk_size=2, submodule="0",
        ),
    ),
    "wrappers.RegularFeatures": Call(
        RegularFeatures,
        lambda: given(backbone=net(), input_action=IMAGES, output_action=None, chunk_size=2),
    ),
    "wrappers.Symmetrized": Call(
        Symmetrized,
        lambda: given(
            backbone=net(), input_action=IMAGES, output_action=None, weighting=Uniform(),
            runner=Loop(), space=Probabilities(), submodule="0",
        ),
    ),
    "wrappers.Explaining": Call(Explaining, lambda: given(model=tuned())),
    "weightings.Best": call(
        Best, proxy_loss=losses.entropy, gradient="identity", tie_tolerance=0.1
    ),
    "weightings.Canonical": Call(Canonical, lambda: given(weight_net=scorer(), tie_tolerance=0.1)),
    "weightings.Learned": Call(Learned, lambda: given(weight_net=scorer(), weight_input="output")),
    "runners.Batches": call(Batches, chunk_size=3, memory_format=torch.channels_last),
    "runners.Tuned": call(Tuned, clock=time.perf_counter),
    "scaling.fastest_plan": Call(
        scaling.fastest_plan, lambda: given(model=EquiTune(net().eval(), IMAGES)),
        run=lambda model: scaling.fastest_plan(model, X),
    ),
    "scaling.Accumulated": call(scaling.Accumulated, runner=Loop()),
    "scaling.Checkpointed": call(scaling.Checkpointed, runner=Loop()),
    "scaling.Distinct": call(scaling.Distinct, runner=Loop()),
    "scaling.OneDrawn": call(scaling.OneDrawn, generator=torch.Generator()),
    "scaling.Subset": call(
        scaling.Subset, count=2, runner=Loop(), generator=torch.Generator()
    ),
    "scaling.Transversal": call(
        scaling.Transversal, subgroup=C4.subgroup([2]), runner=Loop()
    ),
    "weight_nets.AttentionWeightNet": call(
        weight_nets.AttentionWeightNet, in_features=3, hidden_features=8, heads=2
    ),
    "weight_nets.AttentionWeightNet.forward": call(
        weight_nets.AttentionWeightNet(3, 8, 2).forward, stack=STACK
    ),
    "weight_nets.ConvWeightNet": call(
        weight_nets.ConvWeightNet, in_channels=1, hidden_channels=2, dropout=0.5
    ),
    "weight_nets.ConvWeightNet.forward": call(
        weight_nets.ConvWeightNet(1, 2).eval().forward, copies=X
    ),
    "weight_nets.MlpWeightNet": call(weight_nets.MlpWeightNet, in_features=3, hidden_features=8),
    "weight_nets.MlpWeightNet.forward": call(weight_nets.MlpWeightNet(16, 2).forward, copies=X),
    "weight_nets.FrozenFeatures": Call(
        weight_nets.FrozenFeatures, lambda: given(network=net(), submodule="0", chunk_size=2)
    ),
    "weight_nets.ProxyLogits": call(weight_nets.ProxyLogits, proxy_loss=losses.entropy),
    "weight_nets.ProxyLogits.forward": call(
        weight_nets.ProxyLogits(losses.entropy).forward, outputs=STACK[0]
    ),
    "weight_nets.OnFeatures": call(
        weight_nets.OnFeatures, extractor=nn.Flatten(),
        weight_net=weight_nets.AttentionWeightNet(16),
    ),
    "heads.EquivariantLinear": call(
        heads.EquivariantLinear, in_action=POINTS, out_action=TrivialAction(C4), in_channels=3,
        out_channels=2, bias=True,
    ),
    "heads.EquivariantLinear.forward": call(
        heads.EquivariantLinear(POINTS, POINTS, 3, 2).forward, x=FEATURES
    ),
    "heads.EquivariantLinear.restrict": call(
        heads.EquivariantLinear(POINTS, POINTS, 3, 2).restrict, embedding=C4.subgroup([2])
    ),
    "heads.InvariantHead": call(
        heads.InvariantHead, action=POINTS, in_channels=3, out_channels=2, hidden_channels=2
    ),
    "heads.GroupMaxPool": call(heads.GroupMaxPool, action=POINTS),
    "heads.GroupMeanPool": call(heads.GroupMeanPool, action=POINTS),
    "heads.GroupMeanPool.forward": call(heads.GroupMeanPool(POINTS).forward, x=FEATURES),
    "losses.entropy": call(losses.entropy, logits=STACK, dim=-1),
    "losses.negative_log_max_probability": call(
        losses.negative_log_max_probability, logits=STACK, dim=-1
    ),
    "losses.negative_max_q_value": call(losses.negative_max_q_value, q_values=STACK, dim=-1),
    "losses.negative_similarity": call(losses.negative_similarity, similarities=STACK, dim=-1),
    "training.backbone_phase": Call(
        training.backbone_phase, lambda: given(model=EquiTune(net(), IMAGES))
    ),
    "training.joint_phase": Call(training.joint_phase, lambda: given(model=tuned())),
    "training.weights_phase": Call(training.weights_phase, lambda: given(model=tuned())),
    "training.probing_phase": Call(
        training.probing_phase, lambda: given(model=tuned(), submodules=["1"])
    ),
    "training.upright_loss": call(
        training.upright_loss, scores=torch.rand(4, 2), elements=torch.tensor([0, 1])
    ),
    "training.with_frozen_features": Call(
        training.with_frozen_features, lambda: given(model=tuned())
    ),
}  # fmt: skip


class Steps(nn.Module):
    """A step model."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.tokens = nn.Embedding(9, 4), nn.Embedding(7, 4)
        self.cell, self.scores = nn.GRUCell(4, 4), nn.Linear(4, 7)

    def encode(self, source: torch.Tensor) -> torch.Tensor:
        return self.words(source).mean(1)

    def step(self, tokens: torch.Tensor, state: torch.Tensor) -> Any:
        state = self.cell(self.tokens(tokens), state)
        return self.scores(state), state


def decoder() -> seq2seq.GreedyDecoder:
    return seq2seq.GreedyDecoder(Steps(), bos=1, eos=2, max_length=5)


def decoded() -> seq2seq.Decoded:
    return seq2seq.Decoded(
        torch.ones(2, 3, 4).long(), torch.rand(2, 3, 4, 7), torch.ones(2, 3, 4).bool()
    )


SEQ2SEQ = {
    "seq2seq.GreedyDecoder": Call(
        seq2seq.GreedyDecoder, lambda: given(model=Steps(), bos=1, eos=2, max_length=5, pad=0)
    ),
    "seq2seq.GreedyDecoder.forward": Call(
        seq2seq.GreedyDecoder.forward,
        lambda: given(source=torch.ones(2, 3).long(), targets=None, length=4),
        run=lambda **a: decoder()(**a),
        handed_on=("source",),
    ),
    "seq2seq.SymmetrizedSeq2Seq": Call(
        seq2seq.SymmetrizedSeq2Seq,
        lambda: given(
            backbone=decoder(), input_action=TOKENS, token_action=OUTPUT_TOKENS,
            weighting=Uniform(), runner=seq2seq.Independent(), space=Probabilities(),
        ),
    ),
    "seq2seq.EquiSeq2Seq": Call(
        seq2seq.EquiSeq2Seq,
        lambda: given(
            backbone=decoder(), input_action=TOKENS, token_action=OUTPUT_TOKENS,
            runner=seq2seq.Lockstep(),
        ),
    ),
    "seq2seq.LambdaSeq2Seq": Call(
        seq2seq.LambdaSeq2Seq,
        lambda: given(
            backbone=decoder(), input_action=TOKENS, token_action=OUTPUT_TOKENS,
            weight_net=scorer(), weight_input="input", runner=seq2seq.Lockstep(),
        ),
    ),
    "seq2seq.EquiZeroSeq2Seq": Call(
        seq2seq.EquiZeroSeq2Seq,
        lambda: given(
            backbone=decoder(), input_action=TOKENS, token_action=OUTPUT_TOKENS,
            proxy_loss=seq2seq.mean_entropy, gradient="equitune", tie_tolerance=0.1,
        ),
    ),
    **{
        f"seq2seq.{proxy}": Call(getattr(seq2seq, proxy), lambda: given(decoded=decoded()))
        for proxy in (
            "mean_entropy", "negative_log_min_probability", "negative_log_probability",
            "mean_error_probability",
        )
    },
}  # fmt: skip


BOXES = vision.BoxAction(IMAGES)
CLASSES = torch.eye(3)


class Detector(nn.Module):
    """Detections for a list of images."""

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [
            {"boxes": torch.rand(2, 4), "scores": torch.rand(2), "labels": torch.ones(2).long()}
            for _ in images
        ]


VISION = {
    "vision.AbsoluteCoordinates": Call(
        vision.AbsoluteCoordinates, lambda: given(model=Detector(), fields=["boxes"])
    ),
    "vision.NormalizedCoordinates": Call(
        vision.NormalizedCoordinates, lambda: given(model=Detector(), fields=["boxes"])
    ),
    "vision.BoxAction": call(
        vision.BoxAction, images=IMAGES, box_format="xyxy", image_size=(4, 4)
    ),
    "vision.BoxAction.transform": call(BOXES.transform, x=torch.rand(2, 4).sort().values, g=1),
    "vision.BoxAction.restrict": call(BOXES.restrict, embedding=C4.subgroup([2])),
    "vision.GridBoxAction": call(
        vision.GridBoxAction, images=IMAGES, grids=[(2, 2)], box_format="xyxy", image_size=(4, 4),
        anchor_shapes=[(1.0, 1.0)],
    ),
    "vision.GridBoxAction.transform": call(
        vision.GridBoxAction(IMAGES, [(2, 2)]).transform, x=torch.rand(2, 4, 4), g=1
    ),
    "vision.BoxMapAction": call(
        vision.BoxMapAction, images=IMAGES, box_format="xyxy", image_size=(4, 4),
        anchor_shapes=[(1.0, 1.0)],
    ),
    "vision.BoxMapAction.transform": call(
        vision.BoxMapAction(IMAGES).transform, x=torch.rand(2, 4, 3, 3), g=1
    ),
    "vision.check_coordinates": call(
        vision.check_coordinates, coordinates=torch.tensor([[0.1, 0.2, 0.4, 0.6]]), action=BOXES
    ),
    "vision.KeypointAction": call(
        vision.KeypointAction, images=IMAGES, keypoints=3, swaps=[(1, 2)], image_size=(4, 4)
    ),
    "vision.label_swaps": call(
        vision.label_swaps, images=IMAGES, count=3, swaps=[(1, 2)], dim=-1
    ),
    "vision.PaddedDetections": Call(
        vision.PaddedDetections,
        lambda: given(model=Detector(), most=3, inputs=list, drop=["masks"]),
    ),
    "vision.ImageTextLoss": call(vision.ImageTextLoss, class_embeddings=CLASSES),
    "vision.UnitEmbeddings": Call(vision.UnitEmbeddings, lambda: given(encoder=net())),
    "vision.ZeroShotClassifier": Call(
        vision.ZeroShotClassifier,
        lambda: given(
            encoder=net(), class_embeddings=CLASSES, class_names=["a", "b", "c"], logit_scale=10.0,
            logit_bias=0.0,
        ),
        # Of a model it is a tensor.
        free=("logit_scale", "logit_bias"),
    ),
    "vision.embed_classes": call(
        vision.embed_classes, embed=lambda texts: torch.ones(len(texts), 3), class_names=["a", "b"],
        templates=["a {}."], batch_size=2, progress=None,
    ),
}  # fmt: skip

VIZ = {
    "viz.draw_orbit": Call(
        viz.draw_orbit,
        lambda: given(
            model=EquiTune(net(), IMAGES), image=X[0], plain=net(), classes=["a", "b", "c"],
            mean=[0.5], std=[0.5],
        ),
    ),
    "viz.draw_feature_maps": Call(
        viz.draw_feature_maps,
        lambda: given(
            model=EquiTune(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1)), IMAGES, IMAGES),
            image=X[0], submodule="0", channel=0, mean=[0.5], std=[0.5],
        ),
    ),
    "viz.draw_weights": call(
        viz.draw_weights, weights=torch.rand(4, 2).softmax(0), names=list("abcd"), bins=3
    ),
}  # fmt: skip


def even(x: torch.Tensor) -> torch.Tensor:
    return x.sum((-2, -1))


FORMULAS = {
    f"testing.{formula.__name__}": Call(
        formula,
        lambda more=more: given(
            backbone=net(),
            input_action=IMAGES,
            output_action=None,
            submodule="0",
            **more(),
        ),
    )
    for formula, more in {
        testing.EquiTuneFormula: dict,
        testing.RegularFeaturesFormula: lambda: {"weighting": None, "space": None, "runner": None},
        testing.EquiZeroFormula: lambda: {"proxy_loss": losses.entropy, "tie_tolerance": 0.1},
        testing.LambdaEquiTuneFormula: lambda: {"weight_net": scorer(), "weight_input": "input"},
        testing.CanonicalizeFormula: lambda: {"weight_net": scorer(), "tie_tolerance": 0.1},
        testing.Formula: lambda: {
            "weighting": Uniform(),
            "space": spaces.Logits(),
            "runner": Loop(),
        },
    }.items()
}
FAMILIES = {
    "arrays": given(shape=(2, 3), dtype=torch.float32),
    "element_batches": given(group=C4, size=2),
    "elements": given(group=C4),
    "finite_groups": given(min_order=1, max_order=4),
    "images": given(
        group=C4, dtype=torch.float32, min_side=2, square=True, max_side=3, max_batch=2, channels=1
    ),
    "permutation_actions": given(group=C4, dim=-1, max_orbits=2),
    "small_models": given(input_action=IMAGES, output_action=None),
    "token_batches": given(vocab=9, length=3, max_batch=2),
}


def drawn(strategy: Callable[..., Any]) -> Callable[..., None]:
    """Draws from a strategy, which is when hypothesis calls what it is made of."""

    def draw(**arguments: Any) -> None:
        with warnings.catch_warnings():
            # Hypothesis recommends @given, whose messages would not be those of one call.
            warnings.simplefilter("ignore")
            strategy(**arguments).example()

    return draw


TESTING = {
    "testing.assert_action": call(testing.assert_action, action=IMAGES, x=X),
    "testing.assert_group": call(testing.assert_group, group=C4),
    "testing.assert_equivariant": call(
        testing.assert_equivariant, fn=even, x=X, input_action=IMAGES, output_action=None,
        rtol=1e-3, atol=1e-3,
    ),
    "testing.assert_invariant": call(
        testing.assert_invariant, fn=even, x=X, input_action=IMAGES, rtol=1e-3, atol=1e-3
    ),
    "testing.equivariance_report": call(
        testing.equivariance_report, fn=even, x=X, input_action=IMAGES, output_action=None,
        rtol=1e-3, atol=1e-3,
    ),
    "testing.assert_matches_formula": Call(
        testing.assert_matches_formula,
        lambda: given(
            fn=EquiTune(net(), IMAGES).eval(), x=X, formula=None, rtol=1e-3,
            atol=1e-3,
        ),
        handed_on=("x",),
    ),
    **FORMULAS,
    **{
        f"testing.strategies.{name}": Call(
            getattr(strategies, name),
            lambda arguments=arguments: arguments,
            run=drawn(getattr(strategies, name)),
        )
        for name, arguments in FAMILIES.items()
    },
}  # fmt: skip


@functools.cache
def audited() -> audit.Audit:
    return audit.audit(net().eval(), [X], IMAGES, wrappers=audit.wrap(net(), IMAGES, ["equitune"]))


@functools.cache
def folder() -> Path:
    from PIL import Image

    path = Path(tempfile.mkdtemp())
    Image.new("RGB", (8, 8)).save(path / "a.png")
    return path


AUDIT = {
    "audit.audit": Call(
        audit.audit,
        lambda: given(
            model=net(), batches=[X], action=IMAGES, wrappers={"other": net()},
            labels=torch.tensor([0, 1]), names=["a", "b"], progress=None,
        ),
    ),
    "audit.wrap": Call(
        audit.wrap,
        lambda: given(model=net(), action=IMAGES, names=["equitune"], chunk_size=2),
    ),
    "audit.elements_table": Call(audit.elements_table, lambda: given(audit=audited())),
    "audit.models_table": Call(audit.models_table, lambda: given(audit=audited())),
    "audit.find_images": Call(audit.find_images, lambda: given(folder=folder())),
    "audit.read_batches": Call(
        audit.read_batches,
        lambda: given(
            paths=[folder() / "a.png"], preprocessing=plain(8), batch_size=1
        ),
        run=lambda **a: list(audit.read_batches(**a)),
    ),
    "audit.load_classifier": call(
        audit.load_classifier, spec="torch.nn:Identity", weights=None, classes=None, size=32,
        mean=[0.5] * 3, std=[0.5] * 3,
    ),
    "audit.render_report": Call(
        audit.render_report,
        lambda: given(
            audit=audited(), picture=lambda place: X[place].expand(3, -1, -1), facts={"a": "b"},
            class_names=["a", "b", "c"], worst=1,
        ),
    ),
}  # fmt: skip


def plain(size: int) -> Any:
    return importlib.import_module("equitune.audit._images").plain_preprocessing(size)


@functools.cache
def language_model() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=9, n_positions=32, n_embd=8, n_layer=1, n_head=1, bos_token_id=1,
                   eos_token_id=1)
    ).eval()  # fmt: skip


@functools.cache
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        word: i
        for i, word in enumerate(["[UNK]", ".", "the", "said", "he", "she", "was", "tired", "a"])
    }
    pieces = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]")


WORDS = text.ResolvedWords(TOKENS, (6,), ((4, 5),), ())
IDS = torch.tensor([[2, 3, 4], [3, 5, 6]])


def lengths(texts: list[str]) -> torch.Tensor:
    return torch.tensor([float(len(text)) for text in texts])


TEXT = {
    "text.ClassificationScorer": call(
        text.ClassificationScorer, pipeline=lambda texts, **_: [], values={"good": 1.0},
        batch_size=2,
    ),
    "text.EqualityWords": call(text.EqualityWords, lists=[("he", "she")], general=["was"]),
    "text.EqualityWords.resolve": Call(
        text.EqualityWords.resolve,
        lambda: given(tokenizer=tokenizer(), vocabulary_size=9, skip_split=False),
        run=lambda **a: text.EqualityWords([("he", "she")]).resolve(**a),
    ),
    "text.GumbelNoise": call(text.GumbelNoise, action=TOKENS, seeds=[1, 2]),
    "text.ResolvedWords": call(
        text.ResolvedWords, action=TOKENS, general=(), cycles=((4, 5),), skipped=()
    ),
    **{
        f"text.{kind.__name__}": Call(
            kind,
            lambda: given(model=language_model(), words=WORDS, space=spaces.Logits()),
        )
        for kind in (text.EquiLM, text.REquiLM)
    },
    "text.OrbitLM": Call(
        text.OrbitLM,
        lambda: given(
            model=language_model(), words=WORDS, weighting=Best(losses.entropy),
            space=spaces.Logits(),
            relaxed=True,
        ),
    ),
    "text.Prefixes": Call(
        text.Prefixes, lambda: given(model=language_model(), action=TOKENS, general=(6,))
    ),
    **{
        f"text.{kind.__name__}": Call(
            kind,
            lambda: given(
                model=language_model(), words=WORDS, tokenizer=tokenizer(), scorer=lengths,
                beam_length=2,
            ),
        )
        for kind in (text.EquiZeroLM, text.REquiZeroLM)
    },
    "text.fairness_gap": Call(
        text.fairness_gap,
        lambda: given(
            model=language_model(), words=WORDS, context=IDS, continuation=IDS,
            attention_mask=torch.ones(2, 6).long(),
        ),
    ),
    "text.sequence_log_prob": Call(
        text.sequence_log_prob,
        lambda: given(
            model=language_model(), context=IDS, continuation=IDS,
            attention_mask=torch.ones(2, 6).long(),
        ),
    ),
    "text.perplexity": Call(
        text.perplexity,
        lambda: given(
            model=language_model(), tokens=torch.randint(0, 9, (12,)), window=4, stride=2
        ),
    ),
    "text.regard_distribution": call(
        text.regard_distribution, labels=["a", "b"], categories=["a", "b"]
    ),
    "text.regard_gap": call(
        text.regard_gap, distributions={"he": {"a": 0.5, "b": 0.5}, "she": {"a": 1.0, "b": 0.0}}
    ),
}  # fmt: skip

NAMES = ["x", "speed"]
MOVE = rl.Move({"x": "-x", "speed": "-speed"}, {"left": "right", "right": "left"})


@functools.cache
def cartpole() -> gymnasium.Env:
    return gymnasium.make("CartPole-v1").unwrapped


@functools.cache
def agent() -> Any:
    from stable_baselines3 import DQN

    return DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu")


RL = {
    "rl.Move": call(rl.Move, observation={"x": "-x"}, action={"left": "right"}, name="mirror"),
    "rl.Symmetry": call(
        rl.Symmetry, on_observations=MIRROR.on_observations, on_actions=MIRROR.on_actions,
        names=tuple("abcd"),
    ),
    "rl.check_symmetry": Call(
        rl.check_symmetry,
        lambda: given(
            env=cartpole(), on_observations=MIRROR.on_observations, on_actions=MIRROR.on_actions,
            set_state=None, states=None, samples=40, seed=0, tolerance=1e-4, names=list("abcd"),
        ),
    ),
    "rl.discrete_symmetry": call(
        rl.discrete_symmetry, observation=NAMES, actions=["left", "right"], moves=[MOVE]
    ),
    "rl.continuous_symmetry": call(
        rl.continuous_symmetry, observation=NAMES, actions=["force"],
        moves=[rl.Move({"x": "-x", "speed": "-speed"}, {"force": "-force"})],
    ),
    "rl.equizero": Call(
        rl.equizero,
        lambda: given(
            network=nn.Linear(4, 2), on_observations=MIRROR.on_observations,
            on_actions=MIRROR.on_actions,
        ),
    ),
    "rl.lambda_equitune": Call(
        rl.lambda_equitune,
        lambda: given(
            network=nn.Linear(4, 2), on_observations=MIRROR.on_observations,
            on_actions=MIRROR.on_actions, hidden_features=4,
        ),
    ),
    "rl.set_state": Call(rl.set_state, lambda: given(env=cartpole(), observation=[0.0] * 4)),
    "rl.SymmetricMeanStd": Call(
        rl.SymmetricMeanStd,
        lambda: given(statistics=RunningMeanStd(shape=(4,)), action=MIRROR.on_observations),
    ),
    "rl.symmetrize": Call(
        rl.symmetrize, lambda: given(model=agent(), symmetry=MIRROR, method=EquiTune)
    ),
}  # fmt: skip

ROWS: dict[str, Call] = {
    **CORE, **WRAPPERS, **SEQ2SEQ, **VISION, **VIZ, **TESTING, **AUDIT, **TEXT, **RL
}  # fmt: skip

ABSTRACT = "it is abstract: its subclasses have rows"
HOLDER = "it holds what a call returns, and checks nothing"
ALONE = "it takes no arguments"
NOT_CALLED = {
    **dict.fromkeys([
        "actions.Action", "heads.GroupPool", "wrappers.OrbitModule",
        "weightings.Copies", "weightings.OrbitWeightNet", "weight_nets.OrbitWeightNet",
        "weightings.Weighting", "runners.Runner",
        "spaces.Space",
    ], ABSTRACT),
    **dict.fromkeys([
        "wrappers.Explanation", "runners.Mix", "spaces.Sums", "runners.Call", "runners.Orbit",
        "runners.Part", "runners.Ran",
        "seq2seq.Decoded", "rl.Mismatch",
        "rl.SymmetryReport", "audit.Audit", "audit.Classifier", "audit.ModelAudit", "audit.Table",
        "testing.ElementErrors", "testing.EquivarianceReport", "text.SkippedWords",
    ], HOLDER),
    **dict.fromkeys([
        "actions.Drop", "groups.c4", "groups.d4", "groups.trivial", "rl.acrobot_mirror",
        "rl.cartpole_mirror", "runners.Loop", "runners.MatrixProducts", "spaces.Logits",
        "spaces.Probabilities", "spaces.Values", "weightings.Uniform", "seq2seq.Alone",
        "seq2seq.Independent", "seq2seq.Lockstep",
    ], ALONE),
    "weightings.tie_tolerance": "it takes dtypes, one after the other",
    "text.OrbitCache": "transformers calls it",
    "distributed.OrbitParallel": "it takes a mesh of processes; test_orbit_parallel.py spoils it",
    **dict.fromkeys(
        ["rl.SymmetricA2C", "rl.SymmetricDQN", "rl.SymmetricPPO"], "Stable-Baselines3's arguments"
    ),
    "rl.SymmetricActorCriticPolicy": "Stable-Baselines3 calls it",
    "rl.SymmetricDQNPolicy": "Stable-Baselines3 calls it",
}  # fmt: skip


def accepts(annotation: str, value: Any) -> bool:
    """Whether an argument with this annotation may be such a value."""
    if annotation in {"Any", "object"}:
        return True
    words = set(re.findall(r"\w+", annotation))
    if value is None:
        return "None" in words or "Any" in words
    several = {"Sequence", "Iterable", "tuple", "Permutations", "FieldActions"}
    kinds = {
        str: {"str", "Path", "Hashable"},
        list: {"list"} | several,
        int: {"int", "float", "bool", "Hashable"},
        torch.Tensor: {"Tensor", "int"} | several,
    }
    return any(isinstance(value, kind) and words & names for kind, names in kinds.items())


def annotations(function: Callable[..., Any]) -> dict[str, str]:
    """The annotation of each argument, as it is written."""
    return {
        name: parameter.annotation if isinstance(parameter.annotation, str) else "Any"
        for name, parameter in inspect.signature(function).parameters.items()
    }


def public_names() -> dict[str, Any]:
    """What can be called of the modules that users import from."""
    modules = [m.name for m in pkgutil.walk_packages(equitune.__path__, "equitune.")]
    found = {}
    for module in (name for name in modules if "._" not in name):
        loaded = importlib.import_module(module)
        short = module.removeprefix("equitune.")
        found.update({f"{short}.{name}": getattr(loaded, name) for name in loaded.__all__})
    return {name: value for name, value in found.items() if callable(value)}
