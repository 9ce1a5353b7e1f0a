"""``python -m quiver_kernels.precompile FOLDER``: compile all kernels for the x86-64 levels.

For the build of an image; `precompiled` uses the result. One process runs the warm-up and notes
which kernels were compiled for which types. The others compile the same without running any, so
a level may be beyond the processor that builds.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from quiver_kernels.precompiled import CACHE_NAME, LEVELS, levels_here, target

# Numba's types have no other written form. The pickle goes from one process of this build to the
# next, in a folder of their own; nothing that runs later reads one.
RECORD = """
import pickle, sys
from quiver_kernels.cpu import ahead
from quiver_kernels.cpu.backend import CpuBackend
from quiver_kernels.schemes import registry
CpuBackend().warm_up()
registry.warm_up()
with open(sys.argv[1], "wb") as file:
    pickle.dump(ahead.compiled(), file)
"""
COMPILE = """
import pickle, sys
from quiver_kernels.cpu import ahead
with open(sys.argv[1], "rb") as file:
    ahead.compile_without_running(pickle.load(file))
"""


def precompile(folder: Path) -> list[str]:
    """Fill one folder per level below `folder`; the levels, none but on x86-64.

    Raises
    ------
    subprocess.CalledProcessError
        A kernel could not be compiled.
    """
    # There even if it stays empty: a setting names it.
    folder.mkdir(parents=True, exist_ok=True)
    if platform.machine() not in {"x86_64", "AMD64"}:
        return []
    here = levels_here()[:1]
    with tempfile.TemporaryDirectory() as scratch:
        record = Path(scratch) / "variants"
        for level in here:
            _run(RECORD, record, folder / level, target(level))
        if not here:
            _run(RECORD, record, Path(scratch), {})
        for level in set(LEVELS) - set(here):
            _run(COMPILE, record, folder / level, target(level))
    return list(LEVELS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m quiver_kernels.precompile")
    parser.add_argument("folder", type=Path, help="where to put the machine code")
    folder = parser.parse_args(arguments).folder
    levels = precompile(folder)
    sys.stdout.write(f"compiled for {', '.join(levels) or 'no level: not an x86-64'}\n")
    return 0


def _run(code: str, record: Path, cache: Path, names: Mapping[str, str]) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, CACHE_NAME: str(cache), **names}
    command = [sys.executable, "-c", code, str(record)]
    subprocess.run(command, env=environment, check=True)  # noqa: S603 - code of this file


if __name__ == "__main__":
    sys.exit(main())
