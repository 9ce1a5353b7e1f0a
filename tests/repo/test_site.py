"""The site's table of contents: every document has a place in it, and every place a document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIG: dict[str, Any] = yaml.safe_load((DOCS / "site" / "mkdocs.yml").read_text())
# Documents beside docs/ are below this folder of the site.
OUTSIDE = "repository/"


def pages(entry: Any) -> Iterator[str]:
    """The files named by a table of contents: texts in lists and maps."""
    if isinstance(entry, str):
        yield entry
    else:
        for one in entry.values() if isinstance(entry, dict) else entry:
            yield from pages(one)


def missing(entry: Any, documents: set[str]) -> set[str]:
    return documents - set(pages(entry))


DOCUMENTS = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def test_every_document_has_a_place():
    assert missing(CONFIG["nav"], DOCUMENTS) == set()


def test_a_document_without_a_place_is_found():
    assert missing([{"Start": ["a.md", {"B": "b.md"}]}], {"a.md", "b.md", "c.md"}) == {"c.md"}


@pytest.mark.parametrize("page", list(pages(CONFIG["nav"])))
def test_every_place_has_a_document(page: str):
    outside = page.removeprefix(OUTSIDE)

    assert (ROOT / outside if outside != page else DOCS / page).is_file()


def test_warnings_are_errors_and_fonts_are_ours():
    assert CONFIG["strict"] is True
    assert CONFIG["theme"]["font"] is False
