"""The blocking client."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, overload

from numpy.typing import ArrayLike, NDArray

from quiver_client import _core
from quiver_client._cancellation import Cancellation
from quiver_client._many import Many, PerVector, Result, Wanted
from quiver_client._retry import RetryBudget, RetryPolicy
from quiver_client._session import Session
from quiver_client._target import Target
from quiver_client._tls import StrPath, encryption
from quiver_client._transport import Transport
from quiver_client.errors import ConnectionFailed, TimedOut, Unavailable
from quiver_kernels.framing import Buffer
from quiver_kernels.options import (
    DEFAULT_BINS,
    DEFAULT_GRID,
    DEFAULT_LEVEL_SETS,
    METHODS,
    QuantizeOptions,
)
from quiver_kernels.planning import ALL_BITS, BitPlan
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes.normed.statistics import Statistics
from quiver_kernels.sketch import Sketch
from quiver_kernels.tree import QuantizedTree
from quiver_kernels.treerequest import DEFAULT_MIN_SIZE
from quiver_kernels.wire import LevelsResult

DEFAULT_TIMEOUT = 180.0
READY_TIMEOUT = 5.0


class Client:
    """A client of one service; safe to share between threads.

    Parameters
    ----------
    url
        ``http://host:port``, ``https://host`` or ``http+unix:///path/to.sock``; a path is
        put before every route.
    api_key
        Sent as bearer token.
    timeout
        Seconds for a whole call: all attempts and the pauses between them.
    connect_timeout
        Seconds to establish a connection.
    retry
        How persistent to be.
    ca_file
        For ``https``: file of the authorities (PEM) that may have signed the service's
        certificate; None: those the system trusts.
    client_cert
        For ``https``: certificate (PEM) to show to a service that asks for one; one file
        with its key, or a pair (certificate, key).
    ssl_context
        For ``https``: everything else, in place of the two above.

    Raises
    ------
    InvalidURL
        The URL names no service.
    Invalid
        The key cannot be sent in a header, or a certificate cannot be used.

    Notes
    -----
    Every request carries a seed, drawn here if the caller gives none. A request that is
    sent again therefore gives the same bits.

    Proxy settings of the environment are not read.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        connect_timeout: float = 5.0,
        retry: RetryPolicy | None = None,
        ca_file: StrPath | None = None,
        client_cert: StrPath | tuple[StrPath, StrPath] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        policy = retry or RetryPolicy()
        self._session = Session(
            transport=Transport(
                Target.parse(url),
                connect_timeout=connect_timeout,
                ssl_context=encryption(ssl_context, ca_file, client_cert),
            ),
            budget=RetryBudget(policy),
            headers=_core.key_headers(api_key),
            timeout=timeout,
            policy=policy,
        )

    @classmethod
    def _of(cls, session: Session) -> Self:
        client = cls.__new__(cls)
        client._session = session
        return client

    def _cancelled_by(self, cancellation: Cancellation) -> Self:
        return self._of(self._session.cancelled_by(cancellation))

    def quantize(
        self,
        x: ArrayLike,
        bits: int | None = None,
        method: str = "exact",
        seed: int | None = None,
        *,
        num_levels: int | None = None,
        weights: ArrayLike | None = None,
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        level_sets: int = DEFAULT_LEVEL_SETS,
        block_size: int | None = None,
        device: str = "auto",
        world_size: int | None = None,
        rank: int | None = None,
        shared_seed: int | None = None,
        levels: ArrayLike | None = None,
        parameters: Mapping[str, object] | None = None,
        outliers: float | None = None,
        entropy: bool = False,
        feedback_scale: bool = False,
    ) -> QuantizedVector:
        """Quantize `x`: choose levels, round every value without bias, pack the codes.

        Parameters
        ----------
        x
            Values, any shape; float16, bfloat16, float32 or float64 (integers and lists
            become float64). Finite, at least one, at most 4 GiB. Sent without a copy if
            contiguous.
        bits
            Bits per value, 1..8 (default 4); or give `num_levels`.
        method
            ``exact``, ``accelerated``, ``approx``, ``uniform`` or ``simba``; see
            `quiver_kernels.optimal_levels`. Or another scheme that the service's `info` lists.
        seed
            Key of the random numbers, unsigned 64-bit; drawn when None. The same (x,
            options, seed) gives the same codes, here, on any service or in local mode.
        num_levels
            Levels per table, 2..256, instead of `bits`.
        weights
            Non-negative importance of each value, shape of `x`.
        bins
            Cells of the grid of ``approx``, 2..65536.
        grid
            Candidates of ``approx``: ``robust`` (the default) or ``uniform``; see
            `quiver_kernels.optimal_levels`.
        level_sets
            Sets of levels of ``simba``, 2..8.
        block_size
            Values that share a table; None: all.
        device
            ``auto``, ``cpu`` or ``gpu``.
        world_size, rank, shared_seed
            For workers whose vectors will be averaged: how many they are (1..65536), which of them
            this is (0..world_size - 1) and a seed that all of them have, unsigned 64-bit, a new
            one for every average. Their errors then cancel in part (`quiver_kernels.strata`); each
            vector alone is rounded as well as ever. All or None; `seed` stays each worker's own.
        levels
            Encode with this very table instead of choosing one: ascending, 2..256 float32 or
            float64 numbers that are values of the type of `x` and bracket all of `x`. Excludes
            `bits`, `num_levels`, `method`, `weights` and `block_size`; the method of the result
            is ``given``.
        parameters
            Of another scheme that `method` names (docs/schemes.md), by name.
        outliers
            Keep values beyond the quantiles 1 - a and a of the vector exactly, and quantize the
            others among them: the share a, from 0.5 to below 1, such as 0.99. None: none is kept.
        entropy
            Entropy code the codes, where that makes the message shorter.
        feedback_scale
            Divide what methods without bias decode to by 1 + omega, omega their expected error
            over the squared norm, so that error feedback converges.

        Returns
        -------
        QuantizedVector
            Self-contained; levels and codes share the memory of the received message.

        Raises
        ------
        Invalid
            An option or a value cannot be served; no such device.
        QuiverClientError
            No answer, or a refusal: see `quiver_client.errors`.
        """
        options = _core.create_options(
            bits=bits,
            num_levels=num_levels,
            method=method,
            bins=bins,
            grid=grid,
            level_sets=level_sets,
            block_size=block_size,
            seed=seed,
            device=device,
            world_size=world_size,
            rank=rank,
            shared_seed=shared_seed,
            levels=levels,
            parameters=parameters,
            outliers=outliers,
            entropy=entropy,
            feedback_scale=feedback_scale,
        )
        return self._session.perform(_core.quantize(x, weights, options))

    @overload
    def quantize_many(
        self,
        vectors: Sequence[ArrayLike],
        bits: int | None = None,
        method: str = "exact",
        seed: int | None = None,
        *,
        num_levels: int | None = None,
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        level_sets: int = DEFAULT_LEVEL_SETS,
        block_size: int | None = None,
        device: str = "auto",
        world_size: int | None = None,
        rank: int | None = None,
        shared_seed: int | None = None,
        levels: ArrayLike | None = None,
        parameters: Mapping[str, object] | None = None,
        outliers: float | None = None,
        entropy: bool = False,
        feedback_scale: bool = False,
        per_vector: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> list[QuantizedVector]: ...

    @overload
    def quantize_many(
        self,
        vectors: Mapping[str, ArrayLike],
        bits: int | None = None,
        method: str = "exact",
        seed: int | None = None,
        *,
        num_levels: int | None = None,
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        level_sets: int = DEFAULT_LEVEL_SETS,
        block_size: int | None = None,
        device: str = "auto",
        world_size: int | None = None,
        rank: int | None = None,
        shared_seed: int | None = None,
        levels: ArrayLike | None = None,
        parameters: Mapping[str, object] | None = None,
        outliers: float | None = None,
        entropy: bool = False,
        feedback_scale: bool = False,
        per_vector: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, QuantizedVector]: ...

    def quantize_many(
        self,
        vectors: Many,
        bits: int | None = None,
        method: str = "exact",
        seed: int | None = None,
        *,
        num_levels: int | None = None,
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        level_sets: int = DEFAULT_LEVEL_SETS,
        block_size: int | None = None,
        device: str = "auto",
        world_size: int | None = None,
        rank: int | None = None,
        shared_seed: int | None = None,
        levels: ArrayLike | None = None,
        parameters: Mapping[str, object] | None = None,
        outliers: float | None = None,
        entropy: bool = False,
        feedback_scale: bool = False,
        per_vector: PerVector | None = None,
    ) -> Result:
        """Quantize many vectors in one request, or in a few if they are many or large.

        What each would be alone, sooner: for small vectors most of a call's time is the request.

        Parameters
        ----------
        vectors
            Arrays as for `quantize`, in a sequence; or a mapping of them by name, e.g. a
            model's tensors. A name has at most 256 bytes.
        bits, method, num_levels, bins, grid, level_sets, block_size, device, world_size, rank
            As for `quantize`, for every vector.
        levels, parameters, outliers, entropy, feedback_scale
            As for `quantize`, for every vector.
        seed, shared_seed
            Each vector has a seed of its own, derived from this one and its position, so that
            their errors are independent; drawn when None. `QuantizedVector.seed` tells it.
        per_vector
            Options of single vectors, by position or name, in place of those for all: any of
            the above and ``weights``. A ``seed`` given here is used as it is.

        Returns
        -------
        list or dict of QuantizedVector
            In the order of `vectors`; a dict if they have names. They share the memory of the
            received message: keep ``QuantizedVector.from_bytes(q.to_bytes())`` to keep one.

        Raises
        ------
        Invalid, QuiverClientError
            As for `quantize`; `field` says which vector: ``vectors[3].bits``. It is all or
            nothing: one refusal refuses all. `timeout` is for all requests together.
        """
        wanted = Wanted.of(
            vectors,
            per_vector,
            bits=bits,
            num_levels=num_levels,
            method=method,
            bins=bins,
            grid=grid,
            level_sets=level_sets,
            block_size=block_size,
            seed=seed,
            device=device,
            world_size=world_size,
            rank=rank,
            shared_seed=shared_seed,
            levels=levels,
            parameters=parameters,
            outliers=outliers,
            entropy=entropy,
            feedback_scale=feedback_scale,
        )
        found = self._session.perform_all(wanted.calls())
        return wanted.result([q for vectors in found for q in vectors])

    def levels_from_sketches(
        self,
        sketches: Sequence[Sketch | Buffer],
        num_levels: int = 16,
        granularity: int | Literal["auto"] | None = None,
    ) -> LevelsResult:
        """One level table for the vectors of many holders, from their sketches.

        The service sees sums over cells, never the vectors.

        Parameters
        ----------
        sketches
            `quiver_kernels.Sketch` objects or their messages, 1..4096; of one type and one
            number of cells.
        num_levels
            Levels, 2..256.
        granularity
            None: the best levels among the ends of the merged sketch's cells. 2..65536, or
            ``auto``: levels on an integer grid, whose codes add up without decoding
            (`quiver_kernels.IntegerSum`); see `quiver_kernels.grid_levels`.

        Returns
        -------
        LevelsResult
            The table, for ``levels=`` of `quantize`. The errors are upper bounds, since a sketch
            does not hold sums of squares; too high by little (docs/shared-levels.md).

        Raises
        ------
        Invalid, QuiverClientError
            As for `quantize`; `field` says which sketch: ``sketches[3].rows``.
        """
        return self._session.perform(_core.levels_from_sketches(sketches, num_levels, granularity))

    def levels_from_statistics(
        self,
        statistics: Statistics,
        num_levels: int = 16,
        method: str = "alq",
        parameters: Mapping[str, object] | None = None,
    ) -> LevelsResult:
        """One table for the vectors of many workers, from statistics of their blocks.

        The service sees three numbers for each block, never the vectors; a refresh takes it
        less than a millisecond.

        Parameters
        ----------
        statistics
            Mean and variance of the values of each block over its norm, and the norm: of one
            worker (`quiver_kernels.block_statistics`), or of many, one after the other.
        num_levels
            Levels, 3..256; powers of two for ``amq``.
        method
            ``alq`` or ``amq``.
        parameters
            Of the method, as for `quantize`.

        Returns
        -------
        LevelsResult
            Levels from -1 to 1, for ``levels=`` of `quantize` by the same method. The errors are
            those of the model that was fitted.

        Raises
        ------
        Invalid, QuiverClientError
            As for `quantize`.
        """
        return self._session.perform(
            _core.levels_from_statistics(statistics, num_levels, method, parameters)
        )

    def dequantize(self, q: QuantizedVector) -> NDArray[Any]:
        """The decoded vector, in the shape and dtype of the original.

        Raises
        ------
        Invalid
            A code points beyond the level table.
        QuiverClientError
            No answer, or a refusal.
        """
        return self._session.perform(_core.dequantize(q))

    def optimal_levels(
        self,
        x: ArrayLike,
        num_levels: int = 16,
        method: str = "exact",
        weights: ArrayLike | None = None,
        *,
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        level_sets: int = DEFAULT_LEVEL_SETS,
        block_size: int | None = None,
        device: str = "auto",
    ) -> NDArray[Any]:
        """Levels that minimise the expected squared error of unbiased rounding of `x`.

        Parameters
        ----------
        x, num_levels, method, weights, bins, grid, level_sets, block_size, device
            As for `quantize`.

        Returns
        -------
        ndarray
            Ascending, shape (s,), or (blocks, s) with `block_size`; float32, or float64
            for float64 input.

        Raises
        ------
        Invalid, QuiverClientError
            As for `quantize`.
        """
        return self.levels(
            x,
            num_levels,
            method,
            weights,
            bins=bins,
            grid=grid,
            level_sets=level_sets,
            block_size=block_size,
            device=device,
        ).levels

    def levels(
        self,
        x: ArrayLike,
        num_levels: int = 16,
        method: str = "exact",
        weights: ArrayLike | None = None,
        *,
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        level_sets: int = DEFAULT_LEVEL_SETS,
        block_size: int | None = None,
        device: str = "auto",
    ) -> LevelsResult:
        """`optimal_levels` with the expected error of the levels."""
        options = _core.create_options(
            num_levels=num_levels,
            method=method,
            bins=bins,
            grid=grid,
            level_sets=level_sets,
            block_size=block_size,
            device=device,
        )
        return self._session.perform(_core.levels(x, weights, options))

    @overload
    def aggregate(
        self, vectors: Sequence[QuantizedVector], weights: Sequence[float] | None = None
    ) -> NDArray[Any]: ...

    @overload
    def aggregate(
        self,
        vectors: Sequence[QuantizedVector],
        weights: Sequence[float] | None = None,
        *,
        quantize: QuantizeOptions,
    ) -> QuantizedVector: ...

    def aggregate(
        self,
        vectors: Sequence[QuantizedVector],
        weights: Sequence[float] | None = None,
        *,
        quantize: QuantizeOptions | None = None,
    ) -> NDArray[Any] | QuantizedVector:
        """Weighted mean of quantized vectors of one shape.

        Parameters
        ----------
        vectors
            At least one; shapes must agree, bits, methods and dtypes may differ.
        weights
            One non-negative number per vector, not all zero; None: equal.
        quantize
            Quantize the mean again, with these options; they are given a seed if they
            have none.

        Returns
        -------
        ndarray or QuantizedVector
            The mean in the vectors' shape; quantized if `quantize` is given.

        Raises
        ------
        Invalid, QuiverClientError
            As for `quantize`.
        """
        if quantize is None:
            return self._session.perform(_core.aggregate(vectors, weights))
        return self._session.perform(_core.aggregate_quantized(vectors, weights, quantize))

    def aggregate_trees(
        self,
        trees: Sequence[QuantizedTree],
        weights: Sequence[float] | None = None,
        *,
        quantize: QuantizeOptions | None = None,
        min_size: int = DEFAULT_MIN_SIZE,
    ) -> QuantizedTree:
        """Weighted mean of trees with the same leaves: exact, rounded once.

        The mean does not depend on the order of the trees, nor on bits, methods and grouping of
        each, bit for bit. Floating leaves are rounded to float64 and then to their type, integers
        to the nearest, ties to even; a boolean is true where the mean exceeds 1/2.

        Parameters
        ----------
        trees
            At least one; names, types, shapes, order and structure must agree.
        weights
            One non-negative number per tree, not all zero; None: those of their tags, 1 where
            there is none.
        quantize
            Quantize floating leaves again, with these options; they are given a seed if they have
            none, from which each leaf's own is drawn.
        min_size
            Leaves of fewer values stay as they are.

        Returns
        -------
        QuantizedTree
            Tagged with what all agree on of round and model version, and the sum of the weights.

        Raises
        ------
        Invalid
            Trees differ, a value is not finite, or weights are bad.
        QuiverClientError
            As for `quantize`.
        """
        requantize = _core.create_requantize(quantize, min_size)
        return self._session.perform(_core.aggregate_trees(trees, weights, requantize))

    def plan(
        self,
        vectors: Mapping[str, ArrayLike],
        *,
        max_bytes: int | None = None,
        bits_per_value: float | None = None,
        max_error: float | None = None,
        bits: Sequence[int] = ALL_BITS,
        methods: Sequence[str] = METHODS[:1],
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        block_size: int | None = None,
        raw: bool = True,
        device: str = "auto",
    ) -> BitPlan:
        """Bits and method for each of many vectors: least total error within a budget.

        Parameters
        ----------
        vectors
            Arrays as for `quantize`, by name; they go to the service in one request.
        max_bytes, bits_per_value, max_error
            The budget, one of the three, or none for the error curves alone: bytes of codes and
            levels of all vectors; the same in bits per value; or the sum of expected squared
            errors, within which bytes are minimised.
        bits, methods
            Candidates: all pairs.
        bins, grid, block_size, device
            As for `quantize`.
        raw
            Whether to send a vector as it is may be chosen too.

        Returns
        -------
        BitPlan
            Error curves and choices by name, totals, and whether the choice is proved best.

        Raises
        ------
        Invalid, QuiverClientError
            As for `quantize`; a budget that cannot be kept.
        """
        ways, budget = _core.create_ways(
            max_bytes=max_bytes,
            bits_per_value=bits_per_value,
            max_error=max_error,
            bits=bits,
            methods=methods,
            bins=bins,
            grid=grid,
            block_size=block_size,
            raw=raw,
            device=device,
        )
        return self._session.perform(_core.plan(vectors, ways, budget))

    def info(self) -> dict[str, Any]:
        """What ``GET /info`` says: versions, methods, devices, limits."""
        return self._session.perform(_core.info())

    def ready(self) -> bool:
        """Whether the service takes requests now; False also if it cannot be reached."""
        once = self._session.with_options(min(self._session.timeout, READY_TIMEOUT), max_retries=0)
        try:
            once.perform(_core.readiness())
        except (ConnectionFailed, TimedOut, Unavailable):
            return False
        return True

    def with_options(self, *, timeout: float | None = None, max_retries: int | None = None) -> Self:
        """A copy with another timeout (seconds) or number of retries.

        It shares the connections: closing either closes both.
        """
        return self._of(self._session.with_options(timeout, max_retries))

    def close(self) -> None:
        """Close the idle connections; calls in other threads finish."""
        self._session.transport.close()

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()
