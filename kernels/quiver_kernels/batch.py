"""Many vectors in one request: a list of them, or a map of them by name.

An item is an array as a single request has it, or a map of such an array, its own weights
and its own options, which replace the shared ones. It is read like a single request;
errors are told apart by where the item stands: ``vectors[3].bits``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from quiver_kernels.errors import BackendUnavailable, InvalidInput, MalformedMessage
from quiver_kernels.framing import Buffer, Segment, count_items, decode_checked, is_map, pack
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import (
    WIRE_VERSION,
    QuantizedMessage,
    QuantizedVector,
    decode_validated,
    from_message,
    quantized_fields,
    schema_error,
)
from quiver_kernels.request import (
    ArrayMessage,
    QuantizeRequest,
    VectorMessage,
    all_option_fields,
    option_fields,
    read_request,
    with_levels,
)
from quiver_kernels.rng import batch_seeds
from quiver_kernels.stopping import checkpoint
from quiver_kernels.tensors import tensor_fields

MAX_BATCH_VECTORS = 4096
MAX_NAME_BYTES = 256
# A vector of a request has at most 60 values that say something, names and keys among them, one of
# an answer some 80.
MAX_BATCH_ITEMS = 96 * MAX_BATCH_VECTORS
_SHOWN_NAME = 100
_LEVEL_KEYS = ("bits", "num_levels")
# What says how levels are chosen, which levels that are given exclude.
_CHOICE_KEYS = (*_LEVEL_KEYS, "method", "block_size")


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One vector of a batch.

    Attributes
    ----------
    request
        As if it had come alone.
    label
        Where it stands in the message: ``vectors[3]``, ``vectors["layer.0.weight"]``.
    wrapped
        Whether it is a map with a ``vector`` in it, not the vector itself.
    """

    request: QuantizeRequest
    label: str
    wrapped: bool

    def naming_errors(self) -> contextlib.AbstractContextManager[None]:
        """Errors about the request, raised inside, say that they are about this item."""
        return naming_errors(self.label, wrapped=self.wrapped)


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A checked ``POST /quantize`` of many vectors, in the order sent; names if it was a map."""

    items: tuple[BatchItem, ...]
    names: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class QuantizedBatch:
    """Many quantized vectors, in the order of the request; names if it was a map."""

    vectors: tuple[QuantizedVector, ...]
    names: tuple[str, ...] | None


class _Keys(msgspec.Struct):
    """Which of the keys that tell a tensor from an item with options are there."""

    vector: msgspec.Raw | UnsetType = UNSET
    dtype: msgspec.Raw | UnsetType = UNSET
    shape: msgspec.Raw | UnsetType = UNSET
    data: msgspec.Raw | UnsetType = UNSET


class _BatchAnswer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    v: int
    vectors: list[QuantizedMessage] | dict[str, QuantizedMessage]


_TELLING = frozenset(_Keys.__struct_fields__)
_Item = VectorMessage | ArrayMessage

_LIST = msgspec.msgpack.Decoder(list[msgspec.Raw])
_MAP = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_KEYS = msgspec.msgpack.Decoder(_Keys)
_WRAPPED = msgspec.msgpack.Decoder(VectorMessage)
_BARE: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ArrayMessage)
_ANSWER = msgspec.msgpack.Decoder(_BatchAnswer)


@contextlib.contextmanager
def naming_errors(label: str, *, wrapped: bool) -> Iterator[None]:
    """Errors about a single request, raised inside, name the item `label` of a batch."""
    try:
        yield
    except (InvalidInput, BackendUnavailable, MalformedMessage) as error:
        error.detail = f"{label}: {error.detail}"
        error.args = (error.detail,)
        error.field = _path(label, error.field, wrapped=wrapped)
        raise


def _path(label: str, field: str | None, *, wrapped: bool) -> str:
    if not field:
        return label
    if not wrapped and field.partition(".")[0] == "vector":
        return label + field.removeprefix("vector")
    return f"{label}.{field}"


def label_of(key: int | str) -> str:
    """How errors name the item at a position, or of a name; long names are cut."""
    if isinstance(key, int):
        return f"vectors[{key}]"
    text = json.dumps(key)
    if len(text) > _SHOWN_NAME:
        text = f'{text[:_SHOWN_NAME]}..."'
    return f"vectors[{text}]"


class Quantizer(Protocol):
    """What quantizes one vector, as `dispatch.Backend` does."""

    def quantize(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> QuantizedVector:
        """Levels, unbiased codes and packed bytes."""
        ...


Naming = Callable[[int], contextlib.AbstractContextManager[None]]
"""A context in which errors say that they are about the vector of a number."""


def quantize_each(
    quantizer: Quantizer, requests: Sequence[QuantizeRequest], naming: Naming
) -> list[QuantizedVector]:
    """Quantize vectors one after the other; see `dispatch.Backend.quantize_many`."""
    found = []
    for number, request in enumerate(requests):
        checkpoint()
        with naming(number):
            found.append(quantizer.quantize(request.vector, request.options, request.weights))
    return found


# -- requests, read by the service ------------------------------------------------------


def read_packed(vectors: msgspec.Raw, shared: dict[str, Any]) -> BatchRequest:
    """The batch of the value of ``vectors`` in a MessagePack message that was checked.

    Parameters
    ----------
    vectors
        The value as it stands there.
    shared
        The message's own options, as given.
    """
    _check_count(count_items(vectors))
    if is_map(vectors):
        named = decode_checked(vectors, _MAP)
        return _read(list(named.values()), tuple(named), shared, _packed_item)
    listed = decode_checked(vectors, _LIST)
    return _read(listed, None, shared, _packed_item)


def read_parsed(vectors: Any, shared: dict[str, Any]) -> BatchRequest:
    """The batch of the value of ``vectors`` in a JSON message; parameters as above."""
    _check_count(len(vectors) if isinstance(vectors, list | dict) else None)
    if isinstance(vectors, dict):
        return _read(list(vectors.values()), tuple(vectors), shared, _parsed_item)
    return _read(vectors, None, shared, _parsed_item)


def _check_count(count: int | None) -> None:
    if count is None:
        raise InvalidInput(
            "vectors must be an array or a map of vectors; got something else",
            code="invalid_type",
            field="vectors",
        )
    if not 1 <= count <= MAX_BATCH_VECTORS:
        raise InvalidInput(
            f"vectors must hold 1..{MAX_BATCH_VECTORS} vectors; got {count}",
            code="invalid_option",
            field="vectors",
        )


def _read(
    values: Sequence[Any],
    names: tuple[str, ...] | None,
    shared: dict[str, Any],
    read: Callable[[Any], _Item],
) -> BatchRequest:
    options = QuantizeOptions.create(**shared)
    check_names(names or ())
    keys: Sequence[int | str] = range(len(values)) if names is None else names
    derived = derived_seeds(options, len(values))
    items = []
    for key, value, seeds in zip(keys, values, derived, strict=True):
        label = label_of(key)
        with _naming_types(label):
            message = read(value)
        wrapped = isinstance(message, VectorMessage)
        with naming_errors(label, wrapped=wrapped):
            if isinstance(message, VectorMessage):
                own = QuantizeOptions.create(**overridden({**shared, **seeds}, message.given()))
                request = read_request(message.vector, message.weights, own)
            else:
                request = read_request(message, None, replace(options, **seeds))
        items.append(BatchItem(request, label, wrapped))
    return BatchRequest(tuple(items), names)


def derived_seeds(options: QuantizeOptions, count: int) -> Sequence[dict[str, Any]]:
    """Seeds of the vectors at each position, of those kinds that are shared."""
    given = {"seed": options.seed, "shared_seed": options.shared_seed}
    kinds = {name: seed for name, seed in given.items() if seed is not None}
    found = [batch_seeds(seed, count) for seed in kinds.values()]
    return [dict(zip(kinds, row, strict=True)) for row in zip(*found, strict=True)] or [{}] * count


def overridden(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """An item's options: its own, and the shared ones for the rest.

    ``bits`` and ``num_levels`` say the same thing, so either replaces both. Levels replace all that
    says how to choose some, and are replaced by any of it. Parameters go with their method.
    """
    if "method" in own or own.get("levels") is not None:
        shared = {name: value for name, value in shared.items() if name != "parameters"}
    if own.get("levels") is not None:
        shared = {name: value for name, value in shared.items() if name not in _CHOICE_KEYS}
    elif any(name in own for name in _CHOICE_KEYS):
        shared = {name: value for name, value in shared.items() if name != "levels"}
    if any(name in own for name in _LEVEL_KEYS):
        shared = {name: value for name, value in shared.items() if name not in _LEVEL_KEYS}
    return {**shared, **own}


def check_names(names: Sequence[str]) -> None:
    """Refuse names that are empty, too long, or no text."""
    for name in names:
        try:
            size = len(name.encode())
        except UnicodeEncodeError:
            size = 0
        if not 1 <= size <= MAX_NAME_BYTES:
            got = f"{size} bytes" if size or not name else "half of a surrogate pair"
            raise InvalidInput(
                f"names in vectors must be text of 1..{MAX_NAME_BYTES} bytes; got {got}",
                code="invalid_option",
                field="vectors",
            )


@contextlib.contextmanager
def _naming_types(label: str) -> Iterator[None]:
    with naming_errors(label, wrapped=True):
        try:
            yield
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            raise schema_error(error) from None


def _packed_item(value: msgspec.Raw) -> _Item:
    if is_map(value):
        keys = decode_checked(value, _KEYS)
        if _is_wrapped({name for name in _TELLING if getattr(keys, name) is not UNSET}):
            return decode_checked(value, _WRAPPED)
    bare: ArrayMessage = decode_checked(value, _BARE)
    return bare


def _parsed_item(value: Any) -> _Item:
    if isinstance(value, dict) and _is_wrapped(value.keys() & _TELLING):
        return msgspec.convert(value, VectorMessage)
    bare: ArrayMessage = msgspec.convert(value, ArrayMessage)
    return bare


def _is_wrapped(keys: set[str]) -> bool:
    # A map without any of the keys is no tensor, so what it lacks is its vector.
    return "vector" in keys or not keys


# -- requests, written by a client ------------------------------------------------------


def encode_batch_request(
    requests: Sequence[QuantizeRequest], names: Sequence[str] | None, shared: QuantizeOptions
) -> list[Segment]:
    """A request of ``/quantize`` for many vectors in segments, arrays uncopied.

    Parameters
    ----------
    requests
        What is asked for each vector.
    names
        One for each, or None for a list.
    shared
        Options to state once; what a vector has otherwise, its seed too, goes with it.
    """
    common = all_option_fields(replace(shared, seed=None))
    if shared.shared_seed is not None:
        # From the shared one the service would derive another: each vector states its own.
        del common["shared_seed"]
    items = [_item_fields(request, common) for request in requests]
    vectors = items if names is None else dict(zip(names, items, strict=True))
    fields = option_fields(shared)
    del fields["seed"]
    return pack({**fields, "vectors": vectors})


def _item_fields(request: QuantizeRequest, common: dict[str, Any]) -> dict[str, Any]:
    own = all_option_fields(request.options)
    fields = {
        name: value for name, value in own.items() if name not in common or value != common[name]
    }
    if request.options.levels != common["levels"]:
        # Either replaces the other: levels, or how to choose some.
        fields.update({name: own[name] for name in ("num_levels", "method", "block_size")})
        fields = with_levels(fields, request.options)
    if request.weights is not None:
        fields["weights"] = tensor_fields(request.weights, "weights")
    fields["vector"] = tensor_fields(request.vector)
    return fields


# -- answers ------------------------------------------------------------------------------


def encode_batch(batch: QuantizedBatch) -> list[Segment]:
    """The answer of ``/quantize`` for many vectors in segments, their codes uncopied."""
    messages = [quantized_fields(q) for q in batch.vectors]
    vectors = messages if batch.names is None else dict(zip(batch.names, messages, strict=True))
    return pack({"v": WIRE_VERSION, "vectors": vectors})


def decode_batch(data: Buffer) -> QuantizedBatch:
    """Read such an answer; the vectors share the memory of `data`."""
    message: _BatchAnswer = decode_validated(data, _ANSWER, MAX_BATCH_ITEMS)
    if message.v != WIRE_VERSION:
        raise InvalidInput(
            f"v must be {WIRE_VERSION}; got {message.v}", code="unsupported_version", field="v"
        )
    names = tuple(message.vectors) if isinstance(message.vectors, dict) else None
    found = message.vectors.values() if isinstance(message.vectors, dict) else message.vectors
    keys: Sequence[int | str] = range(len(found)) if names is None else names
    vectors = tuple(
        from_message(m, f"{label_of(key)}.") for key, m in zip(keys, found, strict=True)
    )
    return QuantizedBatch(vectors, names)
