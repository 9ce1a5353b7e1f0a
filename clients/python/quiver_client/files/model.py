"""From a file of arrays to a ``.qvr`` file: some chunks at a time, and on from where it stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from quiver_client.errors import Invalid, QuiverClientError
from quiver_client.files.source import Entry, Source
from quiver_client.ps.policy import Policy, Rule
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.qvr import Place, Places, Tensor, chunk_seed
from quiver_kernels.sharing import processors, threads

MOST_JOBS: Final = 2
"""Chunks worked on at a time where nobody says how many: each takes memory."""

Content = QuantizedVector | NDArray[Any]


class Quantizes(Protocol):
    """`Client` and `LocalClient`."""

    @property
    def quantize(self) -> Callable[..., QuantizedVector]:
        """As `Client.quantize`."""
        ...


class Takes(Protocol):
    """`quiver_kernels.qvr.Writer` and `StreamWriter`."""

    def remaining(self) -> Iterator[Place]:
        """Chunks that are still to be written."""
        ...

    def write(self, content: Content) -> int:
        """Append the next one."""
        ...


@dataclass(frozen=True, slots=True)
class Work:
    """How the chunks of a file are made.

    Attributes
    ----------
    policy
        Which arrays are quantized, and how. `outliers` and ``small="pack"`` are for trees.
    entropy
        Whether codes are entropy coded where that makes them shorter.
    device
        As for `Client.quantize`.
    seed
        Of the file.
    """

    policy: Policy
    seed: int
    entropy: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what a ``.qvr`` file does not have."""
        rules = [self.policy.outliers]
        rules += [given.get("outliers", 0) for given in self.policy.overrides.values()]
        if any(rules):
            raise Invalid(
                "outliers must be 0: exact outliers are for trees, a .qvr file has none",
                code="invalid_option",
                field="outliers",
            )
        if self.policy.small != "raw":
            raise Invalid(
                f"small must be raw: every tensor has chunks of its own; got {self.policy.small}",
                code="invalid_option",
                field="small",
            )

    def tensor(self, entry: Entry) -> Tensor:
        """What the header says of an array."""
        rule = self.rule(entry)
        settings = {} if rule.raw else self._settings(rule)
        chunk = self.policy.chunk_values
        return Tensor(entry.name, entry.dtype, entry.shape, not rule.raw, chunk, settings)

    def rule(self, entry: Entry) -> Rule:
        """How an array is stored: those of other than floating types, and empty ones, raw."""
        if entry.dtype not in WIRE_DTYPES or not entry.size:
            return Rule(raw=True)
        return self.policy.rule(entry.name, entry.size)

    def chunk(self, client: Quantizes, entry: Entry, place: Place, values: NDArray[Any]) -> Content:
        """One chunk: quantized, or as it is.

        Raises
        ------
        QuiverClientError
            It cannot be quantized; the text names the array and the values.
        """
        rule = self.rule(entry)
        if rule.raw:
            return values
        seed = chunk_seed(self.seed, place.tensor, place.first)
        try:
            return client.quantize(values, seed=seed, device=self.device, **self._settings(rule))
        except QuiverClientError as error:
            if error.code == "non_finite" and self.policy.non_finite == "raw":
                return values
            where = f"tensor {entry.name!r:.100}, values {place.first} to {place.stop}"
            error.detail = f"{where}: {error.detail}"
            raise

    def _settings(self, rule: Rule) -> dict[str, Any]:
        given: dict[str, Any] = {"bits": rule.bits, "method": rule.method}
        if rule.block_size is not None:
            given["block_size"] = rule.block_size
        if self.entropy:
            given["entropy"] = True
        return given


def write_chunks(
    source: Source,
    writer: Takes,
    work: Work,
    client: Quantizes,
    *,
    jobs: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
    moved: Callable[[int], None] = lambda _: None,
) -> bool:
    """Make and write the chunks that are missing.

    Parameters
    ----------
    source, writer
        Where values come from, and where chunks go; the writer's header has `Work.tensor` of the
        source's arrays.
    work, client
        How chunks are made, and by whom.
    jobs
        Chunks that are worked on at a time; None: as many as there are processors, at most
        `MOST_JOBS`, which share all processors. They change nothing but time and memory.
    stopped
        Asked before every chunk: whether to end early, with what is begun written.
    moved
        Told the bytes of values that were written.

    Returns
    -------
    bool
        Whether all chunks are there.

    Raises
    ------
    QuiverClientError
        A chunk cannot be made; all before it are written.

    Notes
    -----
    Memory: `jobs` + 1 chunks with what the kernels need for them, however long the file is.
    """
    count = min(processors(), MOST_JOBS) if jobs is None else jobs
    helpers = max(processors() // count, 1)

    def make(place: Place, values: NDArray[Any]) -> Content:
        with threads(helpers):
            return work.chunk(client, source.entries[place.tensor], place, values)

    waiting: deque[tuple[Future[Content], int]] = deque()

    def write_first() -> None:
        future, size = waiting.popleft()
        writer.write(future.result())
        moved(size)

    # A list of numbers, for the writer goes on while they are read.
    places = iter(list(writer.remaining()))
    complete = True
    with ThreadPoolExecutor(count) as executor:
        try:
            for place in places:
                if stopped():
                    complete = False
                    break
                values = source.read(place.tensor, place.first, place.stop)
                waiting.append((executor.submit(make, place, values), values.nbytes))
                del values
                if len(waiting) > count:
                    write_first()
            while waiting:
                write_first()
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise
    return complete


def nbytes_of(tensors: tuple[Tensor, ...], places: Places, written: int) -> int:
    """Bytes of the values in the first `written` chunks."""
    first = (places[number] for number in range(written))
    return sum(place.count * tensors[place.tensor].numpy_dtype.itemsize for place in first)
