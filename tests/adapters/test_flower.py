"""The Flower mod and strategy, in Flower's own simulation and against its messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import ServerApp
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    Krum,
    QFedAvg,
    Strategy,
)
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from flower_threads import simulate
from quiver_client import LocalClient
from quiver_client.adapters.flower import (
    STATE_KEY,
    CompressedStrategy,
    CompressionMod,
    from_record,
    is_compressed,
    to_record,
)
from quiver_client.errors import Invalid
from quiver_client.ps import Policy, QuantizedTree
from quiver_client.ps.feedback import ErrorFeedback

Arrays = dict[str, NDArray[Any]]
FEATURES, CLASSES = 120, 5
ROUNDS, NODES = 6, 4
POLICY = Policy(bits=4, min_size=32)


# -- a training --------------------------------------------------------------------------


def points(number: int, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Points around the centres of their classes; each client has other ones."""
    centres = np.random.default_rng(0).standard_normal((CLASSES, FEATURES))
    drawn = np.random.default_rng(number + 1)
    labels = drawn.integers(CLASSES, size=count)
    return centres[labels] + 1.5 * drawn.standard_normal((count, FEATURES)), labels


def loss_and_gradient(model: Arrays, x: NDArray[Any], y: NDArray[Any]) -> tuple[float, Arrays]:
    """Of softmax regression."""
    scores = x @ model["weight"] + model["bias"]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares = scores / scores.sum(axis=1, keepdims=True)
    loss = float(-np.log(shares[np.arange(y.size), y]).mean())
    shares[np.arange(y.size), y] -= 1
    return loss, {"weight": x.T @ shares / y.size, "bias": shares.mean(axis=0)}


def start() -> Arrays:
    return {
        "weight": np.zeros((FEATURES, CLASSES), np.float32),
        "bias": np.zeros(CLASSES, np.float32),
        "steps": np.zeros((), np.int64),
    }


def client_app(mods: list[Any]) -> ClientApp:
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        x, y = points(number, 40 * (number + 1))
        model = from_record(message.content["arrays"])
        for _ in range(5):
            loss, gradient = loss_and_gradient(model, x, y)
            for name, values in gradient.items():
                model[name] = (model[name] - 0.3 * values).astype(np.float32)
        model["steps"] = model["steps"] + 5
        metrics = MetricRecord({"num-examples": y.size, "loss": loss})
        return Message(
            RecordDict({"arrays": to_record(model), "metrics": metrics}), reply_to=message
        )

    return app


def run(
    patch: pytest.MonkeyPatch, mods: list[Any], strategy: Strategy
) -> tuple[float, ArrayRecord, Any]:
    """The loss of the final model on all clients' points, the model, and Flower's result."""
    server = ServerApp()
    found: list[Any] = []

    @server.main()
    def main(grid: Any, context: Context) -> None:
        found.append(strategy.start(grid, to_record(start()), num_rounds=ROUNDS))

    simulate(patch, server, client_app(mods), NODES)
    [result] = found
    x, y = points(99, 400)
    loss, _ = loss_and_gradient(from_record(result.arrays), x, y)
    return loss, result.arrays, result


def fed_avg(kind: type[FedAvg] = FedAvg, **options: Any) -> FedAvg:
    return kind(fraction_evaluate=0.0, min_available_nodes=NODES, min_train_nodes=NODES, **options)


def test_a_training_in_flowers_simulation(monkeypatch: pytest.MonkeyPatch):
    plain, _, _ = run(monkeypatch, [], fed_avg())
    mods = [CompressionMod(POLICY, feedback=True)]
    strategy = CompressedStrategy(fed_avg(), broadcast=replace(POLICY, bits=6))
    compressed, model, result = run(monkeypatch, mods, strategy)
    untrained, _ = loss_and_gradient(start(), *points(99, 400))

    assert plain < untrained / 2
    assert compressed < 1.1 * plain
    assert int(model["steps"].numpy()) == 5 * ROUNDS
    # Metrics are averaged as ever, and the weights go no further.
    assert len(result.train_metrics_clientapp) == ROUNDS
    assert all(set(found) == {"loss"} for found in result.train_metrics_clientapp.values())
    for number, found in enumerate(strategy.rounds, 1):
        assert found.round == number
        assert 0 < found.up < found.plain_up
        assert 0 < found.down < found.plain_down


# -- single messages -----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def task() -> None:
    """Who makes messages, for Flower."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 2, 3


class Nodes:
    """A grid that knows its nodes."""

    def get_node_ids(self) -> list[int]:
        return [1, 2, 3]


class Counting(LocalClient):
    """Counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def quantize_many(self, *args: Any, **options: Any) -> Any:
        self.asked += 1
        return super().quantize_many(*args, **options)


WEIGHTS = {1: 0.3, 2: 5, 3: 11}


