"""The policy of ``quantize``: from a file, and from options that go before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quiver_client.cli.policies import read_policy
from quiver_client.ps.policy import Policy


def chosen_policy(
    path: str | None,
    options: Mapping[str, Any],
    keep: Sequence[str],
    bits_of: Sequence[tuple[str, int]],
) -> Policy:
    """A policy.

    Parameters
    ----------
    path
        Of a file as `read_policy` takes; None: the defaults.
    options
        Attributes that go before those of the file, where they are not None.
    keep
        Patterns of arrays that are never quantized.
    bits_of
        Patterns and bits; they, too, go before what the file says of single arrays.

    Raises
    ------
    Invalid, CommandError
        An attribute is not what it may be, or the file is no policy.
    """
    base = Policy() if path is None else read_policy(Path(path))
    given = {name: value for name, value in options.items() if value is not None}
    # The first pattern that matches counts.
    first: dict[str, Mapping[str, Any]] = {pattern: {"raw": True} for pattern in keep}
    first |= {pattern: {"bits": bits} for pattern, bits in bits_of}
    rest = {name: rule for name, rule in base.overrides.items() if name not in first}
    return replace(base, **given, overrides={**first, **rest})
