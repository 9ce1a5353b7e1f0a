"""What `make dist` looks for in what it built: every planted fault is found."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("kernels", "service", "clients/python")


@pytest.fixture
def dist(monkeypatch: pytest.MonkeyPatch) -> Any:
    """scripts/dist.py; it imports its neighbour."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import dist

    return dist


METADATA = """Metadata-Version: 2.4
Name: quiver-client
Version: {version}
License-Expression: Apache-2.0
Requires-Dist: quiver-kernels=={version}

# quiver-client
"""


def wheel_of(dist: Any, package: Any) -> dict[str, bytes]:
    """The contents of a wheel without a fault."""
    version = dist.versions.current(ROOT)
    info = f"quiver_client-{version}.dist-info"
    return dist.sources(package, ROOT) | {
        f"{info}/METADATA": METADATA.format(version=version).encode(),
        f"{info}/RECORD": b"",
        f"{info}/WHEEL": b"",
        f"{info}/licenses/LICENSE": (ROOT / "LICENSE").read_bytes(),
    }


def changed(name: str, old: str, new: str) -> Callable[[dict[str, bytes]], None]:
    """Replace text in the one file whose name ends so."""

    def plant(held: dict[str, bytes]) -> None:
        [path] = [path for path in held if path.endswith(name)]
        text = held[path].decode()
        assert old in text
        held[path] = text.replace(old, new).encode()

    return plant


def added(path: str) -> Callable[[dict[str, bytes]], None]:
    return lambda held: held.update({path: b"x"})


def gone(path: str) -> Callable[[dict[str, bytes]], None]:
    return lambda held: held.pop(path) and None


PLANTS = {
    "a module is missing": (gone("quiver_client/errors.py"), "errors.py is missing"),
    "the types are missing": (gone("quiver_client/py.typed"), "py.typed is missing"),
    "another's code": (changed("quiver_client/errors.py", "class", "Class"), "or another"),
    "a test": (added("tests/test_x.py"), "tests/test_x.py is junk"),
    "bytecode": (added("quiver_client/__pycache__/x.cpython-311.pyc"), "is junk"),
    "a stray file": (added("notes.txt"), "notes.txt has no place here"),
    "another licence": (changed("licenses/LICENSE", "Apache", "Other"), "is not the LICENSE"),
    "another version": (changed("METADATA", "Version: 0", "Version: 9"), "the metadata say 9"),
    "a loose pin": (changed("METADATA", "kernels==", "kernels>="), "names no version"),
    "a relative link": (changed("METADATA", "# q", "[x](../docs/y.md) # q"), "lead nowhere"),
}


def test_a_wheel_without_a_fault_has_none(dist: Any):
    package = dist.PACKAGES[2]

    assert list(dist.faults(package, ROOT, "x.whl", wheel_of(dist, package))) == []


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_fault_is_found(plant: str, dist: Any):
    package = dist.PACKAGES[2]
    held = wheel_of(dist, package)
    do, told = PLANTS[plant]
    do(held)

    assert told in "\n".join(dist.faults(package, ROOT, "x.whl", held))


def test_two_builds_that_differ_are_told_apart(dist: Any, tmp_path: Path):
    for name, content in (("a", b"1"), ("b", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.whl").write_bytes(b"0")
        (tmp_path / name / "other.whl").write_bytes(content)

    dist.compare(tmp_path / "a", tmp_path / "a")
    with pytest.raises(dist.Faulty, match=r"other\.whl$"):
        dist.compare(tmp_path / "a", tmp_path / "b")


def test_wheels_and_sdists_are_read_alike(dist: Any, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("package/module.py", b"1")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as sdist:
        member = tarfile.TarInfo("package-1.0/package/module.py")
        member.size = 1
        sdist.addfile(member, io.BytesIO(b"1"))

    expected = {"package/module.py": b"1"}
    assert dist.members(tmp_path / "x.whl") == expected
    assert dist.members(tmp_path / "x.tar.gz") == expected


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_package_has_the_licence(folder: str):
    assert (ROOT / folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_files_get_the_day_of_the_release(
    dist: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    source = tmp_path / dist.versions.SOURCE
    source.parent.mkdir(parents=True)
    source.write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [1.2.3] - 2026-01-02\n")
    assert dist.released(tmp_path) == 1767312000

    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n")
    with pytest.raises(dist.Faulty, match="no heading"):
        dist.released(tmp_path)


def test_the_version_is_printed():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/version.py"], capture_output=True, text=True, check=True
    )

    assert f'"{done.stdout.strip()}"' in (ROOT / "kernels/quiver_kernels/_version.py").read_text()
