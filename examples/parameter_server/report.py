"""From results to a table, and to what they must hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from parameter_server.records import Result

BASELINE = "float32"
GOAL = 0.97
JUDGED_SEEDS = 5


@dataclass(frozen=True)
class Claim:
    """What a scheme promises beside float32.

    Attributes
    ----------
    points
        Percentage points by which the median of the final accuracies may be lower.
    ratio
        How many times fewer bytes cross the sockets, at least.
    """

    points: float
    ratio: float


CLAIMS = {"quiver-4": Claim(0.5, 7.0), "quiver-2": Claim(2.0, 12.0)}


@dataclass(frozen=True)
class Row:
    """One scheme over all seeds.

    Attributes
    ----------
    accuracy, lowest, highest
        Of the final model: median, least and greatest.
    up, down
        Bytes from and to the workers, median.
    to_goal
        Bytes, both ways, until the accuracy was first `GOAL`; median, None if some seed never
        got there.
    """

    scheme: str
    seeds: int
    accuracy: float
    lowest: float
    highest: float
    up: int
    down: int
    to_goal: int | None

    @property
    def total(self) -> int:
        """Bytes both ways."""
        return self.up + self.down


def by_scheme(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results of each scheme, in the order in which schemes appear."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.scheme, []).append(result)
    return found


def rows(results: Iterable[Result]) -> dict[str, Row]:
    """One row for each scheme."""
    return {scheme: _row(scheme, runs) for scheme, runs in by_scheme(results).items()}


def _row(scheme: str, runs: Sequence[Result]) -> Row:
    finals = [run.points[-1] for run in runs]
    accuracies = [point.accuracy for point in finals]
    goals = [bytes_until(run, GOAL) for run in runs]
    reached = [goal for goal in goals if goal is not None]
    return Row(
        scheme=scheme,
        seeds=len(runs),
        accuracy=median(accuracies),
        lowest=min(accuracies),
        highest=max(accuracies),
        up=round(median(point.up for point in finals)),
        down=round(median(point.down for point in finals)),
        to_goal=round(median(reached)) if len(reached) == len(goals) else None,
    )


def bytes_until(run: Result, accuracy: float) -> int | None:
    """Bytes both ways when a run was first as accurate; None: it never was."""
    for point in run.points:
        if point.accuracy >= accuracy:
            return point.up + point.down
    return None


def table(found: Mapping[str, Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| scheme | accuracy, % | range | points to float32 | MB up | MB down | MB both "
        f"| times fewer | MB to {GOAL:.0%} |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    base = found.get(BASELINE)
    for row in found.values():
        gap = "" if base is None else f"{100 * (row.accuracy - base.accuracy):+.2f}"
        ratio = "" if base is None else f"{base.total / row.total:.2f}"
        goal = "never" if row.to_goal is None else f"{row.to_goal / 1e6:.1f}"
        lines.append(
            f"| {row.scheme} | {row.accuracy:.2%} | {row.lowest:.2%} to {row.highest:.2%} | {gap} "
            f"| {row.up / 1e6:.1f} | {row.down / 1e6:.1f} | {row.total / 1e6:.1f} | {ratio} "
            f"| {goal} |".replace("%", "")
        )
    return "\n".join(lines)


def violations(found: Mapping[str, Row]) -> list[str]:
    """What does not hold, one line each.

    Bytes are judged always; accuracies with `JUDGED_SEEDS` seeds or more, for the accuracy of one
    run is a matter of luck: 600 images decide on it.
    """
    base = found.get(BASELINE)
    if base is None:
        return []
    wrong = []
    for scheme, claim in CLAIMS.items():
        if (row := found.get(scheme)) is None:
            continue
        ratio = base.total / row.total
        if ratio < claim.ratio:
            wrong.append(f"{scheme}: {ratio:.2f} times fewer bytes; promised: {claim.ratio:g}")
        gap = 100 * (base.accuracy - row.accuracy)
        if min(row.seeds, base.seeds) >= JUDGED_SEEDS and gap > claim.points:
            wrong.append(f"{scheme}: {gap:.2f} points below float32; promised: {claim.points:g}")
    return wrong
