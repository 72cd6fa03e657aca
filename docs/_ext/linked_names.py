"""Links to the API from wherever a public name stands as a literal, and from its other names."""

from __future__ import annotations

import collections
import functools
import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform

import public_names

QUIET = (
    nodes.reference,
    nodes.title,
    nodes.caption,
    addnodes.pending_xref,
    addnodes.desc_signature,
)

CALL = re.compile(r"\(.*\)$")
BACK = re.compile(
    r"(?P<page>generated/(?P<package>(?:\w+\.)+)(?P<name>\w+)\.html#)"
    r"(?:\w+\.)*?(?P<place>(?P=name)\b)"
)


@functools.cache
def targets() -> dict[str, str]:
    """What a literal may say, and the name that it is documented under.

    A word that is also the name of an argument stays as it is: `images` means the argument.
    """
    short = collections.Counter(name.rpartition(".")[2] for name in public_names.pages())
    words = public_names.arguments()
    found = dict(public_names.documented())
    for name in public_names.pages():
        word = name.rpartition(".")[2]
        if short[word] == 1 and word not in words:
            found[word] = name
    return found


class LinkNames(SphinxTransform):
    """The first literal of each section that is a public name becomes a link to its page."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        linked = set()
        for literal in list(self.document.findall(nodes.literal)):
            name = targets().get(CALL.sub("", literal.astext()))
            section = self._section(literal)
            if name is None or section is None or (section, name) in linked:
                continue
            if self.env.docname.rpartition("/")[2] == name:
                continue
            linked.add((section, name))
            link = addnodes.pending_xref(
                "",
                refdomain="py",
                reftype="obj",
                reftarget=name,
                refdoc=self.env.docname,
                refexplicit=True,
            )
            literal.replace_self(link)
            link += literal

    def _section(self, literal: nodes.Node) -> int | None:
        """The section of a literal; None where a link would be one too many."""
        parent = literal.parent
        while parent is not None and not isinstance(parent, nodes.section):
            if isinstance(parent, QUIET):
                return None
            parent = parent.parent
        return id(parent)


def follow_other_names(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """`equitune.wrappers.EquiTune` is on the page of `equitune.EquiTune`."""
    target = node.get("reftarget", "")
    name = public_names.documented().get(target, targets().get(target))
    if name is None or name == target or node.get("refdomain") != "py":
        return None
    domain = env.domains["py"]
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)


def fill_constants(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    """A constant has the docstring of its type; this puts its own in that place."""
    if what in {"data", "module"} and name in public_names.documented() and not callable(value):
        lines[:] = [*public_names.comment(name).splitlines(), ""]


def mended(source: str) -> str:
    """A page of source code, whose links to the API name the place that the object has there.

    `viewcode` takes all objects of one file for those of one package.
    """
    return BACK.sub(r"\g<page>\g<package>\g<place>", source)


def mend_back_links(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Mends the pages that `viewcode` writes."""
    if page.startswith("_modules/") and "body" in context:
        context["body"] = mended(context["body"])


def setup(app: Sphinx) -> None:
    app.add_transform(LinkNames)
    app.connect("missing-reference", follow_other_names)
    app.connect("html-page-context", mend_back_links)
    app.connect("autodoc-process-docstring", fill_constants)
