"""The same bits from every way to ask

A set of vectors and options with seeds, short and long, goes to servers with one, two and four
kernel threads, directly and through a balancer before all three, several times at once; and to the
library in this process. Answers are compared by a hash of levels and codes. Controls: other seeds,
and a server whose threads draw from random streams of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import quiver_kernels as qk
from quiver_client import Client
from quiver_kernels.quantized import QuantizedVector
from reliability import haproxy, messages
from reliability.report import Check, Report
from reliability.servers import REAL, planted, serving

PROMISE = "R12"
THREADS = (1, 2, 4)
# More values than this are encoded by all threads that are idle.
SHARED = 1 << 18
LIBRARY = "library"
BALANCED = "balancer"
FAULTY = "random streams"


@dataclass(frozen=True)
class Question:
    """One vector to quantize, and how."""

    size: int
    dtype: str
    seed: int
    options: Mapping[str, Any]

    def answer(self, quantize: Callable[..., QuantizedVector]) -> str:
        """A hash of what a client, or the library, makes of it."""
        x = messages.vector(self.size, dtype=self.dtype)
        return messages.bits_of(quantize(x, seed=self.seed, **self.options))


def questions(largest: int) -> list[Question]:
    """Every method, several types and tables, and lengths up to `largest`."""
    sizes = [n for n in (1000, 40_000, SHARED + 1, 1 << 20, 1 << 22) if n <= largest]
    options: list[tuple[str, dict[str, Any]]] = [
        ("float32", {"bits": 4}),
        ("float32", {"bits": 2, "method": "approx"}),
        ("float16", {"num_levels": 5, "method": "uniform"}),
        ("float64", {"bits": 8, "method": "approx", "block_size": 4096}),
        ("float32", {"bits": 3, "method": "accelerated", "block_size": 1 << 15}),
    ]
    return [Question(n, dtype, 7 + n, given) for n in sizes for dtype, given in options]


@dataclass(frozen=True)
class Plan:
    """What to ask, and whom.

    Attributes
    ----------
    threads
        Kernel threads of the servers that are started.
    running
        Further servers, by a name: their URLs.
    faulty
        Whether to ask a server with random streams, too.
    """

    asked: Sequence[Question]
    repeats: int
    threads: Sequence[int] = THREADS
    running: Mapping[str, str] = field(default_factory=dict)
    faulty: bool = True


Answers = dict[str, list[list[str]]]


def run(plan: Plan, folder: Path) -> Answers:
    """The answers, by the way that was asked: for each question those of all repeats."""
    found = {LIBRARY: [[question.answer(qk.quantize)] for question in plan.asked]}
    ways: dict[str, tuple[Sequence[str], int]] = {f"{n} threads": (REAL, n) for n in plan.threads}
    if plan.faulty:
        ways[FAULTY] = (planted("stream", 0), 2)
    with contextlib.ExitStack() as stack:

        def started(way: str) -> str:
            command, threads = ways[way]
            return stack.enter_context(serving(folder, command, QUIVER_THREADS=threads)).url

        with ThreadPoolExecutor() as starting:
            urls = dict(zip(ways, starting.map(started, ways), strict=True))
        urls |= plan.running
        ports = [int(url.rpartition(":")[2]) for way, url in urls.items() if way != FAULTY]
        urls[BALANCED] = stack.enter_context(haproxy.balancing(folder, ports))
        for way, url in urls.items():
            found[way] = _answers(url, plan.asked, plan.repeats)
    return found


def _answers(url: str, asked: Sequence[Question], repeats: int) -> list[list[str]]:
    with Client(url) as client, ThreadPoolExecutor(4) as threads:
        every = [question for question in asked for _ in range(repeats)]
        flat = list(threads.map(lambda question: question.answer(client.quantize), every))
    return [flat[i : i + repeats] for i in range(0, len(flat), repeats)]


def check(promise: str, found: Mapping[str, Sequence[Sequence[str]]]) -> Check:
    """Whether all that is in `found` is the same, question by question."""
    asked = zip(*found.values(), strict=True)
    several = sum(len({answer for way in ways for answer in way}) > 1 for ways in asked)
    count = len(next(iter(found.values())))
    answers = sum(len(way) for ways in found.values() for way in ways)
    return Check(
        promise,
        "one answer to each question",
        f"{answers} answers to {count} questions, {several} questions with several",
        several == 0,
    )


def judge(plan: Plan, found: Answers) -> Report:
    """The check over all ways, and the controls."""
    right = {way: answers for way, answers in found.items() if way != FAULTY}
    reseeded = [replace(question, seed=question.seed + 1) for question in plan.asked]
    other = [[question.answer(qk.quantize)] for question in reseeded]
    controls = [check("other seeds", {LIBRARY: found[LIBRARY], "other seeds": other})]
    if FAULTY in found:
        controls.append(check(FAULTY, {way: found[way] for way in (LIBRARY, FAULTY)}))
    return Report(
        [check(f"same levels and codes from {', '.join(right)}", right)],
        controls,
        results={"questions": len(plan.asked), "ways": list(found)},
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--largest", type=int, default=1 << 22, help="values of a vector")
    parser.add_argument("--repeats", type=int, default=8, help="of each question, each way")


def measure(options: argparse.Namespace) -> Report:
    plan = Plan(questions(options.largest), options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        return judge(plan, run(plan, Path(folder)))
