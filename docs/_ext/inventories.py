"""Cross-references into other libraries, where their sites can be reached."""

from __future__ import annotations

import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

SITES = {
    "python": "https://docs.python.org/3/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "torchvision": "https://docs.pytorch.org/vision/stable/",
    "transformers": "https://huggingface.co/docs/transformers/main/en/",
    "numpy": "https://numpy.org/doc/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "gymnasium": "https://gymnasium.farama.org/",
    "stable_baselines3": "https://stable-baselines3.readthedocs.io/en/master/",
}


def _answers(site: str) -> bool:
    try:
        with urllib.request.urlopen(f"{site}objects.inv", timeout=5):
            return True
    except (urllib.error.URLError, TimeoutError, OSError):
        return False


def reachable() -> dict[str, tuple[str, None]]:
    """The sites with an inventory that answer now.

    A build without a network has no links out of the site instead of a warning for each inventory.
    """
    with ThreadPoolExecutor(len(SITES)) as pool:
        answers = pool.map(_answers, SITES.values())
    return {name: (SITES[name], None) for name, found in zip(SITES, answers, strict=True) if found}
