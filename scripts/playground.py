"""Copy the JavaScript decoder into the service, whose wheel cannot reach the client's folder.

python scripts/playground.py [--check]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "clients" / "js" / "src"
COPY = ROOT / "service" / "quiver_service" / "playground" / "static" / "quiver"
# What the pages import; all that these import comes too.
ENTRIES = ("msgpack.js", "quantized.js")

_IMPORT = re.compile(r'^\s*(?:import|export)\b[^;"]*?"\./([\w-]+\.js)"', re.MULTILINE)


def wanted(source: Path) -> dict[str, bytes]:
    """The files that the pages need, by name."""
    found: dict[str, bytes] = {}
    waiting = list(ENTRIES)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = (source / name).read_bytes()
            waiting += _IMPORT.findall(found[name].decode())
    return found


def differences(source: Path, copy: Path) -> list[str]:
    """Names of files that the copy lacks, has in another form, or should not have."""
    files = wanted(source)
    there = {path.name: path.read_bytes() for path in copy.iterdir()}
    return sorted(name for name in {*files, *there} if files.get(name) != there.get(name))


def main() -> None:
    """Copy, or with ``--check`` only compare."""
    COPY.mkdir(exist_ok=True)
    if "--check" in sys.argv[1:]:
        changed = differences(SOURCE, COPY)
        sys.exit(f"not as in {SOURCE}: {', '.join(changed)}" if changed else 0)
    files = wanted(SOURCE)
    for path in COPY.iterdir():
        if path.name not in files:
            path.unlink()
    for name, body in files.items():
        (COPY / name).write_bytes(body)
    print(f"{len(files)} files, {sum(map(len, files.values()))} bytes, in {COPY}")


if __name__ == "__main__":
    main()
