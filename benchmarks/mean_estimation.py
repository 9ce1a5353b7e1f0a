"""Distributed mean estimation: the error of the mean of n quantized vectors, at equal bits.

n workers each send one message; the receiver takes the mean of what it decodes. The error is
``|mean of decoded - mean of sent|^2`` over the mean squared norm of the workers' vectors, so that
unbiased and independent errors give 1/n of a single worker's. Bits per value count everything:
codes, level tables, norms, seeds, exact entries with their places, and for the package's schemes
the whole message with its names and options.

"normal" is N(0, 1), "lognormal" LogNormal(0, 1). Inputs are independent; correlated (nine tenths of
the variance, of the logarithm for lognormal, is common to all workers); or identical. The bias is
the mean inner product of the errors of two repetitions, over all pairs, in standard errors: 0 for
an unbiased scheme whatever its errors look like, and large if any pattern of the errors repeats.

EDEN, DRIVE (which is EDEN with 1 bit) and QSGD are this folder's own versions, written from the
papers.

Run ``python benchmarks/mean_estimation.py``; it prints Markdown and writes a picture to
``--images``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from baselines.eden import Eden
from baselines.qsgd import Qsgd
from common.lines import Line, Panel, draw_panels
from common.tables import figure, size, table
from numpy.typing import NDArray

import quiver_kernels as qk
from quiver_client import LocalClient
from quiver_client.ps import Policy, Strata, compress

Vector = NDArray[np.float32]
Floats = NDArray[np.float64]

DISTRIBUTIONS = ("normal", "lognormal")
INPUTS = ("independent", "correlated", "identical")
COMMON = 0.9
# One value in so many is sent exactly by the schemes that do so.
EXACT_SHARE = 1 / 1024


@dataclass(frozen=True)
class Place:
    """Which worker of how many sends, with which seeds."""

    workers: int
    rank: int
    seed: int
    shared_seed: int


@dataclass(frozen=True)
class Sent:
    """What a receiver decodes, and the bytes of the message."""

    values: Vector
    nbytes: int


Send = Callable[[Vector, int, Place], Sent]


@dataclass(frozen=True)
class Scheme:
    """A way to send a vector with so many bits per code.

    Attributes
    ----------
    send
        From the vector, the bits and the place.
    least_bits
        Fewest bits that it can do.
    together
        Whether what a worker sends depends on how many there are.
    """

    send: Send
    least_bits: int = 1
    together: bool = False


def _of(q: qk.QuantizedVector) -> Sent:
    return Sent(qk.dequantize(q), len(q.to_bytes()))


def _plain(x: Vector, bits: int, place: Place) -> Sent:
    return _of(qk.quantize(x, bits=bits, seed=place.seed))


def _stratified(x: Vector, bits: int, place: Place) -> Sent:
    together = {
        "world_size": place.workers,
        "rank": place.rank,
        "shared_seed": place.shared_seed,
    }
    return _of(qk.quantize(x, bits=bits, seed=place.seed, **together))


def _simba(x: Vector, bits: int, place: Place) -> Sent:
    return _of(qk.quantize(x, bits=bits, method="simba", level_sets=4, seed=place.seed))


def _exact_entries(together: bool) -> Send:
    def send(x: Vector, bits: int, place: Place) -> Sent:
        policy = Policy(bits=bits, min_size=0, pack_below=0, outliers=EXACT_SHARE)
        strata = Strata(place.workers, place.rank, place.shared_seed) if together else None
        tree = compress({"x": x}, policy, client=LocalClient(), seed=place.seed, strata=strata)
        return Sent(tree.arrays()["x"], tree.nbytes)

    return send


def _qsgd(norm: Any, bucket: int | None) -> Send:
    def send(x: Vector, bits: int, place: Place) -> Sent:
        scheme = Qsgd(bits, norm, bucket)
        return Sent(scheme.send(x, place.seed), scheme.nbytes(x.size))

    return send


def _eden(x: Vector, bits: int, place: Place) -> Sent:
    return Sent(Eden(bits).send(x, place.seed), Eden(bits).nbytes(x.size))


def _half_nearest(x: Vector, bits: int, place: Place) -> Sent:
    """Biased on purpose: half of the values, drawn anew each time, go to the nearest level."""
    q = qk.quantize(x, bits=bits, seed=place.seed)
    nearest = q.levels[np.searchsorted((q.levels[1:] + q.levels[:-1]) / 2, x)]
    biased = np.random.default_rng(place.seed).random(x.size) < 0.5
    return Sent(np.where(biased, nearest, qk.dequantize(q)), len(q.to_bytes()))


PLAIN, STRATIFIED, SIMBA = "QUIVER", "QUIVER, stratified rounding", "Simba, 4 level sets"
EXACT_ENTRIES = "QUIVER, 0.1 % exact"
BOTH = "QUIVER, stratified rounding, 0.1 % exact"
EDEN = "EDEN (1 bit: DRIVE)"
CONTROL = "half to the nearest level (biased: control)"
SCHEMES: dict[str, Scheme] = {
    PLAIN: Scheme(_plain),
    STRATIFIED: Scheme(_stratified, together=True),
    SIMBA: Scheme(_simba),
    EXACT_ENTRIES: Scheme(_exact_entries(together=False)),
    BOTH: Scheme(_exact_entries(together=True), together=True),
    EDEN: Scheme(_eden),
    "QSGD, largest magnitude": Scheme(_qsgd("largest", None), least_bits=2),
    "QSGD, norms of 512 values": Scheme(_qsgd("euclidean", 512), least_bits=2),
}


# -- data --------------------------------------------------------------------------------


def draw(distribution: str, inputs: str, d: int, rank: int) -> Vector:
    """The vector of one worker; every repetition sends the same."""
    common = np.random.default_rng(1).standard_normal(d)
    own = np.random.default_rng(1000 + rank).standard_normal(d)
    share = {"independent": 0.0, "correlated": COMMON, "identical": 1.0}[inputs]
    x = np.sqrt(share) * common + np.sqrt(1 - share) * own
    return (x if distribution == "normal" else np.exp(x)).astype(np.float32)


def place_of(workers: int, rank: int, repetition: int) -> Place:
    """Seeds that differ between workers and repetitions; the shared one between repetitions."""
    seed = int(np.random.SeedSequence([7, repetition, rank]).generate_state(1, np.uint64)[0])
    return Place(workers, rank, seed >> 11, 10_000_019 * (repetition + 1))


# -- measuring ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Error of the mean of n workers' messages, and their size.

    `alone` is the mean of the workers' own squared errors, over the same norm as `vnmse`.
    """

    distribution: str
    inputs: str
    d: int
    bits: int
    workers: int
    scheme: str
    vnmse: float
    alone: float
    bits_per_value: float


