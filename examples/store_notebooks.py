"""Executes the notebooks and stores them with their outputs, without what changes by itself.

    EQUITUNE_DATA=... python examples/store_notebooks.py [names of notebooks]

It prints how many seconds each one took; it should be less than three minutes on two CPU cores.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbclient
import nbformat

from equitune.audit._files import write_atomically

EXAMPLES = Path(__file__).resolve().parent
NAMES = (
    "agents",
    "cifar10",
    "hymenoptera",
    "is_my_model_equivariant",
    "language_models",
    "scan",
)


def store(path: Path) -> float:
    """Executes one notebook in its folder and writes it back; the seconds that it took."""
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    )
    start = time.perf_counter()
    client.execute()
    seconds = time.perf_counter() - start
    for cell in notebook.cells:
        cell.metadata = {}
        kept = []
        for output in cell.get("outputs", []):
            # Progress bars, and the text that stands for a picture.
            if output.output_type == "stream" and output.name == "stderr":
                continue
            if "image/png" in output.get("data", {}):
                output.data.pop("text/plain", None)
                output.metadata = {}
            kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    write_atomically(path, (nbformat.writes(notebook).rstrip("\n") + "\n").encode())
    return seconds


def main() -> None:
    os.environ["TQDM_DISABLE"] = "1"
    for name in sys.argv[1:] or NAMES:
        print(f"{name}: {store(EXAMPLES / f'{name}.ipynb'):.0f} s")


if __name__ == "__main__":
    main()
