"""The communication hook in real processes: two ranks, gloo, DistributedDataParallel."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from quiver_client import LocalClient
from quiver_client.adapters.torch_arrays import to_numpy
from quiver_client.adapters.torch_ddp import CompressionState, RankFailed
from quiver_client.errors import Invalid
from quiver_client.ps import Policy, Strata, Tag, compress, restore
from quiver_client.ps.feedback import ErrorFeedback

# Its first test waits for all trainings.
pytestmark = pytest.mark.timeout(900)

SCRIPT = Path(__file__).with_name("ddp_ranks.py")
RANKS = 2
SECONDS = 400
FIRST = (
    *("plain", "four", "stratified", "two", "feedback", "warm", "cold", "mixed", "accumulated"),
    *("infinite", "whole", "half", "failing"),
)
SECOND = ("resumed", "dropped")


def start(folder: Path, *names: str) -> None:
    """Run the trainings in `RANKS` processes that know of each other."""
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank), str(RANKS), *names],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        for rank, process in enumerate(ranks):
            told, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, f"rank {rank}:\n{told[-4000:]}"
    finally:
        for process in ranks:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the trainings have found; those that go on do so in processes of their own."""
    found = tmp_path_factory.mktemp("ranks")
    start(found, *FIRST)
    start(found, *SECOND)
    return found


