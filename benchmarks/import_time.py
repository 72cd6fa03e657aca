"""What `import equitune` takes beyond `import torch`: median over fresh interpreters, in turns.

python benchmarks/import_time.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys

import record

NAME, SEED, ROUNDS = "import_time", 0, 9
PROGRAM = """
import time
import torch
start = time.perf_counter()
import equitune
print(time.perf_counter() - start)
"""


def main() -> None:
    taken = []
    for _ in range(ROUNDS):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
        )
        taken.append(float(done.stdout))
    row = {
        "median_seconds": round(statistics.median(taken), 4),
        "worst_seconds": round(max(taken), 4),
    }
    print(f"import equitune, beyond import torch: {row}")
    record.save(NAME, "python benchmarks/import_time.py", SEED, {"rounds": ROUNDS, **row})


if __name__ == "__main__":
    main()
