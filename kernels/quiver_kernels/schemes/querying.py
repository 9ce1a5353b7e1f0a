"""Parameters of a scheme in a query string: ``method=eden&parameters[scale]=contraction``.

As OpenAPI's style ``deepObject`` writes them. All is text there; a parameter's default says what
it stands for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from quiver_kernels.errors import InvalidInput
from quiver_kernels.schemes import registry
from quiver_kernels.schemes.contract import Value

_KEY = re.compile(r"parameters\[([^][]*)\]")


def split(given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The options of a query string without parameters, and the parameters by name."""
    options, texts = {}, {}
    for key, value in given.items():
        found = _KEY.fullmatch(key)
        if found is None:
            options[key] = value
        else:
            texts[found[1]] = value
    return options, texts


def values(method: object, texts: Mapping[str, str]) -> dict[str, Value]:
    """Parameters of a scheme, each of its own type; unknown ones stay texts, to be refused.

    Raises
    ------
    InvalidInput
        A text does not stand for a value of the parameter's type.
    """
    scheme = registry.find(method) if isinstance(method, str) else None
    defaults = {} if scheme is None else {one.name: one.default for one in scheme.parameters}
    return {name: _value(name, text, type(defaults.get(name, ""))) for name, text in texts.items()}


def _value(name: str, text: str, kind: type[Any]) -> Value:
    try:
        value: Value = msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError:
        raise InvalidInput(
            f"parameters.{name[:40]} must be {_WORDS[kind]}; got {text[:40]!r}",
            code="invalid_type",
            field=f"parameters.{name[:40]}",
        ) from None
    return value


_WORDS = {bool: "true or false", int: "an integer", float: "a number"}
