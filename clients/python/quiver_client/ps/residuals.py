"""What error feedback still owes: a residual for each sender, leaf and direction, by name.

A residual begins at zero once and is never reset but by a call that says so. A store that was
read from a checkpoint knows which residuals there are, and refuses others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quiver_client.errors import QuiverClientError
from quiver_client.ps.expansion import MAX_PARTS, Expansion
from quiver_kernels.dtypes import WIRE_DTYPES, from_wire
from quiver_kernels.errors import InvalidInput
from quiver_kernels.framing import Buffer, pack
from quiver_kernels.quantized import decode_validated
from quiver_kernels.tensors import TensorMessage, check_shape, tensor_fields, to_array

DIRECTIONS = ("up", "down")
STATE_FORMAT = "quiver.error_feedback"
STATE_VERSION = 1
MAX_RESIDUALS = 1 << 20
_MAX_TEXT = 1024
_MAX_STEPS = 2**62
_MAX_ITEMS = 1 << 24
_POLICIES = ("keep", "decay", "reset", "drop")


class FeedbackError(QuiverClientError):
    """Error feedback cannot go on without changing what it owes.

    Codes: ``missing_residual``, ``residual_mismatch``, ``not_a_contraction``,
    ``feedback_diverged``, ``invalid_state``.
    """

    default_code = "invalid_state"


class MissingResidual(FeedbackError):
    """A leaf has no residual where there must be one: renamed, new, or not in the checkpoint."""

    default_code = "missing_residual"


class ResidualMismatch(FeedbackError):
    """A leaf has another shape or type than its residual."""

    default_code = "residual_mismatch"


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Whose residual: who sends ("" for a server), leaf name, ``up`` or ``down``."""

    sender: str
    leaf: str
    direction: str

    def __post_init__(self) -> None:
        """Check lengths and direction."""
        given: tuple[tuple[str, object], ...] = (("sender", self.sender), ("leaf", self.leaf))
        for name, text in given:
            if not isinstance(text, str) or len(text) > _MAX_TEXT:
                got = len(text) if isinstance(text, str) else type(text).__name__
                raise FeedbackError(
                    f"{name} must be text of at most {_MAX_TEXT} characters; got {got}", field=name
                )
        if self.direction not in DIRECTIONS:
            raise FeedbackError(
                f"direction must be one of {', '.join(DIRECTIONS)}; "
                f"got {str(self.direction)[:40]!r}",
                field="direction",
            )

    def __str__(self) -> str:
        """As errors name it."""
        whose = f" of {self.sender!r}" if self.sender else ""
        return f"leaf {self.leaf!r}{whose}, {self.direction}"


@dataclass(frozen=True, slots=True)
class Residual:
    """What one leaf is owed.

    Attributes
    ----------
    dtype
        Wire name of the leaf's type.
    owed
        Exact sum of all that was put in less all that was sent; in the leaf's shape.
    steps
        How many messages were made.
    """

    dtype: str
    owed: Expansion
    steps: int = 0


