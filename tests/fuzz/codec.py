"""Mutated messages given to every decoder: refused with words, or read and consistent.

`fuzz` makes case after case (`mutator`), gives it to the decoder of its message and looks at what
comes out. Only a `QuiverError` may; what decodes must say the same after it is encoded again.
"""

from __future__ import annotations

import json
import random
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import numpy as np
from tests.fuzz.memory import MIB, Watch, waited
from tests.fuzz.mutator import Seed, mutated, source
from tests.support import messages
from tests.support.messages import packed

from quiver_kernels import (
    QuantizedVector,
    QuantizeOptions,
    Sketch,
    batch,
    dequantize,
    quantize,
    wire,
)
from quiver_kernels.dtypes import LEAF_DTYPES
from quiver_kernels.errors import QuiverError
from quiver_kernels.options import METHODS
from quiver_kernels.schemes import registry
from quiver_kernels.sketch import Details, Undecided
from quiver_kernels.tree import QuantizedTree
from quiver_kernels.tree_mean import aggregate_trees
from quiver_kernels.treerequest import (
    TreesRequest,
    decode_aggregate_request,
    encode_trees_request,
)
from quiver_service.errors import ERROR_KINDS

GOLDEN = Path(__file__).parents[1] / "wire" / "golden"
LONGEST_DETAIL = 600
LONGEST_SECONDS = 1.0
MOST_GROWTH = 50 * MIB
# One case in so many is large: many small values where few large ones belong.
STORM_EVERY = 10_000


class Inconsistent(AssertionError):
    """A message was accepted, and is not what it says."""


class Hang(BaseException):
    """A decoder took too long; no decoder catches this."""


@dataclass(frozen=True)
class Target:
    """A decoder, valid messages for it, and what must hold of all that it accepts."""

    name: str
    decode: Callable[[bytes], Any]
    check: Callable[[Any, bytes], None]
    seeds: tuple[Seed, ...]
    weight: int = 4


@dataclass(frozen=True)
class Fault:
    """A case that did what none may do."""

    replay: str
    target: str
    problem: str
    data: bytes


@dataclass
class Report:
    """What a run saw."""

    cases: int = 0
    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    slowest: float = 0.0
    seconds: float = 0.0
    kept: int = 0
    peak: int = 0

    def problems(self) -> list[str]:
        """Everything that breaks the promise, in words."""
        found = [
            f"{fault.replay} {fault.target}: {fault.problem}; {fault.data[:200].hex()}"
            for fault in self.faults
        ]
        if self.peak >= MOST_GROWTH:
            found.append(f"memory grew by {self.peak / MIB:.0f} MiB, {MOST_GROWTH / MIB:.0f} may")
        return found


# -- what must hold of what is accepted ---------------------------------------------------


def same(holds: bool, what: str) -> None:
    """Raise `Inconsistent` unless `holds`."""
    if not holds:
        raise Inconsistent(what)


def same_array(one: Any, two: Any, what: str) -> None:
    """Two arrays of one type, shape and bytes; or twice None."""
    if one is None or two is None:
        same(one is two, what)
        return
    same(one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes(), what)


def check_quantized(q: QuantizedVector, data: bytes) -> None:
    """It encodes to the same map, and decodes to finite values or is refused."""
    again = q.to_bytes()
    same(_plain(data) == _plain(again), "another map after a round trip")
    check_vector(q, again)


def _plain(data: bytes) -> dict[str, Any]:
    """The map with what may be left out; a number may be sent as integer and is a double."""
    fields = {"device": "cpu", "timings_ms": {}, **msgspec.msgpack.decode(data)}
    scheme = None if fields.get("parameters") is None else registry.find(fields["method"])
    if scheme is not None:
        # A parameter that the scheme did not have once is left out.
        fields["parameters"] = registry.parameters_of(scheme, fields["parameters"])
        fields["side"] = fields.get("side") or {}
    timings = {name: float(value) for name, value in fields["timings_ms"].items()}
    return {**fields, "vnmse": float(fields["vnmse"]), "timings_ms": timings}


