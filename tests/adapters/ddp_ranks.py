"""One rank of a few short trainings: ``python ddp_ranks.py FOLDER RANK WORLD_SIZE NAME...``.

Each name is a training of `RUNS` or `RESUMED`; what it found is saved as ``FOLDER/NAME.RANK.pt``.
Ranks meet by a file in the folder.
"""

# No `from __future__ import annotations`: PyTorch compares the annotations of hooks with its types.
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from quiver_client import LocalClient
from quiver_client.adapters.torch_ddp import CompressionState, compressed_mean
from quiver_client.ps import Policy

STEPS = 40
CUT = 6  # steps before a checkpoint, and as many after it
BATCH = 64
INPUTS, CLASSES = 32, 8


class Network(nn.Module):
    """Layers that are not used in the order of their definition, so that DDP rebuilds buckets."""

    def __init__(self, middle: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.last = nn.Linear(64, CLASSES)
        self.first = nn.Linear(INPUTS, 96)
        self.spare = nn.Linear(96, 64)
        self.middle = nn.Linear(96, 64).to(middle)

    def forward(self, x: torch.Tensor, spare: bool = False) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        if spare:
            x = torch.tanh(self.spare(x))
        else:
            x = torch.tanh(self.middle(x.to(self.middle.weight.dtype)))
        return self.last(x.to(torch.float32))


@dataclass(frozen=True)
class Run:
    """A training; `state` None: DDP as it comes."""

    state: dict[str, Any] | None = None
    bits: int = 4
    steps: int = STEPS
    middle: torch.dtype = torch.float32
    ddp: dict[str, Any] = field(default_factory=dict)
    spare: Callable[[int, int], bool] = lambda step, rank: False
    accumulate: int = 1
    infinite: tuple[int, ...] = ()
    begin: str | None = None
    drop: bool = False
    failing: bool = False


RUNS = {
    "plain": Run(),
    "four": Run({}),
    "stratified": Run({"rounding": "stratified"}),
    "two": Run({}, bits=2),
    "feedback": Run({"feedback": True}, bits=2),
    "warm": Run({"start_step": 5}, steps=8),
    "cold": Run(steps=8),
    "mixed": Run(
        {"feedback": True},
        middle=torch.bfloat16,
        ddp={"gradient_as_bucket_view": True, "find_unused_parameters": True},
        # On one rank only, on both, on none.
        spare=lambda step, rank: step % 4 == 1 or (step % 4 == 2 and rank == 0),
    ),
    "accumulated": Run({"feedback": True}, accumulate=2, steps=10),
    "infinite": Run({"feedback": True}, steps=4, infinite=(2,)),
    "whole": Run({"feedback": True, "start_step": 2}, bits=2, steps=2 * CUT),
    "half": Run({"feedback": True, "start_step": 2}, bits=2, steps=CUT),
    "failing": Run({"feedback": True}, steps=3, failing=True),
}
RESUMED = {
    "resumed": Run({"feedback": True, "start_step": 2}, bits=2, steps=CUT, begin="half"),
    "dropped": Run({"feedback": True, "start_step": 2}, bits=2, steps=CUT, begin="half", drop=True),
}


class Failing(LocalClient):
    """Fails on rank 1, in the third step."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 3

    def quantize_many(self, *args: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left < 0 and dist.get_rank() == 1:
            raise OSError("no memory for this request")
        return super().quantize_many(*args, **options)


def batches(step: int, rank: int, part: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around the centres of their classes."""
    centres = torch.randn(CLASSES, INPUTS, generator=torch.Generator().manual_seed(1))
    drawn = torch.Generator().manual_seed(1000 * step + 10 * rank + part + 7)
    labels = torch.randint(CLASSES, (BATCH,), generator=drawn)
    return centres[labels] + torch.randn(BATCH, INPUTS, generator=drawn), labels


def train(run: Run, folder: Path, name: str) -> dict[str, Any]:
    rank = dist.get_rank()
    torch.manual_seed(0)
    network = Network(run.middle)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.5)
    start = 0
    if run.begin is not None:
        saved = torch.load(folder / f"{run.begin}.{rank}.pt", weights_only=True)
        network.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    unused = run.ddp.get("find_unused_parameters", False)
    if not unused:
        for parameter in network.spare.parameters():
            parameter.requires_grad_(False)
    # A cap of 20 kB: more than one bucket.
    model = DistributedDataParallel(network, bucket_cap_mb=0.02, **run.ddp)
    found: dict[str, Any] = {"losses": [], "buckets": [], "gradients": [], "errors": []}
    state = None
    if run.state is not None:
        client = Failing() if run.failing else None
        policy = Policy(bits=run.bits, min_size=64)
        state = CompressionState(model, policy=policy, client=client, seed=5, **run.state)
        if run.begin is not None:
            state.load_state_dict(saved["hook"], drop_residuals=run.drop)
        model.register_comm_hook(state, logged(found["buckets"]))
    for step in range(start, start + run.steps):
        optimizer.zero_grad()
        loss = torch.zeros(())
        with raised(found["errors"]):
            for part in range(run.accumulate):
                last = part == run.accumulate - 1
                with contextlib.nullcontext() if last else model.no_sync():
                    x, labels = batches(step, rank, part)
                    output = model(x, spare=True) if run.spare(step, rank) else model(x)
                    loss = nn.functional.cross_entropy(output, labels)
                    if step in run.infinite and rank == 1:
                        loss = loss * torch.inf
                    loss.backward()
        if found["errors"]:
            break
        found["losses"].append(loss.item())
        found["gradients"].append(
            [None if p.grad is None else p.grad.clone() for p in network.parameters()]
        )
        if step not in run.infinite:
            optimizer.step()
    found["model"] = network.state_dict()
    found["optimizer"] = optimizer.state_dict()
    found["step"] = start + run.steps
    if state is not None:
        found["hook"] = state.state_dict()
        found["traffic"] = [state.traffic.sent, state.traffic.plain, state.traffic.full_precision]
    return found


def logged(buckets: list[tuple[int, list[int]]]) -> Callable[..., Any]:
    """The hook, and a record of the buckets: step, and sizes of the parameters in it."""

    def hook(
        state: CompressionState, bucket: dist.GradBucket
    ) -> torch.futures.Future[torch.Tensor]:
        buckets.append((state.step, [parameter.numel() for parameter in bucket.parameters()]))
        return compressed_mean(state, bucket)

    return hook


@contextlib.contextmanager
def raised(errors: list[str]) -> Iterator[None]:
    try:
        yield
    # Whatever a backward pass raises is what the tests look at.
    except Exception as error:  # noqa: BLE001
        errors.append(f"{type(error).__name__}: {error}")


def main(folder: Path, rank: int, world_size: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store.{names[0]}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    for name in names:
        found = train({**RUNS, **RESUMED}[name], folder, name)
        torch.save(found, folder / f"{name}.{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
