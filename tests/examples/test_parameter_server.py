"""The example of a parameter server: its parts, and whole runs with faults.

The runs are short ones of a small network, with real processes on real sockets. Whatever is
killed and started again, the final model must be that of a run without faults, bit by bit.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np
import pytest
from parameter_server import (
    compression,
    data,
    model,
    page,
    protocol,
    qsgd,
    report,
    run,
    trees,
)
from parameter_server import server as serving
from parameter_server.averaging import Averager
from parameter_server.config import Config, worker_name
from parameter_server.journal import Entry, Journal
from parameter_server.launch import Service, Training
from parameter_server.protocol import NEVER, Channel, Kind, Receipt, Welcome
from parameter_server.records import Point, Result

from quiver_client.ps import QuantizedTree, Tag, Verdict

SIZES = (64, 32, 10)
WORKERS = 3
ROUNDS = 40
SECONDS = 60.0


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    data.export(path)
    return str(path)


@pytest.fixture
def config(images: str, tmp_path: Path) -> Config:
    return Config(
        scheme="float32",
        service="http://127.0.0.1:9",
        folder=str(tmp_path),
        data=images,
        sizes=SIZES,
        workers=WORKERS,
        rounds=2,
        patience=20.0,
    )


def with_(config: Config, **changes: object) -> Config:
    return msgspec.structs.replace(config, **changes)


# -- the data and the network ------------------------------------------------------------


def test_workers_share_all_images_and_no_test_image(images: str):
    train, test = data.load(Path(images))
    shards = [data.shard(train, worker, WORKERS) for worker in range(WORKERS)]

    assert (len(train), len(test)) == (1197, 600)
    assert sum(len(part) for part in shards) == len(train)
    rows = {row.tobytes() for part in shards for row in part.pixels}
    assert rows == {row.tobytes() for row in train.pixels}
    assert not rows & {row.tobytes() for row in test.pixels}


def test_a_batch_depends_on_seed_worker_and_round_alone(images: str):
    train, _ = data.load(Path(images))
    first = data.batch(train, 16, 1, 2, 3)

    assert np.array_equal(first.pixels, data.batch(train, 16, 1, 2, 3).pixels)
    for other in [(0, 2, 3), (1, 0, 3), (1, 2, 0)]:
        assert not np.array_equal(first.pixels, data.batch(train, 16, *other).pixels)


def largest_gradient_error(
    gradient_of: Callable[[model.Tree, data.Images], tuple[float, model.Tree]],
) -> float:
    """Of some entries of every array, beside central differences in float64."""
    rng = np.random.default_rng(0)
    images = data.Images(rng.random((7, 6)), rng.integers(0, 4, 7))
    weights = {k: v.astype(np.float64) for k, v in model.initial((6, 5, 4, 4), 1).items()}
    # Off the kinks at 0, where dead units begin.
    weights = {k: v + 0.1 * rng.standard_normal(v.shape) for k, v in weights.items()}
    _, gradient = gradient_of(weights, images)
    step, errors = 1e-6, []
    for name, values in weights.items():
        for index in rng.integers(0, values.size, 5):
            sides = []
            for sign in (1, -1):
                moved = values.copy()
                moved.flat[index] += sign * step
                sides.append(gradient_of({**weights, name: moved}, images)[0])
            slope = (sides[0] - sides[1]) / (2 * step)
            errors.append(abs(slope - gradient[name].flat[index]))
    return max(errors)


def test_the_gradient_is_that_of_the_loss():
    assert largest_gradient_error(model.loss_and_gradient) < 1e-8


def test_the_check_of_gradients_sees_a_wrong_one():
    def wrong(weights: model.Tree, images: data.Images) -> tuple[float, model.Tree]:
        loss, gradient = model.loss_and_gradient(weights, images)
        return loss, {k: v * (1.001 if k == "layer1.weight" else 1) for k, v in gradient.items()}

    assert largest_gradient_error(wrong) > 1e-6


# -- frames ------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with closing(one), closing(other):
        yield _PlainChannel(one), other


class _PlainChannel(Channel):
    """A channel on a socket that is not TCP."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self.sent = self.received = 0