def context(node: int) -> Context:
    return Context(run_id=2, node_id=node, node_config={}, state=RecordDict(), run_config={})


def models(seed: int, scale: float = 1.0) -> Arrays:
    drawn = np.random.default_rng(seed)
    return {
        "weight": (scale * drawn.standard_normal((FEATURES, CLASSES))).astype(np.float32),
        "bias": (scale * drawn.standard_normal(CLASSES)).astype(np.float32),
        "steps": np.array(seed),
    }


def moved(base: Arrays, seed: int) -> Arrays:
    """A model near another one."""
    return {name: values + models(seed, 0.1)[name] for name, values in base.items()}


def instruction(arrays: Arrays, node: int = 1, number: int = 1) -> Message:
    content = RecordDict(
        {"arrays": to_record(arrays), "config": ConfigRecord({"server-round": number})}
    )
    return Message(content, dst_node_id=node, message_type="train")


def having(arrays: Arrays, examples: float = 1) -> Callable[[Message, Context], Message]:
    """An app that has trained these arrays already."""

    def call(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": examples, "loss": 1.0 / examples})
        content = RecordDict({"arrays": to_record(arrays), "metrics": metrics})
        return Message(content, reply_to=message)

    return call


def configured(strategy: CompressedStrategy, base: Arrays, number: int = 1) -> list[Message]:
    """What it sends in a round, in order of nodes."""
    found = strategy.configure_train(number, to_record(base), ConfigRecord(), Nodes())
    return sorted(found, key=lambda message: message.metadata.dst_node_id)


def replies(strategy: CompressedStrategy, base: Arrays, **options: Any) -> list[Message]:
    """What three nodes answer in the first round."""
    mod = CompressionMod(POLICY, **options)
    return [
        mod(message, context(node), having(moved(base, node), WEIGHTS[node]))
        for message in configured(strategy, base)
        for node in [message.metadata.dst_node_id]
    ]


def sent(reply: Message) -> Arrays:
    """What a compressed reply decodes to."""
    [record] = reply.content.array_records.values()
    [array] = record.values()
    return QuantizedTree.from_bytes(array.data).arrays()


def means_of(strategy: CompressedStrategy, made: list[Message]) -> Arrays:
    found, _ = strategy.aggregate_train(1, made)
    assert found is not None
    return from_record(found)


def wrapped(kind: type[FedAvg] = FedAvg, **options: Any) -> CompressedStrategy:
    return CompressedStrategy(kind(min_train_nodes=3), **options)


def equal(a: Arrays, b: Arrays) -> bool:
    """Whether they are equal bit for bit."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes() for name in a
    )


def test_the_mean_is_exact():
    """Against fractions; rounded to float32 before and after the model is added."""
    base, strategy = models(9), wrapped()
    made = replies(strategy, base)
    updates = {reply.metadata.src_node_id: sent(reply) for reply in made}
    total = sum(Fraction(weight) for weight in WEIGHTS.values())

    found, metrics = strategy.aggregate_train(1, made)
    assert found is not None
    for name in ("weight", "bias"):
        for place in np.ndindex(base[name].shape):
            exact = sum(
                Fraction(weight) * Fraction(float(updates[node][name][place]))
                for node, weight in WEIGHTS.items()
            )
            mean = np.float32(float(exact / total))
            wanted = np.float32(float(base[name][place]) + float(mean))
            assert found[name].numpy()[place] == wanted
    assert metrics is not None
    assert metrics["loss"] == pytest.approx(3 / float(total))
    assert "num-examples" not in metrics


def test_the_order_of_replies_does_not_show():
    base = models(9)
    means = []
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        strategy = wrapped()
        made = replies(strategy, base)
        means.append(means_of(strategy, [made[i] for i in order]))

    assert equal(means[0], means[1])
    assert equal(means[0], means[2])


def test_a_strategy_with_a_state_of_its_own_gets_the_exact_mean():
    base = models(9)
    ours = wrapped(FedAdam)
    mean_of_ours = wrapped()
    mean = means_of(mean_of_ours, replies(mean_of_ours, base))
    theirs = FedAdam(min_train_nodes=1)
    theirs.configure_train(1, to_record(base), ConfigRecord(), Nodes())
    wanted, _ = theirs.aggregate_train(1, [having(mean)(instruction(base), context(1))])

    assert wanted is not None
    assert equal(means_of(ours, replies(ours, base)), from_record(wanted))


def test_a_strategy_that_compares_replies_sees_all_of_them():
    base, strategy = models(9), wrapped(FedMedian)
    made = replies(strategy, base)
    decoded = [base["weight"].astype(np.float64) + sent(reply)["weight"] for reply in made]
    median = np.median(np.array(decoded).astype(np.float32), axis=0)

    assert np.array_equal(means_of(strategy, made)["weight"], median)


def test_exact_needs_weights():
    class Other(Strategy):
        configure_train = configure_evaluate = aggregate_train = aggregate_evaluate = summary = None

    with pytest.raises(Invalid, match="Other"):
        CompressedStrategy(Other(), exact=True)


@pytest.mark.parametrize(
    ("strategy", "exact"),
    [
        (FedAvg(), True),
        (FedProx(), True),
        (FedAdam(), True),
        (FedAvgM(), True),
        (FedMedian(), False),
        (Krum(), False),
        (QFedAvg(client_learning_rate=0.1), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_which_strategies_get_the_mean(strategy: Strategy, exact: bool):
    assert CompressedStrategy(strategy)._exact is exact


def test_values_in_place_of_differences():
    base, strategy = models(9), wrapped()
    made = replies(strategy, base, difference=False)

    assert np.abs(sent(made[0])["weight"] - moved(base, 1)["weight"]).max() < 1
    mean = means_of(strategy, made)
    assert np.abs(mean["weight"] - base["weight"]).max() < 1


def test_types_come_back():
    arrays = {
        "half": np.linspace(0, 1, 200).astype(np.float16),
        "brain": np.linspace(0, 1, 200).astype(ml_dtypes.bfloat16),
        "wide": np.linspace(0, 1, 200),
        "count": np.arange(7, dtype=np.uint8),
        "scalar": np.float32(3).reshape(()),
        "flag": np.array([True, False]),
        "none": np.zeros((0, 3), np.float32),
    }
    strategy = wrapped()
    mod = CompressionMod(Policy(bits=8, min_size=32))
    made = [
        mod(m, context(m.metadata.dst_node_id), having(arrays))
        for m in configured(strategy, arrays)
    ]
    mean = means_of(strategy, made)

    # Nothing has changed, so the differences are zeros and the means are the arrays.
    assert equal(mean, arrays)


# -- feedback --------------------------------------------------------------------------------


def test_feedback_owes_what_was_not_sent():
    state, base = context(4), models(9)
    mod = CompressionMod(Policy(bits=1, min_size=32), feedback=True)
    put_in = np.zeros(base["weight"].shape)
    got = np.zeros(base["weight"].shape)
    for number in range(1, 6):
        after = moved(base, number)
        reply = mod(instruction(base, number=number), state, having(after))
        got += sent(reply)["weight"]
        put_in += (after["weight"].astype(np.float64) - base["weight"]).astype(np.float32)
        # As a node keeps it between two messages.
        state.state = recorddict_from_proto(recorddict_to_proto(state.state))
    owed = ErrorFeedback.from_bytes(state.state[STATE_KEY]["residuals"].data)

    assert np.allclose(put_in - got, owed.residual("weight"), rtol=0, atol=1e-12)
    assert np.abs(put_in - got).max() > 1e-3


def test_a_lost_state_shows_in_the_next_reply():
    """The control: the residuals are in the state, and matter."""
    base, found = models(9), []
    for lost in (False, False, True):
        mod = CompressionMod(Policy(bits=2, min_size=32), feedback=True, seed=1)
        state = context(4)
        mod(instruction(base), state, having(moved(base, 1)))
        if lost:
            del state.state[STATE_KEY]
        found.append(sent(mod(instruction(base, number=2), state, having(moved(base, 2)))))

    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


# -- the way down ----------------------------------------------------------------------------


def test_a_broadcast_is_compressed_once():
    client = Counting()
    strategy = CompressedStrategy(
        FedAvg(min_train_nodes=3, min_evaluate_nodes=3), broadcast=POLICY, client=client
    )
    record = to_record(models(9))
    train = list(strategy.configure_train(1, record, ConfigRecord(), Nodes()))
    evaluate = list(strategy.configure_evaluate(1, record, ConfigRecord(), Nodes()))
    sizes = {
        tuple(record.count_bytes() for record in message.content.array_records.values())
        for message in (*train, *evaluate)
    }

    assert len(train) == len(evaluate) == 3
    assert client.asked == 1
    assert len(sizes) == 1
    assert all(is_compressed(message.content["arrays"]) for message in (*train, *evaluate))
    strategy.configure_train(2, to_record(models(8)), ConfigRecord(), Nodes())
    assert client.asked == 2


def test_an_app_sees_plain_arrays_and_the_model_is_not_rounded():
    base = models(9)
    strategy = wrapped(broadcast=POLICY)
    seen: list[Arrays] = []

    def app(message: Message, context: Context) -> Message:
        # It changes nothing: its difference from what it was sent is zero.
        seen.append(from_record(message.content["arrays"]))
        return having(seen[-1])(message, context)

    mod = CompressionMod(POLICY)
    made = [mod(m, context(m.metadata.dst_node_id), app) for m in configured(strategy, base)]

    assert not np.array_equal(seen[0]["weight"], base["weight"])
    assert np.abs(seen[0]["weight"] - base["weight"]).max() < 1
    assert all(equal(arrays, seen[0]) for arrays in seen)
    assert equal(means_of(strategy, made), base)


def test_messages_of_evaluation_are_decoded_and_their_replies_left_alone():
    strategy = wrapped(broadcast=POLICY)
    [message, *_] = strategy.configure_evaluate(1, to_record(models(9)), ConfigRecord(), Nodes())
    seen: list[Any] = []

    def app(message: Message, context: Context) -> Message:
        seen.extend(message.content["arrays"])
        return Message(RecordDict({"metrics": MetricRecord({"loss": 1.0})}), reply_to=message)

    reply = CompressionMod(POLICY)(message, context(1), app)

    assert sorted(seen) == ["bias", "steps", "weight"]
    assert list(reply.content) == ["metrics"]


# -- what does not fit -------------------------------------------------------------------------


def corrupted(reply: Message) -> Message:
    [record] = reply.content.array_records.values()
    [array] = record.values()
    array.data = array.data[:-3]
    return reply


def renamed(reply: Message) -> Message:
    [(key, record)] = reply.content.array_records.items()
    reply.content[key] = ArrayRecord({"other": next(iter(record.values()))})
    return reply


def unweighted(reply: Message) -> Message:
    reply.content["metrics"] = MetricRecord({"num-examples": [1, 2], "loss": 1.0})
    return reply


def of_other_leaves(reply: Message) -> Message:
    arrays = {"weight": np.zeros((3, 3), np.float32)}
    mod = CompressionMod(POLICY, difference=False)
    other = mod(instruction(arrays), context(1), having(arrays))
    [(key, record)] = other.content.array_records.items()
    [array] = record.values()
    reply.content[key] = ArrayRecord({"update": array})
    return reply


def of_another_round(reply: Message) -> Message:
    arrays = models(9)
    mod = CompressionMod(POLICY)
    other = mod(instruction(arrays, number=5), context(1), having(moved(arrays, 1)))
    reply.content["arrays"] = other.content["arrays"]
    return reply


@pytest.mark.parametrize("spoil", [corrupted, renamed, of_other_leaves, of_another_round])
@pytest.mark.parametrize("kind", [FedAvg, FedMedian])
def test_a_reply_that_does_not_fit_is_left_out(
    spoil: Callable[[Message], Message], kind: type[FedAvg]
):
    base = models(9)
    strategy, other = wrapped(kind), wrapped(kind)
    first, *rest = replies(strategy, base)
    _, *alone = replies(other, base)

    found = means_of(strategy, [spoil(first), *rest])
    assert equal(found, means_of(other, alone))
    # The control: it would have made a difference.
    all_of_them = wrapped(kind)
    assert not equal(found, means_of(all_of_them, replies(all_of_them, base)))


def test_a_reply_without_a_weight_is_left_out():
    base, strategy, other = models(9), wrapped(), wrapped()
    first, *rest = replies(strategy, base)
    _, *alone = replies(other, base)

    assert equal(means_of(strategy, [unweighted(first), *rest]), means_of(other, alone))


def test_a_node_counts_once():
    base, strategy, other = models(9), wrapped(), wrapped()
    first, *rest = replies(strategy, base)
    [again, *_] = replies(wrapped(), base)

    assert equal(means_of(strategy, [first, again, *rest]), means_of(other, replies(other, base)))


def test_no_reply_that_fits_makes_no_model():
    base, strategy = models(9), wrapped()

    assert strategy.aggregate_train(1, [corrupted(r) for r in replies(strategy, base)]) == (
        None,
        None,
    )


def test_some_clients_without_the_mod_are_refused():
    base, strategy = models(9), wrapped()
    _, *rest = replies(strategy, base)
    plain = having(moved(base, 1))(instruction(base), context(1))

    with pytest.raises(InconsistentMessageReplies, match="2 of 3"):
        strategy.aggregate_train(1, [plain, *rest])


def test_clients_without_the_mod_are_the_other_strategys():
    base = models(9)
    made = [having(moved(base, node))(instruction(base, node), context(node)) for node in (1, 2)]
    mine, _ = wrapped().aggregate_train(1, made)
    theirs, _ = FedAvg().aggregate_train(1, made)

    assert mine is not None
    assert theirs is not None
    assert equal(from_record(mine), from_record(theirs))


def test_an_error_of_the_app_goes_through():
    failed = Message(Error(code=1, reason="no data"), reply_to=instruction(models(9)))

    assert CompressionMod(POLICY)(instruction(models(9)), context(1), lambda m, c: failed) is failed
    assert wrapped().aggregate_train(1, [failed]) == (None, None)
