"""One pass through the backbone, on the copy that a weight network prefers."""

import pytest
import torch
from torch import nn

from cases import AnyWeightNet, Attention, ConvNet, Mlp, corners
from equitune import (
    Canonicalize,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    PermutationAction,
    TreeAction,
    TrivialAction,
    c4,
    cyclic,
    d4,
)
from equitune.functional import orbit
from equitune.losses import entropy
from equitune.testing import assert_equivariant
from equitune.training import upright_loss
from equitune.weight_nets import ConvWeightNet, FrozenFeatures, OrbitWeightNet, ProxyLogits

ACTION = ImageAction(d4())


def photographs(*size):
    return torch.randn(9, 3, *(size or (6, 6)), dtype=torch.float64)


@pytest.mark.parametrize("size", [(6, 6), (5, 7)], ids=str)
def test_it_is_the_formula(size):
    backbone, net = ConvNet(3, 2, dense=True).double().eval(), AnyWeightNet().double()
    model, x = Canonicalize(backbone, ACTION, ACTION, weight_net=net), photographs(*size)
    explanation = model.explain(x)
    logits = torch.stack([net(ACTION.transform(x, g))[:, 0] for g in range(8)])
    torch.testing.assert_close(explanation.scores, logits)
    assert torch.equal(explanation.elements, logits.argmax(0))
    assert len(explanation.elements.unique()) > 2
    for sample, g in enumerate(explanation.elements.tolist()):
        one = x[sample : sample + 1]
        expected = ACTION.transform(backbone(ACTION.transform(one, g)), d4().inverse(g))
        torch.testing.assert_close(explanation.output[sample : sample + 1], expected)
        # Without the inverse, or with the identity, it is something else.
        assert not torch.equal(explanation.output[sample : sample + 1], backbone(one)) or g == 0
    assert torch.equal(model(x), explanation.output)


def test_the_backbone_runs_once_for_each_sample():
    class Counting(ConvNet):
        seen = 0

        def forward(self, x):
            Counting.seen += len(x)
            return super().forward(x)

    model = Canonicalize(Counting(3, 4, dense=False).double(), ACTION, weight_net=AnyWeightNet())
    model(photographs())
    assert Counting.seen == 9
    model(photographs(5, 7))
    assert Counting.seen == 18


def test_a_symmetric_input_shares_and_stays_equivariant():
    x = photographs()
    x[:4] = torch.stack([ImageAction(d4()).transform(x[:4], g) for g in (0, 2)]).mean(0)
    x[4] = 1.0
    backbone = ConvNet(3, 2, dense=True).double().eval()
    model = Canonicalize(backbone, ACTION, ACTION, weight_net=AnyWeightNet().double())
    weights = model.explain(x).weights
    assert torch.equal(weights[:, 4], torch.full((8,), 1 / 8, dtype=torch.float64))
    assert set(weights[:, :4].unique().tolist()) == {0, 0.5}
    assert_equivariant(model, x, ACTION, ACTION)


def test_pieces_training_and_empty_batches():
    backbone, x = ConvNet(3, 4, dense=False).double().eval(), photographs()
    model = Canonicalize(backbone, ACTION, weight_net=AnyWeightNet().double()).eval()
    pieces = Canonicalize(
        backbone, ACTION, weight_net=model.weighting.weight_net, chunk_size=2
    ).eval()
    torch.testing.assert_close(pieces(x), model(x), rtol=1e-12, atol=1e-12)
    assert model(x[:0]).shape == (0, 4)
    model.train()
    model(x).sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())
    assert all(p.grad is None for p in model.weighting.weight_net.parameters())


@pytest.mark.parametrize("size", [(6, 6), (5, 7)], ids=str)
def test_pieces_of_a_backbone_that_trains(size):
    """Which samples share a piece, and so its statistics, must not depend on how they lie."""
    x = photographs(*size)
    x[3] = 1.0  # one that ties
    for chunk_size in (1, 3, 4):
        model = Canonicalize(
            ConvNet(3, 4, dense=False).double(), ACTION, weight_net=AnyWeightNet().double(),
            chunk_size=chunk_size,
        ).train()  # fmt: skip
        assert_equivariant(model, x, ACTION)


