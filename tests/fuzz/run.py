"""Fuzz the decoders and the service, and see that planted faults are found.

Run ``python tests/fuzz/run.py codec --cases 1000000``, ``http --cases 100000`` or ``openapi``; no
name: all three. Each comes with its controls, the same checks on code with a planted fault, which
must fail. A failing case is printed as SEED:NUMBER; ``codec --replay SEED:NUMBER`` runs it alone.
``--write`` keeps the results in docs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    # In place of this folder: its modules are a package.
    sys.path[0] = str(ROOT)

from tests.fuzz import codec, controls, shots, traffic  # noqa: E402 - found only now
from tests.fuzz.findings import Finding, markdown  # noqa: E402
from tests.fuzz.memory import MIB  # noqa: E402

CODEC_CASES = 1_000_000
HTTP_CASES = 100_000
OPENAPI_EXAMPLES = 300


def run_codec(options: argparse.Namespace) -> list[Finding]:
    """Mutated messages at the decoders."""
    corpus = codec.Corpus(codec.targets())
    cases = options.cases or CODEC_CASES
    report = codec.fuzz(corpus, cases, options.seed)
    accepted = sum(report.accepted.values())
    found = (
        f"{report.cases:,} messages in {report.seconds:.0f} s, {accepted:,} of them accepted; "
        f"{len(report.faults)} faults, slowest {report.slowest:.2f} s, memory "
        f"+{report.peak / MIB:.0f} MiB at its peak, {report.kept / MIB:+.0f} MiB kept"
    )
    bound = (
        "only `QuiverError` comes out, what is accepted survives a round trip; none takes "
        "over 1 s; memory grows by less than 50 MiB"
    )
    promise = f"{len(corpus.targets)} decoders, mutated messages"
    figures = {
        "cases": report.cases,
        "seconds": report.seconds,
        "accepted": dict(report.accepted),
        "refused": dict(report.refused),
        "slowest_seconds": report.slowest,
        "peak_bytes": report.peak,
        "kept_bytes": report.kept,
    }
    main = Finding(promise, bound, found, tuple(report.problems()), figures)
    return [main, *controls.of_codec(options.seed)]


def run_http(options: argparse.Namespace) -> list[Finding]:
    """Mutated requests at a server process."""
    everything = shots.range_of(codec.targets())
    cases = options.cases or HTTP_CASES
    with traffic.serving() as server:
        report = traffic.fuzz(server, everything, cases, options.seed)
    statuses = ", ".join(f"{count:,} x {name}" for name, count in sorted(report.statuses.items()))
    found = (
        f"{report.cases:,} requests in {report.seconds:.0f} s ({statuses}); "
        f"{len(report.problems())} faults, slowest {report.slowest:.2f} s, memory of the server "
        f"+{report.peak / MIB:.0f} MiB at its peak, {report.kept / MIB:+.0f} MiB kept; "
        f"{report.good:,} good requests between had the right bytes"
    )
    bound = (
        "no crash, no 5xx, no traceback; every refusal is a problem document of its code; none "
        "takes over 1 s; memory grows by less than 50 MiB; good requests are served between"
    )
    figures = {
        "cases": report.cases,
        "seconds": report.seconds,
        "kinds": dict(report.kinds),
        "statuses": dict(report.statuses),
        "slowest_seconds": report.slowest,
        "repeated": report.repeated,
        "good": report.good,
        "peak_bytes": report.peak,
        "kept_bytes": report.kept,
    }
    promise = f"all routes, {len(shots.KINDS)} kinds of broken requests"
    main = Finding(promise, bound, found, tuple(report.problems()), figures)
    return [main, *controls.of_http(options.seed)]


def run_openapi(options: argparse.Namespace) -> list[Finding]:
    """Requests made from the OpenAPI document."""
    from tests.fuzz import conformance

    return conformance.findings(options.cases or OPENAPI_EXAMPLES, options.seed)


RUNS: Mapping[str, Callable[[argparse.Namespace], list[Finding]]] = {
    "codec": run_codec,
    "http": run_http,
    "openapi": run_openapi,
}


def replay(case: str) -> int:
    """Run one case of the codec again and say what comes of it."""
    seed, _, number = case.partition(":")
    target, data = codec.Corpus(codec.targets()).case(int(seed), int(number))
    print(f"{target.name}: {data.hex()}")
    accepted, code = codec.run_case(target, data)
    print("accepted" if accepted else f"refused: {code}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 0 if everything held and every control failed."""
    parser = argparse.ArgumentParser(description="Fuzz the decoders and the service.")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(RUNS)}; default: all")
    parser.add_argument("--cases", type=int, help="instead of the long form's number")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replay", metavar="SEED:NUMBER", help="run one case of the codec again")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--write", action="store_true", help="keep the results in docs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where --write writes")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - RUNS.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(RUNS)}")
    if options.replay:
        return replay(options.replay)
    begun = time.time()
    found: list[Finding] = []
    for name in options.names or RUNS:
        print(f"== {name}", file=sys.stderr, flush=True)
        found += RUNS[name](options)
    print(markdown(found))
    for finding in found:
        for problem in () if finding.control else finding.problems[:20]:
            print(f"- {finding.promise}: {problem[:600]}")
    figures: dict[str, Any] = {finding.promise: finding.figures for finding in found}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.write:
        from tests.fuzz import pages

        pages.keep(options.out, found, options.names, begun)
    return sum(not finding.passed for finding in found)


if __name__ == "__main__":
    sys.exit(main())
