"""The mean of a round: of the valid, distinct messages that came in time.

`quiver_client.ps.Aggregator` decides which these are, and adds them exactly: the order in which
they come does not show in a single bit.
"""

from __future__ import annotations

from parameter_server import trees
from parameter_server.compression import Compressor
from parameter_server.config import Config, worker_name
from parameter_server.model import Tree

from quiver_client.ps import Aggregator, QuantizedTree, Verdict


class Averager:
    """Means, round by round.

    Parameters
    ----------
    config
        Says who the workers are.
    compressor
        Of the run's scheme, to read what the SDK does not know: messages of QSGD.
    like
        A tree of the shapes that messages must have.
    """

    def __init__(self, config: Config, compressor: Compressor, like: Tree) -> None:
        clients = [worker_name(number) for number in range(config.workers)]
        self._aggregator = Aggregator(clients=clients, like=like)
        self._compressor = compressor
        self._is_foreign = config.scheme.startswith("qsgd")

    def begin(self, round_id: int) -> None:
        """Open a round, computed with the model's version of the same number."""
        self._aggregator.open(round_id, model_version=round_id)

    def add(self, message: QuantizedTree) -> Verdict:
        """Take a message, or say why not; QuiverClientError or ValueError if it is none."""
        if self._is_foreign:
            message = trees.exact(self._compressor.restore(message), message.tag)
        return self._aggregator.add(message)

    def mean(self) -> Tree:
        """Close the round; the mean of its messages."""
        found: Tree = self._aggregator.close().tree
        return found