def check_vector(q: QuantizedVector, encoded: bytes) -> None:
    """It encodes to the same bytes again, and decodes to finite values or is refused."""
    same(QuantizedVector.from_bytes(encoded).to_bytes() == encoded, "other bytes after a round")
    try:
        values = dequantize(q)
    except QuiverError as error:
        same(error.code == "invalid_codes", f"decoding was refused with {error.code}")
        return
    same(values.shape == q.shape and values.dtype.name == q.dtype, "decoded to another tensor")
    same(bool(np.isfinite(values.astype(np.float64)).all()), "decoded to values not finite")


def check_quantize(request: wire.QuantizeRequest | batch.BatchRequest, data: bytes) -> None:
    """It encodes to an equal request; and the kernels serve or refuse it."""
    if isinstance(request, batch.BatchRequest):
        check_batch(request)
        return
    segments = wire.encode_quantize_request(request.vector, request.options, request.weights)
    again = wire.decode_quantize_request(b"".join(segments))
    same_request(request, again)
    if len(data) % 8 == 0:
        compute(request)


def check_batch(request: batch.BatchRequest) -> None:
    """It encodes to a batch of equal requests."""
    requests = [item.request for item in request.items]
    shared = QuantizeOptions.create()
    segments = batch.encode_batch_request(requests, request.names, shared)
    again = wire.decode_quantize_request(b"".join(segments))
    same(isinstance(again, batch.BatchRequest), "no batch after a round trip")
    same(again.names == request.names, "other names after a round trip")
    same(len(again.items) == len(requests), "another number after a round trip")
    for one, two in zip(requests, again.items, strict=True):
        same_request(one, two.request)


def check_batch_answer(answer: batch.QuantizedBatch, data: bytes) -> None:
    """It encodes to an equal answer, and every vector of it can be read."""
    once = b"".join(batch.encode_batch(answer))
    again = batch.decode_batch(once)
    same(again.names == answer.names, "other names after a round trip")
    same(b"".join(batch.encode_batch(again)) == once, "another answer after a round trip")
    for q in answer.vectors[:4]:
        check_vector(q, q.to_bytes())


def check_levels_request(
    request: wire.LevelsRequest | wire.SketchLevelsRequest, data: bytes
) -> None:
    """As for quantizing; sketches are read later."""
    if isinstance(request, wire.SketchLevelsRequest):
        same(0 < request.rows <= wire.MAX_SKETCH_ROWS, "more rows than the limit")
        return
    segments = wire.encode_quantize_request(
        request.vector, request.options, request.weights, route="levels"
    )
    same_request(request, wire.decode_levels_request(b"".join(segments)))


def same_request(one: Any, two: Any) -> None:
    """Equal vectors, weights and options."""
    same_array(one.vector, two.vector, "another vector after a round trip")
    same_array(one.weights, two.weights, "other weights after a round trip")
    same(one.options == two.options, "other options after a round trip")


def compute(request: wire.QuantizeRequest) -> None:
    """Quantize it: the answer is a vector that can be read and decoded, of the request's shape."""
    options = request.options.with_seed()
    try:
        q = quantize(
            request.vector,
            num_levels=options.num_levels,
            method=options.method,
            seed=options.seed,
            weights=request.weights,
            bins=options.bins,
            grid=options.grid,
            block_size=options.block_size,
            device=options.device,
        )
    except QuiverError:
        return
    same(q.shape == request.vector.shape, "quantized to another shape")
    check_vector(q, q.to_bytes())


def check_aggregate(request: wire.AggregateRequest, data: bytes) -> None:
    """It encodes to an equal request."""
    segments = wire.encode_aggregate_request(request.vectors, request.weights, request.quantize)
    again = wire.decode_aggregate_request(b"".join(segments))
    same(
        [q.to_bytes() for q in request.vectors] == [q.to_bytes() for q in again.vectors],
        "other vectors after a round trip",
    )
    same(str(request.weights) == str(again.weights), "other weights after a round trip")
    same(request.quantize == again.quantize, "other options after a round trip")


