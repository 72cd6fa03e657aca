"""Checks the links inside of a built site: each page and each place on it that a link names.

    python tools/check_links.py docs/_build/html

Sphinx checks what it resolves itself; this reads the pages as a browser does, links of raw HTML, of
the gallery and of the theme included. Links to other sites are left to `sphinx-build -b linkcheck`.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LINKS = {"href", "src"}
PLACES = {"id", "name"}


class Page(HTMLParser):
    """What a page links to, and the places on it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in LINKS:
                self.links.add(value)
            elif value and name in PLACES:
                self.places.add(value)


def broken(site: Path) -> list[str]:
    """The links that lead nowhere, each with the page that it stands on."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            there = target in pages and unquote(parts.fragment) in pages[target].places
            if not there and (target in pages or not target.exists()):
                found.append(f"{path.relative_to(site.resolve())}: {link}")
    return found


def main() -> int:
    """Prints each broken link; the exit status is 1 if there is one."""
    found = broken(Path(sys.argv[1]))
    print("\n".join(found) or "All links inside the site lead somewhere.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
