"""The table of schemes: built in, and those that other packages bring by an entry point.

A package brings one by ``[project.entry-points."quiver_kernels.schemes"]`` with the scheme's name
and a function without arguments that makes it. Built-in names cannot be taken.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
from collections.abc import Mapping

from quiver_kernels.errors import InvalidInput
from quiver_kernels.schemes.contract import MAX_TEXT, Choice, Parameter, Scheme, Value

GROUP = "quiver_kernels.schemes"
# Name of each scheme, and what makes it: ``module:function`` below this package, imported when
# first asked for.
_BUILT_IN: Mapping[str, str] = {
    "exact": "native:exact",
    "approx": "native:approx",
    "accelerated": "native:accelerated",
    "uniform": "native:uniform",
    "simba": "native:simba",
    "qsgd": "normed:qsgd",
    "terngrad": "normed:terngrad",
    "nuqsgd": "normed:nuqsgd",
    "amq": "normed:amq",
    "alq": "normed:alq",
    "sign": "sign:scheme",
    "seq": "seq:scheme",
    "lsq": "lsq:scheme",
    "pow2": "pow2:scheme",
    "signed_binary": "signed_binary:scheme",
    "fp4": "fp4:scheme",
    "eden": "eden:eden",
    "drive": "eden:drive",
    "tcq": "tcq:scheme",
    "ectcq": "ectcq:scheme",
}
BUILT_IN = tuple(_BUILT_IN)
"""Their names."""
_NAME = re.compile(rf"[a-z][a-z0-9_]{{0,{MAX_TEXT - 1}}}")


def names() -> tuple[str, ...]:
    """All that can be asked for, the built-in ones first."""
    brought = sorted({point.name for point in _entry_points()} - set(_BUILT_IN))
    return (*_BUILT_IN, *brought)


def warm_up() -> None:
    """Compile every scheme's kernels, so that no later call waits for a compiler."""
    for name in names():
        scheme = find(name)
        if scheme is not None:
            scheme.warm_up()


def find(name: str) -> Scheme | None:
    """The scheme called `name`, or None.

    Raises
    ------
    InvalidInput
        What a package brings by this name is no scheme.
    """
    if name in _BUILT_IN:
        return _built_in(name)
    for point in _entry_points():
        if point.name == name:
            return _brought(point)
    return None


def choice_of(
    scheme: Scheme,
    num_levels: int | None,
    block_size: int | None,
    parameters: Mapping[str, object],
    table: tuple[float, ...] | None = None,
) -> Choice:
    """What a caller chose of a scheme, checked, with defaults for the rest.

    `table`: finite and ascending levels that the caller brings, `num_levels` of them.

    Raises
    ------
    InvalidInput
        ``invalid_option``: it takes no such number of levels, or has no such parameter.
    """
    levels = scheme.default_levels if num_levels is None else num_levels
    if levels not in scheme.level_counts:
        allowed = in_words(scheme.level_counts)
        raise InvalidInput(
            f"num_levels of method {scheme.name} must be one of {allowed}; got {levels}",
            code="invalid_option",
            field="num_levels",
        )
    if table is not None:
        _require_table(scheme, table)
    return Choice(levels, block_size, parameters_of(scheme, parameters), table)


def in_words(numbers: tuple[int, ...]) -> str:
    """Ascending `numbers`, neighbours as ``3..256``."""
    starts = [i for i, n in enumerate(numbers) if i == 0 or numbers[i - 1] != n - 1]
    ends = [*(i - 1 for i in starts[1:]), len(numbers) - 1]
    return ", ".join(
        str(numbers[a]) if a == b else f"{numbers[a]}..{numbers[b]}"
        for a, b in zip(starts, ends, strict=True)
    )


def _require_table(scheme: Scheme, table: tuple[float, ...]) -> None:
    if not getattr(scheme, "takes_table", False):
        raise InvalidInput(
            f"method {scheme.name} takes no levels: its own are fixed, or chosen for each vector",
            code="invalid_option",
            field="levels",
        )
    if table[0] != -1.0 or table[-1] != 1.0:
        raise InvalidInput(
            f"levels of method {scheme.name} must go from -1 to 1; got {table[0]} to {table[-1]}",
            code="invalid_levels",
            field="levels",
        )


def parameters_of(scheme: Scheme, given: Mapping[str, object]) -> dict[str, Value]:
    """Every parameter's value, checked; `InvalidInput` for one that the scheme does not have."""
    known: dict[str, Parameter] = {one.name: one for one in scheme.parameters}
    for name in given:
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise InvalidInput(
                f"parameters of method {scheme.name} are {allowed}; got {name[:MAX_TEXT]!r}",
                code="invalid_option",
                field="parameters",
            )
    return {name: one.checked(given.get(name, one.default)) for name, one in known.items()}


@functools.cache
def _built_in(name: str) -> Scheme:
    module, _, function = _BUILT_IN[name].partition(":")
    scheme: Scheme = getattr(importlib.import_module(f"{__package__}.{module}"), function)()
    return scheme


# Finding them reads the metadata of every installed package, which takes milliseconds.
@functools.cache
def _entry_points() -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=GROUP))


@functools.cache
def _brought(point: importlib.metadata.EntryPoint) -> Scheme:
    scheme: Scheme = point.load()()
    _require_usable(scheme, point.name)
    return scheme


def _require_usable(scheme: Scheme, name: str) -> None:
    if not _NAME.fullmatch(name) or getattr(scheme, "name", None) != name:
        raise InvalidInput(
            f"the entry point {name[:MAX_TEXT]!r} of {GROUP} must make a scheme of that name; "
            f"got {getattr(scheme, 'name', None)!r:.40}",
            code="invalid_option",
            field="method",
        )
