"""Encoder-decoders: equivariance of whole sequences, the formulas, the proxies."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from equitune import TokenAction
from equitune.actions import TreeAction, TrivialAction
from equitune.seq2seq import (
    Decoded,
    EquiSeq2Seq,
    EquiZeroSeq2Seq,
    GreedyDecoder,
    Independent,
    LambdaSeq2Seq,
    Lockstep,
    mean_entropy,
    mean_error_probability,
    negative_log_min_probability,
    negative_log_probability,
)
from equitune.testing import assert_equivariant
from equitune.testing.strategies import finite_groups, permutation_actions
from seq2seq_cases import (
    BOS,
    CASES,
    EOS,
    EXACT,
    MAX_LENGTH,
    PAD,
    TOKENS,
    WORDS,
    Steps,
    copies_alone,
    lockstep,
    wide,
)

PROXIES = [
    mean_error_probability,
    mean_entropy,
    negative_log_probability,
    negative_log_min_probability,
]


class Score(nn.Module):
    """A random weight network of words, images or features."""

    def forward(self, x):
        x = x.double().flatten(1)
        return 3 * torch.sin(x * torch.arange(1, x.shape[1] + 1)).sum(1)


WRAPPERS = {
    "lockstep": lambda case, decoder: EquiSeq2Seq(decoder, case.inputs, case.tokens),
    "independent": lambda case, decoder: EquiSeq2Seq(
        decoder, case.inputs, case.tokens, runner=Independent()
    ),
    "lambda": lambda case, decoder: LambdaSeq2Seq(
        decoder, case.inputs, case.tokens, weight_net=Score()
    ),
    "lambda, independent": lambda case, decoder: LambdaSeq2Seq(
        decoder, case.inputs, case.tokens, weight_net=Score(), runner=Independent()
    ),
    **{
        f"equizero, {proxy.__name__}": lambda case, decoder, proxy=proxy: EquiZeroSeq2Seq(
            decoder, case.inputs, case.tokens, proxy_loss=proxy
        )
        for proxy in PROXIES
    },
}


def largest_difference(case, model, elements, calls):
    """How far f(gx) is from g f(x), in tokens and in scores up to the ends of the sequences."""
    source, options = case.sources(), case.given()
    scores, worst = case.tokens.on_logits(), 0.0
    for targets, length in calls:
        plain = model(source, *targets, **length, **options)
        for g in elements:
            moved = model(
                case.source.transform(source, g).contiguous(),
                *[case.tokens.transform(t, g) for t in targets],
                **length,
                **options,
            )
            wanted = case.tokens.transform(plain.tokens, g)
            if moved.tokens.shape != wanted.shape:
                return math.inf
            worst = max(worst, float((moved.tokens != wanted).any()))
            off = moved.scores.softmax(-1) - scores.transform(plain.scores, g).softmax(-1)
            worst = max(worst, off[plain.mask].abs().max().item())
    return worst


def calls(case):
    return [((), {}), ((), {"length": 5}), ((case.targets(),), {})]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_whole_sequences_are_equivariant(name, wrapper):
    case = CASES[name]
    model = WRAPPERS[wrapper](case, case.decoder())
    elements = list(case.tokens.group.elements)
    assert largest_difference(case, model, elements, calls(case)) <= 1e-12
    # The plain model is not.
    assert largest_difference(case, case.decoder(), elements, calls(case)) > 0.01


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", [name for name in CASES if "captions" not in name])
@torch.no_grad()
def test_each_sample_has_its_own_element(name, wrapper):
    case = CASES[name]
    model = WRAPPERS[wrapper](case, case.decoder())
    each = torch.arange(10) % case.tokens.group.order
    assert largest_difference(case, model, [each], calls(case)) <= 1e-12
    assert largest_difference(case, case.decoder(), [each], calls(case)) > 0.01


def test_the_oracle_of_the_library_agrees():
    case = CASES["runs, symmetric(3)"]
    actions = TreeAction(
        {
            "tokens": case.tokens,
            "scores": case.tokens.on_logits(),
            "mask": TrivialAction(case.tokens.group),
        }
    )
    decoder, source = case.decoder(), case.sources()
    model = EquiZeroSeq2Seq(decoder, case.source, case.tokens, proxy_loss=mean_error_probability)
    assert_equivariant(model, source, case.source, actions)
    with pytest.raises(AssertionError):
        assert_equivariant(lambda x: decoder(x, length=6), source, case.source, actions)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_lockstep_is_its_formula(name):
    case, decoder = CASES[name], CASES[name].decoder()
    source, given = case.sources(), case.given()
    found = EquiSeq2Seq(decoder, case.inputs, case.tokens)(source, length=7, **given)
    expected = lockstep(case, decoder, source, 7, **given)
    torch.testing.assert_close(found.scores.exp(), expected, **EXACT)
    assert torch.equal(found.tokens[found.mask], expected.argmax(-1)[found.mask])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_independent_copies_are_averaged(name):
    case, decoder = CASES[name], CASES[name].decoder()
    source, given = case.sources(), case.given()
    model = EquiSeq2Seq(decoder, case.inputs, case.tokens, runner=Independent())
    found = model(source, length=7, **given)
    copies = copies_alone(case, decoder, source, length=7, **given)
    expected = torch.stack([copy.scores.softmax(-1) for copy in copies]).mean(0)
    torch.testing.assert_close(found.scores.exp(), expected, **EXACT)
    together = EquiSeq2Seq(decoder, case.inputs, case.tokens)(source, length=7, **given)
    assert not torch.allclose(found.scores, together.scores, atol=1e-3)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_targets_are_fed_to_each_copy_in_its_own_frame(name, wrapper):
    case, decoder = CASES[name], CASES[name].decoder()
    source, targets, given = case.sources(), case.targets(), case.given()
    model = WRAPPERS[wrapper](case, decoder)
    explanation = model.explain(source, targets, **given)
    copies = copies_alone(case, decoder, source, targets, **given)
    stack = torch.stack([copy.scores.softmax(-1) for copy in copies])
    expected = (explanation.weights[..., None, None] * stack).sum(0)
    torch.testing.assert_close(explanation.output.scores.softmax(-1), expected, **EXACT)
    expected_mask = (targets == EOS).long().cumsum(1) - (targets == EOS).long() == 0
    assert torch.equal(explanation.output.mask, expected_mask)


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_equizero_takes_the_best_copy(name, proxy):
    case, decoder = CASES[name], CASES[name].decoder()
    source, given = case.sources(), case.given()
    model = EquiZeroSeq2Seq(decoder, case.inputs, case.tokens, proxy_loss=proxy)
    explanation = model.explain(source, length=MAX_LENGTH, **given)
    copies = copies_alone(case, decoder, source, length=MAX_LENGTH, **given)
    stacks = Decoded(*(torch.stack([getattr(copy, field) for copy in copies])
                       for field in ("tokens", "scores", "mask")))  # fmt: skip
    losses = proxy(stacks)
    torch.testing.assert_close(explanation.scores, -losses, rtol=1e-9, atol=1e-12)
    best = losses.argmin(0)
    assert best.unique().numel() > 1
    for row, g in enumerate(best.tolist()):
        # Only ties may say otherwise.
        assert explanation.weights[g, row] > 0
        torch.testing.assert_close(explanation.output.scores[row], copies[g].scores[row], **EXACT)
        assert torch.equal(explanation.output.tokens[row], copies[g].tokens[row])
        assert torch.equal(explanation.output.mask[row], copies[g].mask[row])


class Forbidding(nn.Module):
    """Never says the last token."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def encode(self, source):
        return self.model.encode(source)

    def step(self, tokens, state):
        scores, state = self.model.step(tokens, state)
        return torch.cat([scores[:, :-1], torch.full_like(scores[:, -1:], -torch.inf)], 1), state


