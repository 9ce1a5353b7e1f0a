"""What is done to which leaf of a tree: its policy, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from quiver_client._core import create_options
from quiver_client.errors import Invalid
from quiver_kernels.options import QuantizeOptions

MAX_CHUNK_VALUES = 2**28
NON_FINITE = ("refuse", "raw")
SMALL = ("raw", "pack")


@dataclass(frozen=True, slots=True)
class Rule:
    """How the values of one leaf travel.

    Attributes
    ----------
    bits
        Bits per value, 1..8.
    method
        As for `Client.quantize`.
    block_size
        Values that share a level table; None: all of a section.
    outliers
        Share (below 1, a float) or number (an integer) of the leaf's largest magnitudes that
        are sent exactly, beside the quantized rest.
    raw
        Send the values as they are; the other attributes then mean nothing.
    """

    bits: int = 4
    method: str = "exact"
    block_size: int | None = None
    outliers: float | int = 0
    raw: bool = False

    def __post_init__(self) -> None:
        """Check; `Invalid` names the attribute, its limits and what was got."""
        self.options(0)
        _check_outliers(self.outliers)
        _check(isinstance(self.raw, bool), "raw", "must be true or false", self.raw)

    def options(self, seed: int) -> QuantizeOptions:
        """The quantization asked for, with a seed."""
        return create_options(
            bits=self.bits, method=self.method, block_size=self.block_size, seed=seed
        )

    def count_outliers(self, size: int) -> int:
        """How many of `size` values are sent exactly; never all of them."""
        wanted = self.outliers
        count = wanted if isinstance(wanted, int) else math.floor(wanted * size)
        return min(count, max(size - 1, 0))


@dataclass(frozen=True, slots=True)
class Policy:
    """Which leaves are quantized, and how. Integers, bools and empty leaves are always raw.

    Attributes
    ----------
    bits, method, block_size, outliers
        For every quantized leaf without a rule of its own; see `Rule`.
    min_size
        Floating leaves of fewer values are `small`: their level tables would weigh more than
        they save.
    small
        ``raw``: small leaves travel as they are; ``pack``: they join the packed ones below.
    pack_below
        Quantized leaves of fewer values share sections, and level tables, with others of
        their type.
    chunk_values
        Larger leaves are cut into sections of so many values, each with a table of its own.
    raw
        Names of leaves that are never quantized; patterns as of `fnmatch`: ``"*.bias"``.
    overrides
        Options of single leaves, by name or pattern, in place of those for all: ``{"head.*":
        {"bits": 8}}``. The first pattern that matches counts; it goes before `raw` and `min_size`.
    non_finite
        What NaN and infinities do: ``refuse``: an error that names the leaf; ``raw``: the leaf
        is sent as it is.

    Raises
    ------
    Invalid
        When it is made: the attribute, its limits and what was got.
    """

    bits: int = 4
    method: str = "exact"
    min_size: int = 1024
    pack_below: int = 4096
    chunk_values: int = 2**22
    block_size: int | None = None
    outliers: float | int = 0
    small: str = "raw"
    raw: Sequence[str] = ()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    non_finite: str = "refuse"

    def __post_init__(self) -> None:
        """Check, and keep copies that nobody changes."""
        self._rule({}, "")
        _check_count("min_size", self.min_size, 0, 2**40)
        _check_count("pack_below", self.pack_below, 0, MAX_CHUNK_VALUES)
        _check_count("chunk_values", self.chunk_values, 1, MAX_CHUNK_VALUES)
        _check(self.small in SMALL, "small", f"must be one of {', '.join(SMALL)}", self.small)
        _check(
            self.non_finite in NON_FINITE,
            "non_finite",
            f"must be one of {', '.join(NON_FINITE)}",
            self.non_finite,
        )
        is_list = not isinstance(self.raw, str) and isinstance(self.raw, Sequence)
        _check(
            is_list and all(isinstance(pattern, str) for pattern in self.raw),
            "raw",
            "must be a sequence of patterns",
            self.raw,
        )
        is_map = isinstance(self.overrides, Mapping)
        _check(is_map, "overrides", "must be a mapping of options by pattern", self.overrides)
        object.__setattr__(self, "raw", tuple(self.raw))
        kept = {name: dict(given) for name, given in self.overrides.items()}
        object.__setattr__(self, "overrides", kept)
        for name, given in kept.items():
            _check(isinstance(name, str), "overrides", "must have patterns as keys", name)
            self._rule(given, f"overrides[{name!r}]")

    def __hash__(self) -> int:
        """Policies are values, whatever type holds their overrides."""
        return hash((self.bits, self.method, self.min_size, self.chunk_values, *self.raw))

    def rule(self, name: str, size: int) -> Rule:
        """How a floating leaf of `size` values is sent."""
        for pattern, given in self.overrides.items():
            if fnmatchcase(name, pattern):
                return self._rule(given, f"overrides[{pattern!r}]")
        if any(fnmatchcase(name, pattern) for pattern in self.raw):
            return Rule(raw=True)
        if size < self.min_size and self.small == "raw":
            return Rule(raw=True)
        return self._rule({}, "")

    def _rule(self, given: Mapping[str, Any], where: str) -> Rule:
        known = {item.name for item in fields(Rule)}
        for name in given:
            if name not in known:
                raise Invalid(
                    f"{where} must have keys of {', '.join(sorted(known))}; got {str(name)[:40]!r}",
                    code="unknown_key",
                    field=where,
                )
        shared = {
            "bits": self.bits,
            "method": self.method,
            "block_size": self.block_size,
            "outliers": self.outliers,
        }
        try:
            return Rule(**{**shared, **given})
        except Invalid as error:
            if where:
                error.detail = f"{where}: {error.detail}"
                error.field = f"{where}.{error.field}"
            raise


def _check_outliers(outliers: object) -> None:
    limit = "must be a share from 0 to below 1, or a number of values as an integer"
    if isinstance(outliers, bool) or not isinstance(outliers, int | float):
        _check(False, "outliers", limit, type(outliers).__name__)
    elif isinstance(outliers, float):
        _check(0 <= outliers < 1, "outliers", limit, outliers)
    else:
        _check(0 <= outliers < 2**40, "outliers", limit, outliers)


def _check_count(name: str, value: object, low: int, high: int) -> None:
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    _check(fits, name, f"must be an integer from {low} to {high}", value)


def _check(holds: bool, name: str, limit: str, got: object) -> None:
    if not holds:
        raise Invalid(f"{name} {limit}; got {str(got)[:40]}", code="invalid_option", field=name)


RAW = Rule(raw=True)