def check_tree(tree: QuantizedTree, data: bytes) -> None:
    """It encodes to the same bytes again, and decodes to its leaves or is refused."""
    encoded = tree.to_bytes()
    same(QuantizedTree.from_bytes(encoded).to_bytes() == encoded, "other bytes after a round")
    try:
        arrays = tree.arrays()
    except QuiverError as error:
        same(error.code == "invalid_codes", f"decoding was refused with {error.code}")
        return
    same(list(arrays) == [leaf.name for leaf in tree.leaves()], "other leaves when decoded")
    for leaf in tree.leaves():
        array = arrays[leaf.name]
        same(array.shape == leaf.shape and array.dtype == LEAF_DTYPES[leaf.dtype], "another form")


def check_trees(request: wire.AggregateRequest | TreesRequest, data: bytes) -> None:
    """It encodes to an equal request; their mean is a tree, or is refused."""
    if isinstance(request, wire.AggregateRequest):
        check_aggregate(request, data)
        return
    segments = encode_trees_request(request.trees, request.weights, request.quantize)
    again = decode_aggregate_request(b"".join(segments))
    same(isinstance(again, TreesRequest), "no trees after a round trip")
    if isinstance(again, TreesRequest):
        trees = [[tree.to_bytes() for tree in each.trees] for each in (request, again)]
        same(trees[0] == trees[1], "other trees after a round trip")
        same(request.quantize == again.quantize, "other options after a round trip")
    try:
        mean = aggregate_trees(request.trees, request.weights)
    except QuiverError:
        return
    check_tree(mean, mean.to_bytes())


def check_tensor(array: Any, data: bytes) -> None:
    """It encodes to an equal tensor."""
    again = wire.decode_tensor(b"".join(wire.encode_tensor(array)))
    same_array(array, again, "another tensor after a round trip")


def check_levels(result: wire.LevelsResult, data: bytes) -> None:
    """It encodes to an equal answer."""
    once = b"".join(wire.encode_levels(result))
    same(b"".join(wire.encode_levels(wire.decode_levels(once))) == once, "another answer")


def check_sketch(sketch: Sketch, data: bytes) -> None:
    """It encodes to an equal sketch, and has levels between its ends."""
    once = sketch.to_bytes()
    same(Sketch.from_bytes(once).to_bytes() == once, "another sketch after a round trip")
    same(sketch.minimum <= sketch.maximum and sketch.size > 0, "no range")
    if len(data) % 8 == 0:
        levels = sketch.levels(4)
        same(bool((np.diff(levels.astype(np.float64)) >= 0).all()), "levels that descend")
        same(levels[0] == sketch.minimum and levels[-1] == sketch.maximum, "levels off the ends")


def check_details(details: Details, data: bytes) -> None:
    """It encodes to an equal answer."""
    once = details.to_bytes()
    same(Details.from_bytes(once).to_bytes() == once, "another answer after a round trip")


def check_undecided(question: Undecided, data: bytes) -> None:
    """It encodes to an equal question, which a shard can answer or refuse."""
    once = question.to_bytes()
    same(Undecided.from_bytes(once).to_bytes() == once, "another question after a round trip")
    if len(data) % 8 == 0:
        try:
            details = question.of(np.linspace(-1, 1, 40, dtype=question.cut.partition.layout.dtype))
        except QuiverError:
            return
        check_details(details, b"")


# -- the decoders -------------------------------------------------------------------------


def golden(pattern: str) -> Iterator[Seed]:
    """The files of the golden set."""
    for file in sorted(GOLDEN.glob(f"{pattern}.msgpack")):
        yield Seed.of(file.stem, file.read_bytes())


def values(size: int = 24) -> np.ndarray:
    """Some numbers with ties, zeros and an outlier."""
    numbers = np.random.default_rng(11).normal(size=size).astype(np.float32)
    numbers[:4] = [0.0, 0.0, -3.5, 8.0]
    return numbers