def test_what_is_impossible_for_all_copies_is_impossible():
    case = CASES["steps, cyclic(3)"]
    decoder = case.decoder()
    last = decoder.model.step(torch.tensor([1]), decoder.model.encode(case.sources()[:1]))[0]
    assert all(row[-1] == last.shape[1] - 1 for row in case.tokens.permutations)
    fixed = GreedyDecoder(
        Forbidding(decoder.model), bos=decoder.bos, eos=decoder.eos, pad=decoder.pad, max_length=6
    )
    wrapper = EquiSeq2Seq(fixed, case.inputs, case.tokens)
    with torch.no_grad():
        scores = wrapper(case.sources(), length=6).scores
    assert (scores[..., -1] == -torch.inf).all()
    assert scores[..., :-1].isfinite().all()


@pytest.mark.parametrize(("dtype", "chosen"), [(torch.float64, 1), (torch.float32, 3)])
def test_ties_are_those_of_the_precision_of_the_scores(dtype, chosen):
    case = CASES["steps, cyclic(3)"]
    decoder = case.decoder().to(dtype)

    def almost_the_same(decoded):
        losses = torch.tensor([1.0, 1 + 1e-7, 1 + 2e-7], dtype=torch.float64)
        return losses[:, None].expand(3, decoded.scores.shape[1])

    wrapper = EquiZeroSeq2Seq(decoder, case.inputs, case.tokens, proxy_loss=almost_the_same)
    with torch.no_grad():
        weights = wrapper.explain(case.sources(), length=6).weights
    assert ((weights > 0).sum(dim=0) == chosen).all()


