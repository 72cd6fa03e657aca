"""Shows the figures that a gallery script has under a name, whether pyplot made them or not.

`equitune.viz` returns figures that pyplot does not know, so that sphinx-gallery would miss them.
"""

from __future__ import annotations

import weakref
from typing import Any

from matplotlib import pyplot
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst, matplotlib_scraper

_shown: weakref.WeakSet[Figure] = weakref.WeakSet()


def scrape(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """The figures of pyplot, then those of the block's own names."""
    managed = {pyplot.figure(number) for number in pyplot.get_fignums()}
    _shown.update(managed)
    rst = matplotlib_scraper(block, block_vars, gallery_conf)
    paths = []
    for value in block_vars["example_globals"].values():
        if isinstance(value, Figure) and value not in _shown:
            _shown.add(value)
            path = next(block_vars["image_path_iterator"])
            value.savefig(path, bbox_inches="tight", dpi=gallery_dpi(value))
            paths.append(path)
    return rst + (figure_rst(paths, gallery_conf["src_dir"]) if paths else "")


def gallery_dpi(figure: Figure) -> float:
    """At least 150, so that small figures stay sharp on dense screens."""
    return max(150.0, figure.dpi)


def _get_sg_image_scraper() -> Any:
    return scrape
