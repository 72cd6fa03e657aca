"""Pure functions on orbit stacks, and the proxy losses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equitune import ImageAction, TreeAction, TrivialAction, c4
from equitune.functional import orbit, reynolds, select_minimum, weighted_mean, weighted_reynolds
from equitune.losses import (
    entropy,
    negative_log_max_probability,
    negative_max_q_value,
    negative_similarity,
)

ACTION = ImageAction(c4())


def test_reynolds_is_a_projection():
    y = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    projected = reynolds(orbit(y, ACTION), ACTION)
    torch.testing.assert_close(projected, y)
    outputs = torch.randn(4, 3, 2, 4, 4, dtype=torch.float64)
    expected = torch.stack([outputs[g].rot90(-g, (-2, -1)) for g in range(4)]).mean(0)
    torch.testing.assert_close(reynolds(outputs, ACTION), expected)


def test_weighted_reynolds():
    outputs = torch.randn(4, 3, 2, 4, 4, dtype=torch.float64)
    weights = torch.rand(4, 3, dtype=torch.float64)
    expected = sum(
        weights[g, :, None, None, None] * outputs[g].rot90(-g, (-2, -1)) for g in range(4)
    )
    torch.testing.assert_close(weighted_reynolds(outputs, weights, ACTION), expected)
    tree = TreeAction({"map": ACTION, "logits": TrivialAction(c4())})
    both = weighted_reynolds({"map": outputs, "logits": outputs[..., 0, 0]}, weights, tree)
    torch.testing.assert_close(both["map"], expected)
    logits = (weights[..., None] * outputs[..., 0, 0]).sum(0)
    torch.testing.assert_close(both["logits"], logits)


def test_weights_of_zero_mask_infinities():
    stack = torch.tensor([[[1.0]], [[math.inf]]])
    assert weighted_mean(stack, torch.tensor([[1.0], [0.0]])).item() == 1.0


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_integers_have_no_mean(dtype):
    stack = torch.zeros(4, 2, 1, 4, 4, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    for weights in (None, torch.full((4, 2), 0.25)):
        with pytest.raises(TypeError, match=f"`stack` must hold floating-point .* got {name}; use"):
            weighted_mean(stack, weights)
        with pytest.raises(TypeError, match=f"outputs of dtype {dtype} cannot be averaged"):
            weighted_reynolds(stack, weights, ImageAction(c4()))


def test_half_precision_is_summed_in_float32():
    stack = torch.full((3, 1, 4), 1.0009765625, dtype=torch.float16)
    weights = torch.full((3, 1), 1 / 3)
    assert torch.equal(weighted_mean(stack, weights), stack[0])


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6), st.floats(0, 0.1))
def test_select_minimum(values, tolerance):
    scores = torch.tensor(values, dtype=torch.float64).unsqueeze(1)
    weights = select_minimum(scores, tolerance)
    lowest = min(values)
    tied = [v - lowest <= tolerance * abs(lowest) for v in values]
    assert weights[:, 0].tolist() == pytest.approx([t / sum(tied) for t in tied])


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_select_minimum_of_infinities(value):
    assert select_minimum(torch.full((4, 1), value), 1e-3).tolist() == [[0.25]] * 4


def test_select_minimum_does_not_hide_nan():
    assert select_minimum(torch.tensor([[0.0], [math.nan]])).isnan().all()


LOSSES = {
    "negative_log_max_probability": (
        negative_log_max_probability,
        lambda y: -y.softmax(-1).amax(-1),
    ),
    "entropy": (entropy, lambda y: torch.special.entr(y.softmax(-1)).sum(-1)),
    "negative_similarity": (negative_similarity, lambda y: -y.amax(-1)),
    "negative_max_q_value": (negative_max_q_value, lambda y: -y.amax(-1)),
}


@pytest.mark.parametrize(("loss", "plain"), LOSSES.values(), ids=LOSSES)
def test_losses_rank_like_the_plain_formula(loss, plain):
    logits = torch.randn(8, 5, 10, dtype=torch.float64)
    found = loss(logits)
    assert found.shape == (8, 5)
    assert torch.equal(found.argsort(0), plain(logits).argsort(0))


def test_values_of_the_confidences():
    logits = torch.randn(8, 5, 10, dtype=torch.float64)
    expected = -logits.softmax(-1).amax(-1).log()
    torch.testing.assert_close(negative_log_max_probability(logits), expected)
    torch.testing.assert_close(entropy(logits), LOSSES["entropy"][1](logits))


@pytest.mark.parametrize("loss", [negative_log_max_probability, entropy])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_confidences_do_not_saturate(loss, dtype):
    margins = torch.tensor([0.0, 1.0, 10.0, 20.0, 40.0, 80.0], dtype=dtype)
    logits = torch.stack([margins, torch.zeros_like(margins)], dim=-1).unsqueeze(1)
    losses = loss(logits)[:, 0]
    assert losses.isfinite().all()
    assert bool((losses.diff() < 0).all())
    # The probability itself cannot tell them apart.
    assert logits.float().softmax(-1)[-2:, 0, 0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("loss", [negative_log_max_probability, entropy])
def test_confidences_are_finite_at_the_extremes(loss):
    logits = torch.tensor([[[1e4, -1e4, 0.0]], [[0.0, -math.inf, 1.0]], [[3.0, 3.0, 3.0]]])
    logits.requires_grad_()
    losses = loss(logits)
    assert losses.isfinite().all()
    assert bool((losses >= 0).all())
    losses.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("loss", "plain"), LOSSES.values(), ids=LOSSES)
def test_losses_average_over_positions(loss, plain):
    logits = torch.randn(4, 3, 7, 10)
    torch.testing.assert_close(loss(logits), loss(logits.flatten(1, 2)).view(4, 3, 7).mean(-1))
    torch.testing.assert_close(loss(logits.movedim(-1, 2), dim=2), loss(logits))


@pytest.mark.parametrize(("loss", "plain"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("dim", [0, 1, -3, -2, 3])
def test_losses_do_not_mix_samples(loss, plain, dim):
    with pytest.raises(ValueError, match=f"got {dim} for the shape"):
        loss(torch.zeros(4, 3, 5), dim=dim)
