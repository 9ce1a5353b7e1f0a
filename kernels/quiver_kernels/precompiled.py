"""Kernels compiled when the image was built, used where the processor is of their level.

Numba keeps machine code on disk, by the text of the source and by the name and the features of
the processor; a fresh container has an empty disk. So an image brings kernels compiled for the
x86-64 levels, and a start shows Numba those that this processor can run. Nothing depends on
them: what is missing or does not match is compiled as without them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

CACHE_NAME = "NUMBA_CACHE_DIR"

_V2 = frozenset({"cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"})
_V3 = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
_V4 = _V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
# Levels of the x86-64 psABI and what /proc/cpuinfo calls their parts; the best first.
LEVELS = {"x86-64-v4": _V4, "x86-64-v3": _V3}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which precompiled kernels are used.

    Attributes
    ----------
    level
        One of `LEVELS`; None: none are used.
    reason
        Why none are.
    """

    level: str | None = None
    reason: str | None = None


def levels_here(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Levels that this processor has, the best first; none where it cannot be told."""
    flags: frozenset[str] = frozenset()
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "flags":
                # Of the first processor: Linux shows what all of them have.
                flags = frozenset(value.split())
                break
    return [level for level, needed in LEVELS.items() if needed <= flags]


def target(level: str) -> dict[str, str]:
    """Numba's environment names that make it compile, and look for, code of `level`."""
    return {"NUMBA_CPU_NAME": level, "NUMBA_CPU_FEATURES": ""}


def offer(
    folder: Path, environ: MutableMapping[str, str], cpuinfo: Path = Path("/proc/cpuinfo")
) -> Choice:
    """Have Numba find the kernels below `folder`; call it before Numba is imported.

    Numba ignores a cache that it cannot write to, so its own folder gets a link to each file.

    Parameters
    ----------
    folder
        Has one folder per level, made by ``python -m quiver_kernels.precompile``.
    environ
        The process's environment; Numba's names are set in it.
    cpuinfo
        Where the processor's features are read.
    """
    given = [name for name in target("") if name in environ]
    if given:
        return Choice(reason=f"{' and '.join(given)} are set")
    if CACHE_NAME not in environ:
        return Choice(reason=f"{CACHE_NAME} is not set")
    if "numba" in sys.modules:
        return Choice(reason="Numba is imported already")
    levels = [level for level in levels_here(cpuinfo) if (folder / level).is_dir()]
    if not levels:
        return Choice(reason=f"{folder} has none for this processor")
    try:
        _link(folder / levels[0], Path(environ[CACHE_NAME]))
    except OSError as error:
        return Choice(reason=f"{environ[CACHE_NAME]}: {error.strerror or error}")
    environ.update(target(levels[0]))
    return Choice(level=levels[0])


def _link(source: Path, cache: Path) -> None:
    for file in source.glob("*/*"):
        link = cache / file.parent.name / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        # A link is an earlier start's, perhaps to another level; a file is Numba's own.
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            link.symlink_to(file.absolute())
