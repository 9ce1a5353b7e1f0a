"""``POST /aggregate`` of trees: the library's bytes, and a clear word about what is wrong."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from tests.support import messages
from tests.support.messages import packed, with_nested

import service_fakes
from quiver_client import LocalClient
from quiver_kernels import QuantizedTree, QuantizeOptions, quantize
from quiver_kernels.tree import Group, Leaf, QuantizedSection, RawSection, Tag
from quiver_kernels.tree_mean import aggregate_trees
from quiver_kernels.treerequest import Requantize, TreesRequest, encode_trees_request
from quiver_service import effort, footprint

VND = "application/vnd.msgpack"


def made(seed: int, size: int = 3000) -> QuantizedTree:
    """A tree of a quantized, a raw and an integer leaf."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=size).astype(np.float32)
    vector = quantize(x, bits=1 + seed % 8, method="uniform", seed=seed)
    groups = (
        Group((Leaf("w", "float32", (size,)),), (QuantizedSection(vector),)),
        Group((Leaf("b", "float32", (3,)),), (RawSection(x[:3]),)),
        Group((Leaf("n", "int64", ()),), (RawSection(np.array([seed])),)),
    )
    return QuantizedTree(groups, (0, 1, 2), None, Tag(4, 1, f"c{seed}", 1.0 + seed))


def post(client: TestClient, body: bytes) -> Any:
    return client.post("/aggregate", content=body, headers={"content-type": VND, "accept": VND})


def sent(client: TestClient, trees: list[QuantizedTree], *rest: Any) -> bytes:
    answer = post(client, b"".join(encode_trees_request(trees, *rest)))
    assert answer.status_code == 200, answer.content
    return answer.content


def test_the_answer_is_the_librarys_to_the_byte(real_client: TestClient):
    trees = [made(seed) for seed in range(5)]
    requantize = Requantize(QuantizeOptions.create(bits=3, seed=9), 100)
    assert sent(real_client, trees) == aggregate_trees(trees).to_bytes()
    for weights in (None, [1.0, 0.1, 3.0, 0.0, 7.5]):
        for quantized in (None, requantize):
            expected = aggregate_trees(trees, weights, quantize=quantized).to_bytes()
            assert sent(real_client, trees, weights, quantized) == expected
            shuffled = list(zip(trees, weights or [1.0 + i for i in range(5)], strict=True))
            random.Random(1).shuffle(shuffled)
            order = [tree for tree, _ in shuffled]
            assert sent(real_client, order, [w for _, w in shuffled], quantized) == expected
    local = LocalClient().aggregate_trees(trees, quantize=requantize.options, min_size=100)
    assert local.to_bytes() == aggregate_trees(trees, quantize=requantize).to_bytes()


def test_nested_and_bin_are_the_same(real_client: TestClient):
    tree = messages.tree()
    answers = {
        post(real_client, packed({"trees": [first, second]})).content
        for first in (tree, packed(tree))
        for second in (tree, packed(tree))
    }
    assert len(answers) == 1
    mean = QuantizedTree.from_bytes(answers.pop())
    assert mean.arrays()["weight"].tolist() == [[2.5, 9.0, 0.0], [2.5, -9.0, 3.0]]
    assert mean.tag == Tag(3, 2, None, 5.0)


def request(**changes: Any) -> dict[str, Any]:
    return {"trees": [messages.tree(), messages.tree()], **changes}


