"""Language models under any weighting: the formula, causality, generation, training."""

import copy
import itertools
import pickle

import pytest
import torch

from equitune import Best, Explaining, Learned, Uniform, Weighting
from equitune.losses import entropy, negative_log_max_probability
from equitune.spaces import Logits, Probabilities, Space
from equitune.testing import assert_equivariant
from equitune.text import EquiLM, OrbitLM, REquiLM, fairness_gap
from equitune.training import backbone_phase, joint_phase, probing_phase, weights_phase
from lm_cases import (
    WORDS,
    Recorder,
    Scores,
    TopK,
    V,
    cache_of,
    language_model,
    neutral,
    padded,
    prompts,
    refused,
    table,
)

EXACT = {"rtol": 0, "atol": 1e-11}
HIDDEN = "transformer.ln_f"


def net(features):
    torch.manual_seed(7)
    layers = torch.nn.Linear(features, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    return torch.nn.Sequential(*layers).double()


WEIGHTINGS = {
    "equal": Uniform,
    "learned of the output": lambda: Learned(net(V), "output"),
    "learned of a submodule": lambda: Learned(net(16), HIDDEN),
    "the surest": lambda: Best(entropy),
    "the surest two": lambda: TopK(2),
}
GROUPS = ["cyclic(3)", "symmetric(3)"]


def written_out(model, words, tokens, weighting, space=None, relaxed=False):
    """sum_g w_g(X) g^-1 p_M(. | gX), copy by copy and position by position, by a full pass."""
    outputs, hidden, moved = [], [], []
    handle = model.transformer.ln_f.register_forward_hook(lambda *a: hidden.append(a[-1]))
    for g in words.group.elements:
        logits = model(words.action.transform(tokens, g)).logits
        outputs.append(logits)
        moved.append(logits.log_softmax(-1)[..., table(words)[g]])
    handle.remove()
    raw, hidden, moved = torch.stack(outputs), torch.stack(hidden), torch.stack(moved)
    weights = torch.full(raw.shape[:3], 1 / len(raw), dtype=raw.dtype)
    if isinstance(weighting, Learned):
        read = raw if weighting.reads == "output" else hidden
        weights = weighting.weight_net(read)[..., 0].softmax(0)
    elif isinstance(weighting, Best):
        losses = -(raw.softmax(-1) * raw.log_softmax(-1)).sum(-1)
        weights = (losses - losses.amin(0) < 1e-9).double()
        weights /= weights.sum(0)
    elif isinstance(weighting, TopK):
        scores = (raw.softmax(-1) * raw.log_softmax(-1)).sum(-1)
        best = torch.zeros_like(scores)
        for b, t in itertools.product(*map(range, scores.shape[1:])):
            least = sorted(scores[:, b, t].tolist())[-2]
            kept = scores[:, b, t] >= least - 1e-12
            best[kept, b, t] = scores[kept, b, t].exp()
        weights = best / best.sum(0)
    if isinstance(space, Logits):
        mixed = (weights[..., None] * moved).sum(0)
    else:
        mixed = (weights[..., None] * moved.exp()).sum(0).log()
    mixed = mixed.log_softmax(-1)
    if relaxed:
        general = list(words.general)
        mixed[..., general] = raw[0].log_softmax(-1)[..., general]
    return mixed.log_softmax(-1), weights


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("kind", WEIGHTINGS)
@pytest.mark.parametrize("space", [Probabilities(), Logits()], ids=str)
def test_the_formula(kind, name, space):
    model, words, weighting = language_model("gpt2"), WORDS[name], WEIGHTINGS[kind]()
    tokens = torch.cat([prompts(3, 8), neutral(1, 8)])
    expected, weights = written_out(model, words, tokens, weighting, space)
    fair = OrbitLM(model, words, weighting=weighting, space=space)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = fair.explain(tokens)
            torch.testing.assert_close(found.output.logits.log_softmax(-1), expected, **EXACT)
            torch.testing.assert_close(found.weights, weights, **EXACT)
            assert torch.equal(found.elements, found.weights.argmax(0))
            assert torch.equal(fair(tokens).logits, found.output.logits)
    assert (found.scores is None) == (kind == "equal")
    relaxed = OrbitLM(model, WORDS["cyclic(3)"], weighting=weighting, space=space, relaxed=True)
    expected, _ = written_out(model, relaxed.words, tokens, weighting, space, relaxed=True)
    torch.testing.assert_close(relaxed(tokens).logits.log_softmax(-1), expected, **EXACT)


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("kind", WEIGHTINGS)
@torch.no_grad()
def test_it_is_fair_and_the_library_says_so(kind, name):
    model, words = language_model("gpt2"), WORDS[name]
    fair = OrbitLM(model, words, weighting=WEIGHTINGS[kind]())
    actions = words.action, words.action.on_logits()
    assert_equivariant(Scores(fair), prompts(), *actions)
    assert fairness_gap(fair, words, prompts(4, 5), prompts(4, 5, seed=1)).max() < 1e-10
    # What copies have in common is as the plain model says it.
    text = neutral()
    kept = [v for v in range(V) if v not in words.equality]
    assert torch.equal(fair(text).logits[..., kept], model(text).logits[..., kept])
    for cycle in words.cycles if name != "symmetric(3)" else ((4, 5, 6), (10, 11, 12)):
        scores = fair(text).logits[..., list(cycle)]
        assert (scores == scores[..., :1]).all()


@pytest.mark.parametrize("kind", WEIGHTINGS)
@torch.no_grad()
def test_generation_and_caches(kind):
    model, words = language_model("gpt2"), WORDS["cyclic(3)"]
    fair, seen = OrbitLM(model, words, weighting=WEIGHTINGS[kind]()), Recorder(model)
    tokens, mask, positions = padded(length=12)
    whole = fair(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    first = fair(tokens[:, :7], attention_mask=mask[:, :7], position_ids=positions[:, :7])
    rest = fair(tokens[:, 7:], attention_mask=mask, position_ids=positions[:, 7:],
                past_key_values=cache_of(first))  # fmt: skip
    found = torch.cat([first.logits, rest.logits], dim=1)
    torch.testing.assert_close(found[:, 3:], whole[:, 3:], **EXACT)
    # A position is weighed by what stands before it alone.
    changed = tokens.clone()
    changed[:, 9:] = 14
    again = fair(changed, attention_mask=mask, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(again[:, 3:9], whole[:, 3:9], **EXACT)
    explanation = fair.explain(tokens, attention_mask=mask, logits_to_keep=2)
    assert explanation.weights.shape == (3, 4, 2)
    torch.testing.assert_close(explanation.weights.sum(0), torch.ones(4, 2).double())
    for options in ({"do_sample": False}, {"do_sample": True}, {"num_beams": 3}):
        texts = []
        for use_cache in (True, False):
            torch.manual_seed(3)
            texts.append(fair.generate(tokens, attention_mask=mask, max_new_tokens=6,
                                       use_cache=use_cache, **options))  # fmt: skip
        assert torch.equal(*texts)
    text = fair.generate(prompts(), max_new_tokens=8, do_sample=False)
    for g in words.group.elements:
        moved = fair.generate(words.action.transform(prompts(), g), max_new_tokens=8,
                              do_sample=False)  # fmt: skip
        assert torch.equal(moved, words.action.transform(text, g))
    # Equal copies run once, whatever they weigh, and what stands before the first equality word.
    seen.shapes.clear()
    long = neutral(length=40)
    fair(long)
    long[0, 25] = 4
    fair(long)
    assert seen.shapes == [(1, 40), (1, 25), (3, 15)]


def loss_of(model, tokens):
    return model(tokens, labels=tokens, use_cache=False).loss


@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_frozen_and_trained(kind):
    model, weighting = language_model("gpt2", torch.float32), WEIGHTINGS[kind]().float()
    fair = OrbitLM(model, WORDS["cyclic(3)"], weighting=weighting)
    for dropout in (m for m in model.modules() if isinstance(m, torch.nn.Dropout)):
        dropout.p = 0.0
    tokens, flags = prompts(), [p.requires_grad for p in model.parameters()]
    fair.train().freeze_backbone()
    assert fair.frozen
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    fair.unfreeze_backbone()
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == flags
    learned = isinstance(weighting, Learned)
    phases = [backbone_phase] if not learned else [weights_phase, joint_phase]
    for phase in phases:
        parameters = phase(fair)
        optimizer = torch.optim.SGD(parameters, lr=0.05)
        before = loss_of(fair, tokens)
        for _ in range(8):
            optimizer.zero_grad()
            loss_of(fair, tokens).backward()
            assert all(p.grad is not None for p in parameters)
            optimizer.step()
        assert loss_of(fair, tokens) < before
    if learned:
        # Fixed weights would read a backbone that moves away.
        refused(backbone_phase, ValueError, "drift", fair)
    else:
        refused(weights_phase, TypeError, "weights to learn", fair)
    assert [*probing_phase(fair, ["transformer.ln_f"])] == [*model.transformer.ln_f.parameters()]
    fair.unfreeze_backbone().eval()
    explanation = Explaining(fair)(tokens)
    assert torch.equal(explanation.output.logits, fair(tokens).logits)
    actions = WORDS["cyclic(3)"].action, WORDS["cyclic(3)"].action.on_logits()
    assert_equivariant(Scores(fair), tokens, *actions, rtol=1e-4)


@pytest.mark.parametrize("gradient", ["equitune", "identity", "selected", None])
def test_gradients_of_the_best_copy(gradient):
    model, words, tokens = language_model("gpt2"), WORDS["cyclic(3)"], prompts(2, 6)
    fair = OrbitLM(model, words, weighting=Best(negative_log_max_probability, gradient))
    explanation = fair.explain(tokens, use_cache=False)
    found = explanation.output.logits
    if gradient is None:
        assert not found.requires_grad
        return
    targets = torch.randn(found.shape, dtype=found.dtype)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad((found.log_softmax(-1) * targets).sum(), parameters)
    # The same, by weights that are given.
    copies = [model(words.action.transform(tokens, g)).logits.log_softmax(-1)[..., table(words)[g]]
              for g in words.group.elements]  # fmt: skip
    copies = torch.stack(copies)
    weights = {"equitune": torch.full_like(explanation.weights, 1 / 3),
               "identity": torch.zeros_like(explanation.weights),
               "selected": explanation.weights}[gradient]  # fmt: skip
    if gradient == "identity":
        weights[0] = 1
    value = (explanation.weights.log()[..., None] + copies).logsumexp(0)
    torch.testing.assert_close(found.log_softmax(-1), value, **EXACT)
    estimator = (weights.log()[..., None] + copies).logsumexp(0)
    estimator = estimator + (value - estimator).detach()
    expected = torch.autograd.grad((estimator.log_softmax(-1) * targets).sum(), parameters)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_impossible_words_under_a_choice():
    model, words = language_model("gpt2"), WORDS["cyclic(3)"]
    bias = torch.zeros(V, dtype=torch.float64)
    bias[20:] = -torch.inf
    model.lm_head.register_forward_hook(lambda module, args, out: out + bias)
    tokens = prompts().clamp(max=19)
    for space in (Probabilities(), Logits()):
        fair = OrbitLM(model, words, weighting=Best(entropy), space=space)
        output = fair(tokens, labels=tokens)
        output.loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        assert (output.logits[..., 20:].exp() == 0).all()


def test_checkpoints_and_copies():
    words = WORDS["cyclic(3)"]
    fair = OrbitLM(language_model("gpt2"), words, weighting=Learned(net(16), HIDDEN))
    state = fair.state_dict()
    assert {name.split(".")[0] for name in state} == {"backbone", "weighting"}
    other = OrbitLM(language_model("gpt2"), words, weighting=Learned(net(16), HIDDEN))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        other.load_state_dict(state)
        expected = fair(prompts()).logits
        for again in (other, copy.deepcopy(fair), pickle.loads(pickle.dumps(fair))):
            assert torch.equal(again(prompts()).logits, expected)
    assert "weighting=" in repr(fair) or "Learned" in repr(fair)


def test_thin_constructors():
    words = WORDS["cyclic(3)"]
    fair, relaxed = EquiLM(language_model(), words), REquiLM(language_model(), words)
    assert isinstance(fair, OrbitLM)
    assert (fair.relaxed, relaxed.relaxed) == (False, True)
    assert isinstance(fair.weighting, Uniform)
    explanation = fair.explain(prompts())
    assert explanation.scores is None
    assert torch.equal(explanation.weights, torch.full((3, 5, 9), 1 / 3, dtype=torch.float64))
    with torch.no_grad():
        any_weighting = OrbitLM(fair.unwrap(), words)(prompts()).logits
        assert torch.equal(any_weighting, fair(prompts()).logits)


class Reading(Weighting):
    reads = "input"

    def score(self, copies):
        return None

    def weigh(self, scores, copies):
        return None


class Numbers(Space):
    def enter(self, stack):
        return stack

    def average(self, stack, weights, sums):
        return stack.mean(0)

    def leave(self, mean):
        return mean


def test_bad_arguments():
    model, words = language_model("gpt2"), WORDS["cyclic(3)"]
    refused(OrbitLM, TypeError, "`weighting` must be a Weighting", model, words, weighting=3)
    refused(OrbitLM, ValueError, "must read one of", model, words, weighting=Reading())
    refused(OrbitLM, ValueError, "no submodule", model, words, weighting=Learned(net(4), "nowhere"))
    refused(OrbitLM, ValueError, "one of log-probabilities", model, words, space=Numbers())
    refused(OrbitLM, TypeError, "`relaxed` must be a bool", model, words, relaxed=1)
    refused(OrbitLM, TypeError, "got an OrbitLM already", OrbitLM(model, words), words)
    model.pool = torch.nn.Identity()
    model.transformer.ln_f.register_forward_hook(lambda *a: [model.pool(a[-1].mean(1)), None][1])
    pooled = OrbitLM(model, words, weighting=Learned(net(16), "pool"))
    refused(pooled, ValueError, r"returns \(B, T, ...\), got shape \(15, 16\)", prompts())
    fair = OrbitLM(model, words, weighting=Learned(net(4), "output"))
    refused(fair, RuntimeError, "shapes cannot be multiplied", prompts())