def test_weights_of_zero_have_gradients():
    case = CASES["steps, cyclic(3)"]
    decoder, source = case.decoder(), case.sources()

    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(1e4, dtype=torch.float64))

        def forward(self, x):
            return self.slope * Score()(x)

    wrapper = LambdaSeq2Seq(decoder, case.inputs, case.tokens, weight_net=Steep())
    explanation = wrapper.explain(source, length=6)
    assert (explanation.weights == 0).any()
    explanation.output.scores.logsumexp(dim=-1).sum().backward()
    gradients = [p.grad for p in wrapper.parameters() if p.grad is not None]
    assert len(gradients) > 3
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("runner", [Lockstep(), Independent()])
@torch.no_grad()
def test_the_limits_of_lambda(runner):
    case = CASES["steps, cyclic(3)"]
    decoder, source = case.decoder(), case.sources()

    class Constant(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), dtype=torch.float64)

    class Peaked(nn.Module):
        def forward(self, x):
            return 1e4 * Score()(x)

    equal = LambdaSeq2Seq(decoder, case.inputs, case.tokens, weight_net=Constant(), runner=runner)
    mean = EquiSeq2Seq(decoder, case.inputs, case.tokens, runner=runner)
    torch.testing.assert_close(
        equal(source, length=6).scores, mean(source, length=6).scores, **EXACT
    )
    peaked = LambdaSeq2Seq(decoder, case.inputs, case.tokens, weight_net=Peaked(), runner=runner)
    explanation = peaked.explain(source, length=6)
    copies = copies_alone(case, decoder, source, length=6)
    certain = explanation.weights.amax(0) == 1
    assert certain.sum() > 5
    for row in certain.nonzero().flatten().tolist():
        chosen = copies[explanation.elements[row]]
        torch.testing.assert_close(
            explanation.output.scores[row].exp(), chosen.scores[row].softmax(-1), **EXACT
        )


@torch.no_grad()
def test_lambda_weighs_in_lockstep():
    case = CASES["runs, symmetric(3)"]
    decoder, source = case.decoder(), case.sources()
    model = LambdaSeq2Seq(decoder, case.inputs, case.tokens, weight_net=Score())
    explanation = model.explain(source, length=7)
    logits = torch.stack([Score()(case.source.transform(source, g)) for g in range(6)])
    torch.testing.assert_close(explanation.weights, logits.softmax(0), **EXACT)
    expected = lockstep(case, decoder, source, 7, weights=logits.softmax(0))
    torch.testing.assert_close(explanation.output.scores.exp(), expected, **EXACT)


