"""Error feedback: what one message loses is added to the next.

For each sender, leaf and direction there is a residual e, at first 0. A step sends
``d = Q(x + e)`` and keeps ``e <- x + e - d``, so that after any number of steps, exactly,

    sum of all d  +  e  =  sum of all x.

"Exactly" is meant: residuals are sums of float64 arrays without rounding (`expansion`), one array
for most data. Only what a sender hands to its quantizer is rounded, to the type of the leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quiver_client._core import as_tensor
from quiver_client.ps import residuals as state
from quiver_client.ps.compress import DEFAULT_POLICY, NO_TAG, Quantizes, Strata, compress
from quiver_client.ps.contraction import DEFAULT_THRESHOLD, check_policy, contracted
from quiver_client.ps.expansion import Expansion
from quiver_client.ps.flatten import ROOT_NAME, flatten, unflatten
from quiver_client.ps.planning import Plan
from quiver_client.ps.policy import Policy
from quiver_client.ps.residuals import FeedbackError, Key, Residual, Residuals
from quiver_kernels.dispatch import pick_decoder
from quiver_kernels.dtypes import WIRE_DTYPES, from_wire, wire_name
from quiver_kernels.errors import InvalidInput
from quiver_kernels.framing import Buffer
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.tree import Group, QuantizedSection, QuantizedTree, Tag

Quantizer = Callable[[NDArray[Any]], QuantizedVector]
"""Makes the message of an array: `sign_quantize`, or a client's `quantize` with options."""

TreeQuantizer = Callable[[Any], QuantizedTree]
"""Makes the message of a tree."""


class FeedbackDiverged(FeedbackError):
    """A leaf with its residual is beyond the range of the leaf's type."""

    default_code = "feedback_diverged"


