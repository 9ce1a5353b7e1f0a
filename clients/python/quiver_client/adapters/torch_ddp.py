"""A DistributedDataParallel communication hook: gradients travel quantized, errors are fed back.

    state = CompressionState(ddp_model, policy=Policy(bits=4), feedback=True)
    ddp_model.register_comm_hook(state, compressed_mean)

Every rank quantizes the gradients of a bucket, each parameter by itself and under its name, so
that nothing depends on how DDP has cut the parameters into buckets. All ranks receive all messages
and average them exactly, so all of them get the same bits.
"""

# No `from __future__ import annotations`: PyTorch compares the annotations of hooks with its types.
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from quiver_client._local import LocalClient
from quiver_client.adapters.torch_arrays import to_numpy, to_torch
from quiver_client.adapters.torch_gather import Wish, gather_messages
from quiver_client.errors import Invalid, QuiverClientError
from quiver_client.ps.compress import Quantizes, Strata, compress
from quiver_client.ps.feedback import ErrorFeedback
from quiver_client.ps.policy import Policy
from quiver_kernels.tree import QuantizedTree, Tag
from quiver_kernels.tree_mean import TreeMean

ROUNDINGS = ("private", "stratified")
STATE_FORMAT = "quiver.torch_ddp"
STATE_VERSION = 1
ALL_RAW = Policy(raw=("*",))

Gradients = dict[str, NDArray[Any]]


