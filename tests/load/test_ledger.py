"""The instruments themselves: a ledger that counts right, a trend that knows what it does not."""

from __future__ import annotations

import numpy as np
import pytest
from reliability.ledger import Ledger
from reliability.trend import trend


def ledger(sent: str, ended: str, outcome: str = "200") -> Ledger:
    books = Ledger()
    for name in sent:
        books.send(name)
    for name in ended:
        books.end(name, outcome)
    return books


def test_an_even_ledger():
    balance = ledger("abc", "cab").balance(["200"])

    assert balance.even
    assert (balance.sent, balance.outcomes) == (3, {"200": 3})


@pytest.mark.parametrize(
    ("sent", "ended", "outcome", "fault"),
    [
        ("ab", "a", "200", "lost"),
        ("ab", "aab", "200", "doubled"),
        ("a", "ab", "200", "unknown"),
        ("ab", "ab", "500", "forbidden"),
    ],
)
def test_each_fault_is_seen(sent: str, ended: str, outcome: str, fault: str):
    balance = ledger(sent, ended, outcome).balance(["200", "503"])

    assert not balance.even
    faulty = {name for name in ("lost", "doubled", "unknown", "forbidden") if vars(balance)[name]}
    assert faulty == {fault}


def test_an_id_is_sent_once():
    with pytest.raises(ValueError, match="sent before"):
        ledger("aa", "")


def test_a_trend_covers_the_slope_that_was_put_in():
    rng = np.random.default_rng(0)
    hours = np.linspace(0, 1, 400)

    def covered(slope: float) -> bool:
        noise = np.convolve(rng.normal(size=409), np.ones(10) / 10, "valid")
        found = trend(list(hours), list(slope * hours + noise))
        return found.low < slope < found.high

    # Two one-sided bounds of 95 % leave a tenth outside.
    assert np.mean([covered(slope) for slope in np.linspace(-5, 5, 200)]) > 0.8


def test_what_does_not_change_has_no_slope_for_sure():
    found = trend([float(i) for i in range(40)], [3.0] * 20 + [7.0] * 20)

    assert (found.slope, found.error, found.low, found.high) == (0.0, 0.0, 0.0, 0.0)


def test_a_short_run_has_no_trend():
    with pytest.raises(ValueError, match="needs 24 samples; got 5"):
        trend([1.0] * 5, [1.0] * 5)
