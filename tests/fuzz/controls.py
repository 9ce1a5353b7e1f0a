"""The controls: the fuzzers on code with a planted fault, which they must find."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.fuzz import codec, plants, shots, traffic
from tests.fuzz.findings import Finding
from tests.fuzz.memory import MIB

from quiver_kernels import wire

ROOT = Path(__file__).parents[2]
CODEC_CASES = 1500
SECONDS = 120

# What each planted fault must trip, as the report of a run says it.
SIGNS: Mapping[str, str] = {
    "raises": "KeyError",
    "amplifies": "memory grew",
    "sleeps": "took",
    "lies": "Inconsistent",
}
BOUNDS: Mapping[str, str] = {
    "raises": "no exception but refusals",
    "amplifies": "memory grows by less than 50 MiB",
    "sleeps": "none takes over 1 s",
    "lies": "what is accepted survives a round trip",
}


def planted(fault: str) -> str:
    """What a planted fault does: the first line about it."""
    return (plants.FAULTS[fault].__doc__ or "").partition("\n")[0].rstrip(".")


def of_codec(seed: int) -> list[Finding]:
    """A control for each check of the codec's fuzzer; in a process that is thrown away."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.controls", str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the controls ended with {done.returncode}: {done.stderr[-2000:]}")
    said = json.loads(done.stdout)
    return [_codec_finding(fault, said[fault]) for fault in SIGNS]


def _codec_finding(fault: str, problems: Sequence[str]) -> Finding:
    signs = tuple(text for text in problems if SIGNS[fault] in text)
    first = signs[0].partition(";")[0][:100] if signs else ""
    found = first or f"nothing of it in {len(problems)} problems"
    return Finding(planted(fault), BOUNDS[fault], found, signs, control=True)


def fuzz_planted(fault: str, vectors: codec.Target, means: codec.Target, seed: int) -> list[str]:
    """The problems found with `fault` planted in this process."""
    with plants.planted(fault):
        if fault == "amplifies":
            # At the decoder that is careless: one byte for each empty array.
            careless = replace(means, decode=wire.decode_aggregate_request)
            return codec.fuzz(Given([careless], (codec.STORMS[0],)), 1, seed).problems()
        if fault == "sleeps":
            # One, since each sleeps.
            [slow] = [valid for valid in vectors.seeds if valid.name.endswith("block1")]
            careful = replace(vectors, seeds=(slow,))
            return codec.fuzz(Given([careful], (slow.data,)), 1, seed).problems()
        return codec.fuzz(codec.Corpus([vectors]), CODEC_CASES, seed).problems()


@dataclass(frozen=True)
class Given(codec.Corpus):
    """Messages as they are, for one decoder."""

    messages: tuple[bytes, ...] = ()

    def case(self, seed: int, number: int) -> tuple[codec.Target, bytes]:
        """Message `number`."""
        return self.targets[0], self.messages[number]


# -- over HTTP ----------------------------------------------------------------------------


@dataclass(frozen=True)
class HttpControl:
    """Which requests find a fault, how many of them, and how the report says so."""

    sign: str
    kinds: tuple[str, ...]
    routes: tuple[str, ...]
    cases: int


HTTP: Mapping[str, HttpControl] = {
    "raises": HttpControl("status 500", ("bodies",), ("quantize", "levels"), 400),
    "amplifies": HttpControl("memory grew", ("storms",), ("aggregate",), 6),
    "sleeps": HttpControl("took", ("bodies",), ("quantized vector",), 12),
}


def of_http(seed: int) -> list[Finding]:
    """A control for each check of the service's fuzzer, each on a server of its own."""
    return [of_http_fault(fault, seed) for fault in HTTP]


def of_http_fault(fault: str, seed: int) -> Finding:
    """The control of one planted fault."""
    control = HTTP[fault]
    everything = shots.range_of(codec.targets(), control.kinds, control.routes)
    with traffic.serving(plants.command(fault)) as server:
        report = traffic.fuzz(server, everything, control.cases, seed, warm_up=0, check_good=False)
    problems = tuple(text for text in report.problems() if control.sign in text)
    found = f"{len(problems)} problems in {report.cases} requests; memory +{report.peak / MIB:.0f}"
    return Finding(planted(fault), BOUNDS[fault], f"{found} MiB", problems, control=True)


def main(arguments: Sequence[str]) -> int:
    """Fuzz each planted fault and print the problems as JSON."""
    seed = int(arguments[0])
    targets = {target.name: target for target in codec.targets()}
    vectors, means = targets["quantized vector"], targets["aggregate"]
    found = {fault: fuzz_planted(fault, vectors, means, seed) for fault in SIGNS}
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