class RankFailed(QuiverClientError):
    """Another rank could not make its message, so this step has no mean."""

    default_code = "rank_failed"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What this rank has sent so far.

    Attributes
    ----------
    sent
        Bytes of its messages, and of gradients that went in full precision.
    plain
        Bytes of all these gradients in their own types.
    full_precision
        Buckets that went in full precision: before `start_step`, or with values not finite.
    """

    sent: int = 0
    plain: int = 0
    full_precision: int = 0


class CompressionState:
    """What the hook of one rank knows: options, step, what it still owes to each parameter.

    Parameters
    ----------
    model
        The module, wrapped in DistributedDataParallel or not. Its parameters' names are the
        keys of residuals and seeds.
    policy
        Which gradients are quantized, and how; equal on all ranks. Parameters are never packed
        together, whatever its `pack_below` is: with buckets, packs would change too.
    client
        Who quantizes: None: this process (``pip install 'quiver-client[local]'``).
    feedback
        Keep what rounding has lost and add it to the next step's gradient: True, or an
        `ErrorFeedback` with options of its own, of which this becomes the only user.
    rounding
        ``private``: ranks round independently; ``stratified``: their errors cancel, see
        `quiver_client.ps.Strata`.
    seed
        Of the training, equal on all ranks; unsigned 64-bit.
    start_step
        Steps before this one are reduced in full precision.
    process_group
        None: that of the DistributedDataParallel model, or the default one.

    Raises
    ------
    Invalid
        An option that cannot be served.

    Attributes
    ----------
    step
        Synchronised backward passes so far: one more after each. Passes in ``no_sync`` do
        not count.
    traffic
        Bytes so far.

    Notes
    -----
    Not for gradients on devices, nor for sparse ones. Memory: 8 bytes per parameter with
    feedback; during a bucket, every rank's message.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        policy: Policy | None = None,
        client: Quantizes | None = None,
        feedback: bool | ErrorFeedback = False,
        rounding: str = "private",
        seed: int = 0,
        start_step: int = 0,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        chosen = policy or Policy()
        _check(chosen.small == "raw", "policy.small", "must be raw, for parameters are not packed")
        _check(rounding in ROUNDINGS, "rounding", f"must be one of {', '.join(ROUNDINGS)}")
        _check(start_step >= 0, "start_step", "must not be negative")
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            process_group = process_group or model.process_group
            model = model.module
        self.step = 0
        self.traffic = Traffic()
        self._group: dist.ProcessGroup = process_group or dist.group.WORLD
        self._policy = replace(chosen, pack_below=0)
        self._client = client or LocalClient()
        self._feedback = ErrorFeedback() if feedback is True else (feedback or None)
        self._rounding = rounding
        self._seed = seed
        self._start_step = start_step
        self._names = {parameter: name for name, parameter in model.named_parameters()}

    @property
    def feedback(self) -> ErrorFeedback | None:
        """The residuals; None without feedback."""
        return self._feedback

    @property
    def rank(self) -> int:
        """Place of this process among those of the group."""
        return int(dist.get_rank(self._group))

    @property
    def world_size(self) -> int:
        """Processes in the group."""
        return int(dist.get_world_size(self._group))

    # -- checkpoints ---------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What this rank needs to go on bit for bit; every rank saves its own.

        Returns
        -------
        dict
            Integers, text, and residuals as a tensor of bytes, for ``torch.save`` and
            ``torch.load(weights_only=True)``.
        """
        return {
            "format": STATE_FORMAT,
            "version": STATE_VERSION,
            "step": self.step,
            "rank": self.rank,
            "world_size": self.world_size,
            "seed": self._seed,
            "names": list(self._names.values()),
            "residuals": None if self._feedback is None else _as_tensor(self._feedback.to_bytes()),
        }

    def load_state_dict(
        self, state_dict: Mapping[str, Any], *, drop_residuals: bool = False
    ) -> None:
        """Go on from a checkpoint.

        Parameters
        ----------
        state_dict
            Of `state_dict`, of this rank, with as many ranks, and the same parameter names.
        drop_residuals
            Take only the step, and let all residuals begin at zero: what to do when the number
            of ranks has changed.

        Raises
        ------
        Invalid
            It is no such state, or another rank's; or has residuals where this state keeps none,
            or none where it does. Nothing was changed.
        """
        found = _checked(state_dict)
        if drop_residuals:
            self.step = found["step"]
            if self._feedback is not None:
                self._feedback.load_state_dict(ErrorFeedback().state_dict())
                self._feedback.begin()
            return
        mine = self.state_dict()
        for name in ("rank", "world_size", "seed", "names"):
            _check(found[name] == mine[name], name, f"must be {_shown(mine[name])}", found[name])
        kept = found["residuals"]
        _check(
            (kept is None) == (self._feedback is None),
            "residuals",
            f"must be {'absent' if self._feedback is None else 'there'}, as `feedback` says",
            "none" if kept is None else "some",
        )
        if self._feedback is not None:
            read = ErrorFeedback.from_bytes(to_numpy(kept).tobytes())
            self._feedback.load_state_dict(read.state_dict())
        self.step = found["step"]

    # -- one bucket ----------------------------------------------------------------------

    def reduce(self, bucket: dist.GradBucket) -> torch.Tensor:
        """Put the mean over all ranks into the bucket's buffer, which is returned."""
        buffer = bucket.buffer()
        if self.step < self._start_step:
            self._reduce_plainly(buffer)
        else:
            self._reduce_compressed(buffer, self._gradients(bucket))
        if bucket.is_last():
            self.step += 1
        return buffer

    def _gradients(self, bucket: dist.GradBucket) -> Gradients:
        """The bucket's gradients by parameter name; they share its memory."""
        buffer = bucket.buffer()
        if buffer.device.type != "cpu" or buffer.layout != torch.strided:
            raise Invalid(
                f"gradients must be dense and on the CPU; got {buffer.layout} on {buffer.device}",
                code="invalid_type",
                field="bucket",
            )
        found = {}
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            name = self._names.get(parameter)
            if name is None:
                raise Invalid(
                    f"a parameter of shape {list(parameter.shape)} is none of those of the model "
                    "that the state was made with",
                    code="missing_key",
                    field="model",
                )
            found[name] = to_numpy(gradient)
        return found

    def _reduce_plainly(self, buffer: torch.Tensor) -> None:
        # Divided first, as DDP does without a hook.
        buffer.div_(self.world_size)
        dist.all_reduce(buffer, group=self._group)
        self._count(buffer.nbytes, buffer.nbytes, 1)

    def _reduce_compressed(self, buffer: torch.Tensor, gradients: Gradients) -> None:
        wish, message, failure = Wish.PLAIN, None, None
        if bool(torch.isfinite(buffer).all()):
            wish = Wish.MESSAGE
            try:
                message = self._message(gradients)
            # The others wait for this rank: they learn of it before it is raised.
            except Exception as error:  # noqa: BLE001
                wish, failure = Wish.FAILED, error
        data = b"" if message is None else message.to_bytes()
        wish, ranks, received = gather_messages(data, wish, self._group)
        if wish is Wish.MESSAGE:
            self._put_mean(received, gradients)
            self._count(len(data), buffer.nbytes, 0)
            return
        if message is not None:
            self._unsend(message, gradients)
        if failure is not None:
            raise failure
        if wish is Wish.FAILED:
            raise RankFailed(f"rank {ranks[0]} of {self.world_size} could not make its message")
        self._reduce_plainly(buffer)

    def _put_mean(self, messages: Sequence[memoryview], gradients: Gradients) -> None:
        mean = TreeMean()
        for message in messages:
            mean.add(QuantizedTree.from_bytes(message), 1.0)
        for name, values in mean.mean().items():
            gradients[name][...] = values

    def _message(self, gradients: Gradients) -> QuantizedTree:
        if self._feedback is None:
            return self._compress(gradients)
        # One bucket after the other shows its parameters, and their names are known: new ones
        # of this state are no surprise.
        self._feedback.begin()
        return self._feedback.quantize_tree(gradients, self._compress)

    def _unsend(self, message: QuantizedTree, gradients: Gradients) -> None:
        """Owe what was owed before `message`, which nobody has used."""
        if self._feedback is None:
            return
        self._feedback.give_back(message)
        # That owes the gradients too, but they go another way.
        negated = {name: -values for name, values in gradients.items()}
        self._feedback.give_back(compress(negated, ALL_RAW, client=self._client, seed=0))

    def _compress(self, gradients: Gradients) -> QuantizedTree:
        strata = None
        if self._rounding == "stratified":
            strata = Strata(self.world_size, self.rank, self._seed)
        return compress(
            gradients,
            self._policy,
            client=self._client,
            tag=Tag(round=self.step, client=f"rank {self.rank}"),
            seed=self._seed,
            strata=strata,
        )

    def _count(self, sent: int, plain: int, full_precision: int) -> None:
        so_far = self.traffic
        self.traffic = Traffic(
            so_far.sent + sent, so_far.plain + plain, so_far.full_precision + full_precision
        )


