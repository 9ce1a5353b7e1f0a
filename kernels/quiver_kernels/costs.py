"""What a computation costs on the CPU and on a GPU: lines fitted to measured times.

The time of an operation on ``n`` values is taken as ``fixed + n * per_value``, for each operation
and size of a value; copies between host and device as ``fixed + bytes * per_byte``. `calibration`
measures them. The choice that follows changes times only: every device gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quiver_kernels.options import GIVEN, QuantizeOptions

CPU, GPU = "cpu", "gpu"
OPERATIONS = ("uniform", "approx", "exact", "blocks", "tables", "decode", "mean")
"""What is measured.

Quantizing a vector with levels of a kind, or with many tables, for blocks or for many vectors, that
have equal steps (``blocks``) or are searched for (``tables``); decoding; averaging.
"""

# To leave the device in use, the other must promise to be cheaper by this share.
HYSTERESIS = 0.2
# Shorter vectors stay with the CPU: they are computed where waiting for a lane would keep others
# from being served, and launches alone cost as much as they do.
LEAST_VALUES = 1 << 15
# Copies of a vector that a sort or a wide table keeps on the device beside the vector.
_COPIES = {"exact": 4}
_USUAL_COPIES = 2
_DEFAULT_BITS = 4
# Longest row whose table a device searches for among its values, about, and longest vector that
# shares a launch with others.
_SEARCHED_ROW = 1 << 10
_SHARED_ROW = 1 << 16


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds that grow with a number of values, or of bytes.

    Attributes
    ----------
    fixed
        Seconds of a call, however little it does.
    each
        Seconds for each value, or byte.
    """

    fixed: float
    each: float

    def __call__(self, n: float) -> float:
        """Seconds for `n` values or bytes."""
        return self.fixed + self.each * n

    @classmethod
    def through(cls, points: Sequence[tuple[int, float]]) -> Line:
        """The line with the least relative errors, neither part below 0. O(points).

        Parameters
        ----------
        points
            Numbers of values, above 0, and seconds, above 0; at least one.
        """
        # Weighted least squares: residuals are shares of the measured time.
        weights = [1.0 / (t * t) for _, t in points]
        total = math.fsum(weights)
        mean_n = math.fsum(w * n for w, (n, _) in zip(weights, points, strict=True)) / total
        mean_t = math.fsum(w * t for w, (_, t) in zip(weights, points, strict=True)) / total
        spread = math.fsum(w * (n - mean_n) ** 2 for w, (n, _) in zip(weights, points, strict=True))
        if spread == 0.0:
            return cls(mean_t, 0.0)
        each = (
            math.fsum(
                w * (n - mean_n) * (t - mean_t) for w, (n, t) in zip(weights, points, strict=True)
            )
            / spread
        )
        if each < 0.0:
            return cls(mean_t, 0.0)
        fixed = mean_t - each * mean_n
        if fixed >= 0.0:
            return cls(fixed, each)
        return cls(
            0.0,
            math.fsum(w * n * t for w, (n, t) in zip(weights, points, strict=True))
            / math.fsum(w * n * n for w, (n, _) in zip(weights, points, strict=True)),
        )


