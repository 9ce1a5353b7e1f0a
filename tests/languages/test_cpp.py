"""The C++ reader, with sanitizers: golden messages, damaged ones, and planted faults."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from tests.js import corpus
from tests.js.golden import golden

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples" / "cpp"
HEADER = EXAMPLES / "quiver_decode.hpp"
UNSUPPORTED = {"eden", "drive", "tcq", "ectcq"}
CHECKED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-D_GLIBCXX_ASSERTIONS"]
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]

# Of what is planted: right words, wrong words.
FAULTS = {
    "no end of a value is looked for": (
        'require(count <= bytes_.size() - at_, "message is cut short");\n        at_ += count;',
        "at_ += count;",
    ),
    "sets are drawn from another stream": ("philox(m.seed, i / 4, 3)", "philox(m.seed, i / 4, 2)"),
}


@pytest.fixture(scope="module", autouse=True)
def compiler() -> str:
    """A C++ compiler; a complete run has one."""
    found = shutil.which("g++")
    if found is None:
        reason = "g++ is not installed: the C++ reader cannot be compiled"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def compiled(compiler: str, source: Path, program: Path, *flags: str) -> Path:
    command = [compiler, "-std=c++17", *flags, *WARNINGS, f"-I{EXAMPLES}", "-o", program, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def agreement(program: Path, folder: Path, cases: Iterable[bytes]) -> tuple[int, str]:
    """Exit status, and what it says; its last line has the counts."""
    (folder / "corpus.bin").write_bytes(b"".join(cases))
    command = [program, folder / "corpus.bin"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def checked(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that reads cases, with sanitizers."""
    folder = tmp_path_factory.mktemp("checked")
    return compiled(compiler, HERE / "agree.cpp", folder / "agree", "-O1", *CHECKED)


def test_golden_messages_have_the_values_that_they_had(checked: Path, tmp_path: Path):
    cases = [corpus.case(message, np.array(decoded)) for _, message, decoded in golden()]
    unknown = sum(name.partition(":")[0] in UNSUPPORTED for name, _, _ in golden())

    status, said = agreement(checked, tmp_path, cases)

    assert status == 0, said
    known = len(cases) - unknown
    assert said == f"{len(cases)} cases, {known} accepted, {unknown} unsupported, 0 wrong\n"
    assert unknown > 40


def test_damaged_messages_are_refused_where_python_refuses_them(checked: Path, tmp_path: Path):
    judged = corpus.judged([*corpus.chosen(), *corpus.damaged(8000, seed=2)])
    cases = [*judged, *corpus.unjudged(corpus.knocked(12_000, seed=2))]

    status, said = agreement(checked, tmp_path, cases)

    assert status == 0, said
    counts = re.fullmatch(r"(\d+) cases, (\d+) accepted, (\d+) unsupported, 0 wrong\n", said)
    assert counts, said
    assert int(counts[1]) > 20_000
    assert int(counts[2]) > 500


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(compiler: str, tmp_path: Path, fault: str):
    right, wrong = FAULTS[fault]
    text = HEADER.read_text()
    assert text.count(right) == 1, "the header has changed: plant the fault elsewhere"
    (tmp_path / HEADER.name).write_text(text.replace(right, wrong))
    flags = ["-O0", f"-I{tmp_path}", *CHECKED, "-Wno-error"]
    program = compiled(compiler, HERE / "agree.cpp", tmp_path / "agree", *flags)
    cases = [corpus.case(message, np.array(decoded)) for _, message, decoded in golden()]
    damaged = corpus.judged(corpus.chosen())

    status, said = agreement(program, tmp_path, [*cases, *damaged])

    assert status != 0 or not said.endswith(" 0 wrong\n"), said


def test_the_program_tells_what_is_wrong(compiler: str, tmp_path: Path):
    program = compiled(compiler, EXAMPLES / "decode.cpp", tmp_path / "decode", "-O0")
    messages = {name: (message, decoded) for name, message, decoded in golden()}
    message, decoded = messages["vector-05-float32-exact-100-block120"]

    def run(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([program, *arguments], input=data, capture_output=True)

    (tmp_path / "message").write_bytes(message)
    fine = run(str(tmp_path / "message"))
    assert fine.returncode == 0
    assert fine.stdout == np.array(decoded, "<f4").tobytes()
    assert fine.stderr == b"exact, 250 values of float32, seed 7\n"
    assert run("-", data=message).stdout == fine.stdout
    wide, numbers = messages["vector-06-float64-exact-5-whole"]
    assert run("-", data=wide).stdout == np.array(numbers, "<f8").tobytes()
    assert run("-", data=message[:-1]).returncode == 1
    assert run("-", data=b"").returncode == 1
    assert run().returncode == 2
    assert run(str(tmp_path / "none")).returncode == 2
    eden = next(message for name, (message, _) in messages.items() if name.startswith("eden"))
    unknown = run("-", data=eden)
    assert unknown.returncode == 3
    assert b"POST /dequantize" in unknown.stderr