class Residuals:
    """Residuals by key. Not for several threads at once."""

    def __init__(self) -> None:
        self._kept: dict[Key, Residual] = {}
        # Clients and directions whose leaves are all known; after loading, all but the opened.
        self._closed: set[tuple[str, str]] = set()
        self._opened: set[tuple[str, str]] = set()
        self._loaded = False

    def __len__(self) -> int:
        """Number of residuals."""
        return len(self._kept)

    def __contains__(self, key: Key) -> bool:
        """Whether there is a residual."""
        return key in self._kept

    def keys(self) -> Iterator[Key]:
        """In order of sender, leaf and direction."""
        return iter(sorted(self._kept))

    @property
    def nbytes(self) -> int:
        """Bytes of all residuals."""
        return sum(residual.owed.nbytes for residual in self._kept.values())

    def begin(self, sender: str, direction: str) -> None:
        """Let leaves of this sender and direction that have no residual begin at zero."""
        self._closed.discard((sender, direction))
        self._opened.add((sender, direction))

    def close(self, sender: str, direction: str) -> None:
        """All leaves of this sender and direction are known: no other may begin."""
        self._closed.add((sender, direction))

    def find(self, key: Key, shape: tuple[int, ...], dtype: str) -> Residual:
        """The residual of a leaf of this shape and type; zero for a new one that may begin.

        Raises
        ------
        MissingResidual
            There is none, and the sender's leaves are closed, or were loaded and not begun anew.
        ResidualMismatch
            The leaf has changed its shape or type.
        """
        found = self._kept.get(key)
        if found is None:
            owner = key.sender, key.direction
            if owner in self._closed or (self._loaded and owner not in self._opened):
                raise MissingResidual(
                    f"{key}: no residual, though the sender's are known; begin() the "
                    f"sender if the leaf is new. Known leaves: {self._known(key)}",
                    field=key.leaf,
                )
            return Residual(dtype, Expansion(tuple(shape)))
        if found.owed.shape != tuple(shape) or found.dtype != dtype:
            raise ResidualMismatch(
                f"{key}: the residual is for {found.dtype} of shape {list(found.owed.shape)}; "
                f"got {dtype} of shape {list(shape)}; drop or reset it on purpose",
                field=key.leaf,
            )
        return found

    def put(self, key: Key, residual: Residual) -> None:
        """Keep what is owed now."""
        self._kept[key] = residual

    def get(self, key: Key) -> Residual:
        """The residual of a key; `MissingResidual` names it."""
        try:
            return self._kept[key]
        except KeyError:
            raise MissingResidual(
                f"{key}: no residual. Known leaves: {self._known(key)}", field=key.leaf
            ) from None

    def change(
        self,
        policy: str,
        *,
        sender: str | None = None,
        leaf: str | None = None,
        direction: str | None = None,
        factor: float | None = None,
    ) -> list[Key]:
        """Do `policy` to all residuals that match; None matches all. See `ErrorFeedback.change`."""
        if policy not in _POLICIES:
            raise FeedbackError(
                f"policy must be one of {', '.join(_POLICIES)}; got {str(policy)[:40]!r}",
                field="policy",
            )
        is_factor = isinstance(factor, int | float) and 0 <= factor <= 1
        if (policy == "decay") != (factor is not None) or not (factor is None or is_factor):
            raise FeedbackError(
                f"factor must be a number from 0 to 1 for decay, and absent else; got {factor}",
                field="factor",
            )
        wanted = [
            key
            for key in self.keys()
            if (sender is None or key.sender == sender)
            and (leaf is None or key.leaf == leaf)
            and (direction is None or key.direction == direction)
        ]
        if not wanted:
            where = {"sender": sender, "leaf": leaf, "direction": direction}
            named = ", ".join(f"{k}={v!r}" for k, v in where.items() if v is not None)
            raise MissingResidual(f"no residual matches {named or 'anything'}", field=leaf)
        for key in wanted:
            if policy == "drop":
                del self._kept[key]
            elif policy == "reset":
                old = self._kept[key]
                self._kept[key] = Residual(old.dtype, Expansion(old.owed.shape))
            elif factor is not None:
                old = self._kept[key]
                self._kept[key] = replace(old, owed=old.owed.scaled(factor))
        return wanted

    def _known(self, key: Key) -> str:
        leaves = [
            k.leaf for k in self.keys() if (k.sender, k.direction) == (key.sender, key.direction)
        ]
        shown = ", ".join(repr(leaf) for leaf in leaves[:8])
        return (shown or "none") + (", ..." if len(leaves) > 8 else "")

    # -- checkpoints ---------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All residuals as plain values and arrays; the arrays are not copied and not written."""
        return {
            "format": STATE_FORMAT,
            "version": STATE_VERSION,
            "residuals": [
                {
                    "sender": key.sender,
                    "leaf": key.leaf,
                    "direction": key.direction,
                    "dtype": self._kept[key].dtype,
                    "shape": list(self._kept[key].owed.shape),
                    "steps": self._kept[key].steps,
                    "parts": list(self._kept[key].owed.parts),
                }
                for key in self.keys()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all by those of `state`, and let no others begin; nothing changes on an error.

        Raises
        ------
        FeedbackError
            No such state, a newer version, or residuals that contradict themselves.
        """
        self._kept = _read_state(state)
        # A checkpoint of before the first step knows nobody, so anybody may begin.
        self._loaded = bool(self._kept)
        self._opened, self._closed = set(), set()


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """A state as one MessagePack map; no pickle."""
    residuals = [
        {**entry, "parts": [tensor_fields(part, "parts") for part in entry["parts"]]}
        for entry in state["residuals"]
    ]
    return b"".join(pack({**state, "residuals": residuals}))


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    sender: str
    leaf: str
    direction: str
    dtype: str
    shape: list[int]
    steps: int
    parts: list[TensorMessage]


class _State(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    version: int
    residuals: list[_Entry]


def from_bytes(data: Buffer) -> dict[str, Any]:
    """Read what `to_bytes` wrote, strictly; the arrays are copies.

    Raises
    ------
    MalformedMessage, InvalidInput
        Not such a message.
    """
    message: _State = decode_validated(data, msgspec.msgpack.Decoder(_State), _MAX_ITEMS)
    return {
        "format": message.format,
        "version": message.version,
        "residuals": [
            {
                **{name: getattr(entry, name) for name in _Entry.__struct_fields__},
                "parts": [to_array(part, "parts").copy() for part in entry.parts],
            }
            for entry in message.residuals
        ],
    }


def _read_state(state: Mapping[str, Any]) -> dict[Key, Residual]:
    names = set(_State.__struct_fields__)
    _require(set(state) == names, f"it must have the keys {', '.join(sorted(names))}")
    _require(state.get("format") == STATE_FORMAT, f"format must be {STATE_FORMAT!r}")
    _require(
        state.get("version") == STATE_VERSION,
        f"version must be {STATE_VERSION}; got {str(state.get('version'))[:40]}",
    )
    entries = state.get("residuals")
    if not isinstance(entries, Sequence) or len(entries) > MAX_RESIDUALS:
        raise FeedbackError(
            f"state of error feedback: residuals must be a list of at most {MAX_RESIDUALS}",
            field="state",
        )
    found: dict[Key, Residual] = {}
    for entry in entries:
        key, residual = _read_entry(entry)
        _require(key not in found, f"{key} appears twice")
        found[key] = residual
    return found


def _read_entry(entry: Any) -> tuple[Key, Residual]:
    names = set(_Entry.__struct_fields__)
    is_entry = isinstance(entry, Mapping) and set(entry) == names
    _require(is_entry, f"a residual must have the keys {', '.join(sorted(names))}")
    key = Key(entry["sender"], entry["leaf"], entry["direction"])
    try:
        shape = check_shape([int(n) for n in entry["shape"]], "shape")
        from_wire(entry["dtype"])
    except (InvalidInput, TypeError, ValueError) as error:
        raise FeedbackError(f"{key}: {error}") from None
    steps, parts = entry["steps"], entry["parts"]
    _require(
        isinstance(steps, int) and 0 <= steps <= _MAX_STEPS,
        f"{key}: steps must be an integer from 0 on; got {str(steps)[:40]}",
    )
    _require(
        isinstance(parts, Sequence) and len(parts) <= MAX_PARTS,
        f"{key}: parts must be a list of at most {MAX_PARTS}",
    )
    size = math.prod(shape)
    for part in parts:
        _require(
            isinstance(part, np.ndarray)
            and part.dtype == WIRE_DTYPES["float64"]
            and part.shape == (size,)
            and bool(np.isfinite(part).all()),
            f"{key}: parts must be finite float64 arrays of {size} values",
        )
    owed = Expansion(shape, tuple(_frozen(part) for part in parts))
    return key, Residual(entry["dtype"], owed, steps)


def _frozen(part: NDArray[Any]) -> NDArray[np.float64]:
    return np.array(part, dtype=np.float64)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise FeedbackError(f"state of error feedback: {what}", field="state")