@dataclass(frozen=True, slots=True)
class Work:
    """One computation, as far as its cost depends on it.

    Attributes
    ----------
    operation
        One of `OPERATIONS`, or None for what only the CPU computes.
    itemsize
        Bytes of a value: 2, 4 or 8.
    values
        Values, of all vectors together.
    bytes_in, bytes_out
        What is copied to a device and back if the data are in host memory.
    on_device
        Whether the data are in the memory of a device.
    """

    operation: str | None
    itemsize: int
    values: int
    bytes_in: int
    bytes_out: int
    on_device: bool = False

    @classmethod
    def of_quantize(
        cls,
        values: int,
        itemsize: int,
        options: QuantizeOptions,
        *,
        weighted: bool = False,
        on_device: bool = False,
    ) -> Work:
        """Levels and codes of a vector."""
        return cls(
            None if weighted else _kind_of(options, values),
            itemsize,
            values,
            values * itemsize,
            -(-values * options.bits // 8),
            on_device,
        )

    @classmethod
    def of_many(cls, each: Sequence[Work]) -> Work:
        """Levels and codes of many vectors together, at least one."""
        return cls(
            _kind_of_many(each),
            max(work.itemsize for work in each),
            sum(work.values for work in each),
            sum(work.bytes_in for work in each),
            sum(work.bytes_out for work in each),
        )

    @classmethod
    def of_decode(cls, values: int, itemsize: int, code_bytes: int) -> Work:
        """The values of packed codes."""
        return cls("decode", itemsize, values, code_bytes, values * itemsize)

    @classmethod
    def of_mean(cls, values: int, vectors: int, itemsize: int, code_bytes: int) -> Work:
        """The mean of several vectors of `values` values each; `code_bytes` of all together."""
        return cls("mean", itemsize, values * vectors, code_bytes, 8 * values)

    @property
    def device_bytes(self) -> int:
        """Memory that a device needs for it, from above: the data, what comes out, copies."""
        copies = _COPIES.get(self.operation or "", _USUAL_COPIES)
        # A table may want the values as float64.
        return self.bytes_in + self.bytes_out + copies * 8 * self.values


# A table that was given takes a range and codes, as equal steps do. What is not here, the CPU does.
_KINDS = {
    "uniform": "uniform",
    GIVEN: "uniform",
    "approx": "approx",
    "exact": "exact",
    "accelerated": "exact",
}


def _kind_of(options: QuantizeOptions, values: int) -> str | None:
    # Wrappers are the CPU's, around what a device does.
    kind = None if options.is_wrapped else _KINDS.get(options.method)
    if kind is None or options.block_size is None:
        return kind
    if kind == "uniform":
        return "blocks"
    on_grid = options.method == "approx" and options.grid == "uniform"
    short = min(options.block_size, values) <= _SEARCHED_ROW
    return "tables" if on_grid or short else None


def _kind_of_many(each: Sequence[Work]) -> str | None:
    kinds = {work.operation for work in each}
    longest = max(each, key=lambda work: work.values)
    if None in kinds or longest.values > _SHARED_ROW:
        return None if None in kinds else longest.operation
    if kinds <= {"uniform", "blocks"}:
        return "blocks"
    searched = [work for work in each if work.operation in ("exact", "approx")]
    return "tables" if all(work.values <= _SEARCHED_ROW for work in searched) else None


Lines = Mapping[str, Mapping[int, Line]]
"""By operation and bytes of a value."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """Measured costs of the CPU and of a GPU.

    Attributes
    ----------
    cpu, gpu
        Seconds by number of values; those of the GPU without copies.
    upload, download
        Seconds by number of bytes, between pageable host memory and the device.
    seconds
        What measuring took.
    """

    cpu: Lines
    gpu: Lines
    upload: Line
    download: Line
    seconds: float = field(default=0.0, compare=False)

    def cost(self, device: str, work: Work) -> float | None:
        """Seconds that `work` takes on ``cpu`` or ``gpu``; None if that was not measured."""
        line = (self.cpu if device == CPU else self.gpu).get(work.operation or "", {})
        found = line.get(work.itemsize)
        if found is None:
            return None
        seconds = found(work.values)
        if device == GPU and not work.on_device:
            seconds += self.upload(work.bytes_in) + self.download(work.bytes_out)
        return seconds

    def choose(self, work: Work, *, waiting: float = 0.0, now: str = CPU) -> str:
        """The device for `work`: ``cpu`` or ``gpu``.

        Parameters
        ----------
        work
            On the device already: that is the choice.
        waiting
            Seconds until a lane of the GPU is free.
        now
            The device that such work went to before. The other is chosen if it is cheaper by more
            than `HYSTERESIS`.
        """
        if work.on_device:
            return GPU
        if work.values < LEAST_VALUES:
            return CPU
        cpu, gpu = self.cost(CPU, work), self.cost(GPU, work)
        if cpu is None or gpu is None:
            return CPU
        gpu += waiting
        if now == GPU:
            return CPU if cpu < (1.0 - HYSTERESIS) * gpu else GPU
        return GPU if gpu < (1.0 - HYSTERESIS) * cpu else CPU

    def break_even(self, operation: str, itemsize: int, bits: int = _DEFAULT_BITS) -> int | None:
        """Fewest values in host memory that an idle GPU is chosen for; None: no number of them.

        Parameters
        ----------
        operation, itemsize
            As of `Work`.
        bits
            Of a code.
        """
        cpu, gpu = (lines.get(operation, {}).get(itemsize) for lines in (self.cpu, self.gpu))
        if cpu is None or gpu is None:
            return None
        code, value = bits / 8, float(itemsize)
        come, go = {"decode": (code, value), "mean": (code, 8.0)}.get(operation, (value, code))
        fixed = gpu.fixed + self.upload.fixed + self.download.fixed
        each = gpu.each + self.upload.each * come + self.download.each * go
        return _crossing(Line(fixed, each), cpu)

    def describe(self) -> dict[str, object]:
        """Costs in microseconds and nanoseconds, and break-even sizes; for people and JSON."""
        return {
            "hysteresis": HYSTERESIS,
            "least_values": LEAST_VALUES,
            "measured_in_seconds": round(self.seconds, 3),
            "upload": _copy(self.upload),
            "download": _copy(self.download),
            "costs": [
                {
                    "operation": operation,
                    "itemsize": itemsize,
                    "cpu": _compute(self.cpu[operation][itemsize]),
                    "gpu": _compute(gpu),
                    "break_even": self.break_even(operation, itemsize),
                }
                for operation, lines in self.gpu.items()
                for itemsize, gpu in lines.items()
                if itemsize in self.cpu.get(operation, {})
            ],
        }


def _crossing(gpu: Line, cpu: Line) -> int | None:
    """Least n from `LEAST_VALUES` on at which `gpu` is cheaper by more than the hysteresis."""
    keep = 1.0 - HYSTERESIS
    if gpu(LEAST_VALUES) < keep * cpu(LEAST_VALUES):
        return LEAST_VALUES
    each = keep * cpu.each - gpu.each
    return math.floor((gpu.fixed - keep * cpu.fixed) / each) + 1 if each > 0 else None


def _compute(line: Line) -> dict[str, float]:
    return {"fixed_us": round(1e6 * line.fixed, 3), "ns_per_value": round(1e9 * line.each, 5)}


def _copy(line: Line) -> dict[str, float]:
    return {"fixed_us": round(1e6 * line.fixed, 3), "ns_per_byte": round(1e9 * line.each, 5)}
