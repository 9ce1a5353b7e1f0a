"""ECTCQ under the contract."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import finite_range
from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype, wire_name
from quiver_kernels.errors import InvalidInput
from quiver_kernels.schemes import entropy
from quiver_kernels.schemes.contract import Choice, Coded, Encoded, Parameter, Promises
from quiver_kernels.schemes.ectcq import coding
from quiver_kernels.schemes.ectcq.alphabet import Alphabet
from quiver_kernels.schemes.ectcq.model import sample_of, train
from quiver_kernels.schemes.ectcq.search import step_for
from quiver_kernels.schemes.trellis import machine as trellis
from quiver_kernels.schemes.trellis import paths
from quiver_kernels.stopping import checkpoint, slices

_MIN_STEP, _MAX_STEP = 2.0**-10, 64.0
# No code is larger, whatever the outliers: the step is at least the largest value times this.
_LEAST = 2.0**-24
# Of a Gaussian vector the step for b bits is about 2^(this - b) standard deviations.
_START = 0.9
_TINY, _MOST = 5e-324, 1.7e308
# Bits a value by which the coder is above the entropy.
_LOST = 0.005
# A step that leaves nothing but zeros.
_ALL = 8.0
_TRIES = 16


@dataclass(frozen=True, slots=True)
class Ectcq:
    """Multiples of a step, chosen along a trellis for least error and bits, entropy-coded."""

    @property
    def name(self) -> str:
        """``ectcq``."""
        return "ectcq"

    @property
    def summary(self) -> str:
        """One line for lists."""
        return "trellis-coded multiples of a step, entropy-coded: near the rate-distortion bound"

    @property
    def source(self) -> str:
        """Where it is from."""
        return (
            "Entropy-constrained trellis-coded quantization, Fischer and Wang 1992; dependent "
            "quantization as in ISO/IEC 15938-17; rANS, Duda 2013"
        )

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Step, multiplier, trellis."""
        return (
            Parameter(
                "step",
                "half the distance of a quantizer's points, in root mean squares of the vector "
                f"({_MIN_STEP:g} at least); 0: so that a value takes log2(num_levels) bits at most",
                0.0,
                low=0.0,
                high=_MAX_STEP,
            ),
            Parameter(
                "multiplier",
                "squared steps of error that a bit is worth; 0: least error for the step",
                0.6,
                low=0.0,
                high=8.0,
            ),
            trellis.parameter(),
        )

    @property
    def level_counts(self) -> tuple[int, ...]:
        """Whole bits a value."""
        return tuple(1 << bits for bits in range(1, 9))

    @property
    def default_levels(self) -> int:
        """3 bits a value."""
        return 8

    @property
    def side_information(self) -> str:
        """In words."""
        return (
            "float64 step, 2 uint16 (range of the symbols), bits of rare large codes; in the "
            "codes: two tables of frequencies, 6 bytes for each chunk"
        )

    @property
    def rounding(self) -> str:
        """Along a trellis."""
        return "Viterbi"

    def promises(self, choice: Choice) -> Promises:
        """A contraction where bits do not count and some value is above a step."""
        contraction = choice.parameters["multiplier"] == 0 and 0 < _number(choice, "step") < 1
        return Promises(contraction=contraction, deterministic=True)

    def message_bits(self, choice: Choice, size: int) -> float:
        """An upper bound: the bits asked for, tables, and what each chunk takes."""
        step = _number(choice, "step")
        fixed = 8 * (_overhead(choice.block_size, size) + 8 + 4)
        if step == 0:
            return choice.bits * size + fixed
        # No distribution of this mean square has a greater entropy than the normal one; classes
        # and chunks cost a little more.
        return (max(0.0, -math.log2(step)) + 4) * size + fixed

    def working_bytes(self, choice: Choice, size: int) -> int:  # noqa: ARG002
        """Codes, symbols and words of all values; costs of parts."""
        return 16 * size + (1 << 25)

    def encode(self, x: NDArray[Any], choice: Choice, seed: int) -> Encoded:  # noqa: ARG002
        """Encode along the path of least cost."""
        relative, multiplier = _number(choice, "step"), _number(choice, "multiplier")
        if 0 < relative < _MIN_STEP:
            raise InvalidInput(
                f"parameters.step must be 0 or at least {_MIN_STEP:g}; got {relative:g}",
                code="invalid_option",
                field="parameters.step",
            )
        bounds = finite_range(x)
        top = max(abs(bounds.low), abs(bounds.high))
        none = np.empty(0, levels_dtype(wire_name(x.dtype)))
        machine, chunk = _machine(choice), chunk_of(choice.block_size)
        if top == 0:
            coded = coding.zeros(x.size, chunk, machine)
            return Encoded(none, coded.stream, coded.side(), 0.0)
        scale = _root_mean_square(x, bounds.unit)
        least = max(_LEAST * top, _TINY)
        sample = sample_of(x)
        if relative:
            step = min(max(relative * scale, least), _MOST)
            model = train(sample, step, multiplier, machine)
            coded = coding.code(x, step, model, multiplier, chunk, machine)
        else:
            coded = _within(x, sample, choice, scale, least, top)
        error, norm = coding.errors(x, coded, chunk, machine, bounds.unit)
        return Encoded(none, coded.stream, coded.side(), error / norm)

    def check(self, q: Coded) -> None:
        """Refuse parts that do not fit."""
        _opened(q)

    def decode(self, q: Coded) -> NDArray[Any]:
        """The decoded vector, flat."""
        stream, alphabet, step = _opened(q)
        machine = _machine(q.choice)
        return coding.decode(
            stream, alphabet, step, q.side["further"], machine, WIRE_DTYPES[q.dtype]
        )

    def warm_up(self) -> None:
        """Compile the kernels."""
        paths.warm_up()
        entropy.warm_up()
        coding.warm_up()


