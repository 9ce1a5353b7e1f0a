"""How named arrays travel one way: each by a quantizer, as a tree by a policy, or as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quiver_client.errors import Invalid
from quiver_client.ps.compress import Quantizes, compress
from quiver_client.ps.feedback import ErrorFeedback, Quantizer
from quiver_client.ps.policy import Policy
from quiver_kernels.dispatch import pick_decoder
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.tree import QuantizedTree, Tag

Arrays = Mapping[str, NDArray[Any]]
"""Arrays of floating types by name."""

Message = QuantizedTree | Mapping[str, QuantizedVector] | Mapping[str, NDArray[Any]]
"""What a link makes of arrays."""


class Link(Protocol):
    """One direction: what is made of arrays to be sent. `read` is the way back for all links."""

    def send(
        self,
        arrays: Arrays,
        *,
        feedback: ErrorFeedback | None,
        sender: str,
        direction: str,
        step: int,
    ) -> Message:
        """The message of `arrays`; with `feedback`, of what is owed too."""
        ...


@dataclass(frozen=True, slots=True)
class Exact:
    """Arrays as they are; nothing is ever owed."""

    def send(
        self,
        arrays: Arrays,
        *,
        feedback: ErrorFeedback | None,
        sender: str,
        direction: str,
        step: int,
    ) -> dict[str, NDArray[Any]]:
        """See `Link`."""
        del feedback, sender, direction, step
        return {name: np.array(array) for name, array in arrays.items()}


@dataclass(frozen=True, slots=True)
class PerArray:
    """A message for each array: `quantizer` is `sign_quantize`, or a client's `quantize`."""

    quantizer: Quantizer

    def send(
        self,
        arrays: Arrays,
        *,
        feedback: ErrorFeedback | None,
        sender: str,
        direction: str,
        step: int,
    ) -> dict[str, QuantizedVector]:
        """See `Link`."""
        del step
        if feedback is None:
            return {name: self.quantizer(array) for name, array in arrays.items()}
        return feedback.quantize_many(arrays, self.quantizer, sender=sender, direction=direction)


@dataclass(frozen=True, slots=True)
class ByPolicy:
    """One tree message of all arrays.

    Attributes
    ----------
    client, policy
        As for `compress`.
    seed
        Of the job; messages have seeds derived from it, the step and the sender.
    """

    client: Quantizes
    policy: Policy = field(default_factory=Policy)
    seed: int = 0

    def send(
        self,
        arrays: Arrays,
        *,
        feedback: ErrorFeedback | None,
        sender: str,
        direction: str,
        step: int,
    ) -> QuantizedTree:
        """See `Link`."""
        tag = Tag(round=step, client=sender or None)
        if feedback is None:
            return compress(dict(arrays), self.policy, client=self.client, tag=tag, seed=self.seed)
        return feedback.compress(
            dict(arrays),
            self.policy,
            client=self.client,
            tag=tag,
            seed=self.seed,
            direction=direction,
        )


def read(message: Message) -> dict[str, NDArray[Any]]:
    """The arrays of a link's message."""
    if isinstance(message, QuantizedTree):
        return message.arrays()
    decoder = pick_decoder()
    return {
        name: decoder.dequantize(value) if isinstance(value, QuantizedVector) else value
        for name, value in message.items()
    }


def mean(messages: list[Message], weights: list[float] | None = None) -> dict[str, NDArray[Any]]:
    """The weighted mean of messages with the same arrays, in float64.

    Sums are taken in the order of the messages: the same order gives the same bits.

    Raises
    ------
    Invalid
        No messages, other weights than messages, weights that are negative or add up to 0, or
        messages whose arrays differ; the text names the array.
    """
    shares = _shares(messages, weights)
    totals: dict[str, NDArray[Any]] = {}
    for i, (message, share) in enumerate(zip(messages, shares, strict=True)):
        arrays = read(message)
        if i == 0:
            totals = {name: np.zeros(array.shape) for name, array in arrays.items()}
        if arrays.keys() != totals.keys():
            odd = min(arrays.keys() ^ totals.keys())
            raise _invalid(f"messages must hold the same arrays; they differ in {odd!r}")
        for name, array in arrays.items():
            if array.shape != totals[name].shape:
                raise _invalid(
                    f"{name!r} must have the shape {list(totals[name].shape)} of the first "
                    f"message; got {list(array.shape)} in message {i}"
                )
            totals[name] += share * array.astype(np.float64)
    return totals


def _shares(messages: list[Message], weights: list[float] | None) -> list[float]:
    if not messages:
        raise _invalid("messages must hold at least one; got none")
    if weights is None:
        return [1.0 / len(messages)] * len(messages)
    total = sum(weights)
    good = all(0 <= w < np.inf for w in weights) and 0 < total < np.inf
    if len(weights) != len(messages) or not good:
        raise _invalid(
            f"weights must be {len(messages)} finite numbers, not negative and not all zero; "
            f"got {len(weights)}"
        )
    return [w / total for w in weights]


def _invalid(detail: str) -> Invalid:
    return Invalid(detail, code="shape_mismatch", field="messages")
