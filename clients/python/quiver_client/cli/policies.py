"""Policy files: the arguments of `quiver_client.ps.Policy` as one JSON object."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from quiver_client.cli.errors import CommandError
from quiver_client.ps.policy import Policy

MAX_BYTES = 1 << 26


def read_policy(path: Path) -> Policy:
    """The policy of a file.

    Raises
    ------
    CommandError
        It holds no JSON object, or keys that a policy has not.
    Invalid
        A value is out of its limits.
    OSError
        It cannot be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise CommandError(f"{path} must have at most {MAX_BYTES} bytes", code="invalid_policy")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{path} is no JSON: {error}", code="invalid_policy") from None
    known = [item.name for item in dataclasses.fields(Policy)]
    unknown = sorted(set(given) - set(known)) if isinstance(given, dict) else [type(given).__name__]
    if unknown:
        raise CommandError(
            f"{path} must be a JSON object with keys of {', '.join(known)}; got {unknown[0]!r:.40}",
            code="invalid_policy",
        )
    return Policy(**given)


def policy_data(policy: Policy) -> dict[str, Any]:
    """What `read_policy` reads again: the arguments that are not the usual ones."""
    usual = Policy()
    return {
        item.name: value
        for item in dataclasses.fields(policy)
        if (value := getattr(policy, item.name)) != getattr(usual, item.name)
        or item.name in {"bits", "method"}
    }
