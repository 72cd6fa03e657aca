"""Seeded bugs are all caught, the right code beside them never; and 200 right models raise none."""

import dataclasses
import warnings

import pytest
import torch

import false_alarms
import mutants
from equitune.testing import assert_equivariant

MUTANTS = {mutant.name: mutant for mutant in mutants.all_mutants()}


def test_there_are_many():
    assert len(MUTANTS) == len(mutants.all_mutants()) >= 20


@pytest.mark.parametrize("name", MUTANTS)
def test_every_bug_is_caught(name):
    assert MUTANTS[name].objection() is not None


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bug_that_is_none_is_not_caught(name):
    mutant = MUTANTS[name]
    assert dataclasses.replace(mutant, wrong=mutant.right).objection() is None


@pytest.mark.parametrize(("name", "said"), [
    ("g instead of g^-1 on images", "the output is not inverted"),
    ("outputs not moved back", "the output does not move at all"),
    ("per-element loop with BatchNorm in train mode", "BatchNorm is in train mode"),
    ("dropout left active", "dropout is active"),
    ("a random element for each call", "fn is random"),
    ("d4 elements stacked twice", r"only a subgroup is respected, {e, r, r^2, r^3}"),
    ("one element for the whole batch", "one element is chosen for the whole batch"),
    ("the first of several equally good copies", "only samples that are symmetric themselves"),
    ("words moved by g instead of g^-1", "the output is not inverted"),
    ("left regular features for right ones", "left and right action are mixed up"),
    ("argmax for argmin", "fn is not EquiZeroFormula"),
    ("lambda not normalised", "fn is not LambdaEquiTuneFormula"),
])  # fmt: skip
def test_the_message_names_the_bug(name, said):
    assert said in MUTANTS[name].objection()


def test_no_false_alarms():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(false_alarms.MODELS):
            assert_equivariant(*false_alarms.draw(seed))
    # A model may have units that are dead, which is said of it.
    assert all("fn returns the same for every sample" in str(w.message) for w in caught)
    assert len(caught) <= false_alarms.MODELS // 100


def test_the_models_of_the_alarms_can_fail():
    alarms = 0
    for seed in range(0, false_alarms.MODELS, 10):
        model, *rest = false_alarms.draw(seed)
        with pytest.raises(AssertionError, match=r"not equivariant|is random"):
            assert_equivariant(model.backbone, *rest)
        alarms += 1
    assert alarms == 20


def test_drawing_a_model_does_not_depend_on_the_state_of_torch():
    first, x, *_ = false_alarms.draw(3)
    torch.rand(5)
    second, y, *_ = false_alarms.draw(3)
    assert torch.equal(x, y)
    assert all(
        torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True)
    )
