"""What MkDocs does not do by itself: pages of files outside docs/, and links to such files.

Links in the documents lead to files of the repository, as people read them there. On the site a
link to a file that is a page leads to that page; one to any other file becomes its name.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# Documents beside docs/ that are pages too, below this folder of the site.
FOLDER = "repository"
OUTSIDE = (
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "deploy/helm/quiver/README.md",
    "deploy/kubernetes/README.md",
)
LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^]\[]|\[[^]]*\])*)\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the documents of the repository that lie outside docs/."""
    for name in OUTSIDE:
        text = (ROOT / name).read_text()
        files.append(File.generated(config, f"{FOLDER}/{name}", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    here = page.file.src_uri
    outside = here.removeprefix(f"{FOLDER}/")
    source = outside if outside != here else f"docs/{here}"

    def linked(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or re.match(r"\w+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        for uri in (f"{FOLDER}/{path}", path.removeprefix("docs/")):
            if files.get_file_from_path(uri) is not None and (uri != path or path in OUTSIDE):
                relative = posixpath.relpath(uri, posixpath.dirname(here) or ".")
                return f"{match['image']}[{match['text']}]({relative}{anchor and '#' + anchor})"
        if not (ROOT / path).exists():
            return match[0]  # MkDocs complains of it
        return match["text"] if path in match["text"] else f"{match['text']} (`{path}`)"

    fenced = [(found.start(), found.end()) for found in FENCE.finditer(markdown)]

    def outside_code(match: re.Match[str]) -> str:
        inside = any(start <= match.start() < end for start, end in fenced)
        return match[0] if inside else linked(match)

    return LINK.sub(outside_code, markdown)
