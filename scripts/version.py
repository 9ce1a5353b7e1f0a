"""One version number for everything: ``version.py`` prints it, ``version.py X.Y.Z`` sets it.

It stands in quiver_kernels/_version.py. Whatever else names it (what an installer reads cannot
look into another package) is written from there, and tests/repo/test_versions.py compares.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = "kernels/quiver_kernels/_version.py"
VERSION = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?")
# By file, what stands before the version.
PLACES = {
    SOURCE: r'__version__ = "',
    "service/quiver_service/_version.py": r'__version__ = "',
    "clients/python/quiver_client/_version.py": r'__version__ = "',
    "service/pyproject.toml": r"quiver-[\w\[\],]+==",
    "clients/python/pyproject.toml": r"quiver-[\w\[\],]+==",
    "clients/js/package.json": r'^  "version": "',
    "deploy/helm/quiver/Chart.yaml": r'^(?:version: |appVersion: ")',
}


def places(root: Path) -> Iterator[tuple[Path, re.Pattern[str]]]:
    """The files of a repository that name the version, and where in them."""
    for name, before in PLACES.items():
        if (root / name).exists():
            yield root / name, re.compile(f"({before})({VERSION.pattern})", re.MULTILINE)


def found(root: Path) -> dict[str, set[str]]:
    """The versions that each place names."""
    return {
        str(path.relative_to(root)): {match[1] for match in pattern.findall(path.read_text())}
        for path, pattern in places(root)
    }


def current(root: Path) -> str:
    """The version of a repository."""
    [version] = found(root)[SOURCE]
    return version


def put(root: Path, version: str) -> None:
    """Write `version` into every place."""
    for path, pattern in places(root):
        path.write_text(pattern.sub(rf"\g<1>{version}", path.read_text()))


def main(arguments: list[str]) -> None:
    """Print the version, or set another."""
    if not arguments:
        print(current(ROOT))
        return
    [version] = arguments
    if not VERSION.fullmatch(version):
        sys.exit(f"a version is X.Y.Z, or X.Y.Zrc1; got {version!r}")
    put(ROOT, version)
    print("next: a heading in CHANGELOG.md, `make manifests` (docs/releasing.md)")


if __name__ == "__main__":
    main(sys.argv[1:])