def test_a_frame_arrives_as_it_was_sent_and_is_counted(pair: tuple[Channel, socket.socket]):
    channel, other = pair
    far = _PlainChannel(other)

    took = channel.send(Kind.UPDATE, b"abc")
    frame = far.receive()

    assert (frame.kind, frame.payload) == (Kind.UPDATE, b"abc")
    assert took == channel.sent == far.received == frame.nbytes == 8


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"\x09\0\0\0\0", "kind 9 is none of 1..7"),
        (b"\x04\xff\xff\xff\xff", "at most 67108864 bytes; announced: 4294967295"),
    ],
)
def test_a_frame_that_is_none_is_refused_before_memory_is_spent(
    pair: tuple[Channel, socket.socket], sent: bytes, error: str
):
    channel, other = pair
    other.sendall(sent)

    with pytest.raises(protocol.ProtocolError, match=error):
        channel.receive()


@pytest.mark.parametrize("sent", [b"", b"\x04\0", b"\x04\0\0\0\x05abc"])
def test_a_frame_cut_short_is_the_end(pair: tuple[Channel, socket.socket], sent: bytes):
    channel, other = pair
    other.sendall(sent)
    other.shutdown(socket.SHUT_WR)

    with pytest.raises(EOFError):
        channel.receive()


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x90", b"\x92\x01\x02", b"\x91\xa1x"])
def test_a_small_message_is_read_strictly(payload: bytes):
    with pytest.raises(protocol.ProtocolError, match="Welcome"):
        protocol.unpack(payload, Welcome)


# -- QSGD --------------------------------------------------------------------------------


def roundings(norm: str, bits: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 40)).astype(np.float32)
    decoded = []
    for _ in range(count):
        norms, codes = qsgd.encode(x, bits, norm, rng)
        decoded.append(qsgd.decode(norms, codes, x.shape, bits))
    return x, np.array(decoded)


def bias(x: np.ndarray, decoded: np.ndarray) -> float:
    """How far the mean is from `x`, towards or away from zero, in standard deviations."""
    along = (decoded * np.sign(x)).sum(axis=(1, 2))
    return float(abs(along.mean() - np.abs(x).sum()) / (along.std() / np.sqrt(len(along))))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("norm", qsgd.NORMS)
def test_qsgd_is_unbiased_and_has_even_levels(norm: str, bits: int):
    x, decoded = roundings(norm, bits)
    norms, _ = qsgd.encode(x, bits, norm, np.random.default_rng(1))
    steps = 2 ** (bits - 1) - 1
    levels = decoded.reshape(len(decoded), -1)[:, : qsgd.BUCKET] / (norms[0] / steps)

    assert bias(x, decoded) < 6
    assert np.abs(levels - np.rint(levels)).max() < 1e-3
    assert np.abs(levels).max() <= steps + 1e-3


def test_the_check_of_bias_sees_rounding_towards_zero():
    x, decoded = roundings("max", 4)

    assert bias(x, np.sign(decoded) * np.minimum(np.abs(decoded), np.abs(x))) > 6


def test_qsgd_sends_zeros_as_zeros():
    norms, codes = qsgd.encode(np.zeros(700, np.float32), 2, "l2", np.random.default_rng(0))

    assert not qsgd.decode(norms, codes, (700,), 2).any()


# -- schemes -----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["quiver-9", "quiver", "sign-2", "qsgd-1", "l2-4", "", "x-4"])
def test_a_scheme_that_there_is_not_is_refused(scheme: str):
    with pytest.raises(ValueError, match="scheme must be"):
        compression.Scheme.parse(scheme)


@pytest.mark.parametrize(
    "scheme", ["float32", "quiver-2", "quiver-ef-2", "sign-1", "qsgd-2", "qsgd-l2-3"]
)
def test_a_compressor_goes_on_from_its_state_bit_by_bit(config: Config, scheme: str):
    config = with_(config, scheme=scheme, service="local:")
    rng = np.random.default_rng(0)
    shapes = model.initial(SIZES, 0)
    steps = [
        {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in shapes.items()}
        for _ in range(3)
    ]
    one = compression.compressor(config, "a", shapes)
    one.compress(steps[0], Tag(0, 0, "a"))
    other = compression.compressor(config, "a", shapes)
    # Through a file, as in a run.
    path = Path(config.folder) / "state"
    trees.save(path, one.state())
    other.load(trees.load(path).arrays())

    for number, step in enumerate(steps[1:], 1):
        sent = one.compress(step, Tag(number, number, "a")).to_bytes()
        assert other.compress(step, Tag(number, number, "a")).to_bytes() == sent


