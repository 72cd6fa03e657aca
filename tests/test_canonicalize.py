"""One pass through the backbone, on the copy that a weight network prefers."""

import pytest
import torch
from torch import nn

from cases import AnyWeightNet, Attention, ConvNet, Mlp, corners
from equitune import (
    Canonicalize,
    ImageAction,
    LambdaEquiTune,
    PermutationAction,
    TreeAction,
    TrivialAction,
    cyclic,
    d4,
)
from equitune.testing import assert_equivariant

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
