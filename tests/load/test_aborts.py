"""R8: clients that leave leave nothing behind, and a careless service is caught."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from reliability import aborts
from reliability.servers import serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

STOPPED_VALUES = 1 << 25
# Of a computation that takes a second and more; the machine is shared with other tests.
STOP_SECONDS = 0.5


def test_aborted_clients_leave_nothing_and_kernels_stop(tmp_path: Path):
    with serving(tmp_path, QUIVER_THREADS=2) as server:
        checks = aborts.left_checks(aborts.load(server, (60, 8, 4), seed=1))
        stops = aborts.stopping_seconds(server, 3, STOPPED_VALUES)
        assert "Traceback" not in server.text()

    print("milliseconds to stop:", [round(1000 * seconds) for seconds in stops])
    assert [check for check in checks if not check.held] == []
    assert aborts.stop_check(stops, STOP_SECONDS).held, stops


def test_a_service_that_forgets_is_caught(tmp_path: Path):
    with serving(tmp_path, aborts.CARELESS, QUIVER_THREADS=2) as server:
        deaf = aborts.stopping_seconds(server, 1, STOPPED_VALUES, bits=8)
        left = aborts.load(server, (8, 0, 0), seed=1, settle_seconds=0.2)

    assert not aborts.stop_check(deaf, STOP_SECONDS).held, deaf
    assert left.inflight_bytes > 0
    assert not aborts.left_checks(left)[0].held
