"""The real kernels, asked in every way: other threads, a balancer, the library."""

from __future__ import annotations

from pathlib import Path

from reliability import same_bits


def test_every_way_gives_the_same_bits(haproxy_here: None, live_server: str, tmp_path: Path):
    asked = same_bits.questions(same_bits.SHARED + 1)
    plan = same_bits.Plan(asked, 2, (1, 4), {"default threads": live_server}, faulty=False)
    found = same_bits.run(plan, tmp_path)
    report = same_bits.judge(plan, found)

    assert len(found) == 5
    assert [check for check in report.checks if not check.held] == []
    assert [check.held for check in report.controls] == [False]
