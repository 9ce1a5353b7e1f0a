"""Train the same network with every scheme; print and plot accuracy against bytes.

Run ``make train``, or ``python -m parameter_server.run`` in the folder ``examples``. The exit code
is 1 if 4 or 2 bits do not keep what `report.CLAIMS` says.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
from parameter_server import data, page, plot, report
from parameter_server.compression import Scheme
from parameter_server.config import Config
from parameter_server.launch import Service, Training
from parameter_server.records import Result

SCHEMES = (
    "float32",
    *(f"quiver-{bits}" for bits in (8, 4, 3, 2)),
    "quiver-ef-2",
    "sign-1",
    *(f"qsgd-{bits}" for bits in (8, 4, 3, 2)),
    *(f"qsgd-l2-{bits}" for bits in (4, 2)),
)
RUN_SECONDS = 900.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all; returns the exit code."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parameter-server-")))
        data.export(folder / "digits.npz")
        service = Service(folder)
        url = options.url
        if url is None:
            url = stack.enter_context(service).url
            service.wait_until_ready()
        results = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for scheme in options.schemes:
                results.append(_train(options, scheme, seed, url, folder))
                _keep(options.out / "results.json", results)
    runs = report.by_scheme(results)
    rows = report.rows(results)
    plot.draw(options.out / "accuracy.png", runs)
    if options.write:
        page.write(results)
    print(f"\n{report.table(rows)}\n")
    print(f"Picture and figures: {options.out}. Took {time.perf_counter() - begun:.0f} s.")
    wrong = report.violations(rows)
    if wrong:
        print("\n".join(["VIOLATED:", *wrong]), file=sys.stderr)
    return 1 if wrong else 0


def _train(options: argparse.Namespace, scheme: str, seed: int, url: str, folder: Path) -> Result:
    home = folder / f"{scheme}-seed-{seed}"
    config = Config(
        scheme=scheme,
        service=url,
        folder=str(home),
        data=str(folder / "digits.npz"),
        seed=seed,
        workers=options.workers,
        rounds=options.rounds,
    )
    with Training(config) as training:
        result = training.wait(RUN_SECONDS)
    last = result.points[-1]
    print(
        f"{scheme:>10}, seed {seed}: {last.accuracy:.2%} after {last.rounds} rounds, "
        f"{last.up / 1e6:.2f} MB up, {last.down / 1e6:.2f} MB down, {result.seconds:.1f} s",
        flush=True,
    )
    shutil.rmtree(home)
    return result


def _keep(path: Path, results: Sequence[Result]) -> None:
    """What there is so far: the next runs may take long."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train with compressed gradients.")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES, type=_scheme, metavar="SCHEME")
    parser.add_argument("--seeds", type=int, default=1, help="how many runs of each (default 1)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--workers", type=int, default=4, help="processes (default 4)")
    parser.add_argument("--rounds", type=int, default=150, help="updates (default 150)")
    parser.add_argument("--url", help="use this service; default: start one on a free port")
    parser.add_argument("--out", type=Path, default=Path("out/parameter_server"))
    parser.add_argument("--write", action="store_true", help="write figures and picture into docs/")
    return parser


def _scheme(name: str) -> str:
    Scheme.parse(name)
    return name


if __name__ == "__main__":
    sys.exit(main())