def test_the_weight_network_is_left_as_it_is():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, copies):
            return self.norm(copies.mul_(2).clamp_(-9, 9))[:, 0, 1, 0]

    net, backbone = InPlace().double(), ConvNet(3, 4, dense=False).double().eval()
    x = photographs()
    kept = x.clone()
    model = Canonicalize(backbone, ACTION, weight_net=net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    explanation = model.explain(x)
    assert torch.equal(x, kept)
    # It goes on training elsewhere, and its statistics do not move here.
    assert net.training
    assert net.norm.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    chosen = torch.cat([
        ACTION.transform(x[i : i + 1], g) for i, g in enumerate(explanation.elements.tolist())
    ])  # fmt: skip
    torch.testing.assert_close(explanation.output, backbone(chosen))


def test_maps_of_two_shapes_without_an_action():
    model = Canonicalize(ConvNet(3, 4, dense=True).double(), ACTION, weight_net=AnyWeightNet())
    with pytest.raises(ValueError, match="check that output_action"):
        model(photographs(5, 7))
    dense = Canonicalize(model.unwrap(), ACTION, ACTION, weight_net=AnyWeightNet())
    assert dense(photographs(5, 7)[:0]).shape == (0, 4, 5, 7)


def test_weights_trained_in_lambda_equitune():
    net = AnyWeightNet().double()
    backbone, x = ConvNet(3, 4, dense=False).double().eval(), photographs()
    soft = LambdaEquiTune(backbone, ACTION, weight_net=net).eval()
    hard = Canonicalize(soft.unwrap(), ACTION, weight_net=soft.weighting.weight_net).eval()
    assert torch.equal(hard.explain(x).elements, soft.explain(x).elements)
    # Ever surer weights lead from the one to the other.
    with torch.no_grad():
        net.scale.fill_(1e7)
    torch.testing.assert_close(hard(x), soft(x))
    with torch.no_grad():
        net.scale.fill_(0.1)
    assert not torch.allclose(hard(x), soft(x))


SHRUNKEN = nn.AdaptiveAvgPool2d(4)


def cheap_scorers(backbone):
    """By name: a small network, the first stages, the model itself; all on shrunken copies."""
    stages = FrozenFeatures(backbone, "features"), ConvWeightNet(5, 6)
    scores = FrozenFeatures(backbone), ProxyLogits(entropy)
    return {
        "small network": nn.Sequential(SHRUNKEN, ConvWeightNet(3, 6)).double(),
        "first stages": nn.Sequential(SHRUNKEN, *stages).double(),
        "model": nn.Sequential(SHRUNKEN, *scores).double(),
    }


@pytest.mark.parametrize("scorer", ["small network", "first stages", "model"])
@pytest.mark.parametrize("size", [(8, 8), (10, 10), (9, 6)], ids=str)
def test_scores_of_shrunken_copies(scorer, size):
    """Also where the copies do not shrink by whole blocks, and where they are not square."""
    backbone, x = ConvNet(3, 4, dense=False).double().eval(), photographs(*size)
    x[0] = 1.0  # one that ties
    net = cheap_scorers(backbone)[scorer]
    model = Canonicalize(backbone, ACTION, weight_net=net).eval()
    assert len(model.explain(x).elements.unique()) > 2
    assert_equivariant(model, x, ACTION)


class Ordered(OrbitWeightNet):
    """It favours the first copies, and is not equivariant to permutations of the copies."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, stack):
        logits = self.net(stack.flatten(0, 1)).view(stack.shape[:2])
        return logits - torch.arange(len(stack))[:, None]


@pytest.mark.parametrize("scorer", ["small network", "first stages", "model"])
def test_scores_that_depend_on_the_order_of_the_copies_are_noticed(scorer):
    backbone, x = ConvNet(3, 4, dense=False).double().eval(), photographs(8, 8)
    net = Ordered(cheap_scorers(backbone)[scorer])
    model = Canonicalize(backbone, ACTION, weight_net=net).eval()
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(model, x, ACTION)


@pytest.mark.parametrize("action", [ImageAction(c4()), ACTION], ids=["c4", "d4"])
def test_shrinking_commutes_with_the_group(action):
    for size in ((8, 8), (10, 10), (9, 6), (7, 13)):
        x = photographs(*size)
        for g in action.group.elements:
            shrunken = SHRUNKEN(action.transform(x, g))
            torch.testing.assert_close(shrunken, action.transform(SHRUNKEN(x), g))
            assert g == 0 or not torch.allclose(shrunken, SHRUNKEN(x))


def test_the_model_itself_as_the_scorer_is_equizero():
    backbone, x = ConvNet(3, 4, dense=False).double().eval(), photographs()
    net = nn.Sequential(FrozenFeatures(backbone), ProxyLogits(entropy))
    scored = Canonicalize(backbone, ACTION, weight_net=net).eval().explain(x)
    selected = EquiZero(backbone, ACTION, proxy_loss=entropy).eval().explain(x)
    torch.testing.assert_close(scored.scores, selected.scores)
    assert torch.equal(scored.elements, selected.elements)
    torch.testing.assert_close(scored.output, selected.output)


def test_the_prior_alone_teaches_which_copy_is_upright():
    """Upright images have a bright top; no labels, and no backbone."""
    torch.manual_seed(0)
    action, net = ImageAction(c4()), nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
    net.append(nn.Linear(16, 1))
    images = torch.rand(60, 1, 8, 8) + torch.linspace(1, 0, 8).view(8, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)

    def prior():
        stack = orbit(images[:40], action)
        return upright_loss(net(stack.flatten(0, 1)).view(stack.shape[:2]))

    before = float(prior().detach())
    for _ in range(60):
        loss = prior()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(prior().detach()) < before / 3
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model = Canonicalize(backbone, action, weight_net=net).eval()
    turns = torch.arange(20) % 4
    turned = action.transform(images[40:], turns)
    assert torch.equal(model.explain(turned).elements, (4 - turns) % 4)
    torch.testing.assert_close(model(turned), backbone(images[40:]))


def test_other_groups_structures_and_orbit_networks():
    shifts = PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
    for action in (shifts, corners(5)):
        x = torch.randn(9, action.size, dtype=torch.float64)
        backbone = Mlp(action.size, (action.size,)).double()
        for net in (AnyWeightNet(), Attention()):
            model = Canonicalize(backbone, action, action, weight_net=net.double())
            assert_equivariant(model, x, action, action)
        wrong = Canonicalize(backbone, action, weight_net=AnyWeightNet().double())
        with pytest.raises(AssertionError, match="not equivariant"):
            assert_equivariant(wrong, x, action, action)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.maps = ConvNet(3, 2, dense=True)

        def forward(self, x):
            maps = self.maps(x)
            return {"maps": maps, "class": maps.flatten(1).argmax(1) % 3}

    action = TreeAction({"maps": ACTION, "class": TrivialAction(d4())})
    model = Canonicalize(Two().double(), ACTION, action, weight_net=AnyWeightNet().double())
    assert_equivariant(model, photographs(5, 7), ACTION, action)
    assert model(photographs())["class"].dtype == torch.int64


def test_nan_does_not_pass_for_an_answer():
    model = Canonicalize(ConvNet(3, 4, dense=False).eval(), ACTION, weight_net=AnyWeightNet())
    x = photographs().float()
    x[1, 0, 0, 0] = float("nan")
    y = model.eval()(x)
    assert y[1].isnan().all()
    assert y[[0, *range(2, 9)]].isfinite().all()


@pytest.mark.parametrize(("options", "error", "said"), [
    ({"weight_net": lambda x: x}, TypeError, "`weight_net` must .* got a function"),
    ({"weight_net": AnyWeightNet(), "tie_tolerance": -1}, ValueError, "`tie_tolerance` must .* -1"),
    ({"weight_net": AnyWeightNet(), "chunk_size": 0}, ValueError, "`chunk_size` must be 1"),
])  # fmt: skip
def test_bad_input(options, error, said):
    with pytest.raises(error, match=said):
        Canonicalize(ConvNet(3, 4, dense=False), ACTION, **options)


def test_a_weight_network_of_another_shape():
    model = Canonicalize(ConvNet(3, 4, dense=False), ACTION, weight_net=nn.Flatten())
    with pytest.raises(ValueError, match="one logit per copy"):
        model(photographs().float())