@pytest.mark.parametrize("name", ["steps, cyclic(3)", "captions, c4"])
@torch.no_grad()
def test_lambda_reads_an_activation_of_the_encoder(name):
    case = CASES[name]
    decoder, source = case.decoder(), case.sources()
    submodule = "model.look" if "captions" in name else "model.summary"

    class Reads(nn.Module):
        def forward(self, x):
            return x.flatten(1).sin().sum(1)

    model = LambdaSeq2Seq(
        decoder, case.inputs, case.tokens, weight_net=Reads(), weight_input=submodule
    )
    seen = []
    hook = decoder.get_submodule(submodule).register_forward_hook(lambda m, i, o: seen.append(o))
    for g in case.tokens.group.elements:
        decoder.model.encode(case.source.transform(source, g).contiguous())
    hook.remove()
    expected = torch.stack([Reads()(activation) for activation in seen]).softmax(0)
    torch.testing.assert_close(model.explain(source, length=3).weights, expected, **EXACT)


@given(data=st.data(), group=finite_groups(min_order=2, max_order=8))
@torch.no_grad()
def test_any_group_and_vocabulary(data, group):
    table = torch.tensor(data.draw(permutation_actions(group)).permutations)
    fixed = torch.arange(3).repeat(group.order, 1)
    action = TokenAction(group, torch.cat([fixed, table + 3], dim=1))
    size = action.vocabulary_size

    class Wide(Steps):
        def __init__(self):
            super().__init__()
            self.words, self.tokens = nn.Embedding(size, 12), nn.Embedding(size, 12)
            self.scores = nn.Linear(12, size)

    seed = data.draw(st.integers(0, 10_000))
    decoder = GreedyDecoder(wide(Wide(), seed), bos=BOS, eos=EOS, pad=PAD, max_length=MAX_LENGTH)
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(3, size, (4, 5), generator=generator)
    targets = torch.randint(3, size, (4, 6), generator=generator)
    each = torch.randint(0, group.order, (4,), generator=generator)
    for model in (
        EquiSeq2Seq(decoder, action, action),
        EquiZeroSeq2Seq(decoder, action, action, proxy_loss=negative_log_probability),
    ):
        plain = model(source, targets)
        moved = model(action.transform(source, each), action.transform(targets, each))
        expected = action.on_logits().transform(plain.scores, each)
        torch.testing.assert_close(moved.scores, expected, rtol=0, atol=1e-11)


def test_proxies_by_hand():
    scores = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]], dtype=torch.float64).log()
    stack = scores.expand(1, 2, 3, 2)
    mask = torch.tensor([[[True, True, False], [True, True, True]]])
    decoded = Decoded(stack.argmax(-1), stack, mask)
    p, h = [0.9, 0.6, 0.5], [-sum(q * math.log(q) for q in (p, 1 - p)) for p in (0.9, 0.6, 0.5)]
    logs = [-math.log(value) for value in p]
    for proxy, expected in (
        (mean_error_probability, [1 - sum(p[:2]) / 2, 1 - sum(p) / 3]),
        (mean_entropy, [sum(h[:2]) / 2, sum(h) / 3]),
        (negative_log_probability, [sum(logs[:2]), sum(logs)]),
        (negative_log_min_probability, [logs[1], logs[2]]),
    ):
        wanted = torch.tensor([expected], dtype=torch.float64)
        torch.testing.assert_close(proxy(decoded), wanted, **EXACT)


@pytest.mark.parametrize("proxy", PROXIES)
def test_proxies_do_not_saturate(proxy):
    scores = torch.tensor([[40.0, 0.0], [50.0, 0.0]]).view(2, 1, 1, 2)
    # The probability of both is 1 in float32.
    assert (scores.softmax(-1).amax(-1) == 1).all()
    losses = proxy(Decoded(scores.argmax(-1), scores, torch.ones(2, 1, 1, dtype=torch.bool)))
    assert 0 < losses[1] < losses[0]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@torch.no_grad()
def test_what_is_decoded_freely_is_whole(wrapper):
    case = CASES["steps, cyclic(3)"]
    source = case.sources(60)
    for seed in range(4):
        decoder = case.decoder(seed)
        model = WRAPPERS[wrapper](case, decoder)
        short, long = model(source), model(source, length=MAX_LENGTH)
        length = short.tokens.shape[1]
        assert torch.equal(short.tokens, long.tokens[:, :length])
        assert torch.equal(short.mask, long.mask[:, :length])
        # Nothing is cut off, nor goes on for nothing.
        assert not long.mask[:, length:].any()
        assert short.mask[:, -1].any()
        assert (long.tokens[~long.mask] == PAD).all()
        ends = (long.tokens == EOS).sum(1)
        assert (long.mask.all(1) | (ends == 1)).all()
        assert ends.max() == 1
        # Nor does it depend on the rest of the batch.
        for row in range(20):
            alone = model(source[row : row + 1]).tokens[0]
            assert torch.equal(alone, short.tokens[row, : len(alone)])


