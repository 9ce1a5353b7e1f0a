"""Every registered scheme conforms; every planted fault is found, by the check that is for it."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

import planted_schemes as planted
import quiver_kernels as qk
from quiver_kernels.schemes import registry
from quiver_kernels.schemes.conformance import CHECKS, Finding, check, golden, subjects
from quiver_kernels.schemes.conformance import __main__ as command

GOLDEN = Path(__file__).parent / "golden"
# Level sets take milliseconds to find, however short the vector.
SEEDS = {"simba": 16}
# The default choice goes through everything, others through their promises; `make conform` goes
# through everything with every choice.
PROMISES = ("deterministic", "blocks", "additive", "contraction", "unbiased", "stated error")
WITHOUT_NUMBA = """
import pathlib, sys
sys.modules["numba"] = None
from quiver_kernels.schemes import registry
from quiver_kernels.schemes.conformance import golden
for name in registry.names():
    for finding in golden.decodes(registry.find(name), pathlib.Path(sys.argv[1])):
        print(name, finding)
"""


@pytest.mark.parametrize("name", registry.names())
def test_every_scheme_conforms(name: str):
    seeds = SEEDS.get(name, 64)

    assert check(name, golden=GOLDEN, seeds=seeds, others=False) == []
    assert check(name, checks=PROMISES, seeds=seeds) == []


def test_a_scheme_of_another_package_conforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    planted.register(monkeypatch, planted.Steps, "steps")
    scheme = planted.Steps()
    assert "steps" in registry.names()
    golden.write(scheme, tmp_path)

    assert check(scheme, golden=tmp_path, seeds=64) == []
    # Every check had something to check: with one choice or another, all promises are made.
    promises = [subject.promises for subject in subjects(scheme)]
    for promise in ("unbiased", "contraction", "additive", "deterministic", "streaming"):
        assert any(getattr(each, promise) for each in promises)


def test_an_installed_package_brings_a_scheme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """As it is installed: a folder of metadata on the path, nothing patched."""
    package = tmp_path / "brings_steps-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: brings-steps\nVersion: 1.0\n")
    names = {"steps": "Steps", "exact": "Steps", "other": "Steps", "Bad": "Steps"}
    lines = "\n".join(f"{name} = planted_schemes:{made}" for name, made in names.items())
    (package / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{lines}\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry._entry_points.cache_clear()
    try:
        q = qk.quantize([1.0, 2.0, -3.0], method="steps", seed=1)
        assert qk.dequantize(qk.QuantizedVector.from_bytes(q.to_bytes())).shape == (3,)
        assert check("steps", checks=["sizes"], others=False) == []
        # Built-in names are not taken; what is no scheme of its name is refused.
        assert not isinstance(registry.find("exact"), planted.Steps)
        for name in ("other", "Bad"):
            with pytest.raises(qk.InvalidInput, match=name):
                qk.quantize([1.0], method=name)
    finally:
        registry._entry_points.cache_clear()


@pytest.mark.parametrize(
    ("fault", "wanted"), planted.FAULTS.items(), ids=[fault.__name__ for fault in planted.FAULTS]
)
def test_planted_faults_are_found(
    monkeypatch: pytest.MonkeyPatch, fault: type[planted.Steps], wanted: str
):
    planted.register(monkeypatch, fault, "steps")
    # One block shows no leak between blocks.
    checks = [name for name in CHECKS if name == wanted]
    found = check("steps", checks=checks, others=wanted == "blocks")

    assert wanted in {finding.check for finding in found}


def test_there_is_a_fault_for_every_check():
    assert set(planted.FAULTS.values()) >= set(CHECKS)


def test_the_command_tells_findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    planted.register(monkeypatch, planted.Undeclared, "steps")
    quick = functools.partial(check, checks=["sizes"], others=False)
    monkeypatch.setattr(command, "check", quick)
    monkeypatch.setattr(sys, "argv", ["conformance", "steps", "--golden", str(tmp_path), "--write"])

    assert command.main() == 1
    printed = capsys.readouterr().out.splitlines()
    assert (
        printed[0]
        == f"steps: {len(json.loads((tmp_path / 'steps.json').read_text()))} messages written"
    )
    assert "steps (): declared: level_counts must be ascending" in printed[1] + printed[2]
    assert printed[-1] == "steps: 2 findings"


def test_what_is_no_scheme_of_that_name_is_refused(monkeypatch: pytest.MonkeyPatch):
    planted.register(monkeypatch, planted.Steps, "other")

    assert [finding.check for finding in check("other")] == ["registered"]
    assert [finding.check for finding in check("nothing")] == ["registered"]
    assert [finding.check for finding in check(planted.Steps())] == ["registered"]


def test_findings_name_scheme_choice_and_check():
    finding = Finding("steps", "sizes", "15 levels", "too long")

    assert str(finding) == "steps (15 levels): sizes: too long"


def test_golden_messages_tell_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    planted.register(monkeypatch, planted.Steps, "steps")
    scheme = planted.Steps()
    assert golden.write(scheme, tmp_path) > 5
    assert golden.write(scheme, tmp_path) == 0
    assert list(golden.check(scheme, tmp_path)) == []

    planted.register(monkeypatch, planted.Shrunk, "steps")
    changed = list(golden.check(planted.Shrunk(), tmp_path))
    assert all("other values" in detail for detail in changed)
    assert len(changed) > 5

    planted.register(monkeypatch, planted.Steps, "steps")
    path = golden.file_of(scheme, tmp_path)
    cases = json.loads(path.read_text())
    path.write_text(json.dumps(cases[1:]))
    assert [cases[0]["name"] in detail for detail in golden.check(scheme, tmp_path)] == [True]
    # What is there is left alone.
    assert golden.write(scheme, tmp_path) == 1
    assert json.loads(path.read_text()) == [*cases[1:], cases[0]]


def test_golden_messages_are_decoded_without_compiled_kernels():
    command = [sys.executable, "-c", WITHOUT_NUMBA, str(GOLDEN)]
    done = subprocess.run(command, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_message_of_a_scheme_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as registered:
        planted.register(registered, planted.Steps, "steps")
        q = qk.quantize([1.0, 2.0, -3.0], method="steps", seed=1)
        data = q.to_bytes()
        assert qk.QuantizedVector.from_bytes(data).codes.tolist() == q.codes.tolist()

    with pytest.raises(qk.InvalidInput, match="steps") as refused:
        qk.QuantizedVector.from_bytes(data)
    assert refused.value.code == "unsupported_method"
