"""For parameter servers: models and gradients as compressed messages.

`compress` and `restore` make one message of a model's state; `plan` chooses bits within a
budget; `Aggregator` means what workers send, round by round; `Ledger` accounts for the bytes.
"""

from quiver_client.ps.compress import Strata, compress, restore
from quiver_client.ps.contraction import NotAContraction
from quiver_client.ps.feedback import ErrorFeedback, FeedbackDiverged
from quiver_client.ps.flatten import Flat, flatten, unflatten
from quiver_client.ps.lateness import Late
from quiver_client.ps.ledger import Ledger, Traffic
from quiver_client.ps.links import ByPolicy, Exact, Link, PerArray
from quiver_client.ps.optim import (
    EfficientAdam,
    EfficientAdamServer,
    EfficientAdamWorker,
    TwoWay,
    inverse_sqrt,
)
from quiver_client.ps.planning import Plan, Planned, plan
from quiver_client.ps.policy import Policy, Rule
from quiver_client.ps.residuals import FeedbackError, MissingResidual, ResidualMismatch
from quiver_client.ps.rounds import Aggregator, Contribution, RoundMean, Verdict
from quiver_client.ps.shared import SharedLevels, SharedTable
from quiver_client.ps.signs import Signs
from quiver_kernels.tree import QuantizedTree, Tag

__all__ = [
    "Aggregator",
    "ByPolicy",
    "Contribution",
    "EfficientAdam",
    "EfficientAdamServer",
    "EfficientAdamWorker",
    "ErrorFeedback",
    "Exact",
    "FeedbackDiverged",
    "FeedbackError",
    "Flat",
    "Late",
    "Ledger",
    "Link",
    "MissingResidual",
    "NotAContraction",
    "PerArray",
    "Plan",
    "Planned",
    "Policy",
    "QuantizedTree",
    "ResidualMismatch",
    "RoundMean",
    "Rule",
    "SharedLevels",
    "SharedTable",
    "Signs",
    "Strata",
    "Tag",
    "Traffic",
    "TwoWay",
    "Verdict",
    "compress",
    "flatten",
    "inverse_sqrt",
    "plan",
    "restore",
    "unflatten",
]
