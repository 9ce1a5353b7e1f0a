"""Rounds of a parameter server: which messages count, their mean, and what is sent back.

A message counts once, in whatever order messages come and however often one is sent again. The
mean is exact (`quiver_kernels.tree_mean`), so the order does not show in a single bit of it.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quiver_client._core import as_client_errors
from quiver_client.errors import Invalid
from quiver_client.ps.compress import Quantizes, compress
from quiver_client.ps.flatten import Flat, flatten, unflatten
from quiver_client.ps.journal import Journal, Record
from quiver_client.ps.lateness import Late
from quiver_client.ps.policy import Policy
from quiver_kernels.errors import InvalidInput
from quiver_kernels.exact_sum import check_weight
from quiver_kernels.framing import Buffer
from quiver_kernels.tree import QuantizedTree, Tag
from quiver_kernels.tree_mean import TreeMean

RAW_POLICY = Policy(raw=("*",))
_FORMAT = "quiver rounds 1"

Key = tuple[int, str]


class Verdict(enum.StrEnum):
    """What became of a message."""

    ACCEPTED = "accepted"
    """It counts; if it is late, with a smaller weight."""
    DUPLICATE = "duplicate"
    """Its client's message of that round counts already, here or in an earlier mean."""
    LATE = "late"
    """Its round is over, and the policy does not count it any more."""
    WRONG_VERSION = "wrong version"
    """Its round had another model version."""
    UNKNOWN = "unknown"
    """No such client or round, or no round is open: not said, not expected, or not begun."""


@dataclass(frozen=True, slots=True, order=True)
class Contribution:
    """A message that counts: who sent it, of which round, and its weight in the mean."""

    client: str
    round: int
    weight: float


@dataclass(frozen=True, slots=True)
class RoundMean:
    """The mean of a round.

    Attributes
    ----------
    round, model_version
        Of the round.
    tree
        The weighted mean of the messages that count, in their leaves' types, nested as they
        are. Its weights' sum is the denominator: those of who has sent, not of who might have.
    contributions
        Which messages these are, in order of clients.
    """

    round: int
    model_version: int
    tree: Any
    contributions: tuple[Contribution, ...]