@pytest.fixture(scope="session")
def found(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [torch.load(folder / f"{name}.{rank}.pt", weights_only=True) for rank in range(RANKS)]
        for name in (*FIRST, *SECOND)
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two models are equal, bit for bit."""
    return a.keys() == b.keys() and all(
        to_numpy(a[name]).tobytes() == to_numpy(b[name]).tobytes() for name in a
    )


def final_loss(found: list[dict[str, Any]]) -> float:
    return float(np.mean([found[rank]["losses"][-10:] for rank in range(RANKS)]))


@pytest.mark.parametrize("name", [name for name in (*FIRST, *SECOND) if name != "failing"])
def test_all_ranks_have_the_same_bits(found: dict[str, Any], name: str):
    first, second = found[name]

    assert first["errors"] == second["errors"] == []
    assert same(first["model"], second["model"])


def local_gradients(ranks: Any, rank: int) -> dict[str, Any]:
    """What a rank of "four" has found in its first step, without DDP."""
    torch.manual_seed(0)
    network = ranks.Network()
    network.spare.requires_grad_(False)
    x, labels = ranks.batches(0, rank)
    torch.nn.functional.cross_entropy(network(x), labels).backward()
    return {
        name: to_numpy(parameter.grad)
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize(("name", "rounding"), [("four", "private"), ("stratified", "stratified")])
def test_the_mean_is_that_of_every_ranks_message(found: dict[str, Any], name: str, rounding: str):
    """Against messages made here, of gradients found here, decoded and averaged by NumPy."""
    ranks = runpy.run_path(str(SCRIPT))
    ranks = SimpleNamespace(**ranks)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        both = [local_gradients(ranks, rank) for rank in range(RANKS)]
    finally:
        torch.set_num_threads(threads)
    decoded = [
        restore(
            compress(
                gradients,
                Policy(bits=4, min_size=64, pack_below=0),
                client=LocalClient(),
                tag=Tag(round=0, client=f"rank {rank}"),
                seed=5,
                strata=Strata(RANKS, rank, 5) if rounding == "stratified" else None,
            )
        )
        for rank, gradients in enumerate(both)
    ]
    names = [key for key, _ in ranks.Network().named_parameters()]
    for rank in range(RANKS):
        got = dict(zip(names, found[name][rank]["gradients"][0], strict=True))
        for key in both[0]:
            mean = (decoded[0][key].astype(np.float64) + decoded[1][key]) / 2
            assert np.array_equal(to_numpy(got[key]), mean.astype(np.float32)), key
            # The control: neither rank's own values would do.
            assert not np.array_equal(to_numpy(got[key]), decoded[rank][key])


@pytest.mark.parametrize("name", ["four", "stratified", "feedback"])
def test_training_gets_as_far_as_without_the_hook(found: dict[str, Any], name: str):
    begin = float(np.mean([rank["losses"][0] for rank in found["plain"]]))

    # It learns: the loss falls by much more than what the two trainings differ in.
    assert final_loss(found["plain"]) < begin / 4
    assert final_loss(found[name]) < 1.25 * final_loss(found["plain"]) + 0.01


@pytest.mark.parametrize(("name", "bits"), [("four", 4), ("two", 2), ("feedback", 2)])
def test_little_is_sent(found: dict[str, Any], name: str, bits: int):
    sent, plain, full_precision = found[name][0]["traffic"]

    assert full_precision == 0
    # Codes; levels, heads and biases of this small network come on top.
    assert bits / 32 < sent / plain < bits / 32 + 0.15
    assert plain == sum(4 * sum(sizes) for _, sizes in found[name][0]["buckets"])


def test_buckets_are_rebuilt_after_the_first_step(found: dict[str, Any]):
    """The trainings here see what DDP may do to a hook; without this the others test less."""
    for name in ("four", "whole", "half", "resumed"):
        steps: dict[int, list[list[int]]] = {}
        for step, sizes in found[name][0]["buckets"]:
            steps.setdefault(step, []).append(sizes)
        first, *later = steps.values()
        assert all(sizes == later[0] for sizes in later)
        assert len(later[0]) > 1
        assert first != later[0]


def test_a_resumed_training_is_the_uninterrupted_one(found: dict[str, Any]):
    for rank in range(RANKS):
        whole, half, resumed = (found[name][rank] for name in ("whole", "half", "resumed"))
        assert half["losses"] + resumed["losses"] == whole["losses"]
        assert same(resumed["model"], whole["model"])
        assert resumed["hook"]["step"] == whole["hook"]["step"]
        mine, theirs = (
            ErrorFeedback.from_bytes(to_numpy(state["hook"]["residuals"]).tobytes())
            for state in (resumed, whole)
        )
        assert mine.known() == theirs.known() != []
        for key in mine.known():
            assert np.array_equal(mine.residual(key.leaf), theirs.residual(key.leaf))


def test_without_its_residuals_a_training_is_another(found: dict[str, Any]):
    """The control: the comparison above sees residuals that are lost."""
    whole, dropped = found["whole"][0], found["dropped"][0]

    assert dropped["hook"]["step"] == whole["hook"]["step"]
    assert not same(dropped["model"], whole["model"])


def test_feedback_is_better_than_none(found: dict[str, Any]):
    """At two bits, against the parameters that full precision reaches."""

    def distance(name: str) -> float:
        plain, other = found["plain"][0]["model"], found[name][0]["model"]
        return sum(float(((plain[key] - other[key]) ** 2).sum()) for key in plain)

    assert distance("feedback") < distance("two")


def test_the_first_steps_are_in_full_precision(found: dict[str, Any]):
    warm, cold = found["warm"][0], found["cold"][0]
    buckets = len([step for step, _ in warm["buckets"] if step < 5])

    assert warm["traffic"][2] == buckets > 5
    # The losses of five steps, and that after the fifth update.
    assert warm["losses"][:6] == cold["losses"][:6]
    assert warm["losses"][6:] != cold["losses"][6:]


def test_types_that_differ_and_parameters_that_are_not_used(found: dict[str, Any]):
    model = found["mixed"][0]["model"]

    assert model["middle.weight"].dtype == torch.bfloat16
    assert final_loss(found["mixed"]) < found["mixed"][0]["losses"][0] / 2
    owed = ErrorFeedback.from_bytes(to_numpy(found["mixed"][0]["hook"]["residuals"]).tobytes())
    assert {key.leaf for key in owed.known()} == set(model)


def test_accumulated_passes_are_one_step(found: dict[str, Any]):
    assert found["accumulated"][0]["hook"]["step"] == 10
    assert len({step for step, _ in found["accumulated"][0]["buckets"]}) == 10


def test_infinite_gradients_reach_every_rank_and_owe_nothing(found: dict[str, Any]):
    """As without a hook: a scaler of losses sees them on every rank, and skips the step."""
    for rank in range(RANKS):
        gradients = [g for g in found["infinite"][rank]["gradients"][2] if g is not None]
        assert not any(bool(torch.isfinite(g).all()) for g in gradients)
        after = [g for g in found["infinite"][rank]["gradients"][3] if g is not None]
        assert all(bool(torch.isfinite(g).all()) for g in after)
        residuals = to_numpy(found["infinite"][rank]["hook"]["residuals"]).tobytes()
        owed = ErrorFeedback.from_bytes(residuals)
        assert all(np.abs(owed.residual(key.leaf)).max() < 1 for key in owed.known())


def test_a_rank_that_fails_stops_all(found: dict[str, Any]):
    """Nobody waits for a message that does not come."""
    healthy, failing = (found["failing"][rank]["errors"] for rank in range(RANKS))

    assert len(healthy) == 1
    assert healthy[0].startswith(f"{RankFailed.__name__}: rank 1 of 2 could not make its message")
    assert failing == ["OSError: no memory for this request"]


# -- one process ---------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def network() -> torch.nn.Module:
    return torch.nn.Linear(40, 50)


def test_a_state_goes_into_a_state_and_comes_out(alone: None, network: torch.nn.Module):
    state = CompressionState(network, feedback=True, seed=3)
    state.step = 7
    other = CompressionState(network, feedback=True, seed=3)
    other.load_state_dict(state.state_dict())

    assert other.step == 7


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rank": 1}, "rank"),
        ({"world_size": 2}, "world_size"),
        ({"seed": 4}, "seed"),
        ({"names": ["weight"]}, "names"),
        ({"residuals": None}, "residuals"),
        ({"format": "another"}, "format"),
        ({"version": 2}, "format"),
        ({"step": -1}, "step"),
        ({"step": "7"}, "step"),
        ({"more": 1}, "state_dict"),
    ],
)
def test_a_state_of_something_else_is_refused(
    alone: None, network: torch.nn.Module, change: dict[str, Any], field: str
):
    state = CompressionState(network, feedback=True, seed=3)

    with pytest.raises(Invalid) as refusal:
        state.load_state_dict({**state.state_dict(), **change})
    assert refusal.value.field == field
    assert state.step == 0


def test_residuals_can_be_dropped_on_purpose(alone: None, network: torch.nn.Module):
    state = CompressionState(network, feedback=True, seed=3)
    saved = {**state.state_dict(), "world_size": 4, "rank": 3, "step": 9}

    state.load_state_dict(saved, drop_residuals=True)
    assert state.step == 9


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"policy": Policy(small="pack")}, "policy.small"),
        ({"rounding": "nearest"}, "rounding"),
        ({"start_step": -1}, "start_step"),
    ],
)
def test_options_that_cannot_be_served(
    alone: None, network: torch.nn.Module, options: dict[str, Any], field: str
):
    with pytest.raises(Invalid) as refusal:
        CompressionState(network, **options)
    assert refusal.value.field == field