def chunk_of(block_size: int | None) -> int:
    """Values after which trellis and coder begin anew."""
    return entropy.CHUNK if block_size is None else min(block_size, entropy.MAX_CHUNK)


def _within(
    x: NDArray[Any],
    sample: NDArray[np.float64],
    choice: Choice,
    scale: float,
    least: float,
    top: float,
) -> coding.Written:
    """Codes of at most as many bits as were asked for, not counting tables and chunks."""
    machine, chunk = _machine(choice), chunk_of(choice.block_size)
    multiplier = _number(choice, "multiplier")
    start = scale * math.exp2(_START - choice.bits)
    step, model = step_for(sample, start, least, choice.bits - _LOST, multiplier, machine)
    allowed = choice.bits * x.size // 8 + _overhead(choice.block_size, x.size)
    for tried in range(_TRIES):
        checkpoint()
        coded = coding.code(x, step, model, multiplier, chunk, machine)
        if coded.nbytes <= allowed:
            return coded
        excess = 8 * (coded.nbytes - allowed) / x.size
        step = min(step * math.exp2(excess + 0.01 * 2**tried), _MOST)
        model = train(sample, step, multiplier, machine)
    return coding.code(x, min(_ALL * top, _MOST), model, 0.0, chunk, machine)


def _overhead(block_size: int | None, size: int) -> int:
    """Bytes of tables and chunks, at most; of a short vector, tables hold what occurs in it."""
    chunk = chunk_of(block_size)
    return 8 + 2 * 3 * Alphabet.most(size) + 8 * -(-size // chunk)


def _opened(q: Coded) -> tuple[entropy.Stream, Alphabet, float]:
    if q.levels.size:
        raise InvalidInput(
            f"levels must be empty for method ectcq; got {q.levels.size}",
            code="size_mismatch",
            field="levels",
        )
    step, alphabet = coding.read_side(q.side, q.size)
    machine = _machine(q.choice)
    stream = entropy.open_stream(q.codes, q.size, alphabet.walk(machine))
    if stream.chunk != chunk_of(q.block_size):
        raise InvalidInput(
            f"codes must have chunks of {chunk_of(q.block_size)} values; got {stream.chunk}",
            code="invalid_codes",
            field="codes",
        )
    return stream, alphabet, step


def _machine(choice: Choice) -> trellis.Machine:
    return trellis.MACHINES[str(choice.parameters["trellis"])]


def _number(choice: Choice, name: str) -> float:
    return float(choice.parameters[name])


def _root_mean_square(x: NDArray[Any], unit: float) -> float:
    parts = [x[part].astype(np.float64) * unit for part in slices(x.size)]
    return math.sqrt(math.fsum(float(np.square(part).sum()) for part in parts) / x.size) / unit