class Aggregator:
    """Takes the messages of rounds, and means them; safe to share between threads.

    Parameters
    ----------
    late
        What becomes of messages of earlier rounds.
    clients
        Who may send; None: anybody.
    like
        A tree with the leaves that messages must have (its values do not matter); None: those of
        a round's first message.
    journal
        File to note in what counts, before a message is answered: an aggregator made with the
        same file after this one was killed goes on where it was. None: nothing is kept.
    sync
        Whether it shall survive the end of the machine too; slower.

    Raises
    ------
    Invalid
        The journal is damaged, or of an aggregator with another policy.

    Notes
    -----
    Memory: 8 to 16 bytes per value of the tree, for any number of messages. The journal holds
    the messages of one round.
    """

    def __init__(
        self,
        *,
        late: Late | None = None,
        clients: Collection[str] | None = None,
        like: Any = None,
        journal: str | Path | None = None,
        sync: bool = False,
    ) -> None:
        self._late = Late.reject() if late is None else late
        self._clients = None if clients is None else frozenset(clients)
        self._like = None if like is None else flatten(like)
        self._lock = threading.RLock()
        # Model version of each round, and who has sent in it, as long as they are remembered.
        self._versions: dict[int, int] = {}
        self._seen: set[Key] = set()
        self._round: int | None = None
        self._is_open = False
        self._mean = TreeMean()
        self._structure: Any = None
        self._counted: list[Contribution] = []
        self._sent: dict[Policy, QuantizedTree] = {}
        self._journal = None if journal is None else Journal(Path(journal), sync=sync)
        if self._journal is not None:
            self._replay(self._journal)

    # -- rounds ---------------------------------------------------------------------------

    @property
    def round(self) -> int | None:
        """The current round, or the last one; None before the first."""
        return self._round

    @property
    def is_open(self) -> bool:
        """Whether a round is open."""
        return self._is_open

    @property
    def counted(self) -> tuple[Contribution, ...]:
        """Messages that count in this round, or the last one, in order of clients."""
        with self._lock:
            return tuple(sorted(self._counted))

    @property
    def ready(self) -> bool:
        """Whether all are here that are waited for.

        With a buffer: as many messages as it holds. Else, if clients were named: all their
        messages of this round. Otherwise nobody knows, and it is False.
        """
        with self._lock:
            if self._late.size is not None:
                return len(self._counted) >= self._late.size
            if self._clients is None:
                return False
            here = {each.client for each in self._counted if each.round == self._round}
            return self._is_open and here == self._clients

    def open(self, round: int, model_version: int = 0) -> None:  # noqa: A002
        """Begin a round; its messages carry both numbers in their tags.

        Raises
        ------
        Invalid
            A round is open, or this one does not come after the last.
        """
        with self._lock:
            self._check_next(round, model_version)
            oldest = round - self._late.rounds
            versions = {r: v for r, v in self._versions.items() if r >= oldest}
            versions[round] = model_version
            seen = {key for key in self._seen if key[0] >= oldest}
            if self._journal is not None:
                state = {"open": round, "versions": sorted(versions.items()), "seen": sorted(seen)}
                self._journal.replace([self._settings(), state])
            self._begin(round, versions, seen)

    def close(self) -> RoundMean:
        """End the round, and its mean; errors as for `result`, and then it stays open."""
        with self._lock:
            self._require_open()
            found = self.result()
            if self._journal is not None:
                self._journal.append({"close": self._round})
            self._is_open = False
            return found

    def add(self, message: QuantizedTree | Buffer, weight: float | None = None) -> Verdict:
        """Take a message; it counts, or the verdict says why not.

        Parameters
        ----------
        message
            Of `compress`, or its bytes, with round, model version and client in its tag.
        weight
            In the mean, finite, not negative; None: that of the tag, or 1.

        Returns
        -------
        Verdict
            After ``accepted`` it counts, whatever happens to this process if there is a journal.

        Raises
        ------
        Invalid, BadRequest
            No such message; other leaves than those of the first one of the round; a bad weight.
            It does not count, and may be sent again.
        """
        with as_client_errors():
            tree = _tree_of(message)
        with self._lock:
            verdict, factor = self._judge(tree.tag)
            if verdict is not Verdict.ACCEPTED:
                return verdict
            given = tree.tag.weight if weight is None else weight
            with as_client_errors():
                self._check_leaves(tree)
                full = (1.0 if given is None else check_weight(given)) * factor
                self._count(tree, full)
                if self._journal is not None:
                    self._note(self._journal, tree, full)
        return verdict

    def result(self) -> RoundMean:
        """The mean so far, or of the last round.

        Raises
        ------
        Invalid
            No message counts, or their weights add up to 0.
        """
        with self._lock, as_client_errors():
            if self._round is None:
                raise _no_round("there is no round yet: open one")
            tree = unflatten(self._mean.mean(), self._structure)
            version = self._versions[self._round]
            return RoundMean(self._round, version, tree, self.counted)

    def broadcast(
        self,
        quantize: Policy | None = None,
        *,
        client: Quantizes | None = None,
        tree: Any = None,
        model_version: int | None = None,
        seed: int = 0,
    ) -> QuantizedTree:
        """What goes back to the workers after the round: made once, then the same for all.

        Parameters
        ----------
        quantize
            How; None: as it is.
        client
            Who quantizes; needed with `quantize`.
        tree
            What; None: the mean. Looked at by the round's first call with a policy only.
        model_version
            For the tag; None: that of the round.
        seed
            Of the job, as for `compress`.

        Raises
        ------
        Invalid
            The round is still open, or there is no mean.
        """
        policy = RAW_POLICY if quantize is None else quantize
        with self._lock:
            if self._is_open or self._round is None:
                raise _no_round("broadcast needs a round that was closed; close it first")
            if policy not in self._sent:
                if client is None and quantize is not None:
                    raise Invalid(
                        "client must quantize the broadcast; got none",
                        code="missing_key",
                        field="client",
                    )
                version = self._versions[self._round] if model_version is None else model_version
                self._sent[policy] = compress(
                    self.result().tree if tree is None else tree,
                    policy,
                    client=_NoClient() if client is None else client,
                    tag=Tag(round=self._round, model_version=version),
                    seed=seed,
                )
            return self._sent[policy]

    # -- what counts ------------------------------------------------------------------------

    def _judge(self, tag: Tag) -> tuple[Verdict, float]:
        """What becomes of a message, and what its weight is multiplied by."""
        if tag.client is None or tag.round is None or self._round is None:
            return Verdict.UNKNOWN, 0.0
        if self._clients is not None and tag.client not in self._clients:
            return Verdict.UNKNOWN, 0.0
        if self._is_duplicate((tag.round, tag.client)):
            return Verdict.DUPLICATE, 0.0
        if tag.round not in self._versions:
            forgotten = tag.round < min(self._versions)
            return Verdict.LATE if forgotten else Verdict.UNKNOWN, 0.0
        if tag.model_version != self._versions[tag.round]:
            return Verdict.WRONG_VERSION, 0.0
        factor = self._late.factor(self._round - tag.round)
        if factor == 0:
            return Verdict.LATE, 0.0
        if not self._is_open:
            late = tag.round == self._round and self._late.kind == "reject"
            return Verdict.LATE if late else Verdict.UNKNOWN, 0.0
        return Verdict.ACCEPTED, factor

    def _check_leaves(self, tree: QuantizedTree) -> None:
        if self._like is None:
            return
        wanted = _leaves_of(self._like)
        got = [(leaf.name, leaf.dtype, leaf.shape) for leaf in tree.leaves()]
        if wanted != got or tree.structure != self._like.structure:
            other = next(
                (str(leaf) for leaf in got if leaf not in wanted), "fewer, or in other places"
            )
            raise InvalidInput(
                f"message must have the leaves that were said; got {other}",
                code="shape_mismatch",
                field="message",
            )

    def _is_duplicate(self, key: Key) -> bool:
        return key in self._seen

    def _count(self, tree: QuantizedTree, weight: float) -> None:
        # `_judge` has seen that both are there.
        number, client = tree.tag.round or 0, tree.tag.client or ""
        self._mean.add(tree, weight)
        self._structure = tree.structure
        self._counted.append(Contribution(client, number, weight))
        self._seen.add((number, client))

    def _note(self, journal: Journal, tree: QuantizedTree, weight: float) -> None:
        try:
            journal.append({"add": tree.to_bytes(), "weight": weight})
        except BaseException:
            # What was not noted must not count: the sender will send it again.
            self._mean.remove(tree, weight)
            last = self._counted.pop()
            self._seen.remove((last.round, last.client))
            raise

    def _check_next(self, number: int, version: int) -> None:
        for name, value in (("round", number), ("model_version", version)):
            if type(value) is not int or not 0 <= value < 2**63:
                raise Invalid(
                    f"{name} must be an integer from 0 to 2^63 - 1; got {value!r:.40}",
                    code="invalid_option",
                    field=name,
                )
        if self._is_open:
            raise _no_round(f"round {self._round} is open: close it first")
        if self._round is not None and number <= self._round:
            raise _no_round(f"round must be above {self._round}, the last one; got {number}")

    def _begin(self, number: int, versions: dict[int, int], seen: set[Key]) -> None:
        self._round, self._is_open = number, True
        self._versions, self._seen = versions, seen
        self._mean, self._structure = TreeMean(), None
        self._counted, self._sent = [], {}

    def _require_open(self) -> None:
        if not self._is_open:
            raise _no_round("no round is open: open one")

    # -- the journal --------------------------------------------------------------------------

    def _settings(self) -> Record:
        late = self._late
        return {
            "format": _FORMAT,
            "late": [late.kind, float(late.exponent), late.rounds, late.size],
        }

    def _replay(self, journal: Journal) -> None:
        records = journal.records()
        if not records:
            return
        if records[0] != self._settings():
            raise Invalid(
                f"journal must be of an aggregator with {self._settings()}; "
                f"got {str(records[0])[:200]}",
                code="invalid_option",
                field="journal",
            )
        for record in records[1:]:
            if "open" in record:
                seen = {(number, client) for number, client in record["seen"]}
                self._begin(record["open"], dict(record["versions"]), seen)
            elif "add" in record:
                with as_client_errors():
                    self._count(QuantizedTree.from_bytes(record["add"]), record["weight"])
            else:
                self._is_open = False


def _tree_of(message: QuantizedTree | Buffer) -> QuantizedTree:
    return message if isinstance(message, QuantizedTree) else QuantizedTree.from_bytes(message)


def _leaves_of(flat: Flat) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, leaf.dtype.name, leaf.shape) for name, leaf in flat.leaves.items()]


class _NoClient:
    """Stands for a client where nothing is quantized."""

    def quantize_many(self, vectors: Any, *, per_vector: Any = None) -> Any:
        raise AssertionError(f"asked to quantize {len(vectors)} vectors, {per_vector}")


def _no_round(detail: str) -> Invalid:
    return Invalid(detail, code="invalid_round", field="round")