@pytest.mark.parametrize("scheme", ["float32", "quiver-2", "quiver-ef-2", "sign-1", "qsgd-2"])
def test_what_was_given_back_goes_along_with_the_next_message(config: Config, scheme: str):
    config = with_(config, scheme=scheme, service="local:")
    shapes = model.initial(SIZES, 0)
    big = {k: np.full_like(v, 1000) for k, v in shapes.items()}
    one = compression.compressor(config, "a", shapes)

    lost = one.compress(big, Tag(0, 0, "a"))
    one.give_back(lost)
    sent = one.restore(one.compress(model.zeros(shapes), Tag(1, 1, "a")))

    assert {name: float(v.mean()) for name, v in sent.items()} == pytest.approx(
        dict.fromkeys(shapes, 1000.0), rel=0.05
    )


# -- the journal -------------------------------------------------------------------------


def entry(round_id: int) -> Entry:
    return Entry(round_id, {"x": np.full(3, round_id, np.float32)}, b"message %d" % round_id)


def test_a_journal_keeps_the_last_entry_and_those_before_checkpoints(tmp_path: Path):
    journal = Journal(tmp_path / "new", checkpoint_every=4)
    for round_id in range(10):
        journal.write(entry(round_id))

    kept = [n for n in range(10) if journal.at(n)]
    found = Journal(tmp_path / "new", 4).before(8)

    assert kept == [3, 7, 9]
    assert found is not None
    assert (found.round_id, found.message, found.state["x"][0]) == (7, b"message 7", 7)
    assert journal.before(3) is None


def test_a_journal_forgets_what_a_return_to_a_checkpoint_undoes(tmp_path: Path):
    journal = Journal(tmp_path, checkpoint_every=4)
    for round_id in range(10):
        journal.write(entry(round_id))

    journal.forget_after(4)

    assert [n for n in range(10) if journal.at(n)] == [3]


# -- one round, message by message -------------------------------------------------------


class FakeWorker:
    """A worker whose frames the test writes itself."""

    def __init__(self, config: Config, number: int) -> None:
        deadline = time.monotonic() + 10
        path = config.home / "port"
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        self._number = number
        self._channel = Channel(socket.create_connection(("127.0.0.1", int(path.read_text()))))
        self._channel.send(Kind.HELLO, protocol.pack(protocol.Hello(number)))
        self.counted = protocol.unpack(self.next(Kind.WELCOME), Welcome).counted
        self.model = QuantizedTree.from_bytes(self.next(Kind.MODEL))

    def next(self, kind: Kind) -> bytes:
        frame = self._channel.receive()
        assert frame.kind is kind
        return frame.payload

    def send(self, tree: model.Tree, round_id: int = 0, client: str | None = None) -> Receipt:
        tag = Tag(round_id, round_id, client or worker_name(self._number), 1.0)
        return self.send_bytes(trees.exact(tree, tag).to_bytes())

    def send_bytes(self, payload: bytes, kind: Kind = Kind.MESSAGE) -> Receipt:
        self._channel.send(kind, payload)
        return protocol.unpack(self.next(Kind.RECEIPT), Receipt)

    def update(self) -> model.Tree:
        return QuantizedTree.from_bytes(self.next(Kind.UPDATE)).arrays()

    def close(self) -> None:
        self._channel.close()


class Running:
    """A server in a thread of this process."""

    def __init__(self, config: Config) -> None:
        self._server = serving.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.error: BaseException | None = None
        self.result: Result | None = None

    def _run(self) -> None:
        try:
            self.result = self._server.run()
        except TimeoutError as error:
            self.error = error

    def end(self) -> Result:
        self._thread.join(SECONDS)
        assert self.error is None
        assert self.result is not None
        return self.result


def constant(value: float) -> model.Tree:
    return {k: np.full_like(v, value) for k, v in model.initial(SIZES, 0).items()}


def value(tree: model.Tree) -> float:
    """The one value of which a tree is made."""
    found = {float(v) for values in tree.values() for v in np.unique(values)}
    assert len(found) == 1
    return found.pop()


