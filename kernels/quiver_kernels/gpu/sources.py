"""The CUDA sources: which files there are, which kernels are in them, and how they are compiled."""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent / "source"
AHEAD = Path(__file__).parent / "compiled"
"""Where an image has machine code; there is no such folder elsewhere."""
COMMON = "common.cuh"
"""The one header; every module includes it."""

_WIDENED = ("float16", "bfloat16", "float32")
_ALL = (*_WIDENED, "float64")


def _with_each(kernel: str) -> tuple[str, ...]:
    """A kernel for one vector, and for many."""
    return tuple(f"{kernel}_{name}" for kernel in (kernel, f"{kernel}_each") for name in _ALL)


KERNELS: dict[str, tuple[str, ...]] = {
    "range": _with_each("range"),
    "widen": tuple(f"widen_{name}" for name in _WIDENED),
    "encode": _with_each("encode"),
    "errors": _with_each("errors"),
    "decode": ("decode_16", "decode_32", "decode_64"),
    "mean": ("mean_add",),
    "rows": ("rows_solve",),
    "gather": ("gather_16", "gather_32", "gather_64"),
    "grid": tuple(f"grid_{name}" for name in _ALL),
    "cells": ("cells_clear", *(f"cells_{name}" for name in _ALL)),
    "pick": (
        *(f"{kernel}_{name}" for kernel in ("collect", "refine") for name in _ALL),
        "pick_find",
        "pick_pieces",
    ),
    "weigh": tuple(f"weigh_{part}" for part in ("clear", "cells", "rows", "shares", "points")),
    "order": (
        *(f"order_{way}_{bits}" for way in ("to", "from") for bits in (16, 32, 64)),
        *(f"order_{step}" for step in ("pairs", "lower", "upper", "take")),
    ),
}
"""Kernels by module."""

# No fused multiply-add, no flushing to zero, exact division: the bits are the CPU's.
FLAGS = (
    "--std=c++17",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--device-as-default-execution-space",
)


def number_of(dtype: str) -> int:
    """Of a wire type, for kernels that are told theirs: `Type` in `COMMON`."""
    return _ALL.index(dtype)


def text(name: str) -> str:
    """The text of a source file, `COMMON` or ``<module>.cu``."""
    return (FOLDER / name).read_text(encoding="utf-8")


def fingerprint(module: str) -> str:
    """A hash of all that the machine code of `module` is made of, but for compiler and target."""
    digest = hashlib.sha256()
    for part in (text(COMMON), text(f"{module}.cu"), *FLAGS):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()
