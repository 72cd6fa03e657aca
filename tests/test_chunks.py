"""Pieces: at most chunk_size copies in eval mode, whole orbits in train mode, the same result."""

import pytest
import torch
from torch import nn

from cases import ConvNet
from equitune import EquiTune, EquiZero, ImageAction, LambdaEquiTune, c4
from equitune.losses import entropy
from equitune.testing import assert_equivariant

ACTION = ImageAction(c4())


def sizes_of(model):
    sizes = []
    model.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[0]))
    return sizes


@pytest.mark.parametrize("width", [6, 8])
@pytest.mark.parametrize("chunk_size", [1, 3, 4, 5, 8, 12, 13])
def test_eval_mode_runs_at_most_that_many_copies(chunk_size, width):
    model = ConvNet(3, 4, dense=False).double().eval()
    x = torch.randn(3, 3, 6, width, dtype=torch.float64)
    whole = EquiTune(model, ACTION)(x)
    sizes = sizes_of(model)
    torch.testing.assert_close(EquiTune(model, ACTION, chunk_size=chunk_size)(x), whole)
    assert max(sizes) <= chunk_size
    assert sum(sizes) == 12


@pytest.mark.parametrize(("chunk_size", "expected"), [(1, [4] * 3), (7, [4] * 3), (8, [8, 4])])
def test_train_mode_runs_whole_orbits(chunk_size, expected):
    model = ConvNet(3, 4, dense=False).double()
    wrapped = EquiTune(model, ACTION, chunk_size=chunk_size).train()
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    sizes = sizes_of(model)
    y = wrapped(x)
    assert sizes == expected
    # The batch statistics are those of each piece, as if it came alone.
    samples = max(1, chunk_size // 4)
    whole = EquiTune(model, ACTION).train()
    torch.testing.assert_close(y, torch.cat([whole(part) for part in x.split(samples)]))
    assert_equivariant(wrapped, x, ACTION)


def test_a_frozen_backbone_runs_in_any_pieces():
    model = ConvNet(3, 4, dense=False).double()
    wrapped = EquiTune(model, ACTION, chunk_size=3).freeze_backbone().train()
    sizes = sizes_of(model)
    wrapped(torch.randn(2, 3, 6, 6, dtype=torch.float64))
    assert sizes == [3, 3, 2]


@pytest.mark.parametrize("training", [True, False])
def test_tapped_activations_are_joined(training):
    def wrap(chunk_size):
        return LambdaEquiTune(
            model, ACTION, weight_net=net, weight_input="1", chunk_size=chunk_size
        ).train(training)

    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    net = nn.Linear(5, 1).double()
    x = torch.randn(5, 1, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(wrap(6)(x), wrap(None)(x))


def test_structured_outputs_are_joined():
    x = torch.randn(5, 3, 6, 8, dtype=torch.float64)
    model = ConvNet(3, 4, dense=True).double().eval()
    whole = EquiZero(model, ACTION, ACTION, proxy_loss=lambda y: entropy(y, dim=2))
    pieces = EquiZero(model, ACTION, ACTION, proxy_loss=lambda y: entropy(y, dim=2), chunk_size=7)
    torch.testing.assert_close(pieces(x), whole(x))