def test_a_round_is_the_mean_of_the_valid_distinct_messages(config: Config):
    running = Running(config)
    workers = [FakeWorker(config, number) for number in range(WORKERS)]
    zero, one, two = workers

    assert [w.counted for w in workers] == [NEVER] * 3
    assert zero.send(constant(1)) == Receipt(0, True, Verdict.ACCEPTED)
    # The same once more, another one in its place, a broken one, a stranger's, a future one.
    assert zero.send(constant(1)).counted
    assert zero.send(constant(1000)).counted
    assert not one.send_bytes(b"\x81\xa1v\x01").counted
    assert not one.send(constant(1000), client=worker_name(2)).counted
    assert not one.send({"layer0.weight": np.full((2, 2), 1000, np.float32)}).counted
    assert not one.send(constant(1000), round_id=1).counted
    assert not one.send(constant(np.nan)).counted
    assert one.send(constant(2)) == Receipt(0, True, Verdict.ACCEPTED)
    assert two.send(constant(6)) == Receipt(0, True, Verdict.ACCEPTED)
    updates = [worker.update() for worker in workers]

    # The second round: what is late for the first is not counted, nor is it part of this one.
    assert one.send(constant(1000), round_id=0).counted  # As it was in its round.
    for worker, x in zip(workers, [1, 2, 3], strict=True):
        assert worker.send(constant(x), round_id=1) == Receipt(1, True, Verdict.ACCEPTED)
    seconds = [worker.update() for worker in workers]
    for worker in workers:
        worker.next(Kind.STOP)
        worker.close()
    result = running.end()

    assert [value(update) for update in updates] == [3, 3, 3]
    assert [value(update) for update in seconds] == [2, 2, 2]
    assert [r.counted for r in result.rounds] == [[0, 1, 2], [0, 1, 2]]
    assert [len(r.not_counted) for r in result.rounds] == [7, 1]


def test_a_round_without_a_worker_is_the_mean_of_the_others(config: Config):
    running = Running(with_(config, round_seconds=0.5))
    zero, one, two = (FakeWorker(config, number) for number in range(WORKERS))

    zero.send(constant(1))
    one.send(constant(2))
    two.close()
    assert [value(zero.update()), value(one.update())] == [1.5, 1.5]
    # Back again, too late for the first round: its message is not counted anywhere.
    two = FakeWorker(config, 2)
    assert two.model.tag.round == 1
    assert two.counted == NEVER
    assert not two.send(constant(1000), round_id=0).counted
    # A worker that is there, but silent, holds the round up until its time has passed.
    zero.send(constant(4), round_id=1)
    two.send(constant(8), round_id=1)
    assert value(zero.update()) == 6
    for worker in (zero, one, two):
        worker.close()

    assert [r.counted for r in running.end().rounds] == [[0, 1], [0, 2]]


def test_the_order_of_messages_changes_no_bit(config: Config):
    rng = np.random.default_rng(0)
    sent = [
        {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in constant(0).items()}
        for _ in range(WORKERS)
    ]
    digests = set()
    for order in [(0, 1, 2), (2, 0, 1)]:
        folder = Path(config.folder) / str(order)
        folder.mkdir()
        chosen = with_(config, rounds=1, folder=str(folder))
        running = Running(chosen)
        workers = [FakeWorker(chosen, number) for number in range(WORKERS)]
        for number in order:
            workers[number].send(sent[number])
        for worker in workers:
            worker.update()
            worker.close()
        digests.add(running.end().digest)

    assert len(digests) == 1


def test_the_check_of_a_round_sees_a_message_counted_twice(
    config: Config, monkeypatch: pytest.MonkeyPatch
):
    class Careless(Averager):
        """Takes a second message of a worker for that of somebody else."""

        def add(self, message: QuantizedTree) -> Verdict:
            if (verdict := super().add(message)) is not Verdict.DUPLICATE:
                return verdict
            self._aggregator._clients = None
            return super().add(replace(message, tag=replace(message.tag, client="somebody")))

    monkeypatch.setattr(serving, "Averager", Careless)
    running = Running(with_(config, rounds=1))
    workers = [FakeWorker(config, number) for number in range(WORKERS)]
    workers[0].send(constant(1))
    workers[0].send(constant(1))
    workers[1].send(constant(2))
    workers[2].send(constant(6))
    update = workers[0].update()
    for worker in workers:
        worker.close()
    running.end()

    assert value(update) != 3


def test_strangers_are_turned_away(config: Config):
    running = Running(with_(config, rounds=1))
    workers = [FakeWorker(config, number) for number in range(WORKERS)]
    port = int((config.home / "port").read_text())
    for words in [b"GET / HTTP/1.1\r\n\r\n", b"\x01\0\0\0\x02\x91\x07", b"\x04\0\0\0\x00"]:
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(words)
            assert stranger.recv(1) == b""
    for worker in workers:
        worker.send(constant(1))
    for worker in workers:
        worker.update()
        worker.close()

    assert running.end().rounds[0].not_counted == []


