"""The comparison with a Ray cluster, of two services that run already."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster.throughput import main

pytestmark = pytest.mark.benchmarks


class Answering(http.server.BaseHTTPRequestHandler):
    """Takes as long as its server says, and refuses every third request."""

    protocol_version = "HTTP/1.1"
    asked = 0
    pause = 0.0
    status = 200

    def do_POST(self) -> None:
        """Read it all, wait, answer."""
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.pause)
        type(self).asked += 1
        self.send_response(503 if type(self).asked % 3 == 0 else self.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def answering(pause: float, status: int = 200) -> Iterator[str]:
    handler = type("Handler", (Answering,), {"pause": pause, "status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_side_that_is_slower_is_found_to_be_slower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with answering(0.02) as bare, answering(0.2) as ray:
        told = ["--mebibytes", "1", "--methods", "uniform", "--rounds", "2"]
        main(["--bare", bare, "--ray", ray, *told, "--json", str(tmp_path / "found.json")])

    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert found["ratio"] < 0.7
    assert len(found["rates"]["ray"]) == len(found["rates"]["bare"]) == 2
    assert "| 1 MiB, `uniform`, 2 clients |" in capsys.readouterr().out


def test_a_service_that_fails_is_no_measurement():
    with (
        answering(0.0) as bare,
        answering(0.0, status=500) as ray,
        pytest.raises(SystemExit, match="answered 500"),
    ):
        main(["--bare", bare, "--ray", ray, "--mebibytes", "1", "--rounds", "1"])
