"""Small bodies and answers that are right."""

from __future__ import annotations

TENSOR = {"dtype": "float32", "shape": [4], "data": "AAAAAAAAgD8AAABAAABAQA=="}
# One block: mean 0, variance 0.25, norm 2.
STATISTICS = {
    name: {"dtype": "float32", "shape": [1], "data": data}
    for name, data in (("means", "AAAAAA=="), ("variances", "AACAPg=="), ("norms", "AAAAQA=="))
}
SKETCH = (
    "jaF2AaRraW5kpnNrZXRjaKVkdHlwZadmbG9hdDMypWNlbGxzBKhleHBvbmVudACkcm93cwSlZmlyc3QApXN0ZXBzxAaA"
    "P4AAQACnbmVhcmVzdMQEAAAAAKVzcGFuc8QEAAAAAKZjb3VudHPEBAEBAQGld2hvbGXEBAAAAACkcGFydMQEAAAAAA=="
)
QUANTIZED = {
    "v": 1,
    "method": "exact",
    "bits": 2,
    "num_levels": 4,
    "shape": [4],
    "dtype": "float32",
    "block_size": None,
    "seed": 7,
    "vnmse": 0.0,
    "device": "cpu",
    "timings_ms": {"queue": 0.02},
    "levels": TENSOR,
    "codes": "5A==",
}


TREE = {
    "v": 1,
    "kind": "tree",
    "groups": [
        {
            "dtype": "float32",
            "names": ["weight"],
            "shapes": [[2, 2]],
            "sections": [{"vector": QUANTIZED}],
        },
        {"dtype": "int64", "names": ["steps"], "shapes": [[]], "sections": ["BwAAAAAAAAA="]},
    ],
    "tag": {"round": 3, "client": "a", "weight": 2.0},
}
MANY = {
    "vectors": {"weight": TENSOR, "bias": {"vector": TENSOR, "bits": 8}},
    "bits": 2,
    "seed": 7,
}