# -- whole runs --------------------------------------------------------------------------


class Runs:
    """Runs of one seed and scheme, each in a folder of its own."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._config = config
        self._folder = folder

    def config(self, name: str, **changes: object) -> Config:
        return with_(self._config, folder=str(self._folder / name), **changes)


@pytest.fixture(scope="module")
def runs(live_server: str, images: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    return Runs(
        Config(
            scheme="quiver-ef-2",
            service=live_server,
            folder=str(folder),
            data=images,
            sizes=SIZES,
            workers=2,
            rounds=ROUNDS,
            evaluate_every=4,
            checkpoint_every=5,
            absence_seconds=SECONDS,
        ),
        folder,
    )


@pytest.fixture(scope="module")
def untroubled(runs: Runs) -> Result:
    with Training(runs.config("untroubled")) as training:
        return training.wait(SECONDS)


def computed(config: Config, worker: int) -> int:
    """The last round that a worker has computed."""
    folder = config.home / f"worker-{worker}"
    return max((int(path.stem[-6:]) for path in folder.glob("round-*.tree")), default=NEVER)


def wait_until_asked(url: str) -> None:
    """Return when somebody has asked for the service in vain: it is down."""
    address = urlsplit(url)
    with socket.create_server((str(address.hostname), int(address.port or 0))) as in_its_place:
        in_its_place.settimeout(SECONDS)
        in_its_place.accept()[0].close()


def wait_for(config: Config, worker: int, round_id: int) -> None:
    """Return when a worker has computed a round."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if computed(config, worker) >= round_id:
            return
        time.sleep(0.002)
    pytest.fail(f"worker {worker} did not come to round {round_id}")


def test_a_run_learns_and_counts_every_byte(untroubled: Result, runs: Runs):
    config = runs.config("untroubled")
    logs = "".join((config.home / f"worker {n}.log").read_text() for n in range(2))
    sent, received = (
        sum(map(int, re.findall(rf"(\d+) {what}", logs))) for what in ("bytes sent", "received")
    )
    end = untroubled.points[-1]

    assert untroubled.points[0].accuracy < end.accuracy
    assert end.accuracy > 0.8
    assert [r.counted for r in untroubled.rounds] == [[0, 1]] * ROUNDS
    assert end.rounds == ROUNDS
    # All that the workers sent and received; STOP came after the last point.
    assert (end.up, end.down) == (sent, received - 5 * 2)


@pytest.mark.slow
@pytest.mark.faces
def test_a_worker_and_the_server_killed_in_a_round_and_started_again_change_no_bit(
    untroubled: Result, runs: Runs
):
    config = runs.config("killed")
    with Training(config) as training:
        wait_for(config, 1, 6)
        # Stopped first, so that the others are surely in the middle of a round that misses it.
        training.signal_worker(1, signal.SIGSTOP)
        wait_for(config, 0, computed(config, 1))
        training.kill_worker(1)
        training.start_worker(1)
        wait_for(config, 1, 13)
        training.kill_server()
        training.start_server()
        result = training.wait(SECONDS)

    assert "lost the server" in training.log("worker 1")
    assert "going on from version" in training.log("server")
    assert result.digest == untroubled.digest
    assert [r.counted for r in result.rounds] == [[0, 1]] * ROUNDS


@pytest.mark.slow
@pytest.mark.faces
def test_a_service_killed_in_a_round_and_started_again_changes_no_bit(
    untroubled: Result, runs: Runs, tmp_path: Path
):
    with Service(tmp_path) as service:
        service.wait_until_ready()
        config = runs.config("no service", service=service.url)
        with Training(config) as training:
            wait_for(config, 1, 6)
            service.kill()
            wait_until_asked(service.url)
            assert not (config.home / "result.json").exists()
            service.start()
            result = training.wait(SECONDS)

    assert result.digest == untroubled.digest


@pytest.mark.slow
@pytest.mark.faces
def test_everything_killed_and_resumed_from_a_checkpoint_changes_no_bit(
    untroubled: Result, runs: Runs
):
    config, forgetful = runs.config("resumed"), runs.config("forgetful")
    with Training(config):
        wait_for(config, 0, 12)
    assert not (config.home / "result.json").exists()
    shutil.copytree(config.home, forgetful.home)

    with Training(config) as training:
        result = training.wait(SECONDS)

    assert "going on from version" in training.log("server")
    assert result.digest == untroubled.digest
    assert [p.accuracy for p in result.points] == [p.accuracy for p in untroubled.points]

    # The control: the check of bits sees residuals and moments that were lost.
    for path in (forgetful.home / "worker-0").glob("round-*.tree"):
        path.unlink()
    with Training(forgetful) as training:
        result = training.wait(SECONDS)

    assert "NO STATE" in training.log("worker 0")
    assert result.digest != untroubled.digest


