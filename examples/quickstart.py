"""One vector there and back through a running service: ``python examples/quickstart.py [URL]``."""

from __future__ import annotations

import sys

import numpy as np

from quiver_client import connect


def main(url: str) -> None:
    """Quantize a million values to 4 bits each, decode them, and compare."""
    x = np.random.default_rng(0).standard_normal(1_000_000, dtype=np.float32)

    with connect(url) as client:
        q = client.quantize(x, bits=4, method="approx", seed=7)
        y = client.dequantize(q)

    error = np.square(y - x, dtype=np.float64).sum() / np.square(x, dtype=np.float64).sum()
    print(f"{x.nbytes:,} bytes became {q.nbytes:,}: {q.bits_per_value:.4f} bits per value")
    print(f"levels: {np.array2string(q.levels, precision=3, max_line_width=88)}")
    print(f"squared error over squared norm: {error:.5f} measured, {q.vnmse:.5f} stated")
    print(f"mean error: {(y - x).mean():.1e}, as the rounding is unbiased")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
