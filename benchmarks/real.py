"""Vectors that somebody would compress: weights, gradients, activations, texts, pictures.

All from what the development environment ships: a network trained on scikit-learn's digits
(examples/demo_data.py), embeddings of the standard library's docstrings (latent semantic
analysis), principal components, photographs and their cosine transform, a terrain model.
vNMSE as expected from data and levels; time is that of exact levels from the unsorted float32
vector, on one thread.

Run ``python benchmarks/real.py``; it prints Markdown.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from baselines import alq, approx, candidates, merging
from baselines import curve as curves
from common import sources
from common.tables import figure, table
from common.timing import take_turns
from numpy.typing import NDArray

import quiver_kernels as qk

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from demo_data import collect

BITS = (2, 4, 8)
CELLS = 1024
OURS = "ours, exact"

METHODS: dict[str, Callable[[sources.Vector, Any, int], NDArray[Any]]] = {
    OURS: lambda x, _, s: qk.optimal_levels(x, s),
    "ours, approx": lambda x, _, s: qk.optimal_levels(x, s, "approx", bins=CELLS),
    "ours, uniform": lambda x, _, s: qk.optimal_levels(x, s, "uniform"),
    "Apx. QUIVER": lambda _, v, s: approx.levels(v, s, CELLS),
    "ZipML-CP quantile": lambda _, v, s: candidates.quantiles(v, s, CELLS),
    "ZipML 2-Apx": lambda _, v, s: merging.levels(v, s),
    "ALQ": lambda _, v, s: alq.levels(v, s),
}


@dataclass(frozen=True)
class Result:
    """One vector at one number of bits: vNMSE by method, and the time of exact levels."""

    vector: str
    size: int
    bits: int
    milliseconds: float
    vnmse: dict[str, float]


def vectors(*, quick: bool = False) -> dict[str, sources.Vector]:
    """Every vector, by what it is."""
    found: dict[str, Any] = {f"network: {k}": v for k, v in collect().vectors.items()}
    found |= texts(modules=30 if quick else None) | features() | pictures()
    return {name: np.ascontiguousarray(v, dtype=np.float32).ravel() for name, v in found.items()}


def texts(modules: int | None) -> dict[str, NDArray[Any]]:
    """Embeddings of the standard library's docstrings in 64 dimensions."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(min_df=3, max_features=4000).fit_transform(docstrings(modules))
    model = TruncatedSVD(64, random_state=0).fit(words)
    return {"docstrings: embeddings": model.transform(words), "words: axes": model.components_}


def docstrings(modules: int | None) -> list[str]:
    """Those of the functions and classes of the standard library's top modules."""
    found = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:modules]:
        tree = ast.parse(file.read_text(encoding="utf-8", errors="ignore"))
        found += [
            text
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and (text := ast.get_docstring(node))
        ]
    return found


def features() -> dict[str, NDArray[Any]]:
    """Tables that scikit-learn ships, scaled, and their principal components."""
    from sklearn.datasets import load_breast_cancer, load_digits
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    digits = load_digits().data
    return {
        "digits: principal components": PCA(random_state=0).fit_transform(digits),
        "breast cancer: scaled features": StandardScaler().fit_transform(load_breast_cancer().data),
    }


def pictures() -> dict[str, NDArray[Any]]:
    """A photograph, its cosine transform in blocks of 8 x 8, and heights of a terrain."""
    from matplotlib import cbook
    from scipy.fft import dctn
    from sklearn.datasets import load_sample_image

    gray = load_sample_image("china.jpg").mean(axis=2) / 255
    rows, columns = (8 * (n // 8) for n in gray.shape)
    blocks = gray[:rows, :columns].reshape(rows // 8, 8, columns // 8, 8)
    terrain = cbook.get_sample_data("jacksboro_fault_dem.npz")["elevation"]
    return {
        "photograph: pixels": gray,
        "photograph: cosine transform": dctn(blocks, axes=(1, 3), norm="ortho"),
        "terrain: heights": terrain,
    }


def measure(name: str, x: sources.Vector, bits: int, seconds: float) -> Result:
    """One vector at one number of bits."""
    values, s = sources.ascending(x), 1 << bits
    vnmse = {
        method: curves.vnmse(values, choose(x, values, s)) for method, choose in METHODS.items()
    }
    took = take_turns({OURS: lambda: qk.optimal_levels(x, s)}, seconds)
    return Result(name, x.size, bits, 1000 * took[OURS], vnmse)


def as_markdown(results: list[Result]) -> str:
    """A table for each number of bits."""
    parts = [f"vNMSE; grids and candidates have {CELLS} cells."]
    for bits in dict.fromkeys(r.bits for r in results):
        rows = [
            [
                r.vector,
                f"{r.size:,}",
                *(figure(r.vnmse[method], 4) for method in METHODS),
                figure(r.milliseconds),
            ]
            for r in results
            if r.bits == bits
        ]
        parts.append(table([f"{bits} bits", "values", *METHODS, "exact, ms"], rows))
    return "\n\n".join(parts)


def main() -> None:
    """Measure, print Markdown, and write JSON when asked to."""
    parser = argparse.ArgumentParser(description="Compare methods on real vectors.")
    parser.add_argument("--quick", action="store_true", help="few values of each, for a test")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    count, seconds = (2000, 0.0) if options.quick else (None, 0.3)
    results = [
        measure(name, vector[:count], bits, seconds)
        for name, vector in vectors(quick=options.quick).items()
        for bits in BITS
    ]
    print(as_markdown(results))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