class ErrorFeedback:
    """Residuals of one process: for each sender, leaf and direction.

    Parameters
    ----------
    contraction
        What happens to a message whose rounding is unbiased and has an expected squared error
        over `threshold` times the squared norm: ``scale``: its levels are divided by
        ``1 + vnmse``, which receivers need not know; ``refuse``: `NotAContraction`;
        ``unchecked``: it is sent as it is, and residuals may grow without bound.
    threshold
        0 to below 1. Below it scaling would hardly help, and levels stay as they were solved.

    Notes
    -----
    A residual begins at zero once. It is never reset because a shape, a type, or a name has
    changed, or because a checkpoint lacks it: those are errors that name the leaf. A step either
    changes all residuals of its message or, if it raises, none. Not for several threads at once.

    Memory: 8 bytes per value and residual; 16 for float64 leaves and for values whose magnitudes
    differ by more than 2^29.
    """

    def __init__(self, *, contraction: str = "scale", threshold: float = DEFAULT_THRESHOLD) -> None:
        check_policy(contraction, threshold)
        self._policy = contraction
        self._threshold = threshold
        self._residuals = Residuals()

    # -- steps ---------------------------------------------------------------------------

    def quantize(
        self,
        x: ArrayLike,
        quantizer: Quantizer,
        *,
        leaf: str = ROOT_NAME,
        sender: str = "",
        direction: str = "up",
        dtype: str | None = None,
    ) -> QuantizedVector:
        """Send one array: quantize `x` plus what is owed, and keep what that loses.

        Parameters
        ----------
        x
            Values, any shape, of a floating type; others become float64. Finite.
        quantizer
            Makes the message of ``x + e``, which has the shape of `x`.
        leaf, sender, direction
            Whose residual: a stable name, who sends, ``up`` or ``down``.
        dtype
            Type of the message; None: that of `x`. A float64 mean may so travel as float32: its
            rounding is owed as well.

        Returns
        -------
        QuantizedVector
            To be sent; scaled if it had to be.

        Raises
        ------
        MissingResidual, ResidualMismatch
            The residual is not there, or is of another shape or type.
        NotAContraction
            See `contraction`.
        FeedbackDiverged
            ``x + e`` is beyond the type.
        InvalidInput
            `x` is not finite, or of a type that cannot be sent. And whatever `quantizer` raises.
        """
        q, key, residual = self._step(x, quantizer, Key(sender, leaf, direction), dtype)
        self._residuals.put(key, residual)
        return q

    def quantize_many(
        self,
        arrays: Mapping[str, ArrayLike],
        quantizer: Quantizer,
        *,
        sender: str = "",
        direction: str = "up",
    ) -> dict[str, QuantizedVector]:
        """`quantize` for arrays by leaf name; if one fails, no residual is changed."""
        steps = {
            name: self._step(x, quantizer, Key(sender, name, direction), None)
            for name, x in arrays.items()
        }
        for _, key, residual in steps.values():
            self._residuals.put(key, residual)
        return {name: q for name, (q, _, _) in steps.items()}

    def compress(
        self,
        tree: Any,
        policy: Policy = DEFAULT_POLICY,
        *,
        client: Quantizes,
        tag: Tag = NO_TAG,
        seed: int | None = None,
        plan: Plan | None = None,
        strata: Strata | None = None,
        sender: str | None = None,
        direction: str = "up",
    ) -> QuantizedTree:
        """Send a tree: `compress` of what is put in and owed, leaf by leaf.

        Parameters
        ----------
        tree
            As for `compress`. Floating leaves are finite; integers and bools go as they are and
            have no residual.
        policy, client, tag, seed, plan, strata
            As for `compress`; `Signs` as `client` sends 1 bit per value.
        sender, direction
            Whose residuals; the sender is by default the tag's client, or "".

        Returns
        -------
        QuantizedTree
            To be sent. Sections whose rounding is no contraction are scaled, each by itself.
            Leaves that it holds raw owe nothing, but for their rounding.

        Raises
        ------
        MissingResidual
            After the first tree of a sender and direction: a leaf of another name.
            `begin` lets it begin. Leaves that are absent this time keep their residuals.
        ResidualMismatch, NotAContraction, FeedbackDiverged, InvalidInput
            As for `quantize`. And whatever `compress` raises.
        """

        def quantizer(owed: Any) -> QuantizedTree:
            return compress(
                owed, policy, client=client, tag=tag, seed=seed, plan=plan, strata=strata
            )

        owner = (tag.client or "") if sender is None else sender
        return self.quantize_tree(tree, quantizer, sender=owner, direction=direction)

    def quantize_tree(
        self,
        tree: Any,
        quantizer: TreeQuantizer,
        *,
        sender: str = "",
        direction: str = "up",
    ) -> QuantizedTree:
        """`compress` with a function that makes the message of a tree of the same leaves."""
        flat = flatten(tree)
        totals: dict[Key, tuple[Expansion, Residual]] = {}
        leaves = dict(flat.leaves)
        for name, array in flat.leaves.items():
            if array.dtype.name in WIRE_DTYPES:
                key = Key(sender, name, direction)
                totals[key] = self._total(key, array, array.dtype.name)
                leaves[name] = _rounded(totals[key][0], array.dtype.name, key)
        message = self._contracted_tree(quantizer(unflatten(leaves, flat.structure)))
        sent = message.arrays()
        _check_names(sent, flat.leaves)
        fresh = {
            key: _after(found, total, sent[key.leaf], key) for key, (total, found) in totals.items()
        }
        for key, residual in fresh.items():
            self._residuals.put(key, residual)
        self._residuals.close(sender, direction)
        return message

    def give_back(
        self,
        message: QuantizedVector | QuantizedTree,
        *,
        leaf: str = ROOT_NAME,
        sender: str = "",
        direction: str = "up",
    ) -> None:
        """Owe again what a message held that was not used: lost, too late, or refused.

        To be called once for a message that `quantize` or `compress` has made; then the next
        message holds it.

        Raises
        ------
        MissingResidual, ResidualMismatch
            The message is of leaves that have no residual here, or another shape or type.
        """
        if isinstance(message, QuantizedVector):
            arrays = {leaf: pick_decoder().dequantize(message)}
        else:
            arrays = {
                name: array
                for name, array in message.arrays().items()
                if array.dtype.name in WIRE_DTYPES
            }
        fresh = {}
        for name, array in arrays.items():
            key = Key(sender, name, direction)
            self._residuals.get(key)
            found = self._residuals.find(key, array.shape, array.dtype.name)
            fresh[key] = replace(found, owed=found.owed.plus(array))
        for key, residual in fresh.items():
            self._residuals.put(key, residual)

    # -- what is owed --------------------------------------------------------------------

    def residual(
        self, leaf: str = ROOT_NAME, *, sender: str = "", direction: str = "up"
    ) -> NDArray[np.float64]:
        """What a leaf is owed, rounded to float64; `MissingResidual` if there is none."""
        return self._residuals.get(Key(sender, leaf, direction)).owed.value()

    def residual_parts(
        self, leaf: str = ROOT_NAME, *, sender: str = "", direction: str = "up"
    ) -> tuple[NDArray[np.float64], ...]:
        """What a leaf is owed without rounding: flat arrays whose exact sum it is."""
        return self._residuals.get(Key(sender, leaf, direction)).owed.parts

    def known(self) -> list[Key]:
        """Whose residuals there are, in order of sender, leaf and direction."""
        return list(self._residuals.keys())

    @property
    def nbytes(self) -> int:
        """Bytes of all residuals."""
        return self._residuals.nbytes

    # -- changes on purpose --------------------------------------------------------------

    def change(
        self,
        policy: str,
        *,
        leaf: str | None = None,
        sender: str | None = None,
        direction: str | None = None,
        factor: float | None = None,
    ) -> list[Key]:
        """Decide what becomes of residuals, as when a client leaves or comes back.

        Parameters
        ----------
        policy
            ``keep``: nothing, but says which there are; ``decay``: multiply by `factor`
            (rounded to float64); ``reset``: zero; ``drop``: forget, so that the leaf is unknown.
        leaf, sender, direction
            Which; None matches all.
        factor
            For ``decay``: 0 to 1.

        Returns
        -------
        list of Key
            Those that matched.

        Raises
        ------
        MissingResidual
            None matches.
        """
        return self._residuals.change(
            policy, sender=sender, leaf=leaf, direction=direction, factor=factor
        )

    def reset(
        self, leaf: str | None = None, *, sender: str | None = None, direction: str | None = None
    ) -> list[Key]:
        """Set residuals to zero: ``change("reset", ...)``."""
        return self.change("reset", leaf=leaf, sender=sender, direction=direction)

    def begin(self, *, sender: str = "", direction: str = "up") -> None:
        """Let leaves of a sender that have no residual begin at zero.

        Needed for a new sender or leaf after `load_state_dict`, and for a leaf that the trees
        before did not have. Residuals that there are stay.
        """
        Key(sender, ROOT_NAME, direction)
        self._residuals.begin(sender, direction)

    # -- checkpoints ---------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All residuals: a dict of plain values and float64 arrays, independent of later steps."""
        return self._residuals.state_dict()

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        *,
        leaves: Iterable[str] | None = None,
        sender: str = "",
        direction: str = "up",
    ) -> None:
        """Go on from a checkpoint, bit for bit.

        Parameters
        ----------
        state_dict
            Of `state_dict`. It replaces all residuals; others may only begin after `begin`.
        leaves, sender, direction
            Names that must have a residual of that sender and direction; None: not checked now.

        Raises
        ------
        MissingResidual
            One of `leaves` is not in it; nothing was changed.
        FeedbackError
            It is no such state.
        """
        fresh = Residuals()
        fresh.load_state_dict(state_dict)
        for leaf in leaves or ():
            fresh.get(Key(sender, leaf, direction))
        self._residuals = fresh

    def to_bytes(self) -> bytes:
        """`state_dict` as one MessagePack map; no pickle."""
        return state.to_bytes(self.state_dict())

    @classmethod
    def from_bytes(
        cls, data: Buffer, *, contraction: str = "scale", threshold: float = DEFAULT_THRESHOLD
    ) -> ErrorFeedback:
        """Read what `to_bytes` wrote.

        Raises
        ------
        MalformedMessage, InvalidInput, FeedbackError
            No such message; the text says where.
        """
        found = cls(contraction=contraction, threshold=threshold)
        found.load_state_dict(state.from_bytes(data))
        return found

    # -- inside --------------------------------------------------------------------------

    def _step(
        self, x: ArrayLike, quantizer: Quantizer, key: Key, dtype: str | None
    ) -> tuple[QuantizedVector, Key, Residual]:
        """A message, and what is owed after it; nothing is changed yet."""
        array = as_tensor(x, key.leaf)
        name = wire_name(array.dtype, key.leaf) if dtype is None else dtype
        total, found = self._total(key, array, name)
        q = quantizer(_rounded(total, name, key))
        if q.shape != array.shape or q.dtype != name:
            raise InvalidInput(
                f"{key}: the quantizer must keep {name} of shape {list(array.shape)}; "
                f"got {q.dtype} of shape {list(q.shape)}",
                code="shape_mismatch",
                field=key.leaf,
            )
        q = contracted(q, policy=self._policy, threshold=self._threshold, where=str(key))
        return q, key, _after(found, total, pick_decoder().dequantize(q), key)

    def _total(self, key: Key, array: NDArray[Any], dtype: str) -> tuple[Expansion, Residual]:
        """``x + e`` exactly, and the residual that it was made of."""
        finite = np.isfinite(array)
        if not finite.all():
            index = int(np.flatnonzero(~finite)[0])
            raise InvalidInput(
                f"{key}: values must be finite; got {array.reshape(-1)[index]} at index {index}",
                code="non_finite",
                field=key.leaf,
            )
        found = self._residuals.find(key, array.shape, dtype)
        return found.owed.plus(array), found

    def _contracted_tree(self, tree: QuantizedTree) -> QuantizedTree:
        groups = tuple(self._contracted_group(group) for group in tree.groups)
        return replace(tree, groups=groups)

    def _contracted_group(self, group: Group) -> Group:
        where = ", ".join(leaf.name for leaf in group.leaves[:3])
        sections = tuple(
            replace(
                section,
                vector=contracted(
                    section.vector,
                    policy=self._policy,
                    threshold=self._threshold,
                    where=f"section of {where}",
                ),
            )
            if isinstance(section, QuantizedSection)
            else section
            for section in group.sections
        )
        return replace(group, sections=sections)


def _rounded(total: Expansion, dtype: str, key: Key) -> NDArray[Any]:
    """What the quantizer gets: the sum in the leaf's type."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = total.value().astype(from_wire(dtype))
    finite = np.isfinite(values)
    if not finite.all():
        index = int(np.flatnonzero(~finite)[0])
        raise FeedbackDiverged(
            f"{key}: with its residual the value at index {index} is beyond {dtype}. "
            "Residuals grow so if the quantizer is no contraction",
            field=key.leaf,
        )
    return values


def _after(found: Residual, total: Expansion, sent: NDArray[Any], key: Key) -> Residual:
    owed = total.minus(sent)
    if not owed.is_finite():
        raise FeedbackDiverged(f"{key}: its residual is beyond float64", field=key.leaf)
    return Residual(found.dtype, owed, found.steps + 1)


def _check_names(sent: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if sent.keys() != wanted.keys():
        odd = min(sent.keys() ^ wanted.keys())
        raise InvalidInput(
            f"the message must have the leaves of the tree; they differ in {odd!r}",
            code="shape_mismatch",
            field=odd,
        )