def quantize_seeds() -> Iterator[Seed]:
    """Requests of /quantize, every key and every form of a vector."""
    x = values()
    yield from golden("request-quantize")
    yield Seed.of("all keys", packed(messages.quantize_request()))
    yield Seed.of("bin", packed({"vector": x.tobytes(), "bits": 2, "seed": 1}))
    yield Seed.of("list", packed({"vector": x.tolist(), "weights": [1.0] * x.size, "bits": 1}))
    for name, method in (("float16", "exact"), ("bfloat16", "uniform"), ("float64", "approx")):
        data = np.arange(12, dtype=np.float64 if name == "float64" else np.float16)
        fields = {"vector": messages.tensor(data, name), "method": method, "num_levels": 3}
        yield Seed.of(name, packed({**fields, "block_size": 5, "seed": 2**63}))
    request = wire.encode_quantize_request(x, QuantizeOptions.create(method="accelerated", seed=3))
    yield Seed.of("encoded", b"".join(request))


def batch_fields() -> list[messages.Fields]:
    """Requests of /quantize for many vectors: a list and a map, bare and with options."""
    x = values()
    wrapped = {"vector": messages.tensor(x), "weights": messages.tensor(np.ones_like(x))}
    return [
        {"vectors": [x.tobytes(), messages.tensor(x[:5]), {**wrapped, "num_levels": 3}], "seed": 4},
        {
            "vectors": {"layer.0": {**wrapped, "bits": 1, "seed": 9}, "b": [1.0, 2.0, 4.0]},
            "method": "approx",
            "bins": 50,
            "block_size": 6,
        },
    ]


def batch_answers() -> Iterator[Seed]:
    """Answers for many vectors."""
    made = tuple(quantize(values(size), 2, seed=size) for size in (5, 9))
    for names in (None, ("layer.0", "b")):
        answer = batch.encode_batch(batch.QuantizedBatch(made, names))
        yield Seed.of(f"batch, {names}", b"".join(answer))


def vector_seeds() -> Iterator[Seed]:
    """Quantized vectors."""
    yield from golden("vector-*")
    yield Seed.of("by hand", packed(messages.quantized()))
    yield Seed.of("fresh", quantize(values(), 3, seed=5, block_size=7).to_bytes())
    yield Seed.of("level sets", quantize(values(), 3, "simba", 5, level_sets=2).to_bytes())
    for name in (name for name in registry.names() if name not in METHODS):
        yield Seed.of(name, quantize(values(), method=name, seed=5).to_bytes())


def sketch_seeds() -> dict[str, list[Seed]]:
    """A sketch of each type, its question and an answer."""
    made: dict[str, list[Seed]] = {"sketch": [], "undecided": [], "details": []}
    for dtype, cells in ((np.float32, 16), (np.float64, 8), (np.float32, 4096)):
        name = f"{np.dtype(dtype).name}, {cells} cells"
        made["sketch"].append(
            Seed.of(name, Sketch.from_vector(values(40).astype(dtype), cells).to_bytes())
        )
        # Of fewer values nothing is left to ask.
        x = values(2000).astype(dtype)
        question = Sketch.from_vector(x, cells).undecided(4)
        if question is None:
            raise ValueError(f"the sketch of {name} leaves nothing to ask")
        made["undecided"].append(Seed.of(name, question.to_bytes()))
        made["details"].append(Seed.of(name, question.of(x).to_bytes()))
    return made


JSON_SEEDS = (
    {"vector": [1.5, -2, 30.0, 0.25], "weights": [1, 0, 2, 1], "bits": 3, "method": "exact"},
    {"vector": [0.5] * 9, "num_levels": 5, "method": "approx", "bins": 10, "grid": "uniform"},
    {
        "vector": {"dtype": "float32", "shape": [2], "data": "AAAAAAAAgD8="},
        "block_size": 2,
        "seed": 12,
        "device": "cpu",
    },
    {"vectors": {"a": [1.0, 2.0], "b": {"vector": [1, 2, 3], "bits": 1}}, "seed": 3},
    {"vectors": [[0.5, 0.25], {"vector": [4.0], "method": "uniform"}], "num_levels": 3},
)

