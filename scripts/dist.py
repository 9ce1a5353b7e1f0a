"""Build the three packages twice and check them: ``python scripts/dist.py [FOLDER]``.

The two builds start from copies with other paths, times, file modes and surroundings, and must
give the same bytes. Then: Twine's checks, what is in each file and what must not be.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import version as versions

ROOT = Path(__file__).parents[1]
# What nobody wants to install.
JUNK = re.compile(
    r"(^|/)(__pycache__|node_modules|tests?|\.[^/]*)(/|$)|\.(py[cod]|so|nb[ic]|orig|rej|log|swp)$"
)
# The version control's own file, which hatchling puts into sdists on purpose.
NO_JUNK = {".gitignore"}
# What must be there, by distribution, besides all that lies in the package's folder.
WANTED = {
    "quiver-kernels": ("py.typed", "gpu/source/range.cu"),
    "quiver-service": ("py.typed", "__main__.py"),
    "quiver-client": ("py.typed", "ps/__init__.py"),
}
RELATIVE_LINK = re.compile(r"\]\((?!\w+:|#)[^)]*\)")


@dataclass(frozen=True)
class Package:
    """One distribution: its folder in the repository and its import name."""

    name: str
    folder: str

    @property
    def module(self) -> str:
        """Its import name."""
        return self.name.replace("-", "_")


PACKAGES = (
    Package("quiver-kernels", "kernels"),
    Package("quiver-service", "service"),
    Package("quiver-client", "clients/python"),
)


class Faulty(Exception):
    """What is wrong with what was built."""


def released(root: Path) -> int:
    """The time that files get, in seconds since 1970: the day of the version in CHANGELOG.md."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return int(os.environ["SOURCE_DATE_EPOCH"])
    number = versions.current(root)
    heading = rf"^## \[{re.escape(number)}\] - (\d{{4}}-\d\d-\d\d)$"
    day = re.search(heading, (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    if day is None:
        raise Faulty(f"CHANGELOG.md has no heading '## [{number}] - YYYY-MM-DD'")
    return int(dt.datetime.fromisoformat(f"{day[1]}T00:00:00+00:00").timestamp())


def copied(source: Path, target: Path) -> None:
    """Copy a package's folder, less what tools leave in it."""
    ignored = shutil.ignore_patterns("__pycache__", ".*", "dist", "node_modules")
    shutil.copytree(source, target, ignore=ignored)


def snapshot(root: Path, target: Path) -> None:
    """Copy what packages are made from, so that nobody changes it between two builds."""
    for package in PACKAGES:
        copied(root / package.folder, target / package.folder)
    for name in ("LICENSE", "CHANGELOG.md"):
        shutil.copy(root / name, target / name)


def build(
    package: Package, root: Path, target: Path, *, mode: int, when: float, **env: str
) -> None:
    """Build the sdist of a package, and the wheel from that sdist, into `target`."""
    with tempfile.TemporaryDirectory(prefix=f"at-{when:.0f}-") as place:
        folder = Path(place) / package.name
        copied(root / package.folder, folder)
        for path in folder.rglob("*"):
            path.chmod(mode | 0o111 if path.is_dir() else mode)
            os.utime(path, (when, when))
        done = subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "--outdir", target, folder],
            check=False,
            env=os.environ | {"SOURCE_DATE_EPOCH": str(released(root))} | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise Faulty(f"{package.name} cannot be built:\n{done.stdout}\n{done.stderr}")


def build_twice(root: Path, target: Path) -> list[Path]:
    """Build all packages into `target`, and once more elsewhere; the files, if all are the same."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as other:
        for package in PACKAGES:
            build(package, root, target, mode=0o644, when=1.6e9, TZ="UTC")
            build(
                package,
                root,
                Path(other),
                mode=0o600,
                when=1.7e9,
                TZ="Asia/Kathmandu",
                LC_ALL="C",
                PYTHONHASHSEED="1",
            )
        compare(target, Path(other))
    return sorted(target.iterdir())


def compare(first: Path, second: Path) -> None:
    """Complain unless two folders have the same files."""
    ours, theirs = ({p.name: p.read_bytes() for p in place.iterdir()} for place in (first, second))
    differing = sorted(n for n in ours | theirs if ours.get(n) != theirs.get(n))
    if differing:
        raise Faulty(f"two builds differ: {', '.join(differing)}")


def members(file: Path) -> dict[str, bytes]:
    """The files in a wheel or sdist; of an sdist, below its one folder."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(file) as sdist:
        held = {m.name: sdist.extractfile(m) for m in sdist.getmembers() if m.isfile()}
        return {name.partition("/")[2]: f.read() for name, f in held.items() if f is not None}


def sources(package: Package, root: Path) -> dict[str, bytes]:
    """The files that a package is made of, by their path below its import name's parent."""
    folder = root / package.folder
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in (folder / package.module).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def faults(package: Package, root: Path, file: str, held: Mapping[str, bytes]) -> Iterator[str]:
    """What is wrong with the contents of one wheel or sdist."""
    number = versions.current(root)
    made_of = sources(package, root)
    info = f"{package.module}-{number}.dist-info/"
    wheel = file.endswith(".whl")
    metadata = f"{info}METADATA" if wheel else "PKG-INFO"
    licences = f"{info}licenses/LICENSE" if wheel else "LICENSE"
    around = {f"{info}{n}" for n in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")} | {
        licences
    }
    around = around if wheel else {"PKG-INFO", "LICENSE", "README.md", "pyproject.toml", *NO_JUNK}

    for name in sorted(made_of):
        if held.get(name) != made_of[name]:
            yield f"{name} is missing or another"
    for name in WANTED[package.name]:
        if f"{package.module}/{name}" not in held:
            yield f"{package.module}/{name} is missing"
    for name in sorted(set(held) - set(made_of) - around):
        yield f"{name} has no place here"
    for name in sorted(held):
        if name not in NO_JUNK and JUNK.search(name):
            yield f"{name} is junk"
    if held.get(licences) != (root / "LICENSE").read_bytes():
        yield f"{licences} is not the LICENSE of the repository"
    if metadata not in held:
        yield f"{metadata} is missing"
        return
    head = Parser().parsestr(held[metadata].decode())
    if head["Version"] != number or head["License-Expression"] != "Apache-2.0":
        yield f"the metadata say {head['Version']}, {head['License-Expression']}"
    if links := RELATIVE_LINK.findall(str(head.get_payload())):
        yield f"the description has links that lead nowhere from a package index: {links}"
    for wish in head.get_all("Requires-Dist", []):
        if wish.startswith(package.name):
            continue  # one extra that asks for another
        if wish.startswith("quiver-") and f"=={number}" not in wish:
            yield f"the requirement {wish!r} names no version or another"


def check(root: Path, files: list[Path]) -> None:
    """Complain of anything that is wrong with what was built."""
    names = [
        name
        for package in PACKAGES
        for name in (
            f"{package.module}-{versions.current(root)}-py3-none-any.whl",
            f"{package.module}-{versions.current(root)}.tar.gz",
        )
    ]
    if sorted(names) != [file.name for file in files]:
        raise Faulty(f"built are {[file.name for file in files]}, not {sorted(names)}")
    wrong = [
        f"{file.name}: {fault}"
        for package in PACKAGES
        for file in files
        if file.name.startswith(f"{package.module}-")
        for fault in faults(package, root, file.name, members(file))
    ]
    if wrong:
        raise Faulty("\n".join(wrong))
    twine = [sys.executable, "-m", "twine", "check", "--strict", *map(str, files)]
    done = subprocess.run(twine, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Faulty(f"twine check: {done.stdout}\n{done.stderr}")


def main() -> None:
    """Build, check, list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "dist")
    folder = parser.parse_args().folder.resolve()
    try:
        with tempfile.TemporaryDirectory() as place:
            root = Path(place)
            snapshot(ROOT, root)
            files = build_twice(root, folder)
            check(root, files)
    except Faulty as fault:
        sys.exit(f"dist: {fault}")
    for file in files:
        print(f"{file.stat().st_size:>9,}  {file.name}")


if __name__ == "__main__":
    main()
