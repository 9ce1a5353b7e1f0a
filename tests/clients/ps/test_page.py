"""docs/parameter-server.md: its program runs, and its tables are those of the code."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from quiver_client import ps

PAGE = (Path(__file__).parents[3] / "docs" / "parameter-server.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_program_of_the_page_runs(capsys: pytest.CaptureFixture[str]):
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "parameter-server.md", "exec"), names)

    assert len(BLOCKS) >= 8
    assert "bits/val" in capsys.readouterr().out
    # The control: the page's assertions are executed, not skipped.
    wrong = BLOCKS[-2].replace("is down", "is not down")
    assert wrong != BLOCKS[-2]
    with pytest.raises(AssertionError):
        exec(compile(wrong, "parameter-server.md", "exec"), names)


def test_every_attribute_of_a_policy_is_in_its_table():
    rows = PAGE.split("## Policies")[1].split("\n## ")[0]
    first = " ".join(re.findall(r"^\|([^|]*)\|", rows, re.MULTILINE))
    named = set(re.findall(r"`(\w+)`", first))

    assert named == {field.name for field in dataclasses.fields(ps.Policy)}


def test_the_defaults_of_the_table_are_those_of_the_code():
    policy = ps.Policy()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", PAGE, re.MULTILINE))

    assert rows["pack_below"] == str(policy.pack_below)
    assert rows["chunk_values"] == "2^22"
    assert policy.chunk_values == 2**22
    assert f"| `min_size`, `small` | {policy.min_size}, `{policy.small}` |" in PAGE
    assert f"| `non_finite` | `{policy.non_finite}` |" in PAGE
    assert f"for `rounds` ({ps.Late.reject().rounds}) rounds" in PAGE


def test_every_verdict_is_explained():
    for verdict in ps.Verdict:
        assert f"\n| `{verdict}` |" in PAGE