@pytest.mark.slow
@pytest.mark.faces
def test_rounds_go_on_without_workers_that_are_late_or_stay_away(runs: Runs):
    config = runs.config("fewer", workers=3, absence_seconds=0.0, round_seconds=1.0)
    with Training(config, supervised=False) as training:
        wait_for(config, 1, 6)
        training.signal_worker(1, signal.SIGSTOP)
        wait_for(config, 0, 9)
        training.signal_worker(1, signal.SIGCONT)
        wait_for(config, 1, 12)
        training.kill_worker(2)
        result = training.wait(SECONDS)

    late = [1 in r.counted for r in result.rounds]
    away = [2 in r.counted for r in result.rounds]
    assert late[5]
    assert late.index(False) <= 8
    assert any(late[late.index(False) :])
    assert "its part goes along later" in training.log("worker 1")
    assert away[5]
    assert not away[-1]
    assert result.points[-1].accuracy > 0.8


# -- the report --------------------------------------------------------------------------


def result(scheme: str, seed: int, accuracy: float, megabytes: float) -> Result:
    points = [Point(10, 0.5, 1, 1), Point(20, accuracy, int(4e5 * megabytes), int(6e5 * megabytes))]
    return Result(scheme, seed, 8, "", 1.0, points, [])


def results(**changes: tuple[float, float]) -> list[Result]:
    usual = {"float32": (0.98, 80.0), "quiver-4": (0.976, 11.0), "quiver-2": (0.965, 6.0)}
    return [
        result(scheme, seed, *place)
        for scheme, place in (usual | {k.replace("_", "-"): v for k, v in changes.items()}).items()
        for seed in range(5)
    ]


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, []),
        ({"quiver_4": (0.974, 11.0)}, ["quiver-4: 0.60 points below float32; promised: 0.5"]),
        ({"quiver_2": (0.95, 6.0)}, ["quiver-2: 3.00 points below float32; promised: 2"]),
        ({"quiver_4": (0.98, 12.0)}, ["quiver-4: 6.67 times fewer bytes; promised: 7"]),
        ({"quiver_2": (0.98, 7.0)}, ["quiver-2: 11.43 times fewer bytes; promised: 12"]),
    ],
)
def test_a_claim_that_does_not_hold_is_named(changes: dict, wrong: list[str]):
    assert report.violations(report.rows(results(**changes))) == wrong


def test_the_accuracy_of_one_run_is_not_judged():
    one = [r for r in results(quiver_2=(0.5, 6.0)) if r.seed == 0]

    assert report.violations(report.rows(one)) == []


def test_the_table_has_a_row_for_each_scheme():
    text = report.table(report.rows(results()))

    assert "| quiver-4 | 97.60 | 97.60 to 97.60 | -0.40 | 4.4 | 6.6 | 11.0 | 7.27 | 11.0 |" in text
    assert "| quiver-2 | 96.50 | 96.50 to 96.50 | -1.50 | 2.4 | 3.6 | 6.0 | 13.33 | never |" in text


def test_the_page_shows_its_figures_and_they_keep_the_claims():
    text, shown = page.PAGE.read_text(), page.figures()
    found = report.rows(shown)

    assert page.MEASURED.search(text)
    assert page.filled(text, shown) == text
    assert {r.seeds for r in found.values()} == {report.JUDGED_SEEDS}
    assert set(run.SCHEMES) == set(found)
    assert report.violations(found) == []


def test_a_run_of_the_example_writes_results_and_a_picture(live_server: str, tmp_path: Path):
    code = run.main(
        f"--schemes sign-1 --workers 2 --rounds 4 --url {live_server} --out {tmp_path}/a/b".split()
    )

    assert code == 0
    assert (tmp_path / "a/b/accuracy.png").read_bytes().startswith(b"\x89PNG")
    found = msgspec.json.decode((tmp_path / "a/b/results.json").read_bytes(), type=list[Result])
    assert [(r.scheme, r.points[-1].rounds) for r in found] == [("sign-1", 4)]
