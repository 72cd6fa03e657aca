"""Seeded bugs, of the kinds that published code has, and whether the public assertions catch them.

    python benchmarks/mutants.py

Each bug stands beside the right code, which has to pass the same check.
"""

from __future__ import annotations

import torch

import record
from seeded_bugs import FAMILIES, Mutant

SEED = 0


def all_mutants() -> list[Mutant]:
    """Every seeded bug."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return [mutant for family in FAMILIES for mutant in family()]


def main() -> None:
    torch.manual_seed(SEED)
    caught = {mutant.name: mutant.is_caught() for mutant in all_mutants()}
    for name, found in caught.items():
        print(f"{'caught' if found else 'MISSED':<7} {name}")
    print(f"caught {sum(caught.values())} of {len(caught)} seeded bugs")
    record.save("mutants", "python benchmarks/mutants.py", SEED, {"caught": caught})


if __name__ == "__main__":
    main()