OTHER = {**messages.tree(), "structure": None}
BAD: list[tuple[dict[str, Any], int, str, str]] = [
    (request(trees=[]), 422, "invalid_option", "trees"),
    (request(trees=None), 422, "invalid_type", "trees"),
    (request(trees={}), 422, "invalid_type", "trees"),
    (request(trees=[1]), 422, "invalid_type", "trees"),
    (request(trees=[b""]), 400, "malformed_message", ""),
    (request(trees=[packed(messages.tree()) + b"\0"]), 400, "trailing_bytes", ""),
    (request(trees=[messages.tree()] * 4097), 422, "invalid_option", "trees"),
    (request(trees=[messages.tree(), OTHER]), 422, "shape_mismatch", "trees[1]"),
    (request(vectors=[]), 422, "invalid_option", "trees"),
    (request(weights=[1.0]), 422, "size_mismatch", "weights"),
    (request(weights=[0.0, 0.0]), 422, "invalid_weights", "weights"),
    (request(weights=[1.0, -1.0]), 422, "invalid_weights", "weight"),
    (request(weights=[1.0, float("nan")]), 422, "invalid_weights", "weight"),
    (request(quantize={"bits": 9}), 422, "invalid_option", "bits"),
    (request(quantize={"min_size": 0}), 422, "invalid_option", "min_size"),
    (request(quantize={"min_size": "1"}), 422, "invalid_type", "quantize.min_size"),
    (request(quantize={"minsize": 1}), 422, "unknown_key", "quantize"),
    (request(more=1), 422, "unknown_key", ""),
    ({"vectors": [messages.quantized()], "quantize": {"min_size": 1}}, 422, "unknown_key", ""),
    ({}, 422, "missing_key", ""),
]


@pytest.mark.parametrize(("fields", "status", "code", "field"), BAD)
def test_what_is_wrong_is_refused(
    real_client: TestClient, fields: dict[str, Any], status: int, code: str, field: str
):
    answer = post(real_client, packed(fields))
    problem = real_client.post(
        "/aggregate", content=packed(fields), headers={"content-type": VND}
    ).json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert problem.get("field", "").startswith(field), problem
    assert post(real_client, packed(request())).status_code == 200


def test_faults_inside_a_tree_say_which(real_client: TestClient):
    nan = np.array([0.5, np.nan], np.float32).tobytes()
    codes = bytes([0xFF, 0xFF])
    for place, value, code, text in (
        (("groups", 0, "sections", 1), nan, "non_finite", "trees[1]: leaf 'bias'"),
        (("groups", 0, "dtype"), "int4", "unsupported_dtype", "trees[1].groups[0].dtype"),
        (("groups", 0, "sections", 0, "vector", "codes"), codes, "invalid_codes", "codes"),
    ):
        bad = with_nested(messages.tree(), place, value)
        for form in (bad, packed(bad)):
            body = packed(request(trees=[messages.tree(), form]))
            problem = real_client.post(
                "/aggregate", content=body, headers={"content-type": VND}
            ).json()
            assert (problem["status"], problem["code"]) == (422, code), problem
            assert text in problem["detail"]


def test_cut_bodies_are_refused(real_client: TestClient):
    body = packed(messages.trees_request())
    assert post(real_client, body).status_code == 200
    for end in range(0, len(body), 7):
        assert post(real_client, body[:end]).status_code == 400


def test_deep_and_long_messages_are_for_trees_alone(real_client: TestClient):
    deep: Any = 1
    for _ in range(20):
        deep = [deep]
    many = [0] * 70_000
    for fields in ({"vectors": deep}, {"vectors": many}, {"tree": deep}):
        assert post(real_client, packed(fields)).status_code == 400
    assert post(real_client, packed({"trees": many})).status_code == 422


def test_memory_is_reckoned_and_the_answer_bounded():
    trees = tuple(made(seed, 1 << 16) for seed in range(3))
    plain = footprint.of_trees(TreesRequest(trees, None, None))
    answer = aggregate_trees(trees)
    assert answer.nbytes <= plain.output < 1.1 * answer.nbytes
    options = QuantizeOptions.create(bits=4, seed=1)
    again = footprint.of_trees(TreesRequest(trees, None, Requantize(options)))
    assert again.output < plain.output / 5
    small = TreesRequest((made(1, 10),), None, None)
    assert effort.of_trees(small) < effort.of_trees(TreesRequest(trees, None, None))


def test_an_answer_beyond_the_limit_is_refused(make_client: Any):
    client = make_client(service_fakes.fake_engine(max_output_bytes=1000))
    answer = post(client, b"".join(encode_trees_request([made(1)])))
    assert answer.status_code == 413
