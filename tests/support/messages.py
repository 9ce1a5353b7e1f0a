"""Valid messages of every kind, made without the package's encoders, and how to break them."""

from __future__ import annotations

import copy
from typing import Any

import msgpack
import numpy as np

Fields = dict[str, Any]


def tensor(array: np.ndarray, name: str | None = None) -> Fields:
    """The tensor map of a little-endian array."""
    return {
        "dtype": name or array.dtype.name,
        "shape": list(array.shape),
        "data": array.tobytes(),
    }


def quantized(**changes: Any) -> Fields:
    """Six values of two bits in blocks of four: a quantized vector message as a map."""
    fields: Fields = {
        "v": 1,
        "method": "exact",
        "bits": 2,
        "num_levels": 3,
        "shape": [2, 3],
        "dtype": "float32",
        "block_size": 4,
        "seed": 2**64 - 1,
        "vnmse": 0.125,
        "device": "cpu",
        "timings_ms": {"levels": 0.25, "encode": 1.0},
        "levels": tensor(np.array([[-1, 0, 2.5], [3, 3, 3]], dtype=np.float32)),
        "codes": bytes([0b10_01_00_10, 0b00_01]),
    }
    return {**fields, **changes}


def quantize_request(**changes: Any) -> Fields:
    """A request of /quantize with every key but `bits`, which excludes `num_levels`."""
    fields: Fields = {
        "vector": tensor(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "weights": tensor(np.ones((2, 3))),
        "num_levels": 5,
        "method": "approx",
        "bins": 64,
        "grid": "uniform",
        "block_size": 4,
        "seed": 7,
        "device": "cpu",
    }
    return {**fields, **changes}


def batch_request(**changes: Any) -> Fields:
    """A request of /quantize for vectors by name: in every form, one with options of its own."""
    own = quantize_request()
    del own["num_levels"]
    fields: Fields = {
        "vectors": {
            "tensor": tensor(np.arange(6, dtype=np.float32)),
            "bin": bytes(12),
            "list": [1.0, 2, 3.5],
            "own": {**own, "bits": 3},
        },
        "num_levels": 5,
        "seed": 7,
    }
    return {**fields, **changes}


def batch_answer(**changes: Any) -> Fields:
    """The answer of /quantize for many vectors."""
    fields: Fields = {"v": 1, "vectors": {"a": quantized(), "b": quantized(seed=8)}}
    return {**fields, **changes}


def levels_request(**changes: Any) -> Fields:
    """A request of /levels: the same without a seed."""
    fields = quantize_request()
    del fields["seed"]
    return {**fields, **changes}


def aggregate_request(**changes: Any) -> Fields:
    """A request of /aggregate: one vector nested and one as bin."""
    fields: Fields = {
        "vectors": [quantized(), msgpack.packb(quantized(seed=8))],
        "weights": [1.0, 2.0],
        "quantize": {"bits": 3, "seed": 5},
    }
    return {**fields, **changes}


def levels_answer(**changes: Any) -> Fields:
    """The answer of /levels."""
    fields: Fields = {
        "levels": tensor(np.array([0.0, 1.0, 5.0])),
        "num_levels": 3,
        "method": "exact",
        "expected_mse": 0.5,
        "vnmse": 0.25,
        "device": "cpu",
    }
    return {**fields, **changes}


def packed(fields: Any) -> bytes:
    return msgpack.packb(fields)


def without(fields: Fields, *keys: str) -> Fields:
    return {key: value for key, value in fields.items() if key not in keys}


def with_nested(fields: Fields, path: tuple[Any, ...], value: Any) -> Fields:
    """`fields` with one inner value replaced."""
    changed = copy.deepcopy(fields)
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return changed


def tree(**changes: Any) -> Fields:
    """A tree message with everything in it: quantized, with outliers, raw, nested and tagged."""
    vector = quantized(
        shape=[6], levels=tensor(np.array([[-1, 0, 2.5], [3, 3, 3]], dtype=np.float32))
    )
    fields: Fields = {
        "v": 1,
        "kind": "tree",
        "groups": [
            {
                "dtype": "float32",
                "names": ["weight", "bias"],
                "shapes": [[2, 3], [2]],
                "sections": [
                    {
                        "vector": vector,
                        "outliers": {
                            "indices": bytes([1, 2]),
                            "values": np.array([9.0, -9.0], np.float32).tobytes(),
                        },
                    },
                    np.array([0.5, 1.5], np.float32).tobytes(),
                ],
            },
            {"dtype": "bool", "names": ["mask"], "shapes": [[3]], "sections": [b"\1\0\1"]},
            {
                "dtype": "int64",
                "names": ["steps", "none"],
                "shapes": [[], [0, 2]],
                "sections": [np.array([-7]).tobytes()],
            },
        ],
        "order": np.array([1, 0, 4, 2, 3], "<u4").tobytes(),
        "structure": {"dict": {"a": {"list": [0, 1]}, "b": {"tuple": [2, {"dict": {"c": 3}}, 4]}}},
        "tag": {"round": 3, "model_version": 2, "client": "ä", "weight": 2.5},
    }
    return {**fields, **changes}


def trees_request(**changes: Any) -> Fields:
    """A request of /aggregate: one tree nested and one as bin."""
    fields: Fields = {
        "trees": [tree(), msgpack.packb(tree(tag={}))],
        "weights": [1.0, 2.0],
        "quantize": {"bits": 3, "seed": 5, "min_size": 2},
    }
    return {**fields, **changes}