# Raw bodies: the query string, a zero byte, the values.
RAW_SEEDS = (
    b"bits=2&method=exact&seed=7\0" + values().tobytes(),
    b"num_levels=5&method=approx&bins=64&grid=uniform&block_size=4&device=cpu\0" + bytes(32),
    b"\0" + values(5).tobytes(),
)


def decode_raw(data: bytes) -> wire.QuantizeRequest:
    """A raw body with its query string before it."""
    head, _, body = data.partition(b"\0")
    pairs = [part.partition("=") for part in head.decode("latin-1").split("&") if part]
    return wire.quantize_request_from_raw(body, [(key, value) for key, _, value in pairs])


def targets() -> tuple[Target, ...]:
    """Every decoder of the wire."""
    requests = tuple(quantize_seeds())
    batches = tuple(Seed.of("many", packed(fields)) for fields in batch_fields())
    sketches = sketch_seeds()
    vectors = tuple(vector_seeds())
    json_seeds = tuple(
        Seed.of_json(f"json {number}", json.dumps(fields).encode())
        for number, fields in enumerate(JSON_SEEDS)
    )
    raw_seeds = tuple(Seed(f"raw {number}", data) for number, data in enumerate(RAW_SEEDS))
    aggregates = (
        *golden("request-aggregate"),
        Seed.of("nested and bin", packed(messages.aggregate_request())),
    )
    trees = (*golden("tree"), Seed.of("tree by hand", packed(messages.tree())))
    trees_requests = (
        *golden("request-aggregate-trees"),
        Seed.of("trees nested and bin", packed(messages.trees_request())),
    )
    levels = (*golden("request-levels"), Seed.of("all keys", packed(messages.levels_request())))
    answers = (*golden("answer-levels"), Seed.of("by hand", packed(messages.levels_answer())))
    tensors = (*golden("tensor"), Seed.of("levels", packed(messages.quantized()["levels"])))
    return (
        Target("quantize", wire.decode_quantize_request, check_quantize, requests),
        Target("quantize many", wire.decode_quantize_request, check_quantize, batches, 3),
        Target("quantize JSON", wire.decode_quantize_json, check_quantize, json_seeds),
        Target("quantize raw", decode_raw, check_quantize, raw_seeds, 2),
        Target("levels", wire.decode_levels_request, check_levels_request, levels, 2),
        Target("aggregate", wire.decode_aggregate_request, check_aggregate, aggregates),
        Target("trees", decode_aggregate_request, check_trees, trees_requests, 2),
        Target("tree", QuantizedTree.from_bytes, check_tree, trees, 4),
        Target("quantized vector", QuantizedVector.from_bytes, check_quantized, vectors, 6),
        Target("tensor", wire.decode_tensor, check_tensor, tensors, 2),
        Target(
            "answer for many", batch.decode_batch, check_batch_answer, tuple(batch_answers()), 2
        ),
        Target("levels answer", wire.decode_levels, check_levels, answers, 1),
        Target("sketch", Sketch.from_bytes, check_sketch, tuple(sketches["sketch"]), 1),
        Target("question", Undecided.from_bytes, check_undecided, tuple(sketches["undecided"]), 1),
        Target("details", Details.from_bytes, check_details, tuple(sketches["details"]), 1),
    )


# -- cases --------------------------------------------------------------------------------

STORMS = (
    b"\xdd\x00\x0f\x42\x40" + b"\x90" * 1_000_000,
    b"\xdd\x00\x0f\x42\x40" + b"\x80" * 1_000_000,
    b"\x81\xa6vector\xdd\x00\x0f\x42\x40" + b"\x01" * 1_000_000,
    b"\x81\xa7vectors\xdd\x00\x0f\x42\x40" + b"\x80" * 1_000_000,
    b"\x81\xa7vectors\xdc\x10\x00" + b"\x90" * 4096,
    b"\x81\xa7vectors\xdc\x10\x00" + b"\x9f" * 4096 + b"\x01" * 15 * 4096,
    b"\xdc\xff\xff" + b"\xa0" * 65_535,
    b"\x81\xa5shape\xdc\xff\x00" + b"\x01" * 65_280,
    b"[" + b"[]," * 300_000 + b"[]]",
    b'{"vector":[' + b"{}," * 300_000 + b"{}]}",
    b'{"vector":[' + b"0," * 500_000 + b"0]}",
    b"\xff" * 1_000_000,
)


