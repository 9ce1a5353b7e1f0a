"""The site as it is built: no warnings, nothing from elsewhere, every public name."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
MKDOCS = Path(sys.prefix) / "site" / "bin" / "mkdocs"
# What the site is made from.
PARTS = ("docs", "kernels", "service", "clients", "deploy", *(p.name for p in ROOT.glob("*.md")))
# Elements that a browser fetches by itself, and where they say what.
FETCHED = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "object": "data",
}
# Names that `__all__` gives and the reference leaves out, or has on the page of another package.
ELSEWHERE = {"__version__", "errors"}


def build(root: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of the repository at `root` as `make site` does.

    Not with `--quiet`: that hides warnings from `--strict` too.
    """
    return subprocess.run(
        [MKDOCS, "build", "--strict", "-f", root / "docs/site/mkdocs.yml", "-d", target],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )


class Page(HTMLParser):
    """What a page fetches, where it leads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in FETCHED and FETCHED[tag] in values and values.get("rel") != "canonical":
            self.fetched.append(values[FETCHED[tag]])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.classes |= set(values.get("class", "").split())


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = build(ROOT, target)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="session")
def built(site: Path) -> dict[Path, Page]:
    found = {path.relative_to(site): Page(path.read_text()) for path in site.rglob("*.html")}
    assert len(found) > 25
    return found


def fetched_elsewhere(page: Page) -> list[str]:
    """What a page would fetch from another host."""
    return [address for address in page.fetched if urlsplit(address).netloc]


def dead_links(site: Path, built: dict[Path, Page]) -> Iterator[str]:
    for path, page in built.items():
        if path.name == "404.html":
            continue  # its links start at the root of the host
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            target = Path(os.path.normpath(target))
            if not (site / target).is_file():
                yield f"{path}: {link}"
            elif parts.fragment and target in built:
                anchor = unquote(parts.fragment)
                if anchor not in built[target].anchors:
                    yield f"{path}: {link}"


def test_nothing_is_fetched_from_elsewhere(built: dict[Path, Page]):
    assert {
        str(path): found for path, page in built.items() if (found := fetched_elsewhere(page))
    } == {}
    # The theme fetches Mermaid from a host of its own choice, for pages with such a diagram.
    assert not [path for path, page in built.items() if "mermaid" in page.classes]


def test_what_is_fetched_from_elsewhere_is_found():
    page = Page(
        '<script src="https://a.example/x.js"></script><img src="//b.example/y.png"><img src=z.png>'
    )

    assert len(fetched_elsewhere(page)) == 2


def test_every_link_leads_somewhere(site: Path, built: dict[Path, Page]):
    assert list(dead_links(site, built)) == []


def test_a_dead_link_is_found(tmp_path: Path):
    (tmp_path / "a.html").write_text(
        "<a href='b.html'></a><a href='#x'></a><a href='#y'></a><p id=y>"
    )
    planted = {Path("a.html"): Page((tmp_path / "a.html").read_text())}

    assert list(dead_links(tmp_path, planted)) == ["a.html: b.html", "a.html: #x"]


@pytest.mark.parametrize("package", ["quiver_kernels", "quiver_client", "quiver_client.ps"])
def test_the_reference_has_every_public_name(package: str, built: dict[Path, Page]):
    anchors = {
        anchor
        for path, page in built.items()
        if path.parent.name == "reference"
        for anchor in page.anchors
    }
    module = importlib.import_module(package)
    known = {anchor.rpartition(".")[2] for anchor in anchors if anchor.startswith("quiver_")}

    assert set(module.__all__) - ELSEWHERE - known == set()


def test_the_reference_has_every_setting_and_what_it_means(site: Path, built: dict[Path, Page]):
    from quiver_service.settings import Settings

    path = Path("reference/service.html")
    text = (site / path).read_text()

    assert {f"quiver_service.settings.Settings.{name}" for name in Settings.model_fields} <= built[
        path
    ].anchors
    assert "TCP port; 0 takes a free one." in text


def test_the_pictures_are_what_the_script_draws(tmp_path: Path):
    subprocess.run(
        [sys.executable, ROOT / "scripts/pictures.py", tmp_path], check=True, timeout=240
    )

    drawn = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    kept = {path.name: path.read_bytes() for path in (ROOT / "docs/images").glob("concepts-*.svg")}
    assert drawn == kept


UNDOCUMENTED = '''
def planted(x: int) -> None:
    """Plant.

    Parameters
    ----------
    y
        No such.
    """
'''
# File, what is added to it, and what the build says then.
PLANTS = {
    "a link to nowhere": ("docs/index.md", "[x](nowhere.md)", "nowhere.md"),
    "a page without a place": ("docs/stray.md", "# Stray", "stray.md"),
    "an anchor that is not": ("docs/index.md", "[x](operations.md#nowhere)", "#nowhere"),
    "a parameter that is not": ("kernels/quiver_kernels/sign.py", UNDOCUMENTED, "'y'"),
    "its place": ("docs/reference/kernels.md", "::: quiver_kernels.sign.planted", "planted"),
}
NO_SUCH_NAME = ("docs/reference/client.md", "::: quiver_client.Nobody", "Nobody")


def copy_of_the_repository(target: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "node_modules")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, target / part, ignore=ignored)
        else:
            shutil.copy(ROOT / part, target / part)


@pytest.mark.parametrize(
    "plants", [list(PLANTS.values()), [NO_SUCH_NAME]], ids=["warnings", "an error"]
)
def test_planted_faults_fail_the_build(plants: list[tuple[str, str, str]], tmp_path: Path):
    copy_of_the_repository(tmp_path)
    for file, text, _ in plants:
        page = tmp_path / file
        page.write_text((page.read_text() if page.exists() else "") + f"\n\n{text}\n")

    done = build(tmp_path, tmp_path / "out")
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert [words for _, _, words in plants if words not in told] == []
