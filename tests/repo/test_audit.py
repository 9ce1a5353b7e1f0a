"""`make audit` fails on a known vulnerability, and never passes because nobody answered."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTROL = "jinja2==2.4.1"
OLD = "urllib3==1.24.1"
NEW = "urllib3==2.8.0"


@contextmanager
def database(*vulnerable: str) -> Iterator[str]:
    """A database in OSV's protocol that knows these pins to be vulnerable."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            name, version = asked["package"]["name"], asked["version"]
            events = [{"introduced": "0"}, {"fixed": "2.0"}]
            affected = [
                {
                    "package": {"name": name, "ecosystem": "PyPI"},
                    "ranges": [{"type": "ECOSYSTEM", "events": events}],
                    "versions": [version],
                }
            ]
            known = {"id": f"TEST-{name}", "details": "", "affected": affected}
            answer = json.dumps({"vulns": [known]} if f"{name}=={version}" in vulnerable else {})
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


def audit(lock: Path, pin: str, url: str) -> tuple[int, str]:
    lock.write_text(f"{pin} --hash=sha256:{'0' * 64}\n")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/audit.py", lock],
        env=os.environ | {"AUDIT_OSV_URL": url},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("known", "pin", "code"),
    [([CONTROL, OLD], NEW, 0), ([CONTROL, OLD], OLD, 1), ([], NEW, 3)],
    ids=["nothing is known", "a vulnerable pin", "a database that knows nothing"],
)
def test_what_a_database_says(tmp_path: Path, known: list[str], pin: str, code: int):
    with database(*known) as url:
        got, text = audit(tmp_path / "lock.txt", pin, url)

    assert got == code, text
    if code == 1:
        assert f"{pin} is vulnerable: TEST-urllib3" in text


def test_a_database_that_does_not_answer_proves_nothing(tmp_path: Path, unused_tcp_port: int):
    code, text = audit(tmp_path / "lock.txt", NEW, f"http://127.0.0.1:{unused_tcp_port}/v1/query")

    assert code == 3, text
    assert "NOT AUDITED" in text