@dataclass(frozen=True)
class Corpus:
    """All decoders, and which case goes to which."""

    targets: Sequence[Target]

    def case(self, seed: int, number: int) -> tuple[Target, bytes]:
        """The decoder and the message of one case."""
        rng = source(seed, number)
        [target] = rng.choices(self.targets, [target.weight for target in self.targets])
        if number % STORM_EVERY == STORM_EVERY - 1:
            return target, rng.choice(STORMS)
        return target, mutated(rng, rng.choice(target.seeds), self._other(rng, target))

    def _other(self, rng: random.Random, target: Target) -> Seed:
        # Mostly of its own kind, so that splices get far.
        return rng.choice(target.seeds if rng.random() < 0.8 else rng.choice(self.targets).seeds)


def run_case(target: Target, data: bytes) -> tuple[bool, str]:
    """Whether the message is accepted, else the code of its refusal.

    Raises
    ------
    Exception
        Whatever is no proper refusal.
    """
    try:
        value = target.decode(data)
    except QuiverError as error:
        same(error.code in ERROR_KINDS, f"unknown code {error.code!r}")
        same(0 < len(error.detail) <= LONGEST_DETAIL, f"detail of {len(error.detail)} characters")
        error.detail.encode()
        return False, error.code
    target.check(value, data)
    return True, ""


def fuzz(corpus: Corpus, cases: int, seed: int, first: int = 0) -> Report:
    """Run `cases` cases from number `first` on, in this thread, which must be the main one."""
    report = Report()
    # Once before the clock and the memory are read: code is compiled, tables are made.
    for target in corpus.targets:
        for valid in target.seeds:
            accepted, code = run_case(target, valid.data)
            if not accepted:
                raise ValueError(f"the seed {valid.name!r} of {target.name} is refused: {code}")
    watch = Watch.start()
    begun = time.perf_counter()
    with alarms(), warnings.catch_warnings():
        # A decoder that warns would raise where warnings are errors.
        warnings.simplefilter("error")
        for number in range(first, first + cases):
            _run_one(corpus, seed, number, report)
    report.seconds = time.perf_counter() - begun
    report.kept, report.peak = watch.kept(), watch.peak()
    return report


def _run_one(corpus: Corpus, seed: int, number: int, report: Report) -> None:
    target, data = corpus.case(seed, number)
    report.cases += 1
    problem, taken = _tried(target, data, report)
    if taken > LONGEST_SECONDS:
        # Again, less what it waits for a processor: a busy machine is no fault of the decoder's.
        before = waited()
        problem, taken = _tried(target, data, None, 10 * LONGEST_SECONDS)
        taken -= waited() - before
        if taken > LONGEST_SECONDS:
            problem = f"took {taken:.1f} s"
    report.slowest = max(report.slowest, taken)
    if problem:
        report.faults.append(Fault(f"{seed}:{number}", target.name, problem, data))


def _tried(
    target: Target, data: bytes, report: Report | None, longest: float = 2 * LONGEST_SECONDS
) -> tuple[str, float]:
    begun = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, longest)
    problem = ""
    try:
        accepted, code = run_case(target, data)
    except Hang:
        pass
    except Exception as error:  # noqa: BLE001 - anything else is what is looked for
        problem = f"{type(error).__name__}: {str(error)[:200]}"
    else:
        if report is not None and accepted:
            report.accepted[target.name] += 1
        elif report is not None:
            report.refused[code] += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return problem, time.perf_counter() - begun


@contextmanager
def alarms() -> Iterator[None]:
    """Turn the alarm of a case into `Hang`."""

    def ring(_: int, __: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
