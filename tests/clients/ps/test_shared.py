"""Shared levels: workers' sketches become one table, codes add up, and the page's example runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quiver_kernels as qk
from quiver_client import AsyncClient, Client, LevelsResult, LocalClient
from quiver_client.errors import BadRequest, Invalid
from quiver_client.ps.shared import SharedLevels, SharedTable

PAGE = (Path(__file__).parents[3] / "docs" / "shared-levels.md").read_text()
RNG = np.random.default_rng(3)
VECTORS = [RNG.laplace(size=(70, 30)).astype(np.float32) for _ in range(5)]


def test_the_page_is_true():
    blocks = re.findall(r"<!-- test: \w+ -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}

    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "shared-levels.md", "exec"), names)


@pytest.mark.parametrize("granularity", ["auto", 100, None])
def test_a_round_through_a_service_and_in_this_process(live_server: str, granularity: Any):
    shared = SharedLevels(8, granularity, cells=1024)
    sketches = [shared.sketch(x) for x in VECTORS]
    with Client(live_server) as remote, LocalClient() as local:
        tables = [shared.table(client, sketches) for client in (remote, local)]
        tables.append(shared.table(remote, [qk.Sketch.from_bytes(s) for s in sketches[::-1]]))
        given = remote.quantize(VECTORS[0], seed=5, levels=tables[0].levels)
        many = remote.quantize_many(VECTORS, seed=5, levels=tables[0].levels)
        assert len({table.to_bytes() for table in tables}) == 1
        assert given.codes.tobytes() == tables[0].encode(VECTORS[0], seed=5).codes.tobytes()
        for q, x, here in zip(
            many, VECTORS, local.quantize_many(VECTORS, seed=5, levels=given.levels), strict=True
        ):
            assert q.method == "given"
            assert q.codes.tobytes() == here.codes.tobytes()
            assert q.codes.tobytes() == tables[0].encode(x, seed=q.seed).codes.tobytes()

    table = SharedTable.from_bytes(tables[0].to_bytes())
    encoded = [table.encode(x, seed=i) for i, x in enumerate(VECTORS)]
    total = table.sum((70, 30), dtype="int64")
    total.add_all(encoded)

    assert np.array_equal(total.decode(), sum(qk.dequantize(q).astype(np.float64) for q in encoded))
    # The bound of the service holds for the mean of the workers' errors.
    errors = [qk.expected_mse(x, table.levels) for x in VECTORS]
    assert np.mean(errors) <= table.result.expected_mse * (1 + 1e-12)


async def test_the_asynchronous_client(live_server: str):
    sketches = [SharedLevels().sketch(x) for x in VECTORS]
    async with AsyncClient(live_server) as client:
        found = await client.levels_from_sketches(sketches, 4, "auto")
        q = await client.quantize(VECTORS[0], levels=found.levels, seed=1)
    with LocalClient() as local:
        assert np.array_equal(found.levels, local.levels_from_sketches(sketches, 4, "auto").levels)
    assert (q.method, q.num_levels) == ("given", 4)


def test_only_sketches_travel():
    class Watched:
        """A client that can do nothing else."""

        seen: tuple[bytes, ...] = ()

        def levels_from_sketches(self, sketches: Any, *more: Any) -> LevelsResult:
            self.seen += tuple(sketches)
            with LocalClient() as client:
                return client.levels_from_sketches(sketches, *more)

    watched, shared = Watched(), SharedLevels(16)
    big = RNG.normal(size=500_000).astype(np.float32)
    vectors = [big, 2 * big]
    table = shared.table(watched, [shared.sketch(x) for x in vectors])
    total = table.sum(big.shape, 2)
    total.add_all([table.encode(x) for x in vectors])

    assert watched.seen == tuple(qk.Sketch.from_vector(x).to_bytes() for x in vectors)
    assert max(map(len, watched.seen)) < big.nbytes / 20
    assert total.count == 2


REFUSED: list[tuple[Any, str]] = [
    (lambda: SharedLevels(1), "num_levels"),
    (lambda: SharedLevels(16, 1), "granularity"),
    (lambda: SharedLevels(cells=1).sketch([1.0]), "cells"),
    (lambda: SharedLevels().sketch([np.nan]), "vector"),
    (lambda: SharedLevels().table(LocalClient(), []), "sketches"),
    (lambda: SharedLevels().table(LocalClient(), [SharedLevels().sketch([1.0]), b""]), ""),
    (lambda: SharedTable.from_bytes(b"\x80"), ""),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_wrong_is_named(number: int):
    call, field = REFUSED[number]

    with pytest.raises((Invalid, BadRequest)) as refusal:
        call()

    if field:
        assert refusal.value.field == field


def test_a_remote_refusal_names_the_sketch(live_server: str):
    good = SharedLevels().sketch([1.0, 2.0])
    for connect in (lambda: Client(live_server), LocalClient):
        with connect() as client, pytest.raises(Invalid) as refusal:
            client.levels_from_sketches([good, good.replace(b"sketch", b"sketck")])
        assert refusal.value.field == "sketches[1].kind"
