"""R3 in short: probes and small requests beside large ones; the naive handler is caught."""

from __future__ import annotations

from pathlib import Path

from reliability import speed
from reliability.servers import REAL, serving

PLAN = speed.Plan(values=1 << 22, load_seconds=1.5)
# The bounds of the long form, with room for the other tests on this machine.
MOST_MS = 200.0


def test_probes_and_small_requests_pass_beside_large_ones(tmp_path: Path):
    with serving(tmp_path, REAL, **speed.LIMITS) as server:
        found = speed.beside(server, PLAN)

    print(f"/livez p99 {found.livez:.1f} ms, 4 KiB p99 {found.small:.1f} ms")
    assert found.large > 1
    assert found.livez <= MOST_MS
    assert found.small <= MOST_MS


def test_the_naive_handler_is_caught(tmp_path: Path):
    with serving(tmp_path, speed.rival("naive")) as server:
        naive = speed.beside(server, speed.Plan(values=1 << 25, load_seconds=3.0))

    assert naive.livez > MOST_MS
