"""Ledgers: every byte has a purpose, broadcasts count for each receiver, break-even bandwidth."""

from __future__ import annotations

import numpy as np
import pytest

from client_trees import mixed_tree
from quiver_client import LocalClient, ps
from quiver_client.errors import Invalid


@pytest.fixture(scope="module")
def messages() -> list[ps.QuantizedTree]:
    policy = ps.Policy(outliers=0.01, chunk_values=1500)
    with LocalClient() as client:
        return [
            ps.compress(mixed_tree(), policy, client=client, tag=ps.Tag(round=number, client="a"))
            for number in (1, 2)
        ]


def test_bytes_add_up(messages: list[ps.QuantizedTree]):
    ledger = ps.Ledger(errors=True)
    noted = ledger.up(messages[0], seconds=0.5)
    ledger.up(messages[0], seconds=0.25)
    ledger.down(messages[0], copies=3, seconds=0.125)
    ledger.down(messages[1], round=7)
    size = len(messages[0].to_bytes())
    plain = sum(leaf.nbytes for leaf in ps.flatten(mixed_tree()).leaves.values())

    assert noted.total == size
    assert min(noted.codes, noted.levels, noted.raw, noted.outliers, noted.headers) > 0
    assert noted.plain == plain
    assert ledger.rounds == [1, 7]
    assert ledger.of(1, "up").total == 2 * size
    assert ledger.of(1, "up").seconds == 0.75
    assert ledger.of(1, "down").total == 3 * size
    assert ledger.of(7, "up") == ps.Traffic()
    assert ledger.total().total == 5 * size + messages[1].nbytes
    assert ledger.total("down").messages == 4
    known = messages[0].ledger().squared_errors.values()
    assert noted.error == pytest.approx(sum(each for each in known if each))


def test_break_even_bandwidth():
    assert ps.Traffic(plain=5000, codes=1000, seconds=2.0).break_even == 16_000
    assert ps.Traffic(plain=500, codes=1000, seconds=2.0).break_even == 0
    assert ps.Traffic(plain=500).break_even is None
    assert ps.Traffic().bits_per_value == 0


def test_the_table_has_a_line_for_each_round_and_way(messages: list[ps.QuantizedTree]):
    ledger = ps.Ledger()
    for message in messages:
        ledger.up(message, seconds=0.01)
        ledger.down(message, copies=2)
    lines = [line.split() for line in ledger.table().splitlines()]

    assert [line[:2] for line in lines] == [
        ["round", "way"],
        *(["1", "up"], ["1", "down"], ["2", "up"], ["2", "down"]),
        *(["all", "up"], ["all", "down"], ["all", "both"]),
    ]
    assert lines[1][8] == str(messages[0].nbytes)
    assert lines[-1][8] == str(3 * sum(message.nbytes for message in messages))


def test_what_cannot_be_noted():
    with LocalClient() as client:
        tree = ps.compress({"w": np.ones(3)}, client=client)
    with pytest.raises(Invalid, match="round must be said"):
        ps.Ledger().up(tree)
    with pytest.raises(Invalid, match="copies"):
        ps.Ledger().down(tree, round=1, copies=-1)
