"""Quantize real vectors over HTTP: a table of what they cost, and a picture of the levels.

Run ``python examples/demo.py``. It starts a service on a free port (or uses the one at
``--url``), trains a small network for its vectors, sends each at several numbers of bits with
every method, and stops the service. The exit code is 1 if, in any row,

- the stated errors are not in the order exact <= approx <= uniform, or
- the measured error of a round trip is not what the service stated it would be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from demo_data import Array, Study, collect
from demo_plot import draw
from numpy.typing import NDArray

from quiver_client import Client, QuantizedVector

METHODS = ("exact", "approx", "uniform")
BITS = (2, 3, 4, 8)
PLOTTED_BITS = 4
SEED = 2024
START_SECONDS = 180
STOP_SECONDS = 40
# Levels are rounded to float32, which moves the error of a table by less than this.
ROUNDING = 1e-6
# Six standard deviations: chance alone would need hundreds of millions of rows.
MAX_DEVIATIONS = 6.0


@dataclass(frozen=True)
class Outcome:
    """One method in one row.

    Attributes
    ----------
    vnmse
        Expected squared error over squared norm, as stated in the service's answer.
    measured
        The same, measured on the vector that came back.
    deviations
        Their difference in standard deviations of the measured one.
    milliseconds
        Time of the request, from array to `QuantizedVector`.
    """

    vnmse: float
    measured: float
    deviations: float
    milliseconds: float


@dataclass(frozen=True)
class Row:
    """One vector at one number of bits.

    Attributes
    ----------
    size
        Number of values, d.
    message_bytes
        Size of the answer: codes, levels and the names of both.
    ratio
        Bytes of the vector as float32 over `message_bytes`.
    outcomes
        By method.
    """

    vector: str
    size: int
    bits: int
    message_bytes: int
    ratio: float
    outcomes: dict[str, Outcome]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun = time.perf_counter()
    with ExitStack() as stack:
        service = None if options.url else stack.enter_context(Service())
        print("Training a network on scikit-learn's digits, while the service compiles ...")
        study = collect()
        print(f"It names {study.accuracy:.1%} of the held-out images rightly.\n")
        url = options.url if service is None else service.url()
        client = stack.enter_context(Client(url))
        print(header())
        rows = []
        for row in quantize_all(client, study, options.bits):
            rows.append(row)
            print(line(row), flush=True)
        plot(options.out, client, study, rows)
    wrong = violations(rows)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(as_json(study, rows, wrong), indent=2) + "\n")
    print(f"\nPicture: {options.out}. Took {time.perf_counter() - begun:.0f} s.")
    if wrong:
        print("\n".join(["VIOLATED:", *wrong]), file=sys.stderr)
        return 1
    print(
        f"In all {len(rows)} rows exact <= approx <= uniform, and every measured error is within "
        f"{MAX_DEVIATIONS:.0f} standard deviations of the stated one."
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Quantize real vectors over HTTP.")
    parser.add_argument("--url", help="use this service; default: start one on a free port")
    parser.add_argument("--bits", type=int, nargs="+", default=BITS, help="bits per value")
    parser.add_argument("--out", type=Path, default=Path("out/demo.png"), help="the picture")
    parser.add_argument("--json", type=Path, help="write the table as JSON, too")
    return parser


# -- the service -------------------------------------------------------------------------


class Service:
    """A service in a process of its own on a free port, stopped at the end of the block."""

    def __enter__(self) -> Self:
        """Start it."""
        self._log = tempfile.NamedTemporaryFile("r", suffix=".log")
        settings = {"QUIVER_HOST": "127.0.0.1", "QUIVER_PORT": "0"}
        others = {k: v for k, v in os.environ.items() if not k.startswith("QUIVER_")}
        with Path(self._log.name).open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "quiver_service"],
                env=others | settings,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return self

    def url(self) -> str:
        """Wait until it is ready; its URL."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            ready = re.search(r"^QUIVER is ready at (\S+)$", self._text(), re.MULTILINE)
            if ready:
                return ready[1]
            time.sleep(0.05)
        raise RuntimeError(f"the service did not start:\n{self._text()[-2000:]}")

    def _text(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it: politely, then by force."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._log.close()


# -- the table ---------------------------------------------------------------------------


def quantize_all(client: Client, study: Study, bits: Iterable[int]) -> Iterator[Row]:
    """Every vector at every number of bits with every method."""
    bits = tuple(bits)
    for name, vector in study.vectors.items():
        for b in bits:
            yield quantize(client, name, vector, b)


def quantize(client: Client, name: str, vector: Array, bits: int) -> Row:
    """One row: there and back with each method."""
    outcomes = {}
    message_bytes = 0
    for method in METHODS:
        begun = time.perf_counter()
        q = client.quantize(vector, bits=bits, method=method, seed=SEED)
        milliseconds = 1000 * (time.perf_counter() - begun)
        decoded = client.dequantize(q)
        outcomes[method] = compare(vector, q, decoded, milliseconds)
        message_bytes = max(message_bytes, len(q.to_bytes()))
    return Row(name, vector.size, bits, message_bytes, vector.nbytes / message_bytes, outcomes)


def compare(vector: Array, q: QuantizedVector, decoded: Array, milliseconds: float) -> Outcome:
    """What the round trip cost, beside what the service said it would."""
    x = vector.astype(np.float64)
    norm = float(np.square(x).sum())
    measured = float(np.square(decoded - x).sum()) / norm
    spread = np.sqrt(error_variance(x, q.levels)) / norm
    deviations = (measured - q.vnmse) / spread if spread > 0 else 0.0
    return Outcome(q.vnmse, measured, float(deviations), milliseconds)


def error_variance(x: NDArray[np.float64], levels: NDArray[Any]) -> float:
    """Variance of the squared error of unbiased rounding of `x` to `levels`.

    Between two levels, a above the lower and b below the upper one, the squared error is b^2
    with probability a/(a+b), else a^2: its mean is ab and its variance ab (a-b)^2.
    """
    levels = levels.astype(np.float64)
    upper = np.clip(np.searchsorted(levels, x, side="right"), 1, len(levels) - 1)
    a, b = x - levels[upper - 1], levels[upper] - x
    return float((a * b * np.square(a - b)).sum())


def violations(rows: Sequence[Row]) -> list[str]:
    """What is not as it must be, one line each."""
    found = []
    for row in rows:
        errors = [row.outcomes[method].vnmse for method in METHODS]
        place = f"{row.vector}, {row.bits} bits"
        if any(better > worse * (1 + ROUNDING) for better, worse in pairwise(errors)):
            found.append(f"{place}: exact, approx, uniform have vNMSE {errors}: not ascending")
        found.extend(
            f"{place}, {method}: measured {outcome.measured:.6g}, stated {outcome.vnmse:.6g}: "
            f"{outcome.deviations:.1f} standard deviations"
            for method, outcome in row.outcomes.items()
            if abs(outcome.deviations) > MAX_DEVIATIONS
        )
    return found


def header() -> str:
    """The head of the table."""
    return (
        f"{'':43}  {'vNMSE stated by the service':^29}  {'measured':>10}  "
        f"{'time of a request, ms':^23}\n"
        f"{'vector':<19}{'d':>8}{'bits':>5}{'bytes':>8}{'ratio':>6}"
        f"{'exact':>10}{'approx':>10}{'uniform':>10}{'exact':>12}"
        f"{'exact':>9}{'approx':>8}{'uniform':>8}\n" + "-" * 113
    )


def line(row: Row) -> str:
    """A row as text."""
    exact, approx, uniform = (row.outcomes[method] for method in METHODS)
    return (
        f"{row.vector:<19}{row.size:>8}{row.bits:>5}{row.message_bytes:>8}{row.ratio:>6.2f}"
        f"{exact.vnmse:>10.3e}{approx.vnmse:>10.3e}{uniform.vnmse:>10.3e}{exact.measured:>12.3e}"
        f"{exact.milliseconds:>9.0f}{approx.milliseconds:>8.0f}{uniform.milliseconds:>8.0f}"
    )


def as_json(study: Study, rows: Sequence[Row], wrong: Sequence[str]) -> dict[str, Any]:
    """The table for machines."""
    return {
        "accuracy": study.accuracy,
        "seed": SEED,
        "rows": [asdict(row) for row in rows],
        "violations": list(wrong),
    }


def plot(path: Path, client: Client, study: Study, rows: Sequence[Row]) -> None:
    """Draw the last gradient's levels, and the errors of its rows."""
    name = [name for name in study.vectors if name.startswith("gradient")][-1]
    vector = study.vectors[name]
    levels = {
        method: client.optimal_levels(vector, 1 << PLOTTED_BITS, method) for method in METHODS
    }
    errors = {
        method: {row.bits: row.outcomes[method].vnmse for row in rows if row.vector == name}
        for method in METHODS
    }
    draw(path, name, vector, levels, errors)


if __name__ == "__main__":
    sys.exit(main())
