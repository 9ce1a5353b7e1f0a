"""How a sender's trees become messages: one class for each kind of scheme.

============ ======================================= =====================================
scheme       rounding                                what a message loses
============ ======================================= =====================================
float32      none                                    nothing
quiver-B     B bits, optimal levels, unbiased        is lost, and averages out
quiver-ef-B  the same, scaled to be a contraction    is added to the sender's next message
sign-1       1 bit: the sign times a mean magnitude  is added to the sender's next message
qsgd-B       B bits, even levels, unbiased           is lost, and averages out
qsgd-l2-B    the same with the norm of the paper     is lost, and averages out
============ ======================================= =====================================

Workers and server send alike, so every scheme works in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from parameter_server import model, qsgd, trees
from parameter_server.config import Config
from parameter_server.model import Tree
from parameter_server.trees import Arrays

from quiver_client import RetryPolicy, connect
from quiver_client.ps import ErrorFeedback, Policy, QuantizedTree, Signs, Tag, compress, restore
from quiver_client.ps.compress import Quantizes

KINDS = {
    "quiver": range(1, 9),
    "quiver-ef": range(1, 9),
    "sign": range(1, 2),
    "qsgd": range(2, 9),
    "qsgd-l2": range(2, 9),
}
# Biases travel as they are: 394 values of 50,826.
MIN_SIZE = 1024
# Beyond so many bits `approx` levels are as good as `exact` ones, and found sooner.
EXACT_BITS = 4
# Signs share their magnitude in runs as long as a row of the first layers.
SIGN_BLOCK = 256
# A service that starts again answers within seconds.
PERSISTENT = RetryPolicy(max_retries=1000, cap=0.5, budget_reserve=1000.0)


class Compressor(Protocol):
    """What turns the trees of one sender into messages, and messages into trees."""

    def compress(self, tree: Tree, tag: Tag) -> QuantizedTree:
        """The message of a tree; the same again for the same state, tree and tag."""
        ...

    def restore(self, message: QuantizedTree) -> Tree:
        """What a message says, whoever sent it."""
        ...

    def give_back(self, message: QuantizedTree) -> None:
        """Add what was in a message of this sender that nobody used to its next one."""
        ...

    def state(self) -> Arrays:
        """What the next message depends on."""
        ...

    def load(self, state: Arrays) -> None:
        """Go on from a `state`."""
        ...


@dataclass(frozen=True)
class Scheme:
    """The parts of a scheme's name: its kind, bits per value (32: not compressed)."""

    kind: str
    bits: int

    @classmethod
    def parse(cls, name: str) -> Scheme:
        """ValueError if there is no such scheme."""
        kind, _, bits = name.rpartition("-")
        if name == "float32":
            return cls(name, 32)
        if not bits.isdecimal() or int(bits) not in KINDS.get(kind, ()):
            known = ", ".join(f"{kind}-{all_[0]}..{all_[-1]}" for kind, all_ in KINDS.items())
            raise ValueError(f"scheme must be float32, {known}; got {name[:40]!r}")
        return cls(kind, int(bits))


def compressor(config: Config, sender: str, like: Tree) -> Compressor:
    """The compressor of a sender.

    Parameters
    ----------
    config
        Names the scheme, the service and the seed.
    sender
        Whose messages: residuals and random numbers are its own.
    like
        A tree of the shapes that will be sent.
    """
    scheme = Scheme.parse(config.scheme)
    if scheme.kind.startswith("qsgd"):
        return Qsgd(config.seed, sender, like, scheme)
    if scheme.kind == "float32":
        return Plain(config.seed, sender, like, trees.NOBODY, trees.AS_IT_IS)
    if scheme.kind == "sign":
        policy = Policy(1, min_size=MIN_SIZE, block_size=SIGN_BLOCK)
        return WithFeedback(config.seed, sender, Signs(), policy)
    method = "exact" if scheme.bits <= EXACT_BITS else "approx"
    policy = Policy(scheme.bits, method, min_size=MIN_SIZE)
    service = connect(config.service, timeout=config.patience, retry=PERSISTENT)
    if scheme.kind == "quiver-ef":
        return WithFeedback(config.seed, sender, service, policy)
    return Plain(config.seed, sender, like, service, policy)


class Plain:
    """Messages of the SDK without feedback: exact, or rounded without bias."""

    def __init__(
        self, seed: int, sender: str, like: Tree, client: Quantizes, policy: Policy
    ) -> None:
        self._seed = seed
        self._sender = sender
        self._client = client
        self._policy = policy
        self._unused = model.zeros(like)

    def compress(self, tree: Tree, tag: Tag) -> QuantizedTree:
        """The message of a tree and of what was given back."""
        whole = model.add(tree, self._unused)
        self._unused = model.zeros(tree)
        return compress(whole, self._policy, client=self._client, tag=tag, seed=self._seed)

    def restore(self, message: QuantizedTree) -> Tree:
        """What a message says."""
        found: Tree = restore(message)
        return found

    def give_back(self, message: QuantizedTree) -> None:
        """Send it again."""
        self._unused = model.add(self._unused, self.restore(message))

    def state(self) -> Arrays:
        """What was given back."""
        return dict(self._unused)

    def load(self, state: Arrays) -> None:
        """Go on with these."""
        self._unused = dict(state)


class WithFeedback:
    """Messages of the SDK with error feedback, which sees to it that they are contractions."""

    def __init__(self, seed: int, sender: str, client: Quantizes, policy: Policy) -> None:
        self._seed = seed
        self._sender = sender
        self._client = client
        self._policy = policy
        self._feedback = ErrorFeedback()

    def compress(self, tree: Tree, tag: Tag) -> QuantizedTree:
        """The message of a tree and of what is owed."""
        return self._feedback.compress(
            tree, self._policy, client=self._client, tag=tag, seed=self._seed, sender=self._sender
        )

    def restore(self, message: QuantizedTree) -> Tree:
        """What a message says."""
        found: Tree = restore(message)
        return found

    def give_back(self, message: QuantizedTree) -> None:
        """Owe it again."""
        self._feedback.give_back(message, sender=self._sender)

    def state(self) -> Arrays:
        """The residuals."""
        return {"feedback": np.frombuffer(self._feedback.to_bytes(), np.uint8)}

    def load(self, state: Arrays) -> None:
        """Go on with these residuals."""
        self._feedback = ErrorFeedback.from_bytes(state["feedback"].tobytes())


class Qsgd(Plain):
    """Messages of QSGD. A bucket's norms and its codes travel as two leaves of a tree."""

    def __init__(self, seed: int, sender: str, like: Tree, scheme: Scheme) -> None:
        super().__init__(seed, sender, like, trees.NOBODY, trees.AS_IT_IS)
        self._shapes = {name: values.shape for name, values in like.items()}
        self._bits = scheme.bits
        self._norm = "l2" if scheme.kind == "qsgd-l2" else "max"

    def compress(self, tree: Tree, tag: Tag) -> QuantizedTree:
        """The message of a tree and of what was given back."""
        rng = np.random.default_rng([self._seed, *self._sender.encode(), tag.round or 0])
        whole = model.add(tree, self._unused)
        self._unused = model.zeros(tree)
        return trees.exact(qsgd.leaves(whole, MIN_SIZE, self._bits, self._norm, rng), tag)

    def restore(self, message: QuantizedTree) -> Tree:
        """What a message says; ValueError if it is none."""
        return qsgd.arrays(message.arrays(), self._shapes, self._bits)
