"""Weight networks: equivariant wrappers, the whole orbit seen, and something learned."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import ConvNet
from equitune import ImageAction, LambdaEquiTune, PermutationAction, c4, cyclic, d4, symmetric
from equitune.testing import assert_equivariant, assert_matches_formula
from equitune.weight_nets import AttentionWeightNet, ConvWeightNet, MlpWeightNet

C4, D4 = ImageAction(c4()), ImageAction(d4())
NETS = {
    "mlp of the output": (lambda: MlpWeightNet(3 * 6 * 6, 8), "output"),
    "mlp of the input": (lambda: MlpWeightNet(3 * 6 * 6, 8), "input"),
    "conv of the input": (lambda: ConvWeightNet(3, 8), "input"),
    "conv of a tapped activation": (lambda: ConvWeightNet(5, 8), "features"),
    "attention of the output": (lambda: AttentionWeightNet(3 * 6 * 6, 8, 2), "output"),
    "attention of a tapped activation": (lambda: AttentionWeightNet(5 * 6 * 6, 8, 2), "features"),
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("action", [C4, D4], ids=["c4", "d4"])
@pytest.mark.parametrize(("make", "weight_input"), NETS.values(), ids=NETS)
def test_wrappers_stay_equivariant(make, weight_input, action, training):
    model = LambdaEquiTune(
        ConvNet(3, 3, dense=True), action, action, weight_net=make(), weight_input=weight_input
    ).double()
    model.train(training)
    for module in model.modules():
        # Dropout draws for each copy by itself, so that no symmetry is left in training.
        if isinstance(module, nn.Dropout):
            module.eval()
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    assert_equivariant(model, x, action, action)
    if not training:
        assert_matches_formula(model, x)


@pytest.mark.parametrize("action", [
    PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)]),
    PermutationAction(symmetric(3), [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1),
                                     (2, 1, 0)]),
], ids=["cyclic(3)", "symmetric(3)"])  # fmt: skip
@pytest.mark.parametrize("make", [MlpWeightNet, AttentionWeightNet])
def test_other_groups(action, make):
    model = LambdaEquiTune(nn.Linear(3, 3), action, action, weight_net=make(3, 8)).double().eval()
    assert_equivariant(model, torch.randn(5, 3, dtype=torch.float64), action, action)


def test_attention_sees_the_whole_orbit_and_no_order():
    net = AttentionWeightNet(5, 8, 2).double()
    stack = torch.randn(6, 4, 5, dtype=torch.float64)
    logits = net(stack)
    assert logits.shape == (6, 4)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(net(stack[order]), logits[order], rtol=0, atol=1e-12)
    other = stack.clone()
    other[0] += 1
    # The other copies' logits change, not only those of copy 0; and only within a sample.
    assert not torch.allclose(net(other)[1:], logits[1:])
    other = stack.clone()
    other[:, 0] += 1
    assert torch.equal(net(other)[:, 1:], logits[:, 1:])


def test_convolutions_know_where_up_is():
    net = ConvWeightNet(1, 8).eval()
    x = torch.zeros(1, 1, 32, 32)
    x[..., :8, :] = 1
    assert not torch.allclose(net(x), net(x.flip(-2)))
    assert net(torch.zeros(2, 1, 17, 23)).shape == (2, 1)


def test_the_mlp_is_that_of_the_paper():
    net = MlpWeightNet(7)
    assert [tuple(p.shape) for p in net.parameters()] == [(100, 7), (100,), (1, 100), (1,)]


@pytest.mark.parametrize(("make", "weight_input"), [
    (lambda: MlpWeightNet(64, 16), "input"),
    (lambda: ConvWeightNet(1, 8, dropout=0.0), "input"),
    (lambda: AttentionWeightNet(64, 16, 2), "input"),
], ids=["mlp", "conv", "attention"])  # fmt: skip
def test_orientation_is_learned(make, weight_input):
    """Images that are bright at the top: the upright copy gets the weight."""
    images = torch.rand(64, 1, 8, 8) + torch.linspace(1, 0, 8).view(8, 1)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    model = LambdaEquiTune(backbone, C4, weight_net=make(), weight_input=weight_input)
    model.freeze_backbone().train()
    optimizer = torch.optim.Adam(model.weighting.weight_net.parameters(), lr=1e-2)
    before = model.explain(images).weights[0].mean().detach()
    for _ in range(60):
        scores = model.explain(images).scores
        loss = F.cross_entropy(scores.T, torch.zeros(64, dtype=torch.int64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    turned = C4.transform(images, torch.arange(64) % 4)
    explanation = model.explain(turned)
    assert float(before) < 0.5
    # Element g brings an image that was turned by h upright again: g h = e.
    assert torch.equal(explanation.elements, (-torch.arange(64)) % 4)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: MlpWeightNet(0), "`in_features` must be 1 or more, got 0; use a whole"),
    (lambda: MlpWeightNet(3, 1.5), r"`hidden_features` must be 1 or more, got 1\.5"),
    (lambda: ConvWeightNet(0), "`in_channels` must be 1 or more, got 0"),
    (lambda: AttentionWeightNet(3, 10, 4), "be a multiple of `heads`, got 10 and 4; use"),
    (lambda: AttentionWeightNet(3, 8, 0), "`heads` must be 1 or more, got 0"),
    (lambda: MlpWeightNet(3)(torch.zeros(2, 4)), "4 features each in `copies`"),
    (lambda: AttentionWeightNet(3)(torch.zeros(2, 2, 4)), "have 4 features each"),
    (lambda: ConvWeightNet(3)(torch.zeros(2, 4, 5, 5)), r"takes \(N, 3, H, W\): check in_channels"),
    (lambda: ConvWeightNet(3)(torch.zeros(2, 3)), r"copies has shape \(2, 3\)"),
])  # fmt: skip
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
