"""The CUDA sources: which files there are, which kernels are in them, and how they are compiled."""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent / "source"
COMMON = "common.cuh"
"""The one header; every module includes it."""

_WIDENED = ("float16", "bfloat16", "float32")
_ALL = (*_WIDENED, "float64")

KERNELS: dict[str, tuple[str, ...]] = {
    "range": tuple(f"range_{name}" for name in _ALL),
    "widen": tuple(f"widen_{name}" for name in _WIDENED),
    "encode": tuple(f"encode_{name}" for name in _ALL),
    "errors": tuple(f"errors_{name}" for name in _ALL),
    "decode": ("decode_16", "decode_32", "decode_64"),
    "mean": ("mean_add",),
    "cells": ("cells_clear", *(f"cells_{name}" for name in _ALL)),
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


def text(name: str) -> str:
    """The text of a source file, `COMMON` or ``<module>.cu``."""
    return (FOLDER / name).read_text(encoding="utf-8")


def fingerprint(module: str) -> str:
    """A hash of all that the machine code of `module` is made of, but for compiler and target."""
    digest = hashlib.sha256()
    for part in (text(COMMON), text(f"{module}.cu"), *FLAGS):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()
