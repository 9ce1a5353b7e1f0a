"""Efficient-Adam: Adam whose updates travel both ways in a few bits, with feedback both ways.

Workers keep Adam's moments and send quantized updates; the server averages these, and sends its
quantized update back. Each side adds what its last message lost to the next ("Efficient-Adam",
arXiv 2205.14473)::

    worker:  v = theta v + (1 - theta) g^2;  m = beta m + (1 - beta) g
             send Q(a_t m / sqrt(v + eps) + e);  e = what that lost
    server:  send Q(mean of updates + e);        e = what that lost
    all:     x = x - what the server sent

Adam's moments never travel, and no step is sent in full precision first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quiver_client.errors import Invalid
from quiver_client.ps import residuals
from quiver_client.ps.contraction import DEFAULT_THRESHOLD
from quiver_client.ps.feedback import ErrorFeedback
from quiver_client.ps.links import Arrays, Link, Message, mean, read
from quiver_client.ps.residuals import FeedbackError, MissingResidual, ResidualMismatch
from quiver_kernels.dtypes import widen
from quiver_kernels.framing import Buffer, pack
from quiver_kernels.quantized import decode_validated
from quiver_kernels.tensors import TensorMessage, tensor_fields, to_array

StepSize = Callable[[int], float]
"""The step size a_t of step t = 1, 2, ..."""

STATE_FORMAT = "quiver.efficient_adam"
STATE_VERSION = 1
_MAX_ITEMS = 1 << 24
_MAX_STEPS = 2**62


def inverse_sqrt(first: float) -> StepSize:
    """``a_t = first / sqrt(t)``, the steps for which Efficient-Adam is known to converge."""

    def step_size(t: int) -> float:
        return first / math.sqrt(t)

    return step_size


@dataclass(frozen=True, slots=True)
class TwoWay:
    """Compression both ways, as one thing that workers and server agree on.

    Attributes
    ----------
    up, down
        Links of workers to the server, and back.
    feedback_up, feedback_down
        Whether errors are fed back. Both, unless a link is exact or unbiased with small errors.
    contraction, threshold
        As for `ErrorFeedback`.
    """

    up: Link
    down: Link
    feedback_up: bool = True
    feedback_down: bool = True
    contraction: str = "scale"
    threshold: float = DEFAULT_THRESHOLD

    def residuals(self, direction: str) -> ErrorFeedback | None:
        """Fresh feedback of one sender in one direction; None where there is to be none."""
        wanted = self.feedback_up if direction == "up" else self.feedback_down
        if not wanted:
            return None
        return ErrorFeedback(contraction=self.contraction, threshold=self.threshold)


class EfficientAdamWorker:
    """The half of one worker.

    Parameters
    ----------
    two_way
        How updates travel.
    client
        Name of the worker; differs between workers.
    step_size
        a_t, t = 1 at the first step.
    beta, theta
        Decay of the mean and of the mean square of gradients, 0 to below 1.
    eps
        Added to the mean square, in squared units of gradients; positive.
    """

    def __init__(
        self,
        two_way: TwoWay,
        *,
        client: str,
        step_size: StepSize,
        beta: float = 0.9,
        theta: float = 0.99,
        eps: float = 1e-8,
    ) -> None:
        for name, value in (("beta", beta), ("theta", theta)):
            if not 0 <= value < 1:
                raise Invalid(f"{name} must be from 0 to below 1; got {value}", field=name)
        if not 0 < eps < math.inf:
            raise Invalid(f"eps must be positive and finite; got {eps}", field="eps")
        self._link = two_way.up
        self._feedback = two_way.residuals("up")
        self._client = client
        self._step_size = step_size
        self._beta, self._theta, self._eps = beta, theta, eps
        self._step = 0
        self._means: dict[str, NDArray[Any]] = {}
        self._squares: dict[str, NDArray[Any]] = {}

    @property
    def feedback(self) -> ErrorFeedback | None:
        """What this worker owes, or None without feedback."""
        return self._feedback

    def step(self, gradients: Arrays) -> Message:
        """One step of Adam on local gradients; the message of its update, for the server.

        Parameters
        ----------
        gradients
            By name; the same names, shapes and types at every step. Moments are kept in float64
            for float64 gradients, else in float32.

        Raises
        ------
        MissingResidual, ResidualMismatch
            Names, shapes or types have changed: the text names the array.
        """
        self._check(gradients)
        t = self._step + 1
        means, squares, updates = {}, {}, {}
        for name, gradient in gradients.items():
            g = widen(gradient)
            zero = np.zeros_like(g)
            square = self._theta * self._squares.get(name, zero) + (1 - self._theta) * g * g
            average = self._beta * self._means.get(name, zero) + (1 - self._beta) * g
            update = self._step_size(t) * average / np.sqrt(square + self._eps)
            means[name], squares[name] = average, square
            updates[name] = update.astype(gradient.dtype)
        message = self._link.send(
            updates, feedback=self._feedback, sender=self._client, direction="up", step=t
        )
        self._step, self._means, self._squares = t, means, squares
        return message

    def _check(self, gradients: Arrays) -> None:
        if self._step == 0:
            return
        if gradients.keys() != self._means.keys():
            odd = min(gradients.keys() ^ self._means.keys())
            raise MissingResidual(
                f"gradients must have the names of the steps before; they differ in {odd!r}",
                field=odd,
            )
        for name, gradient in gradients.items():
            known, got = self._means[name], widen(gradient)
            if (known.shape, known.dtype) != (got.shape, got.dtype):
                raise ResidualMismatch(
                    f"gradient {name!r} must have the shape {list(known.shape)} and moments of "
                    f"{known.dtype}; got {got.dtype} of shape {list(got.shape)}",
                    field=name,
                )

    # -- checkpoints ---------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Steps, moments and residuals: plain values and arrays, independent of later steps."""
        return {
            "format": STATE_FORMAT,
            "version": STATE_VERSION,
            "step": self._step,
            "means": dict(self._means),
            "squares": dict(self._squares),
            "feedback": None if self._feedback is None else self._feedback.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, bit for bit; nothing changes on an error.

        Raises
        ------
        FeedbackError
            It is no such state, or has feedback where this worker has none, or none where it has.
        """
        _check_state(state)
        means, squares = _moments(state, "means"), _moments(state, "squares")
        if {n: (a.shape, a.dtype) for n, a in means.items()} != {
            n: (a.shape, a.dtype) for n, a in squares.items()
        }:
            raise _bad("means and squares must be of the same arrays")
        _load_feedback(self._feedback, state["feedback"])
        self._step, self._means, self._squares = state["step"], means, squares

    def to_bytes(self) -> bytes:
        """`state_dict` as one MessagePack map; no pickle."""
        return _to_bytes(self.state_dict())

    def load_bytes(self, data: Buffer) -> None:
        """`load_state_dict` of what `to_bytes` wrote; `MalformedMessage` or `InvalidInput` else."""
        self.load_state_dict(_from_bytes(data))


class EfficientAdamServer:
    """The server's half: it averages updates, and sends its own.

    It has one residual for each array, whoever takes part: every worker gets the same message.
    A worker that has missed one must be sent the parameters themselves.
    """

    def __init__(self, two_way: TwoWay) -> None:
        self._link = two_way.down
        self._feedback = two_way.residuals("down")
        self._step = 0

    @property
    def feedback(self) -> ErrorFeedback | None:
        """What the server owes to all workers, or None without feedback."""
        return self._feedback

    def step(
        self,
        messages: Sequence[Message],
        weights: Sequence[float] | None = None,
        *,
        dtypes: Mapping[str, Any] | None = None,
    ) -> Message:
        """The message of the mean of workers' updates, for all workers.

        Parameters
        ----------
        messages
            Of `EfficientAdamWorker.step`, in an order that is the same when repeated.
        weights
            One for each; None: equal.
        dtypes
            Types of arrays, by name, other than those of the first message.

        Raises
        ------
        Invalid
            No messages, or their arrays differ.
        """
        update = mean(list(messages), None if weights is None else list(weights))
        kinds = {name: array.dtype for name, array in read(messages[0]).items()}
        kinds |= dtypes or {}
        typed = {name: array.astype(kinds[name]) for name, array in update.items()}
        message = self._link.send(
            typed, feedback=self._feedback, sender="", direction="down", step=self._step + 1
        )
        self._step += 1
        return message

    def state_dict(self) -> dict[str, Any]:
        """Steps and residuals; see `EfficientAdamWorker.state_dict`."""
        return {
            "format": STATE_FORMAT,
            "version": STATE_VERSION,
            "step": self._step,
            "means": {},
            "squares": {},
            "feedback": None if self._feedback is None else self._feedback.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `EfficientAdamWorker.load_state_dict`."""
        _check_state(state)
        _load_feedback(self._feedback, state["feedback"])
        self._step = state["step"]

    def to_bytes(self) -> bytes:
        """`state_dict` as one MessagePack map; no pickle."""
        return _to_bytes(self.state_dict())

    def load_bytes(self, data: Buffer) -> None:
        """`load_state_dict` of what `to_bytes` wrote."""
        self.load_state_dict(_from_bytes(data))


class EfficientAdam:
    """Workers and server in one process: the reference, and the way to try settings.

    Parameters
    ----------
    two_way, step_size, beta, theta, eps
        As for the halves.
    workers
        How many, at least 1.
    """

    def __init__(
        self,
        two_way: TwoWay,
        *,
        workers: int,
        step_size: StepSize,
        beta: float = 0.9,
        theta: float = 0.99,
        eps: float = 1e-8,
    ) -> None:
        if workers < 1:
            raise Invalid(f"workers must be at least 1; got {workers}", field="workers")
        self.workers = tuple(
            EfficientAdamWorker(
                two_way, client=str(i), step_size=step_size, beta=beta, theta=theta, eps=eps
            )
            for i in range(workers)
        )
        self.server = EfficientAdamServer(two_way)

    def step(self, parameters: Arrays, gradients: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
        """Parameters after one step on the gradients of all workers; new arrays."""
        if len(gradients) != len(self.workers):
            raise Invalid(
                f"gradients must be one for each of {len(self.workers)} workers; "
                f"got {len(gradients)}",
                field="gradients",
            )
        sent = [w.step(g) for w, g in zip(self.workers, gradients, strict=True)]
        return apply(parameters, self.server.step(sent))

    def state_dict(self) -> dict[str, Any]:
        """State dicts of the workers and the server."""
        return {
            "workers": [worker.state_dict() for worker in self.workers],
            "server": self.server.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, bit for bit.

        Raises
        ------
        FeedbackError
            It is no such state, or of another number of workers.
        """
        if set(state) != {"workers", "server"} or len(state["workers"]) != len(self.workers):
            raise _bad(f"it must hold a server and {len(self.workers)} workers")
        for worker, saved in zip(self.workers, state["workers"], strict=True):
            worker.load_state_dict(saved)
        self.server.load_state_dict(state["server"])


def apply(parameters: Arrays, update: Message) -> dict[str, NDArray[Any]]:
    """``x - d`` for every parameter of the server's message, in the parameters' types.

    Raises
    ------
    Invalid
        The message is not of the same names and shapes.
    """
    found = read(update)
    if found.keys() != parameters.keys():
        odd = min(found.keys() ^ parameters.keys())
        raise Invalid(f"the update must be of the parameters; they differ in {odd!r}", field=odd)
    for name, x in parameters.items():
        if found[name].shape != x.shape:
            raise Invalid(
                f"the update of {name!r} must have the shape {list(x.shape)}; "
                f"got {list(found[name].shape)}",
                field=name,
            )
    return {name: (x - found[name]).astype(x.dtype) for name, x in parameters.items()}


# -- states ------------------------------------------------------------------------------


class _Moments(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    version: int
    step: int
    means: dict[str, TensorMessage]
    squares: dict[str, TensorMessage]
    feedback: memoryview | None


def _to_bytes(state: Mapping[str, Any]) -> bytes:
    packed = dict(state)
    for name in ("means", "squares"):
        packed[name] = {key: tensor_fields(array, key) for key, array in state[name].items()}
    if state["feedback"] is not None:
        packed["feedback"] = memoryview(residuals.to_bytes(state["feedback"]))
    return b"".join(pack(packed))


def _from_bytes(data: Buffer) -> dict[str, Any]:
    message: _Moments = decode_validated(data, msgspec.msgpack.Decoder(_Moments), _MAX_ITEMS)
    return {
        "format": message.format,
        "version": message.version,
        "step": message.step,
        "means": {key: to_array(array, key) for key, array in message.means.items()},
        "squares": {key: to_array(array, key) for key, array in message.squares.items()},
        "feedback": None if message.feedback is None else residuals.from_bytes(message.feedback),
    }


def _check_state(state: Mapping[str, Any]) -> None:
    if set(state) != set(_Moments.__struct_fields__):
        raise _bad(f"it must have the keys {', '.join(_Moments.__struct_fields__)}")
    if state["format"] != STATE_FORMAT or state["version"] != STATE_VERSION:
        raise _bad(
            f"it must be {STATE_FORMAT!r} of version {STATE_VERSION}; "
            f"got {str(state['format'])[:40]!r} of version {str(state['version'])[:20]}"
        )
    step = state["step"]
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= _MAX_STEPS:
        raise _bad(f"step must be an integer from 0 on; got {str(step)[:40]}")


def _moments(state: Mapping[str, Any], which: str) -> dict[str, NDArray[Any]]:
    found = state[which]
    if not isinstance(found, Mapping):
        raise _bad(f"{which} must be arrays by name")
    for name, array in found.items():
        good = isinstance(array, np.ndarray) and array.dtype.name in {"float32", "float64"}
        if not isinstance(name, str) or not good or not np.isfinite(array).all():
            raise _bad(f"{which} must be finite arrays of float32 or float64; {name!r} is not")
    return {name: np.array(array) for name, array in found.items()}


def _load_feedback(feedback: ErrorFeedback | None, state: Mapping[str, Any] | None) -> None:
    if (feedback is None) != (state is None):
        raise _bad(
            "it must have residuals exactly if feedback is on; it has "
            f"{'none' if state is None else 'some'}"
        )
    if feedback is not None and state is not None:
        feedback.load_state_dict(state)


def _bad(what: str) -> FeedbackError:
    return FeedbackError(f"state of Efficient-Adam: {what}", field="state")
