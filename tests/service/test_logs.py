"""Log lines of requests: what they say, and how many there are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from messages import VND, pack, quantize_fields
from quiver_service.logs import LineQuota

BODY = pack(quantize_fields())


DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"


def documented() -> set[str]:
    """The fields of a request's line in the table of docs/operations.md."""
    section = DOCUMENT.read_text().partition("## Logs\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_documentation_has_every_field(
    make_client: Callable[..., TestClient], capsys: pytest.CaptureFixture[str]
):
    client = make_client(api_keys="a-key-that-is-long-enough")
    capsys.readouterr()

    headers = {"content-type": VND, "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    bearer = {"authorization": "Bearer a-key-that-is-long-enough"}
    client.post("/quantize", content=BODY, headers=headers | bearer)
    client.__exit__(None, None, None)

    [line] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert set(line) == documented() | {"ts", "level"}
    assert line["route"] == "/quantize"
    assert "a-key-that" not in json.dumps(line)


def test_a_quota_counts_what_it_leaves_out():
    quota = LineQuota(2)

    taken = [quota.take(now) for now in (5.0, 5.1, 5.2, 5.9, 6.0, 6.1, 6.2)]

    assert taken == [True, True, False, False, True, True, False]
    assert quota.settle() == 3
    assert quota.settle() == 0


@pytest.mark.parametrize("per_second", [0, 1000])
def test_successes_beyond_the_quota_are_counted_in_one_line(
    make_client: Callable[..., TestClient], capsys: pytest.CaptureFixture[str], per_second: int
):
    client = make_client(log_requests_per_second=per_second)
    capsys.readouterr()

    for _ in range(5):
        client.post("/quantize", content=BODY, headers={"content-type": VND})
    refused = client.post("/quantize", content=b"\xc1", headers={"content-type": VND})
    client.__exit__(None, None, None)

    output = capsys.readouterr().out
    lines = [json.loads(line) for line in output.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    counts = [line["count"] for line in lines if line["event"] == "requests without a line"]
    # What was refused always has its line.
    assert refused.headers["x-request-id"] in {line["request_id"] for line in requests}
    assert len(requests) == (6 if per_second else 1)
    assert counts == ([] if per_second else [5])
