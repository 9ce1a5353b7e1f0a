"""Numbers as people read them."""

from __future__ import annotations


def in_bytes(count: float) -> str:
    """Bytes in decimal units: ``1.50 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
