"""``quiver plan``: what ``quiver quantize`` makes of it keeps the budget, and nothing is better."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import quiver_kernels as qk
from command_line import Command
from quiver_client import LocalClient
from quiver_client.cli.planning import plan_file
from quiver_client.cli.policies import policy_data, read_policy
from quiver_client.files import open_source
from quiver_client.ps.policy import Policy
from quiver_kernels.planning import Budget

pytestmark = pytest.mark.faces


def model(path: Path) -> Path:
    drawn = np.random.default_rng(3)
    np.savez(
        path,
        **{
            "head[0].weight": drawn.standard_t(4, (60, 50)).astype(np.float32),
            "body.weight": drawn.normal(size=(80, 100)).astype(np.float32) / 10,
            "body.bias": np.zeros(100, np.float32),
            "wide": drawn.normal(size=2000),
            "steps": np.arange(4),
        },
    )
    return path


@pytest.mark.parametrize("chunk", [2**22, 1500])
def test_the_file_is_within_its_budget(quiver: Command, tmp_path: Path, chunk: int):
    path = model(tmp_path / "m.npz")
    (tmp_path / "base.json").write_text(json.dumps({"chunk_values": chunk}))
    plan = quiver(
        "plan", path, "--bits-per-value", 6, "--policy", tmp_path / "base.json",
        "-o", tmp_path / "policy.json", "--json",
    ).data  # fmt: skip
    made = quiver("quantize", path, "--policy", tmp_path / "policy.json", "--seed", 1, "--json")

    assert made.code == 0, made.err
    size = (tmp_path / "m.qvr").stat().st_size
    assert size <= plan["nbytes"] <= 6 * plan["values"] / 8
    assert plan["nbytes"] < 1.15 * size + 2000
    with qk.qvr.open(tmp_path / "m.qvr") as file, np.load(path) as arrays:
        chosen = {one["name"]: one["bits"] for one in plan["tensors"]}
        for name, tensor in file.tensors.items():
            assert tensor.settings.get("bits") == chosen[name], name
        # The error that was told is that of the messages.
        error = 0.0
        for name in file.names:
            values = arrays[name].reshape(-1).astype(float)
            for chunk in file.chunks(name):
                if isinstance(chunk.content, qk.QuantizedVector):
                    part = values[chunk.first : chunk.first + chunk.count]
                    error += chunk.content.vnmse * float(part @ part)
    assert error == pytest.approx(plan["error"], rel=1e-6)


def test_no_other_choice_is_better(tmp_path: Path):
    """All choices of three arrays, one by one."""
    path = tmp_path / "m.npz"
    drawn = np.random.default_rng(5)
    arrays = {
        name: drawn.standard_t(4, 1500) * scale
        for name, scale in zip("abc", (1, 2, 9), strict=True)
    }
    np.savez(path, **arrays)
    with open_source(path) as source:
        found = plan_file(
            source, Policy(min_size=0), LocalClient(), Budget(max_bytes=5000), bits=range(1, 9),
            methods=None, raw=False,
        )  # fmt: skip
    overhead = found.nbytes - sum(
        qk.quantize(arrays[one.entry.name], bits=one.bits, seed=1).nbytes for one in found.tensors
    )
    points = [
        [
            (q.nbytes, q.vnmse * float(x @ x))
            for q in (qk.quantize(x, bits=b, seed=1) for b in range(1, 9))
        ]
        for x in arrays.values()
    ]
    best = min(
        sum(error for _, error in choice)
        for choice in itertools.product(*points)
        if sum(size for size, _ in choice) + overhead <= 5000
    )
    assert found.optimal
    assert found.error == pytest.approx(best)
    assert len({one.bits for one in found.tensors}) > 1


def test_names_that_are_patterns_mean_themselves(quiver: Command, tmp_path: Path):
    path = model(tmp_path / "m.npz")
    target = tmp_path / "policy.json"
    assert quiver("plan", path, "--bits-per-value", 6, "-o", target).code == 0
    policy = read_policy(target)

    assert policy.rule("head[0].weight", 3000).bits != policy.rule("head0.weight", 3000).bits
    assert policy.rule("head0.weight", 3000).bits == 4


def test_a_base_policy_goes_on_to_hold(quiver: Command, tmp_path: Path):
    path = model(tmp_path / "m.npz")
    base = {"raw": ["body.*"], "min_size": 10, "overrides": {"wide": {"method": "approx"}}}
    (tmp_path / "base.json").write_text(json.dumps(base))
    data = quiver(
        "plan", path, "--max-error", 50, "--policy", tmp_path / "base.json", "--json"
    ).data
    rows = {one["name"]: one for one in data["tensors"]}

    assert rows["body.weight"]["bits"] is None
    assert rows["body.bias"]["bits"] is None
    assert rows["wide"]["method"] == "approx"
    assert data["error"] <= 50
    assert data["policy"]["raw"] == ["body.*"]
    assert data["policy"]["overrides"]["wide"]["method"] == "approx"


def test_policies_are_read_as_they_are_written(tmp_path: Path):
    policy = Policy(bits=3, raw=("*.bias",), overrides={"a": {"bits": 2}}, min_size=7)
    (tmp_path / "p.json").write_text(json.dumps(policy_data(policy)))
    assert read_policy(tmp_path / "p.json") == policy
    assert policy_data(Policy()) == {"bits": 4, "method": "exact"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "must be a JSON object with keys of bits, method"),
        ('{"bit": 3}', "got 'bit'"),
        ('{"bits": 9}', "bits must be"),
        ('{"overrides": {"a": {"bit": 3}}}', "got 'bit'"),
        ('{"raw": 3}', "raw must be a sequence"),
    ],
)
def test_what_is_no_policy(quiver: Command, tmp_path: Path, text: str, said: str):
    path = tmp_path / "p.json"
    path.write_text(text)
    ran = quiver("plan", model(tmp_path / "m.npz"), "--max-bytes", 9999, "--policy", path)
    assert (ran.code, said in ran.err) == (1, True), ran.err


def test_budgets_that_cannot_be_kept(quiver: Command, tmp_path: Path):
    path = model(tmp_path / "m.npz")
    ran = quiver("plan", path, "--max-bytes", 100)
    assert (ran.code, "allow fewer bits" in ran.err) == (1, True)
    least = int(ran.err.split("at least ")[1].split()[0])
    assert quiver("plan", path, "--max-bytes", least).code == 0
    assert quiver("plan", path, "--max-bytes", least - 1).code == 1
    for given in ((), ("--max-bytes", 9, "--max-error", 1)):
        ran = quiver("plan", path, *given)
        assert (ran.code, "give one of --bits-per-value" in ran.err) == (2, True)
    np.savez(tmp_path / "n.npz", a=np.full(2000, np.nan))
    ran = quiver("plan", tmp_path / "n.npz", "--bits-per-value", 4)
    assert (ran.code, "tensor 'a'" in ran.err) == (1, True)


def test_a_table_for_people(quiver: Command, tmp_path: Path):
    path = model(tmp_path / "m.npz")
    ran = quiver("plan", path, "--bits-per-value", 6, "-o", tmp_path / "p.json")
    assert "no other choice is better" in ran.out
    assert f"use it: quiver quantize {path} --policy {tmp_path / 'p.json'}" in ran.out
    assert any(
        line.split()[:2] == ["body.bias", "float32"] and "raw" in line
        for line in ran.out.splitlines()
    )
