"""After warm-up no request waits for the compiler, whatever it is made of."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import numpy as np
from quiver_kernels import dispatch, wire
from quiver_kernels.exact_sum import ExactSum
from quiver_kernels.tree import QuantizedSection
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.options import METHODS, QuantizeOptions
from quiver_kernels.schemes import registry

def compiled():
    return {
        f"{module}.{name}": len(value.signatures)
        for module, content in list(sys.modules.items())
        if module.startswith(("quiver_kernels.cpu.", "quiver_kernels.schemes."))
        for name, value in vars(content).items()
        if hasattr(value, "signatures")
    }

backend = dispatch.load("cpu")
if "skip" not in sys.argv:
    backend.warm_up()
    registry.warm_up()
before = compiled()
if "float32" in sys.argv:
    WIRE_DTYPES = {"float32": np.dtype(np.float32)}
    METHODS = ("uniform",)
    registry.names = lambda: METHODS
sys.modules["quiver_kernels.options"].STREAM_FROM = 4000
sys.modules["quiver_kernels.cpu.simba"].POINTS = 4000
rng = np.random.default_rng(0)
for dtype in WIRE_DTYPES.values():
    for method in METHODS:
        for size in (1, 3, 100, 5000):
            for block_size in (None, 7, 600):
                for weighted in (False, True):
                    if method == "simba" and (weighted or block_size):
                        continue
                    x = rng.normal(size=2 * size).astype(dtype)[::2]
                    options = QuantizeOptions.create(
                        num_levels=11, method=method, seed=5, block_size=block_size
                    )
                    weights = rng.random(size) if weighted else None
                    message = b"\\0" * 3 + b"".join(
                        wire.encode_quantize_request(x, options, weights)
                    )
                    request = wire.decode_quantize_request(memoryview(message)[3:])
                    q = backend.quantize(request.vector, request.options, request.weights)
                    backend.levels(request.vector, request.options, request.weights)
                    backend.dequantize(q)
                    backend.aggregate([q, q], [1, 2])
                    section = QuantizedSection(q)
                    total = ExactSum(q.size)
                    total.add(section, 0.3)
                    total.add(x, 3.0)
                    total.add(x, 0.1)
                    total.mean()
from quiver_kernels import Sketch
from quiver_kernels.sketch_levels import levels_of_sketches
for dtype in (np.float32, np.float64):
    for size, cells in ((3, 64), (100, 2), (50_000, 65_536)):
        message = Sketch.from_vector(rng.lognormal(size=size).astype(dtype), cells).to_bytes()
        wanted = ((2, None), (5, None), (256, None), (5, "auto"), (99, 50_000))
        for num_levels, granularity in wanted:
            request = wire.sketch_levels_request([message], num_levels, granularity)
            levels_of_sketches(request.sketches, num_levels, granularity)
            backend.quantize(np.ones(3, dtype), QuantizeOptions.create(levels=[0, 2], seed=1), None)
from quiver_kernels.schemes import registry
for method in set(registry.names()) - set(METHODS):
    scheme = registry.find(method)
    choices = [{}]
    for one in scheme.parameters:
        texts = one.choices or ((False, True) if isinstance(one.default, bool) else ())
        choices += [{one.name: value} for value in texts]
    counts = {scheme.level_counts[0], scheme.default_levels, scheme.level_counts[-1]}
    for num_levels, chosen in ((count, given) for count in counts for given in choices):
        for dtype in WIRE_DTYPES.values():
            for size, block_size in ((1, None), (100, 7), (5000, 64), (5000, None)):
                options = QuantizeOptions.create(
                    num_levels=num_levels,
                    method=method,
                    seed=5,
                    block_size=block_size,
                    parameters=chosen,
                )
                try:
                    q = backend.quantize(rng.normal(size=size).astype(dtype), options, None)
                except ValueError as error:
                    # A scheme may refuse blocks of some sizes.
                    if getattr(error, "field", None) != "block_size":
                        raise
                    continue
                backend.dequantize(q)
wrapped = {"outliers": 0.9, "entropy": True, "feedback_scale": True}
for dtype in WIRE_DTYPES.values():
    for size, block_size in ((100, 7), (5000, None)):
        options = QuantizeOptions.create(
            num_levels=5, method="uniform", seed=5, block_size=block_size, **wrapped
        )
        x = rng.standard_t(2, size).astype(dtype)
        backend.dequantize(backend.quantize(x, options, None))
late = {name: (before.get(name, 0), count) for name, count in compiled().items()}
late = {name: pair for name, pair in late.items() if pair[1] > pair[0]}
print(late)
"""


def run(*arguments: str) -> str:
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_nothing_is_compiled_after_warm_up() -> None:
    assert run() == "{}"


def test_without_warm_up_it_is_noticed() -> None:
    # The first of many calls is enough.
    assert "encode_blocks" in run("skip", "float32")
