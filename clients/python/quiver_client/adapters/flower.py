"""A Flower mod and strategy: what clients return travels quantized, and is averaged exactly.

    app = ClientApp(mods=[CompressionMod(Policy(bits=4), feedback=True)])

    strategy = CompressedStrategy(FedAvg(), broadcast=Policy(bits=8))

The mod makes one message of the arrays that a train function returns, the strategy puts any other
one behind it that sees plain arrays again. For Flower's message API (`flwr.clientapp`,
`flwr.serverapp`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from logging import INFO, WARNING, getLogger
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Result,
    Strategy,
)
from numpy.typing import NDArray

from quiver_client._local import LocalClient
from quiver_client.errors import Invalid
from quiver_client.ps.compress import Quantizes, compress, restore
from quiver_client.ps.feedback import ErrorFeedback
from quiver_client.ps.policy import Policy
from quiver_client.ps.rounds import Aggregator, Verdict
from quiver_kernels.dtypes import LEAF_DTYPES, WIRE_DTYPES
from quiver_kernels.errors import InvalidInput, MalformedMessage
from quiver_kernels.tree import QuantizedTree, Tag

TREE_STYPE = "quiver.tree"
"""Serialization type of a Flower array that holds the bytes of a tree message."""
STATE_STYPE = "quiver.error_feedback"
UPDATE, VALUES = "update", "values"
"""Names of such an array: differences from what was received, or the arrays themselves."""
STATE_KEY = "quiver.residuals"
ROUND_KEY = "server-round"

Arrays = dict[str, NDArray[Any]]
_log = getLogger("flwr")


class CompressionMod:
    """A mod for ``ClientApp(mods=[...])``: the first one, so that others see plain arrays.

    Parameters
    ----------
    policy
        Which arrays are quantized, and how; clients may differ.
    client
        Who quantizes: None: this process (``pip install 'quiver-client[local]'``).
    feedback
        Keep what rounding has lost in the context's state, where Flower keeps it for the node,
        and add it to the next reply.
    difference
        Send floating arrays as differences from those that were received, which are smaller
        and round better. Integers always go as they are.
    seed
        Of the training, equal on all clients; unsigned 64-bit.

    Notes
    -----
    Of the messages of every type it decodes compressed arrays on their way in; on the way out it
    compresses replies to ``train`` messages with one record of arrays. A reply that gets lost
    takes its update along, as without the mod.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        client: Quantizes | None = None,
        feedback: bool = False,
        difference: bool = True,
        seed: int = 0,
    ) -> None:
        self._policy = policy or Policy()
        self._client = client or LocalClient()
        self._feedback = feedback
        self._difference = difference
        self._seed = seed

    def __call__(
        self, message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> Message:
        """Decode the message's arrays, call the app, compress the arrays of its reply."""
        received: Arrays = {}
        if message.has_content():
            plain: dict[str, Any] = dict(message.content.items())
            for key, record in message.content.array_records.items():
                packed = is_compressed(record)
                arrays = restore(_tree_of(record)) if packed else from_record(record)
                plain[key] = to_record(arrays) if packed else record
                received.update(arrays)
            # In a simulation nodes share what they were sent: it stays as it is.
            message.content = RecordDict(plain)
        training = message.metadata.message_type.partition(".")[0] == MessageType.TRAIN
        # The app may take the arrays out of the message.
        number = _round_of(message)
        reply = call_next(message, context)
        if training and not reply.has_error() and len(reply.content.array_records) == 1:
            [(key, record)] = reply.content.array_records.items()
            reply.content[key] = self._compressed(from_record(record), received, number, context)
        return reply

    def _compressed(
        self, arrays: Arrays, received: Arrays, number: int | None, context: Context
    ) -> ArrayRecord:
        name = VALUES
        if self._difference:
            name, arrays = UPDATE, _changed(arrays, received, np.subtract)
        tag = Tag(round=number, client=str(context.node_id))
        # Without a round to name it, a seed would be that of the last message.
        seed = None if number is None else self._seed
        if not self._feedback:
            tree = compress(arrays, self._policy, client=self._client, tag=tag, seed=seed)
        else:
            owed = ErrorFeedback()
            if STATE_KEY in context.state:
                kept = context.state.array_records[STATE_KEY]["residuals"]
                owed = ErrorFeedback.from_bytes(kept.data)
            tree = owed.compress(
                arrays, self._policy, client=self._client, tag=tag, seed=seed, sender=""
            )
            kept = _bytes_array(owed.to_bytes(), STATE_STYPE)
            context.state[STATE_KEY] = ArrayRecord({"residuals": kept})
        return _record_of(tree, name)


@dataclass(frozen=True, slots=True)
class RoundBytes:
    """What the arrays of one round's training weighed.

    Attributes
    ----------
    round
        The round.
    up, down
        Bytes of the replies' arrays, and of those that were sent, all nodes together.
    plain_up, plain_down
        Bytes of the same arrays as Flower sends them.
    """

    round: int
    up: int = 0
    down: int = 0
    plain_up: int = 0
    plain_down: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class _Mean:
    """The mean of a round, its metrics, how many replies it is of, and one of them."""

    arrays: Arrays
    metrics: MetricRecord
    counted: int
    reply: Message


class CompressedStrategy(Strategy):
    """Another strategy, behind the decoding and the exact mean of compressed replies.

    Parameters
    ----------
    strategy
        What chooses nodes, configures them, and makes a model of the mean. A mean by number of
        examples, as that of FedAvg and those built on it, is computed here: exactly, for any
        order of replies. Other strategies see every reply decoded.
    exact
        Whether the mean is computed here; then `strategy` gets one reply that holds it, and the
        metrics it makes of all. None: for FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam and
        FedYogi.
    broadcast
        Policy of what is sent to the nodes, which then need the mod; compressed once for all of
        them, and again only when the arrays change. None: as `strategy` makes it.
    client
        Who quantizes the broadcast: None: this process.
    seed
        Of the training; unsigned 64-bit.

    Attributes
    ----------
    rounds
        Bytes of each round so far, in a list of `RoundBytes`.

    Notes
    -----
    The model itself is never rounded: with `broadcast`, nodes train from the rounded one, and
    their differences from it are added to the one that is not.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        exact: bool | None = None,
        broadcast: Policy | None = None,
        client: Quantizes | None = None,
        seed: int = 0,
    ) -> None:
        self._strategy = strategy
        self._exact = _averages(strategy) if exact is None else exact
        if self._exact and not isinstance(strategy, FedAvg):
            raise Invalid(
                "exact needs a strategy that weights replies as FedAvg does; "
                f"got {type(strategy).__name__}",
                code="invalid_option",
                field="exact",
            )
        self._broadcast = broadcast
        self._client = client
        self._seed = seed
        self._arrays: ArrayRecord | None = None
        self._sent: ArrayRecord | None = None
        self._version = 0
        self.rounds: list[RoundBytes] = []

    # -- out -----------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The other strategy's messages, with compressed arrays if `broadcast` says so."""
        self._remember(arrays)
        found = list(self._strategy.configure_train(server_round, arrays, config, grid))
        plain = sum(_content_bytes(message) for message in found)
        found = self._with_sent(found)
        sent = sum(_content_bytes(message) for message in found)
        self.rounds.append(RoundBytes(server_round, down=sent, plain_down=plain))
        return found

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As `configure_train`; the same arrays are not compressed again."""
        self._remember(arrays)
        found = self._strategy.configure_evaluate(server_round, arrays, config, grid)
        return self._with_sent(list(found))

    def _remember(self, arrays: ArrayRecord) -> None:
        if arrays is not self._arrays:
            self._arrays, self._sent = arrays, None
            self._version += 1

    def _with_sent(self, messages: list[Message]) -> list[Message]:
        if self._broadcast is None or self._arrays is None:
            return messages
        if self._sent is None:
            tree = compress(
                from_record(self._arrays),
                self._broadcast,
                client=self._client or LocalClient(),
                tag=Tag(model_version=self._version),
                seed=self._seed,
            )
            self._sent = _record_of(tree, VALUES)
        for message in messages:
            # Strategies give all messages the same content, which stays as it is.
            message.content = RecordDict(
                {
                    key: self._sent if record is self._arrays else record
                    for key, record in message.content.items()
                }
            )
        return messages

    # -- in ------------------------------------------------------------------------------

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode the replies, and let the other strategy make the next model of them.

        Raises
        ------
        InconsistentMessageReplies
            Some replies are compressed and others are not, or they hold other things.

        Notes
        -----
        A reply whose bytes are no tree message, or of another round, or whose arrays are not
        those of the others, is left out and logged.
        """
        failed: list[Message] = []
        good: list[Message] = []
        for reply in replies:
            (failed if reply.has_error() else good).append(reply)
        packed = [reply for reply in good if is_compressed(_record_in(reply))]
        if not packed:
            return self._passed_on(server_round, [*failed, *good])
        if len(packed) != len(good):
            raise InconsistentMessageReplies(
                f"{len(packed)} of {len(good)} replies are compressed; give all clients the mod"
            )
        up = sum(_content_bytes(reply) for reply in packed)
        if not self._exact:
            decoded = self._decoded(server_round, packed)
            plain = sum(_content_bytes(reply) for reply in decoded)
            self._account(server_round, up, plain)
            return self._passed_on(server_round, [*failed, *decoded])
        mean = self._mean(server_round, packed)
        if mean is None:
            return self._passed_on(server_round, failed)
        self._account(server_round, up, mean.counted * to_record(mean.arrays).count_bytes())
        return self._used(server_round, mean, failed)

    def _used(
        self, server_round: int, mean: _Mean, failed: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the other strategy makes of the mean."""
        arrays = to_record(mean.arrays)
        if _only_averages(self._strategy):
            # Flower's own mean would be the same numbers, but make floats of integers.
            for reply in failed:
                _left_out(reply, reply.error.reason or "it failed")
            return arrays, mean.metrics
        metrics = MetricRecord({**mean.metrics})
        # It divides by the sum of weights again: a single one makes that exact.
        metrics[self._strategy.weighted_by_key] = 1.0
        [key] = mean.reply.content.array_records
        [metrics_key] = mean.reply.content.metric_records
        mean.reply.content = RecordDict({key: arrays, metrics_key: metrics})
        return self._passed_on(server_round, [*failed, mean.reply])

    def _passed_on(
        self, server_round: int, replies: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = self._strategy.aggregate_train(server_round, replies)
        return arrays, metrics

    def _account(self, server_round: int, up: int, plain: int) -> None:
        if self.rounds and self.rounds[-1].round == server_round:
            self.rounds[-1] = replace(self.rounds[-1], up=up, plain_up=plain)
        else:
            self.rounds.append(RoundBytes(server_round, up=up, plain_up=plain))

    def _decoded(self, server_round: int, replies: list[Message]) -> list[Message]:
        """Every reply with the arrays that its client has trained."""
        found = []
        sent = self._sent_arrays()
        for reply in replies:
            [(key, record)] = reply.content.array_records.items()
            try:
                tree = _tree_of(record)
                if tree.tag.round not in {server_round, None}:
                    _left_out(reply, f"is of round {tree.tag.round}")
                    continue
                arrays = _based(tree.arrays(), record, sent)
            except (InvalidInput, MalformedMessage) as error:
                _left_out(reply, str(error))
                continue
            reply.content[key] = to_record(arrays)
            found.append(reply)
        return found

    def _mean(self, server_round: int, replies: list[Message]) -> _Mean | None:
        """The exact mean, and the metrics of the replies in it; None if no reply fits."""
        base = self._strategy
        aggregator = Aggregator()
        aggregator.open(server_round)
        counted: list[Message] = []
        sent = self._sent_arrays()
        for reply in replies:
            [record] = reply.content.array_records.values()
            try:
                tree = _tree_of(record)
                # Flower says who has sent it. A tag without a round is not of another one.
                tag = replace(
                    tree.tag,
                    client=str(reply.metadata.src_node_id),
                    round=server_round if tree.tag.round is None else tree.tag.round,
                    model_version=0,
                )
                _check_based(tree, record, sent)
                weight = _weight_in(reply, base.weighted_by_key)
                verdict = aggregator.add(replace(tree, tag=tag), weight)
            except (InvalidInput, MalformedMessage) as error:
                _left_out(reply, str(error))
                continue
            if verdict is not Verdict.ACCEPTED:
                _left_out(reply, f"is {verdict.value}")
                continue
            counted.append(reply)
        if not counted:
            return None
        _log.log(INFO, "\t├──> Exact mean of %d compressed replies", len(counted))
        contents = [reply.content for reply in counted]
        metrics = base.train_metrics_aggr_fn(contents, base.weighted_by_key)
        [record] = counted[0].content.array_records.values()
        mean = _based(dict(aggregator.close().tree), record, sent)
        return _Mean(mean, metrics, len(counted), counted[0])

    def _sent_arrays(self) -> Arrays:
        """What clients were sent, before it was rounded."""
        return from_record(self._arrays or ArrayRecord())

    # -- as it is ------------------------------------------------------------------------

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The other strategy's."""
        return self._strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log the other strategy's settings, and these."""
        self._strategy.summary()
        _log.log(INFO, "\t└──> Compressed replies: %s", "exact mean" if self._exact else "decoded")

    def start(self, *args: Any, **options: Any) -> Result:
        """As `Strategy.start`."""
        self.rounds.clear()
        return super().start(*args, **options)


def is_compressed(record: ArrayRecord) -> bool:
    """Whether a record holds a tree message in place of its arrays."""
    return len(record) == 1 and next(iter(record.values())).stype == TREE_STYPE


def to_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Arrays by name as Flower's record."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Flower's record as arrays by name."""
    found = {}
    for name, array in record.items():
        values = array.numpy()
        # NumPy's files know no bfloat16: its bits come back without a type.
        if values.dtype.kind == "V" and array.dtype in LEAF_DTYPES:
            values = values.view(LEAF_DTYPES[array.dtype])
        found[name] = values
    return found


def _record_of(tree: QuantizedTree, name: str) -> ArrayRecord:
    return ArrayRecord({name: _bytes_array(tree.to_bytes(), TREE_STYPE)})


def _bytes_array(data: bytes, stype: str) -> Array:
    # Not of NumPy's serialization: Flower cuts large arrays, and reads none that it does not know.
    return Array(dtype="uint8", shape=(len(data),), stype=stype, data=data)


def _tree_of(record: ArrayRecord) -> QuantizedTree:
    [(name, array)] = record.items()
    if name not in {UPDATE, VALUES}:
        raise InvalidInput(
            f"a tree message must be called {UPDATE} or {VALUES}; got {name[:40]!r}",
            code="unknown_key",
            field="arrays",
        )
    return QuantizedTree.from_bytes(array.data)


def _based(arrays: Arrays, record: ArrayRecord, sent: Arrays) -> Arrays:
    """What a client has trained, if `record` says that `arrays` are differences from `sent`."""
    return arrays if VALUES in record else _changed(arrays, sent, np.add)


def _check_based(tree: QuantizedTree, record: ArrayRecord, sent: Arrays) -> None:
    if VALUES not in record:
        for leaf in tree.leaves():
            if leaf.dtype in WIRE_DTYPES:
                _partner(leaf.name, leaf.shape, sent)


def _partner(name: str, shape: tuple[int, ...], by: Arrays) -> NDArray[Any]:
    """The array of this name and shape."""
    found = by.get(name)
    if found is None or found.shape != shape:
        got = "none" if found is None else f"shape {list(found.shape)}"
        raise InvalidInput(
            f"array {name!r} of shape {list(shape)} must be one of those that were sent; got {got}",
            code="shape_mismatch",
            field=name,
        )
    return found


def _changed(arrays: Arrays, by: Arrays, change: Callable[..., Any]) -> Arrays:
    """Floating arrays plus or minus those of the same names, in their types."""
    found = {}
    for name, values in arrays.items():
        if values.dtype.name not in WIRE_DTYPES:
            found[name] = values
            continue
        other = _partner(name, values.shape, by)
        # In float64, rounded once.
        wide = change(values.astype(np.float64), other.astype(np.float64))
        found[name] = np.asarray(wide).astype(values.dtype)
    return found


def _averages(strategy: Strategy) -> bool:
    """Whether all it wants of the replies is their mean by weight."""
    if isinstance(strategy, FedAdagrad | FedAdam | FedYogi | FedAvgM | FedProx):
        return True
    return _only_averages(strategy)


def _only_averages(strategy: Strategy) -> bool:
    # Not the medians and choices that are FedAvg but for this.
    return getattr(type(strategy), "aggregate_train", None) is FedAvg.aggregate_train


def _round_of(message: Message) -> int | None:
    if not message.has_content():
        return None
    for config in message.content.config_records.values():
        found = config.get(ROUND_KEY)
        if isinstance(found, int) and found >= 0:
            return found
    return None


def _record_in(reply: Message) -> ArrayRecord:
    """The reply's record of arrays; an empty one if there is not just one."""
    records = list(reply.content.array_records.values())
    return records[0] if len(records) == 1 else ArrayRecord()


def _weight_in(reply: Message, key: str) -> float:
    records = list(reply.content.metric_records.values())
    weight = records[0].get(key) if len(records) == 1 else None
    if not isinstance(weight, int | float):
        raise InvalidInput(
            f"a reply must have one record of metrics with a number {key!r}; got {weight}",
            code="missing_key",
            field=key,
        )
    return float(weight)


def _content_bytes(message: Message) -> int:
    return sum(record.count_bytes() for record in message.content.array_records.values())


def _left_out(reply: Message, reason: str) -> None:
    node = reply.metadata.src_node_id
    _log.log(WARNING, "\t> Reply from node %d left out: %s", node, reason)