@pytest.mark.parametrize("proxy", PROXIES)
@torch.no_grad()
def test_copies_that_tie_share(proxy):
    # Sources that the group leaves as they are: all of their copies are the same.
    case = CASES["steps, cyclic(3)"]
    decoder = case.decoder()
    source = torch.tensor([[3, 6, 3, 8, 9], [8, 8, 3, 10, 6], [4, 4, 5, 7, 7]])
    explanation = EquiZeroSeq2Seq(decoder, case.inputs, case.tokens, proxy_loss=proxy).explain(
        source, length=6
    )
    assert torch.equal(explanation.weights[:, :2], torch.full((3, 2), 1 / 3, dtype=torch.float64))
    assert (explanation.weights[:, 2] == 1).sum() == 1
    copies = copies_alone(case, decoder, source, length=6)
    shared = torch.stack([copy.scores.exp() for copy in copies]).mean(0).log()
    torch.testing.assert_close(explanation.output.scores[:2], shared[:2], **EXACT)
    # What is said is one thing.
    tokens = explanation.output.scores.argmax(-1)
    assert torch.equal(explanation.output.tokens, tokens.masked_fill(~explanation.output.mask, PAD))
    alone = EquiZeroSeq2Seq(
        decoder, case.inputs, case.tokens, proxy_loss=proxy, tie_tolerance=1e9
    ).explain(source)
    assert torch.equal(alone.weights, torch.full((3, 3), 1 / 3, dtype=torch.float64))