@dataclass(frozen=True, eq=False)
class Mean:
    """The mean of some workers' messages: its error, theirs (squared, on average), their bytes."""

    workers: int
    error: Floats
    alone: float
    nbytes: float


def means(
    scheme: Scheme, vectors: Sequence[Vector], bits: int, counts: Sequence[int], repetition: int = 0
) -> Iterator[Mean]:
    """The mean of the first workers, for each count.

    Where messages do not depend on the number of workers, those of few are the first of many.
    """
    total, alone, nbytes, reached = np.zeros(vectors[0].size), 0.0, 0, 0
    for count in sorted(counts):
        if scheme.together:
            total, alone, nbytes, reached = np.zeros(vectors[0].size), 0.0, 0, 0
        for rank in range(reached, count):
            sent = scheme.send(vectors[rank], bits, place_of(count, rank, repetition))
            error = sent.values.astype(np.float64) - vectors[rank]
            total += error
            alone += float(np.sum(np.square(error)))
            nbytes += sent.nbytes
        reached = count
        yield Mean(count, total / count, alone / count, nbytes / count)


def measure(
    distribution: str, inputs: str, d: int, bits: int, counts: Sequence[int], names: Sequence[str]
) -> list[Measured]:
    """All schemes on one kind of input."""
    vectors = [draw(distribution, inputs, d, rank) for rank in range(max(counts))]
    norms = np.cumsum([float(np.sum(np.square(x, dtype=np.float64))) for x in vectors])
    found = []
    for name in names:
        scheme = SCHEMES[name]
        if bits < scheme.least_bits:
            continue
        for mean in means(scheme, vectors, bits, counts):
            norm = norms[mean.workers - 1] / mean.workers
            found.append(
                Measured(
                    distribution,
                    inputs,
                    d,
                    bits,
                    mean.workers,
                    name,
                    float(np.sum(np.square(mean.error)) / norm),
                    float(mean.alone / norm),
                    round(8 * mean.nbytes / d, 4),
                )
            )
    return found


@dataclass(frozen=True)
class Bias:
    """How far the mean error of a scheme is from zero."""

    distribution: str
    inputs: str
    d: int
    bits: int
    workers: int
    scheme: str
    repetitions: int
    sigmas: float


