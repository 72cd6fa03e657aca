"""Search that finds `EquiTune` by "equi tune", and `assert_equivariant` by "equivariant"."""

from __future__ import annotations

import re

from sphinx.search.en import SearchEnglish

PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def parts(word: str) -> list[str]:
    """The words that a name in CamelCase or snake_case is made of; none for an ordinary word."""
    found = PARTS.findall(word)
    return found if len(found) > 1 else []


class SearchNames(SearchEnglish):
    """English, in which a name is found as a whole and by each of its words."""

    def split(self, text: str) -> list[str]:
        words = super().split(text)
        return words + [part for word in words for part in parts(word)]
