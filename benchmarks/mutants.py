"""Seeded bugs, of the kinds that published code has, and whether the public assertions catch them.

    python benchmarks/mutants.py

Each bug stands beside the right code, which has to pass the same check.
"""

from __future__ import annotations

import re

import torch

import record
from seeded_bugs import FAMILIES, Mutant

SEED = 0


def all_mutants() -> list[Mutant]:
    """Every seeded bug."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return [mutant for family in FAMILIES for mutant in family()]


def summary(objection: str | None) -> str | None:
    """The likeliest cause that a message names, or else what it begins with."""
    if objection is None:
        return None
    cause = re.search(r"It looks like:\n  - (.*)", objection)
    if cause is None:
        return re.split(r": fn|: they differ", objection)[0]
    # Without the advice behind it.
    return re.split(r" \(Conv|; ", cause[1])[0]


def main() -> None:
    torch.manual_seed(SEED)
    told = {mutant.name: summary(mutant.objection()) for mutant in all_mutants()}
    for name, said in told.items():
        print(f"{name:<56} {said or 'MISSED'}")
    caught = sum(said is not None for said in told.values())
    print(f"caught {caught} of {len(told)} seeded bugs")
    record.save("mutants", "python benchmarks/mutants.py", SEED, {"told": told})


if __name__ == "__main__":
    main()