def bias(errors: Floats) -> float:
    """Mean inner product of two repetitions' errors, in standard errors; rows are repetitions.

    Its expectation is the squared norm of the mean error. Without bias, products of different
    pairs are uncorrelated, so their spread gives the standard error.
    """
    products = (errors @ errors.T)[np.triu_indices(errors.shape[0], 1)]
    spread = float(np.std(products, ddof=1)) / np.sqrt(products.size)
    mean = float(np.mean(products))
    return float(mean / spread)


def measure_bias(
    distribution: str,
    inputs: str,
    d: int,
    bits: int,
    workers: int,
    repetitions: int,
    schemes: Mapping[str, Scheme],
) -> list[Bias]:
    """The bias of some schemes."""
    vectors = [draw(distribution, inputs, d, rank) for rank in range(workers)]
    found = []
    for name, scheme in schemes.items():
        if bits < scheme.least_bits:
            continue
        rows = [
            mean.error
            for repetition in range(repetitions)
            for mean in means(scheme, vectors, bits, [workers], repetition)
        ]
        sigmas = bias(np.array(rows))
        found.append(
            Bias(distribution, inputs, d, bits, workers, name, repetitions, round(sigmas, 3))
        )
    return found


# -- what was asked for ------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """One requirement, with what was found in the worst case."""

    requirement: str
    found: str
    met: bool


def verdicts(rows: Sequence[Measured], biases: Sequence[Bias]) -> list[Verdict]:
    """The requirements, on 16 workers and 16 levels (on fewer workers in a quick run)."""
    at = {(r.distribution, r.inputs, r.scheme, r.workers): r for r in rows if r.bits == 4}
    most = max(r.workers for r in rows)

    def error(distribution: str, inputs: str, scheme: str, workers: int = most) -> float:
        return at[distribution, inputs, scheme, workers].vnmse

    def gain(distribution: str, inputs: str, scheme: str) -> float:
        return error(distribution, inputs, PLAIN) / error(distribution, inputs, scheme)

    linear = [
        most * row.vnmse / row.alone
        for k in DISTRIBUTIONS
        for row in (at[k, "independent", PLAIN, most], at[k, "identical", PLAIN, most])
    ]
    found = [
        Verdict(
            f"QUIVER: the mean of {most} has 1/{most} of the workers' own errors, within 3 %",
            f"{min(linear):.3f} to {max(linear):.3f} of it",
            bool(min(linear) >= 0.97 and max(linear) <= 1.03),
        )
    ]
    for inputs, least, schemes in (
        ("independent", 1.6, (STRATIFIED, BOTH)),
        ("identical", 8.0, (STRATIFIED,)),
    ):
        for scheme in schemes:
            for k in DISTRIBUTIONS:
                times = gain(k, inputs, scheme)
                found.append(
                    Verdict(
                        f"{scheme}, {k}, {inputs}: at least {least:g} times lower than QUIVER",
                        f"{times:.2f} times",
                        bool(times >= least),
                    )
                )
    shared = max(
        error(k, "independent", SIMBA, 1) / error(k, "independent", PLAIN, 1) for k in DISTRIBUTIONS
    )
    honest = max(abs(b.sigmas) for b in biases if b.scheme != CONTROL)
    caught = min(b.sigmas for b in biases if b.scheme == CONTROL)
    return [
        *found,
        Verdict(
            "Simba with 4 level sets, one vector: at most 0.55 of QUIVER's error",
            f"{shared:.3f} of it",
            bool(shared <= 0.55),
        ),
        Verdict("no bias over 5 standard errors", f"at most {honest:.1f}", bool(honest <= 5)),
        Verdict("a biased scheme is seen: over 5", f"at least {caught:.3g}", bool(caught > 5)),
    ]


# -- report ------------------------------------------------------------------------------

LIMIT = """\
What rounding together can gain for independent inputs has a limit. Workers that share random
numbers, but not their vectors, can make only that part of their errors cancel which a shared number
explains: the variance over u of E gap (1{u < p} - p), where a value lies at p of the gap between
its levels, and rounding up for u < p makes this part as large as it can be. That is half of the
error if all gaps are equal: twice lower. For QUIVER's levels of 2^20 values it is 1.77 times for
the normal and 1.41 for the lognormal, whose gaps differ most; without the largest 0.1 % of the
values, sent exactly, 1.83 and 1.54. Identical inputs have no such limit."""


