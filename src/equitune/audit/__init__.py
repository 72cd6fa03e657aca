"""How much an image classifier's predictions change under a group, with and without wrappers.

The command is ``equitune audit``; from Python, :func:`audit` takes a model and batches of images.
"""

from equitune.audit._choices import GROUPS, wrap
from equitune.audit._images import find_images, read_batches
from equitune.audit._measure import Audit, ModelAudit, audit
from equitune.audit._models import Classifier, load_classifier
from equitune.audit._report import Table, elements_table, models_table, render_report

__all__ = [
    "GROUPS",
    "Audit",
    "Classifier",
    "ModelAudit",
    "Table",
    "audit",
    "elements_table",
    "find_images",
    "load_classifier",
    "models_table",
    "read_batches",
    "render_report",
    "wrap",
]
