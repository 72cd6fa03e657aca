"""Models of kits take any weighting, and are explained, frozen and trained like the wrappers."""

import pytest
import torch
from torch import nn

from equitune import Best, Explaining, Learned, TreeAction, Uniform, Weighting
from equitune.testing import assert_equivariant
from equitune.training import backbone_phase, joint_phase, weights_phase
from kits import KITS


class TopK(Weighting):
    """The k copies with the smallest losses: ten lines of a user."""

    reads = "output"

    def __init__(self, loss, k):
        super().__init__()
        self.loss, self.k = loss, k

    def score(self, copies):
        return -copies.scores(self.loss)

    def weigh(self, scores, copies):
        least = scores.topk(self.k, dim=0).values[-1]
        return scores.masked_fill(scores < least - 1e-9, -torch.inf).softmax(0)


def learned(kit):
    torch.manual_seed(1)
    return Learned(nn.Sequential(nn.Linear(kit.features, 1), nn.Tanh()).double(), "output")


WEIGHTINGS = {
    "equal": lambda kit: Uniform(),
    "best": lambda kit: Best(kit.loss),
    "best, its own gradient": lambda kit: Best(kit.loss, gradient="selected"),
    "a user's top-k": lambda kit: TopK(kit.loss, 2),
    "learned": learned,
}
ROWS = [(kit, name) for kit in KITS for name in WEIGHTINGS if kit.features or name != "learned"]


class Reading(nn.Module):
    """What moves in the output of a kit's model."""

    def __init__(self, kit, model):
        super().__init__()
        self.kit, self.model = kit, model

    def forward(self, x):
        return self.kit.read(self.model(x, **self.kit.call or {}))


def total(kit, output):
    scores = kit.read(output)
    scores = scores.scores if isinstance(kit.output_action, TreeAction) else scores
    places = torch.arange(scores.numel(), dtype=scores.dtype).view_as(scores)
    return (scores.clamp(min=-30) * torch.cos(places)).sum()


@pytest.mark.parametrize(("kit", "name"), ROWS, ids=str)
def test_they_are_equivariant_and_say_how(kit, name):
    model = kit.build(WEIGHTINGS[name](kit)).eval()
    assert_equivariant(Reading(kit, model), kit.input, kit.input_action, kit.output_action)
    plain = Reading(kit, model.unwrap())
    with pytest.raises(AssertionError):
        assert_equivariant(plain, kit.input, kit.input_action, kit.output_action)
    explanation = Explaining(model)(kit.input, **kit.call or {})
    order = kit.input_action.group.order
    assert explanation.weights.shape[:2] == (order, len(kit.input))
    torch.testing.assert_close(explanation.weights.sum(0), torch.ones_like(explanation.weights[0]))
    assert torch.equal(explanation.elements, explanation.weights.argmax(0))
    assert (explanation.scores is None) == (name == "equal")
    if explanation.scores is not None:
        # A larger score counts more.
        heaviest = explanation.weights.amax(0)
        of_best = explanation.weights.gather(0, explanation.scores.argmax(0, keepdim=True))[0]
        torch.testing.assert_close(of_best, heaviest)
    again = model(kit.input, **kit.call or {})
    assert torch.equal(total(kit, again), total(kit, explanation.output))


@pytest.mark.parametrize(("kit", "name"), ROWS, ids=str)
def test_they_are_frozen_and_trained(kit, name):
    model = kit.build(WEIGHTINGS[name](kit))
    for dropout in (m for m in model.modules() if isinstance(m, nn.Dropout)):
        dropout.p = 0.0
    flags = [p.requires_grad for p in model.backbone.parameters()]
    model.train().freeze_backbone()
    assert not any(m.training for m in model.backbone.modules())
    model.unfreeze_backbone()
    assert [p.requires_grad for p in model.backbone.parameters()] == flags
    for phase in [weights_phase, joint_phase] if name == "learned" else [backbone_phase]:
        parameters = phase(model)
        before = [p.detach().clone() for p in parameters]
        optimizer = torch.optim.SGD(parameters, lr=1e-4)
        loss = total(kit, model(kit.input, **kit.call or {}))
        loss.backward()
        optimizer.step()
        moved = [not torch.equal(p, old) for p, old in zip(parameters, before, strict=True)]
        assert sum(moved) > len(moved) // 2
        optimizer.zero_grad()
    model.unfreeze_backbone().eval()
    assert_equivariant(Reading(kit, model), kit.input, kit.input_action, kit.output_action)