def error_table(rows: Sequence[Measured], distribution: str, bits: int) -> str:
    """Schemes by inputs for the most workers, and one worker's error."""
    chosen = [r for r in rows if r.distribution == distribution and r.bits == bits]
    most = max(r.workers for r in chosen)
    inputs = [i for i in INPUTS if any(r.inputs == i for r in chosen)]
    at = {(r.scheme, r.inputs, r.workers): r for r in chosen}
    lines = []
    for name in dict.fromkeys(r.scheme for r in chosen):
        cells = [at[name, INPUTS[0], 1], *(at[name, i, most] for i in inputs)]
        weight = max(cell.bits_per_value for cell in cells)
        lines.append([name, f"{weight:.3f}", *(figure(cell.vnmse) for cell in cells)])
    named = f"{bits} bit{'s' * (bits > 1)}"
    head = [f"{distribution}, {named}", "bits/value", "n=1", *(f"n={most}, {i}" for i in inputs)]
    return table(head, lines)


def bias_table(biases: Sequence[Bias]) -> str:
    """The largest bias of each scheme over the inputs, by distribution."""

    def largest(scheme: str, distribution: str) -> str:
        found = [b.sigmas for b in biases if (b.scheme, b.distribution) == (scheme, distribution)]
        return f"{max(found, key=abs):.3g}"

    names = dict.fromkeys(b.scheme for b in biases)
    lines = [[name, *(largest(name, k) for k in DISTRIBUTIONS)] for name in names]
    return table(["largest bias, standard errors", *DISTRIBUTIONS], lines)


def panels(rows: Sequence[Measured]) -> list[Panel]:
    """Error against the number of workers, for every kind of input."""
    return [
        Panel(
            f"{distribution}, {inputs}",
            [
                Line(
                    name,
                    [
                        (r.workers, r.vnmse)
                        for r in rows
                        if (r.distribution, r.inputs, r.scheme) == (distribution, inputs, name)
                    ],
                )
                for name in SCHEMES
            ],
        )
        for distribution in DISTRIBUTIONS
        for inputs in INPUTS
    ]


def report(
    rows: Sequence[Measured], sweep: Sequence[Measured], biases: Sequence[Bias], images: Path
) -> str:
    """The Markdown; draws the picture on the way."""
    picture = images / "mean-estimation.png"
    title = f"Error of the mean of n workers, 4 bits, {size(sweep[0].d)} values"
    draw_panels(picture, title, "workers", "vNMSE of the mean", panels(sweep))
    one = biases[0]
    parts = [
        table(
            ["required", "found", "met"],
            [
                [v.requirement, v.found, "yes" if v.met else "**no**"]
                for v in verdicts(rows, biases)
            ],
            left=3,
        ),
        LIMIT,
        f"![{title}](images/{picture.name})",
        f"vNMSE of the mean for {size(rows[0].d)} values a worker:",
        *(error_table(rows, k, bits) for bits in (4, 2, 1) for k in DISTRIBUTIONS),
        f"Bias over {one.repetitions} repetitions with {one.workers} workers of {size(one.d)} "
        "values, 4 bits; of the three kinds of input the one with the largest:",
        bias_table(biases),
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Measure, draw, print Markdown, and write JSON when asked to."""
    parser = argparse.ArgumentParser(description="Measure distributed mean estimation.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for a test of this file")
    parser.add_argument(
        "--images", type=Path, default=Path("out/images"), help="folder of pictures"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    d, swept, repeated = (1 << 12, 1 << 8, 1 << 9) if options.quick else (1 << 20, 1 << 16, 1 << 14)
    workers, repetitions = (4, 12) if options.quick else (16, 32)
    counts = (1, 2) if options.quick else (1, 2, 4, 8, 16, 32, 64)
    kinds = [(k, i) for k in DISTRIBUTIONS for i in INPUTS]

    rows: list[Measured] = []
    for bits in (4, 2, 1):
        for kind in kinds:
            if bits < 4 and kind[1] != INPUTS[0]:
                continue
            print(f"{bits} bits, {', '.join(kind)} ...", file=sys.stderr, flush=True)
            rows += measure(*kind, d, bits, (1, workers), tuple(SCHEMES))
    print("numbers of workers ...", file=sys.stderr, flush=True)
    sweep = [r for kind in kinds for r in measure(*kind, swept, 4, counts, tuple(SCHEMES))]
    print("bias ...", file=sys.stderr, flush=True)
    with_control = {**SCHEMES, CONTROL: Scheme(_half_nearest)}
    biases = [
        b
        for kind in kinds
        for b in measure_bias(*kind, repeated, 4, workers, repetitions, with_control)
    ]
    print(report(rows, sweep, biases, options.images))
    if options.json is not None:
        groups = {
            "errors": rows,
            "workers": sweep,
            "bias": biases,
            "verdicts": verdicts(rows, biases),
        }
        results = {name: [asdict(item) for item in items] for name, items in groups.items()}
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
