"""Many vectors at once: what is asked for each, and the requests that this makes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from quiver_client._core import Call, as_client_errors, as_tensor, create_options, post
from quiver_client.errors import Invalid
from quiver_kernels import wire
from quiver_kernels.batch import check_names, derived_seeds, label_of, naming_errors, overridden
from quiver_kernels.dtypes import wire_name
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.request import OptionsMessage
from quiver_kernels.wire import MAX_BATCH_VECTORS, QuantizeRequest

MAX_REQUEST_BYTES = 64 << 20
"""Values and weights of one request, unless a single vector has more."""

_OPTIONS = OptionsMessage.__struct_fields__

Many = Sequence[ArrayLike] | Mapping[str, ArrayLike]
PerVector = Mapping[Any, Mapping[str, Any]]
Result = list[QuantizedVector] | dict[str, QuantizedVector]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for each vector, seeds included.

    Seeds are derived here, from positions among all vectors, so it makes no difference in
    how many requests they are sent.
    """

    requests: tuple[QuantizeRequest, ...]
    names: tuple[str, ...] | None
    shared: QuantizeOptions

    @classmethod
    def of(cls, vectors: Many, per_vector: PerVector | None, **shared: Any) -> Wanted:
        """Check options and names, and make arrays; `Invalid` says which vector is wrong."""
        names = tuple(vectors) if isinstance(vectors, Mapping) else None
        values = list(vectors.values() if isinstance(vectors, Mapping) else vectors)
        _check_names(names)
        if not values:
            raise Invalid(
                "vectors must hold at least one vector; got none",
                code="invalid_option",
                field="vectors",
            )
        keys: Sequence[int | str] = range(len(values)) if names is None else names
        own = {} if per_vector is None else dict(per_vector)
        _check_keys(own, keys)
        options = create_options(**shared).with_seed()
        seeds = derived_seeds(options, len(values))
        requests = [
            _request(key, value, {**shared, **of_vector}, own.get(key, {}))
            for key, value, of_vector in zip(keys, values, seeds, strict=True)
        ]
        return cls(tuple(requests), names, options)

    def calls(self) -> Iterator[Call[tuple[QuantizedVector, ...]]]:
        """The calls of ``POST /quantize`` that bring all vectors, in order."""
        for part in self._parts():
            requests = self.requests[part]
            names = None if self.names is None else self.names[part]
            segments = wire.encode_batch_request(requests, names, self.shared)
            yield post("/quantize", segments, functools.partial(_read, len(requests), names))

    def labels(self) -> list[str]:
        """How errors name the vectors."""
        if self.names is None:
            return [label_of(position) for position in range(len(self.requests))]
        return [label_of(name) for name in self.names]

    def result(self, vectors: Sequence[QuantizedVector]) -> Result:
        """A list for a list, a dict for a mapping."""
        if self.names is None:
            return list(vectors)
        return dict(zip(self.names, vectors, strict=True))

    def _parts(self) -> Iterator[slice]:
        start, size = 0, 0
        for end, request in enumerate(self.requests):
            needed = request.vector.nbytes
            needed += 0 if request.weights is None else request.weights.nbytes
            full = end - start == MAX_BATCH_VECTORS or size + needed > MAX_REQUEST_BYTES
            if full and end > start:
                yield slice(start, end)
                start, size = end, 0
            size += needed
        yield slice(start, len(self.requests))


def _request(
    key: int | str, value: ArrayLike, shared: dict[str, Any], own: Mapping[str, Any]
) -> QuantizeRequest:
    label = label_of(key)
    chosen = dict(own)
    weights = chosen.pop("weights", None)
    unknown = [str(name) for name in chosen if name not in _OPTIONS]
    vector = as_tensor(value, f"{label}.vector")
    importance = None if weights is None else as_tensor(weights, f"{label}.weights")
    with as_client_errors(), naming_errors(label, wrapped=True):
        wire_name(vector.dtype)
        if importance is not None:
            wire_name(importance.dtype, "weights")
        if unknown:
            raise InvalidInput(
                f"there is no option {unknown[0][:40]!r}; there are weights, {', '.join(_OPTIONS)}",
                code="unknown_key",
            )
        options = QuantizeOptions.create(**overridden(shared, chosen)).with_seed()
    return QuantizeRequest(vector, importance, options)


def _check_names(names: Sequence[object] | None) -> None:
    if names is None:
        return
    for name in names:
        if not isinstance(name, str):
            raise Invalid(
                f"names of vectors must be text; got {type(name).__name__}",
                code="invalid_type",
                field="vectors",
            )
        with as_client_errors():
            check_names([name])


def _check_keys(own: Mapping[Any, object], keys: Sequence[int | str]) -> None:
    known = keys if isinstance(keys, range) else frozenset(keys)
    for key in own:
        if key not in known:
            kind = "positions" if isinstance(keys, range) else "names"
            raise Invalid(
                f"per_vector must have {kind} of vectors as keys; got {str(key)[:40]!r}",
                code="invalid_option",
                field="per_vector",
            )


def _read(count: int, names: tuple[str, ...] | None, body: memoryview) -> tuple[Any, ...]:
    batch = wire.decode_batch(body)
    if len(batch.vectors) != count or batch.names != names:
        raise InvalidInput(
            f"the answer must have the {count} vectors of the request; it has other ones",
            code="size_mismatch",
            field="vectors",
        )
    return batch.vectors