# The elements that leave some sources as they are: all of them, or a subgroup.
STILL = {
    "steps, cyclic(3)": [[3, 6, 3, 8, 9], [8, 8, 3, 10, 6]],
    "runs, symmetric(3)": [[4, 6, 4, 9, 9], [7, 7, 4, 10, 6]],
    "runs, symmetric(3), reflected": [[5, 6, 4, 9, 5], [7, 3, 4, 3, 6], [8, 8, 8, 9, 9]],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", STILL)
@torch.no_grad()
def test_rounding_does_not_decide_for_sources_that_stay_as_they_are(name, wrapper, dtype):
    case = CASES[name.removesuffix(", reflected")]
    group, moved = case.tokens.group, case.tokens.permutations
    tied = 0
    for seed in range(6):
        decoder = case.decoder(seed).to(dtype)
        # Tokens that the group moves come first.
        decoder.model.scores.bias.data[3:7] += 1.5
        model = WRAPPERS[wrapper](case, decoder).eval()
        still = torch.tensor(STILL[name])
        batch = torch.cat([case.sources(5), still, case.sources(7)])
        together = model(batch, length=6)
        for row, source in enumerate(still, start=5):
            alone = model(source[None], length=6)
            assert torch.equal(alone.tokens[0], together.tokens[row])
            stays = [
                g for g in group.elements
                if torch.equal(case.source.transform(source[None], g)[0], source)
            ]  # fmt: skip
            assert len(stays) > 1
            for found, place in ((alone, 0), (together, row)):
                # The first step: to the last bit what the elements that leave the source make it.
                scores, first = found.scores[place, 0], int(found.tokens[place, 0])
                for g in stays:
                    assert torch.equal(scores[list(moved[g])], scores)
                copies = {moved[g][first] for g in stays}
                assert first == min(copies)
                tied += len(copies) > 1
    assert tied


@pytest.mark.parametrize("name", ["steps, cyclic(3)", "runs, symmetric(3)"])
@torch.no_grad()
def test_what_equivariance_means_for_sources_that_stay_as_they_are(name):
    """The answer of a copy is a copy of the answer, moved on by what leaves the source."""
    case, free = CASES[name], 0
    group = case.tokens.group
    sources = torch.tensor(STILL.get(f"{name}, reflected", STILL[name]))
    for seed in range(6):
        model = EquiSeq2Seq(case.decoder(seed), case.inputs, case.tokens)
        answer = model(sources, length=6)
        for g in group.elements:
            moved = model(case.source.transform(sources, g), length=6)
            for row, source in enumerate(sources):
                stays = [
                    s for s in group.elements
                    if torch.equal(case.source.transform(source[None], s)[0], source)
                ]  # fmt: skip
                copies = [
                    case.tokens.transform(answer.tokens[row : row + 1], group.compose(g, s))[0]
                    for s in stays
                ]
                assert any(torch.equal(copy, moved.tokens[row]) for copy in copies)
                free += not torch.equal(copies[stays.index(0)], moved.tokens[row])
    # No answer could be its own copy.
    assert free


@torch.no_grad()
def test_targets_that_tell_equal_copies_apart():
    # The copies of the source are equal, those of the targets from the second token on.
    for name in ("steps, cyclic(3)", "runs, symmetric(3)"):
        case = CASES[name]
        decoder = case.decoder()
        source, targets = torch.tensor(STILL[name]), torch.tensor([[7, 3, 4, 2], [3, 7, 7, 2]])
        copies = copies_alone(case, decoder, source, targets)
        mean = torch.stack([copy.scores.exp() for copy in copies]).mean(0).log()
        found = EquiSeq2Seq(decoder, case.inputs, case.tokens)(source, targets).scores
        torch.testing.assert_close(found, mean, **EXACT)
        moved = case.tokens.permutations
        for row, known in enumerate((2, 1)):
            for step in range(known):
                for g in case.tokens.group.elements:
                    scores = found[row, step]
                    assert torch.equal(scores[list(moved[g])], scores)


@torch.no_grad()
def test_pictures_in_any_memory_format_that_look_the_same_from_all_sides():
    case = CASES["captions, c4"]
    decoder, group = case.decoder(), case.tokens.group
    quarter = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    corner = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    corner[..., :2, :2] = quarter
    still = sum(corner.rot90(k, (-2, -1)) for k in range(4))
    model = EquiSeq2Seq(decoder, case.inputs, case.tokens)
    for source in (still, still.contiguous(memory_format=torch.channels_last)):
        scores = model(source, length=3).scores[:, 0]
        for g in group.elements:
            assert torch.equal(scores[:, list(case.tokens.permutations[g])], scores)


def test_gradients_of_equal_copies_are_those_of_all_copies():
    for name in ("steps, cyclic(3)", "runs, symmetric(3)"):
        case = CASES[name]
        decoder = case.decoder()
        source, targets = torch.tensor(STILL[name]), torch.tensor([[7, 3, 4, 2], [3, 7, 7, 2]])
        parameters = list(decoder.parameters())
        copies = copies_alone(case, decoder, source, targets)
        mean = torch.stack([copy.scores.exp() for copy in copies]).mean(0).log()
        gradients = functools.partial(
            torch.autograd.grad, inputs=parameters, materialize_grads=True
        )
        expected = gradients(mean.square().sum())
        found = EquiSeq2Seq(decoder, case.inputs, case.tokens)(source, targets).scores
        for one, other in zip(gradients(found.square().sum()), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("runner", [Lockstep(), Independent()], ids=["lockstep", "independent"])
@pytest.mark.parametrize("name", ["steps, cyclic(3)", "runs, symmetric(3)"])
def test_weights_of_equal_copies_sum_to_one_with_dropout(name, runner):
    case = CASES[name]
    source = torch.tensor([*STILL.get(f"{name}, reflected", STILL[name]), [4, 7, 5, 3, 9]])
    net = nn.Sequential(nn.Embedding(WORDS, 8), nn.Flatten(), nn.Dropout(0.5), nn.Linear(40, 1))
    model = LambdaSeq2Seq(
        case.decoder(), case.inputs, case.tokens, weight_net=net.double(), runner=runner
    )
    equal = (case.source.orbit(source)[:, None] == case.source.orbit(source)).all(-1)
    model.eval()
    with torch.no_grad():
        steady = model.explain(source, length=4).weights
    model.train()
    torch.manual_seed(0)
    for _ in range(3):
        explanation = model.explain(source, length=4)
        weights = explanation.weights
        torch.testing.assert_close(weights.sum(0), torch.ones(len(source)).double(), **EXACT)
        assert (weights[:, None] == weights)[equal].all()
        assert not torch.allclose(weights, steady, atol=1e-3)
        first = explanation.output.scores[:, 0].exp().sum(-1)
        torch.testing.assert_close(first, torch.ones_like(first), **EXACT)
    # The first source is all of its copies: nothing depends on its weights.
    still = model(source[:1], length=4).scores
    with torch.no_grad():
        plain = EquiSeq2Seq(case.decoder(), case.inputs, case.tokens, runner=runner)
        uniform = plain(source[:1], length=4).scores
    if name == "steps, cyclic(3)":
        torch.testing.assert_close(still, uniform, **EXACT)
    model(source, length=4).scores.exp().square().sum().backward()
    # Those of the parent that the model does not use have none.
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert net[0].weight.grad.any()
    # Without dropout they are what they were.
    model.eval()
    with torch.no_grad():
        scores = net(case.source.orbit(source).flatten(0, 1)).view(-1, len(source))
        assert torch.equal(model.explain(source, length=4).weights, steady)
    torch.testing.assert_close(steady, scores.softmax(0), **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@torch.no_grad()
def test_scores_are_wide_log_probabilities(dtype):
    case = CASES["steps, cyclic(3)"]
    decoder, source = case.decoder().to(dtype), case.sources()
    seen = []

    def proxy(decoded):
        seen.append(decoded.scores.dtype)
        return mean_error_probability(decoded)

    for model in (
        decoder,
        EquiSeq2Seq(decoder, case.inputs, case.tokens),
        EquiSeq2Seq(decoder, case.inputs, case.tokens, runner=Independent()),
        EquiZeroSeq2Seq(decoder, case.inputs, case.tokens, proxy_loss=proxy),
    ):
        for along in ({}, {"targets": case.targets()}):
            scores = model(source, **along).scores
            assert scores.dtype == torch.float32
            torch.testing.assert_close(scores.exp().sum(-1), torch.ones(scores.shape[:2]))
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_averages_are_step_models(name):
    case, decoder = CASES[name], CASES[name].decoder()
    source, targets, given = case.sources(), case.targets(), case.given()
    for wrapper in ("lockstep", "lambda"):
        model = WRAPPERS[wrapper](case, decoder)
        again = GreedyDecoder(model, bos=BOS, eos=EOS, pad=PAD, max_length=MAX_LENGTH)
        for arguments, length in (((), {}), ((), {"length": 5}), ((targets,), {})):
            mine = model(source, *arguments, **length, **given)
            other = again(source, *arguments, **length, **given)
            torch.testing.assert_close(other.scores, mine.scores, **EXACT)
            assert torch.equal(other.tokens, mine.tokens)


@torch.no_grad()
def test_two_groups_one_around_the_other():
    case = CASES["runs, symmetric(3)"]
    decoder = case.decoder()
    others = TokenAction.cyclic_swaps(WORDS, [(9, 10)])
    tokens = TokenAction.cyclic_swaps(TOKENS, [(7, 8)])
    inner = EquiSeq2Seq(decoder, case.source, case.tokens)
    outer = EquiSeq2Seq(
        GreedyDecoder(inner, bos=BOS, eos=EOS, pad=PAD, max_length=MAX_LENGTH), others, tokens
    )
    source = torch.tensor([[9, 5, 3, 10, 4], [5, 9, 8, 9, 6], [10, 8, 3, 9, 9]])
    plain = outer(source, length=5)
    for words, acts in ((others, tokens), (case.source, case.tokens)):
        moved = outer(words.transform(source, 1), length=5)
        scores = acts.on_logits().transform(plain.scores, 1)
        torch.testing.assert_close(moved.scores, scores, rtol=0, atol=1e-11)


def test_steps_in_one_pass_are_used():
    case = CASES["runs, symmetric(3)"]
    decoder = case.decoder()
    EquiSeq2Seq(decoder, case.source, case.tokens)(case.sources(), case.targets())
    assert decoder.model.passes == 1
