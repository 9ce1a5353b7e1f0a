"""The blocking client."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, overload

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
from quiver_kernels.options import DEFAULT_BINS, DEFAULT_GRID, QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
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
        block_size: int | None = None,
        device: str = "auto",
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
            ``exact``, ``accelerated``, ``approx`` or ``uniform``; see
            `quiver_kernels.optimal_levels`.
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
        block_size
            Values that share a table; None: all.
        device
            ``auto``, ``cpu`` or ``gpu``.

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
            block_size=block_size,
            seed=seed,
            device=device,
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
        block_size: int | None = None,
        device: str = "auto",
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
        block_size: int | None = None,
        device: str = "auto",
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
        block_size: int | None = None,
        device: str = "auto",
        per_vector: PerVector | None = None,
    ) -> Result:
        """Quantize many vectors in one request, or in a few if they are many or large.

        What each would be alone, sooner: for small vectors most of a call's time is the request.

        Parameters
        ----------
        vectors
            Arrays as for `quantize`, in a sequence; or a mapping of them by name, e.g. a
            model's tensors. A name has at most 256 bytes.
        bits, method, num_levels, bins, grid, block_size, device
            As for `quantize`, for every vector.
        seed
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
            block_size=block_size,
            seed=seed,
            device=device,
        )
        found = self._session.perform_all(wanted.calls())
        return wanted.result([q for vectors in found for q in vectors])

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
        block_size: int | None = None,
        device: str = "auto",
    ) -> NDArray[Any]:
        """Levels that minimise the expected squared error of unbiased rounding of `x`.

        Parameters
        ----------
        x, num_levels, method, weights, bins, grid, block_size, device
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
        block_size: int | None = None,
        device: str = "auto",
    ) -> LevelsResult:
        """`optimal_levels` with the expected error of the levels."""
        options = _core.create_options(
            num_levels=num_levels,
            method=method,
            bins=bins,
            grid=grid,
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
