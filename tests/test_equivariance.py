"""Every wrapper is equivariant on every row of the table; every action is an action."""

import copy
import pickle

import pytest
import torch

import cases
from cases import CASES, DTYPES, WRAPPERS
from equitune import RegularFeatureAction, RegularFeatures, TreeAction, TrivialAction
from equitune.testing import assert_action, assert_equivariant
from equitune.wrappers import LambdaEquiTune

LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5}


# Pieces have batch statistics of their own in train mode: test_chunks.py.
MODES = [(name, mode) for name in WRAPPERS for mode in ("train", "eval")
         if (name, mode) != ("EquiTune in pieces", "train")]  # fmt: skip

# The raw outputs of these come in two shapes, so that no stack holds the whole orbit.
TWO_SHAPES = [case for case in CASES if "x7" in case.name
              and case.output_action is not None and "180" not in case.name]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("wrapper", "mode"), MODES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_wrappers_are_equivariant(case, wrapper, mode, dtype):
    backbone = case.backbone()
    model = WRAPPERS[wrapper](backbone, case.input_action, case.output_action).to(dtype)
    model.train(mode == "train")
    assert_equivariant(
        model, case.input(dtype), case.input_action, case.output_action, rtol=LIMITS[dtype]
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_backbones_are_not_equivariant(case):
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(
            case.backbone().double().eval(),
            case.input(torch.float64),
            case.input_action,
            case.output_action,
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_regular_features_move_by_their_action(case):
    fiber = case.output_action or TrivialAction(case.input_action.group)
    if isinstance(fiber, TreeAction):
        fibers = {key: RegularFeatureAction(action) for key, action in fiber.actions.items()}
        action = TreeAction(fibers)
    else:
        action = RegularFeatureAction(fiber)
    model = RegularFeatures(case.backbone(), case.input_action, case.output_action).double()
    assert_equivariant(model, case.input(torch.float64), case.input_action, action)


@pytest.mark.parametrize("case", [c for c in CASES if c not in TWO_SHAPES], ids=str)
def test_weights_that_see_the_whole_orbit(case):
    model = LambdaEquiTune(
        case.backbone(),
        case.input_action,
        case.output_action,
        weight_net=cases.Attention(),
        weight_input="output",
    ).double()
    assert_equivariant(model, case.input(torch.float64), case.input_action, case.output_action)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_actions_are_actions(case, dtype):
    x = case.input(dtype)
    action = case.input_action
    assert_action(action, x)
    assert_action(RegularFeatureAction(action), torch.stack([x] * action.group.order, dim=1))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_actions_restrict_to_subgroups(case):
    x = case.input(torch.float64)
    for generator in case.input_action.group.elements:
        embedding = case.input_action.group.subgroup([generator])
        restricted = case.input_action.restrict(embedding)
        assert restricted.group == embedding.subgroup
        assert_action(restricted, x)
        for h, g in enumerate(embedding.elements):
            torch.testing.assert_close(
                restricted.transform(x, h), case.input_action.transform(x, g), rtol=0, atol=0
            )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_actions_are_values(case):
    for action in (case.input_action, case.output_action):
        if action is None:
            continue
        clone = pickle.loads(pickle.dumps(action))
        assert clone == action
        assert hash(clone) == hash(action)
        assert copy.deepcopy(action) is action
    others = {other.input_action for other in CASES} - {case.input_action}
    assert case.input_action not in others
    assert len(others) >= 8


@pytest.mark.parametrize("case", CASES, ids=str)
def test_actions_are_differentiable(case):
    x = case.input(torch.float64)
    if not x.is_floating_point():
        return
    x.requires_grad_()
    each = torch.arange(len(x)) % len(case.input_action.shape_classes(x)[0])
    elements = torch.tensor(case.input_action.shape_classes(x)[0])[each]
    moved = case.input_action.transform(x, elements)
    target = torch.randn_like(moved)
    (gradient,) = torch.autograd.grad((moved * target).sum(), x)
    # All of these are orthogonal: the gradient is the inverse action.
    inverses = torch.tensor([case.input_action.group.inverse(int(g)) for g in elements])
    torch.testing.assert_close(gradient, case.input_action.transform(target, inverses))
