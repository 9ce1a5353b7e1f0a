"""Run every check on a scheme, with every choice that it takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from quiver_kernels.errors import InvalidInput, QuiverError
from quiver_kernels.schemes import registry
from quiver_kernels.schemes.conformance import golden as written
from quiver_kernels.schemes.conformance.additive import additive
from quiver_kernels.schemes.conformance.contraction import contraction
from quiver_kernels.schemes.conformance.findings import Finding
from quiver_kernels.schemes.conformance.hostile import hostile
from quiver_kernels.schemes.conformance.repeats import blocks, deterministic, repeats, shared
from quiver_kernels.schemes.conformance.sizes import accounts, bounds, memory
from quiver_kernels.schemes.conformance.subject import SEEDS, Subject, subjects
from quiver_kernels.schemes.conformance.trips import round_trips
from quiver_kernels.schemes.conformance.unbiased import stated, unbiased
from quiver_kernels.schemes.contract import Scheme

Check = Callable[[Subject], Iterator[str]]

CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "round trip": round_trips,
        "sizes": accounts,
        "size bound": bounds,
        "repeats": repeats,
        "deterministic": deterministic,
        "blocks": blocks,
        "additive": additive,
        "contraction": contraction,
        "unbiased": unbiased,
        "stated error": stated,
        "hostile": hostile,
        "memory": memory,
        "threads": shared,
    }
)
"""What every scheme must hold, by name."""

# Of the many choices of a scheme only the default one has its long vectors gone through.
_DEFAULT_ONLY = frozenset({"size bound", "memory", "threads"})


def check(
    scheme: str | Scheme,
    *,
    golden: Path | None = None,
    checks: Collection[str] = tuple(CHECKS),
    seeds: int = SEEDS,
    others: bool = True,
) -> list[Finding]:
    """All that is wrong with a scheme; nothing, if it conforms.

    Parameters
    ----------
    scheme
        Its name, or itself; it must be registered, as `registry` says.
    golden
        Folder of messages that were written once (`golden.write`); None: they are not checked.
    checks
        Which of `CHECKS`; all, unless told.
    seeds
        That statistics of the default choice go over, 16 at least; of others a quarter.
    others
        Whether other choices than the default one are gone through too.

    Returns
    -------
    list of Finding
        Each names the check, the choice and what was got. An error of the scheme's own is a
        finding, a warning too.

    Notes
    -----
    Seconds, up to a minute for slow schemes with many parameters.
    """
    name = scheme if isinstance(scheme, str) else scheme.name
    try:
        found = registry.find(name)
    except InvalidInput as error:
        return [Finding(name, "registered", "", error.detail)]
    if found is None or not (isinstance(scheme, str) or found == scheme):
        return [Finding(name, "registered", "", "is not what the registry has by this name")]
    findings = list(_declared(found))
    every = subjects(found, seeds)
    for subject in every if others else every[:1]:
        for check_name in checks:
            if subject is every[0] or check_name not in _DEFAULT_ONLY:
                findings += _findings(subject, check_name, CHECKS[check_name])
    if golden is not None:
        findings += _findings(every[0], "golden", lambda _: written.check(found, golden))
    return findings


def _findings(subject: Subject, name: str, run: Check) -> Iterator[Finding]:
    """Findings of one check; whatever is raised in it is one."""
    found = run(subject)
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                detail = next(found)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001
            # Anything that a scheme raises where it should answer.
            text = error.detail if isinstance(error, QuiverError) else str(error)
            detail = f"{type(error).__name__} was raised: {text}"
            yield Finding(subject.scheme.name, name, subject.label, detail)
            return
        yield Finding(subject.scheme.name, name, subject.label, detail)


def _declared(scheme: Scheme) -> Iterator[Finding]:
    """What a scheme says of itself must be there, and its default must be among its choices."""
    wrong = []
    if not (scheme.summary and scheme.source and scheme.side_information and scheme.rounding):
        wrong.append("summary, source, side_information and rounding must say something")
    counts = scheme.level_counts
    if not counts or list(counts) != sorted(set(counts)) or not 2 <= counts[0] <= counts[-1] <= 256:
        wrong.append("level_counts must be ascending numbers from 2 to 256")
    if scheme.default_levels not in counts:
        wrong.append(f"default_levels must be one of level_counts; got {scheme.default_levels}")
    for parameter in scheme.parameters:
        try:
            parameter.checked(parameter.default)
        except InvalidInput as error:
            wrong.append(f"a default is not allowed: {error.detail}")
    for detail in wrong:
        yield Finding(scheme.name, "declared", "", detail)
