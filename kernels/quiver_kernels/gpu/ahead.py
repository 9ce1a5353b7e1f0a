"""``python -m quiver_kernels.gpu.ahead [ARCHITECTURE ...]``: compile the CUDA sources in advance.

For the build of an image: a container would take half a minute for it at every start. NVRTC needs
neither driver nor GPU. The files go into the package; `compiling.compiled_file` finds them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from quiver_kernels.gpu import sources
from quiver_kernels.gpu.compiling import Nvrtc, compiled_file

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""Compute capabilities of the cards that are about; others are compiled for when they are met."""


def compile_all(nvrtc: Nvrtc, architectures: Sequence[int], folder: Path) -> list[Path]:
    """Machine code of all modules for these architectures, as far as the compiler knows them.

    Returns
    -------
    list of Path
        The files in `folder`, which is made if it is not there.
    """
    return [
        compiled_file(nvrtc, module, architecture, folder, ahead=folder)
        for architecture in architectures
        if architecture in nvrtc.architectures
        for module in sources.KERNELS
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, and print how many files there are."""
    parser = argparse.ArgumentParser(prog="python -m quiver_kernels.gpu.ahead")
    parser.add_argument("architectures", nargs="*", type=int, default=list(ARCHITECTURES))
    parser.add_argument("--folder", type=Path, default=sources.AHEAD, help="where the files go")
    options = parser.parse_args(arguments)
    files = compile_all(Nvrtc.find(), options.architectures, options.folder)
    sys.stdout.write(f"{len(files)} files in {options.folder}\n")
    return 0 if files else 1


if __name__ == "__main__":
    sys.exit(main())
