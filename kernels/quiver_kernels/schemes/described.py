"""What the registry's schemes declare, as plain data: for ``GET /info`` and for pages."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from quiver_kernels.schemes import registry
from quiver_kernels.schemes.contract import Parameter, Scheme


def schemes() -> list[dict[str, Any]]:
    """Every scheme that can be asked for, in the registry's order; loads them all."""
    found = ((name, registry.find(name)) for name in registry.names())
    return [_scheme(name, scheme) for name, scheme in found if scheme is not None]


def _scheme(name: str, scheme: Scheme) -> dict[str, Any]:
    """What a scheme declares, and promises with its defaults."""
    choice = registry.choice_of(scheme, None, None, {})
    return {
        "name": name,
        "summary": scheme.summary,
        "source": scheme.source,
        "rounding": scheme.rounding,
        "side_information": scheme.side_information,
        "num_levels": list(scheme.level_counts),
        "default_num_levels": scheme.default_levels,
        "parameters": [_parameter(one) for one in scheme.parameters],
        "promises": dataclasses.asdict(scheme.promises(choice)),
    }


def _parameter(one: Parameter) -> dict[str, Any]:
    """A parameter; what does not limit it is null or empty."""
    bounds = {"min": one.low, "max": one.high}
    return {
        "name": one.name,
        "meaning": one.meaning,
        "default": one.default,
        "choices": list(one.choices),
        **{name: value if math.isfinite(value) else None for name, value in bounds.items()},
    }
