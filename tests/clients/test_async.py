"""The asynchronous client: it never blocks the loop, and cancelling it is real."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

from quiver_client import AsyncClient, RetryPolicy, errors

SMALL = np.linspace(0, 1, 1000, dtype=np.float32)


async def longest_pause(done: asyncio.Event) -> float:
    worst, last = 0.0, time.perf_counter()
    while not done.is_set():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        worst, last = max(worst, now - last), now
    return worst


def test_the_loop_runs_while_a_large_vector_is_sent(server: Any, steps: Any) -> None:
    x = np.linspace(0, 1, 8 << 20)[::2]

    def step(exchange: Any) -> bool:
        time.sleep(0.3)
        body = exchange.read_body()
        time.sleep(0.3)
        assert len(body) > x.nbytes
        exchange.reply(422, b"no")
        return True

    async def main() -> float:
        done = asyncio.Event()
        async with AsyncClient(server.url) as client:
            watch = asyncio.create_task(longest_pause(done))
            with pytest.raises(errors.Invalid):
                await client.quantize(x)
            done.set()
            return await watch

    server.play(step)
    assert asyncio.run(main()) < 0.25


def test_cancelling_breaks_the_connection(server: Any) -> None:
    broken = threading.Event()
    arrived = threading.Event()

    def step(exchange: Any) -> None:
        exchange.read_body()
        arrived.set()
        if exchange.sock.recv(1) == b"":
            broken.set()

    async def main() -> float:
        async with AsyncClient(server.url) as client:
            task = asyncio.create_task(client.quantize(SMALL))
            await asyncio.to_thread(arrived.wait, 5)
            started = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(broken.wait, 5)
        return time.monotonic() - started

    server.play(step)
    assert asyncio.run(main()) < 1
    assert broken.is_set()
    assert len(server.seen) == 1


def test_cancelling_a_kept_connection_sends_nothing_again(server: Any, steps: Any) -> None:
    arrived = threading.Event()

    def step(exchange: Any) -> None:
        exchange.read_body()
        arrived.set()
        exchange.sock.recv(1)

    async def main() -> None:
        async with AsyncClient(server.url) as client:
            await client.quantize(SMALL)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.quantize(SMALL)

    server.play(steps.ok, step)
    asyncio.run(main())
    assert len(server.seen) == 2


def test_cancelling_ends_a_pause_between_tries(server: Any, steps: Any) -> None:
    async def main() -> float:
        async with AsyncClient(server.url) as client:
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.quantize(SMALL)
        return time.monotonic() - started

    server.play(steps.status(503, Retry_After="30"))
    assert asyncio.run(main()) < 1


def test_many_calls_at_once(server: Any, steps: Any, quick: RetryPolicy) -> None:
    async def main() -> list[int]:
        async with AsyncClient(server.url, retry=quick, max_concurrency=4) as client:
            calls = [client.quantize(SMALL, seed=seed) for seed in range(20)]
            return [q.seed for q in await asyncio.gather(*calls)]

    server.play(steps.status(503), *[steps.ok] * 20)
    assert asyncio.run(main()) == list(range(20))
    assert server.connections <= 4


def test_a_closed_client_says_so(server: Any) -> None:
    async def main() -> None:
        client = AsyncClient(server.url)
        await client.close()
        with pytest.raises(errors.ClientClosed):
            await client.ready()

    asyncio.run(main())


def test_options_are_checked_before_sending(server: Any) -> None:
    async def main() -> None:
        async with AsyncClient(server.url) as client:
            with pytest.raises(errors.Invalid):
                await client.with_options(max_retries=1).quantize(SMALL, bits=0)

    asyncio.run(main())
    assert server.seen == []
