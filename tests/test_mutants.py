"""Seeded bugs are all caught, the right code beside them never; and 200 right models raise none."""

import dataclasses

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
    assert MUTANTS[name].is_caught()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bug_that_is_none_is_not_caught(name):
    mutant = MUTANTS[name]
    assert not dataclasses.replace(mutant, wrong=mutant.right).is_caught()


def test_no_false_alarms():
    for seed in range(false_alarms.MODELS):
        assert_equivariant(*false_alarms.draw(seed))


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