def compressed_mean(
    state: CompressionState, bucket: dist.GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """The hook: ``ddp_model.register_comm_hook(state, compressed_mean)``.

    Returns
    -------
    Future
        Completed: all is done before it returns, for collectives in callbacks would start in
        different orders on different ranks. Nothing of it overlaps with the backward pass.

    Raises
    ------
    RankFailed
        Another rank has failed; that one raises its own error.
    QuiverClientError
        The client could not quantize.

    Notes
    -----
    With n ranks and messages of m bytes each rank sends m and receives n m, and decodes n
    messages. An all-reduce in full precision moves twice the gradients' bytes whatever n is:
    at b bits this one moves less as long as n b is well below 64.
    """
    reduced: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    reduced.set_result(state.reduce(bucket))
    return reduced


def _as_tensor(data: bytes) -> torch.Tensor:
    return to_torch(np.frombuffer(data, np.uint8))


def _checked(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state of the right form."""
    wanted: dict[str, type | tuple[type, ...]] = {
        "format": str,
        "version": int,
        "step": int,
        "rank": int,
        "world_size": int,
        "seed": int,
        "names": list,
        "residuals": (torch.Tensor, type(None)),
    }
    _check(set(state_dict) == set(wanted), "state_dict", f"must have the keys {sorted(wanted)}")
    for name, kind in wanted.items():
        got = type(state_dict[name]).__name__
        _check(isinstance(state_dict[name], kind), name, "must be as state_dict() makes it", got)
    _check(
        (state_dict["format"], state_dict["version"]) == (STATE_FORMAT, STATE_VERSION),
        "format",
        f"must be {STATE_FORMAT} {STATE_VERSION}",
        f"{state_dict['format'][:40]} {state_dict['version']}",
    )
    _check(state_dict["step"] >= 0, "step", "must not be negative", state_dict["step"])
    return state_dict


def _shown(value: object) -> str:
    return str(value)[:200]


def _check(holds: bool, name: str, limit: str, got: object = None) -> None:
    if not holds:
        told = "" if got is None else f"; got {_shown(got)}"
        raise Invalid(f"{name} {limit}{told}", code="invalid_option", field=name)
