"""What no file of the repository may hold."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A home or a checkout of one machine. System folders (/usr, /tmp, /dev) are the same on all.
MACHINE_PATH = re.compile(r"(?<![\w.})/-])/(work|root|home|Users|mnt)/\w")
# The hosts that clients of package registries go to; written so that this file names none itself.
PACKAGE_HOSTS = re.compile(
    "|".join(
        name.replace("_", r"\.")
        for name in ("pypi_org", "pythonhosted_org", "npmjs_org", "yarnpkg_com", "deb_debian_org")
    )
)
BANNED_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "msgpack_numpy"}


def repository_files() -> list[Path]:
    """Every file that git tracks or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [file for name in listed.split("\0") if name and (file := ROOT / name).is_file()]


def text_of(file: Path) -> str:
    return file.read_bytes().decode("utf-8", errors="ignore")


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for file in repository_files()
        for number, line in enumerate(text_of(file).splitlines(), 1)
        if pattern.search(line)
    ]


def imported_packages(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)


def test_no_file_names_a_path_of_one_machine():
    assert lines_with(MACHINE_PATH) == []


def test_no_file_names_a_package_host():
    assert lines_with(PACKAGE_HOSTS) == []


def test_the_patterns_find_what_they_are_for():
    assert MACHINE_PATH.search("cd /" + "home/someone/quiver")
    assert not MACHINE_PATH.search("COPY --from=builder /opt/quiver /opt/quiver")
    assert PACKAGE_HOSTS.search("https://" + "pypi" + ".org/simple")


@pytest.mark.parametrize("folder", ["kernels", "service", "clients", "clients/python"])
def test_source_roots_are_no_packages(folder: str):
    assert not (ROOT / folder / "__init__.py").exists()


def test_nothing_imports_what_runs_code_from_bytes():
    found = {
        (str(file.relative_to(ROOT)), name)
        for file in repository_files()
        if file.suffix == ".py" and not file.is_relative_to(ROOT / "tests")
        for name in imported_packages(ast.parse(text_of(file)))
        if name in BANNED_MODULES
    }

    assert found == set()
