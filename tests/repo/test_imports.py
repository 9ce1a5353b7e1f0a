"""The arrow of ARCHITECTURE.md: a module imports from its own row or from rows below."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    "quiver_kernels": Path("kernels"),
    "quiver_service": Path("service"),
    "quiver_client": Path("clients/python"),
}

# Which of the three packages a package may import besides itself.
PACKAGES_BELOW = {
    "quiver_kernels": set(),
    "quiver_service": {"quiver_kernels"},
    "quiver_client": {"quiver_kernels"},
}

# The rows of each package, lowest first. A name stands for the module and all that is below it.
# A module in no row (settings, metrics, ...) helps any row; what it imports counts as imported by
# whoever uses it.
ROWS = {
    "quiver_kernels": [
        {"errors", "_version"},
        {"dtypes"},
        {"framing", "options", "packing", "rng", "simba", "strata", "tensors"},
        {"quantized"},
        {"notebook", "plots"},
        {"wire"},
        {"cpu", "gpu", "reference"},
        {"dispatch"},
        {"tree", "treewire", "treerequest", "exact_sum", "tree_mean"},
        {"api"},
        {"sketch", "sharded", "qvr", "codecs", "interop"},
        {"gridlevels"},
        {"homomorphic", "sketch_levels"},
    ],
    "quiver_service": [
        {"pool"},
        {"engine"},
        {"body", "operations"},
        {"exchange"},
        {"routes", "playground"},
        {"app"},
        {"server"},
        {"__main__", "ray_serve"},
    ],
    "quiver_client": [
        {"transport", "_transport"},
        {"core", "_core"},
        {"sync", "_sync", "aio", "_async", "local", "_local"},
        {"connect", "_connect"},
        {"ps"},
        {"adapters"},
        {"adapters"},
        {"sharded"},
        {"files"},
        {"cli"},
    ],
}

# What may be imported from elsewhere, by the module that may.
ALLOWED_OUTSIDE = {
    "quiver_kernels": {"numpy", "msgspec", "ml_dtypes"},
    "quiver_kernels.cpu": {"numba", "llvmlite"},
    "quiver_kernels.gpu.cupy_device": {"cupy"},
    "quiver_kernels.codecs.numcodecs_codec": {"numcodecs"},
    "quiver_kernels.codecs.zarr_codec": {"zarr"},
    "quiver_kernels.schemes.rotation.kernels": {"numba", "llvmlite"},
    "quiver_kernels.schemes.ectcq.kernels": {"numba", "llvmlite"},
    "quiver_service": {
        "numpy",
        "msgspec",
        "fastapi",
        "starlette",
        "uvicorn",
        "uvloop",
        "httptools",
        "pydantic",
        "pydantic_core",
        "pydantic_settings",
        "prometheus_client",
        "structlog",
    },
    "quiver_service.tracing": {"opentelemetry"},
    "quiver_client": {"numpy", "msgspec"},
    "quiver_client.adapters.torch_arrays": {"torch"},
    "quiver_client.adapters.torch_gather": {"torch"},
    "quiver_client.adapters.torch_ddp": {"torch"},
    "quiver_client.adapters.flower": {"flwr"},
    "quiver_client.adapters.safetensors_io": {"safetensors"},
    "quiver_client.files.torch_state": {"torch"},
    "quiver_client.cli": {"click", "rich"},
    "quiver_client.sharded.on_ray": {"ray"},
    "quiver_service.ray_serve.app": {"ray"},
    "quiver_service.ray_serve.__main__": {"ray"},
}


def texts(root: Path) -> dict[Path, str]:
    """Every file of the three packages below `root`, as {path below it: text}."""
    return {
        file.relative_to(root): file.read_text()
        for package, source in SOURCES.items()
        for file in sorted((root / source / package).rglob("*.py"))
    }


def module_at(file: Path) -> str:
    """The dotted name of a file."""
    source = next(source for source in SOURCES.values() if file.is_relative_to(source))
    parts = file.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imported(text: str) -> tuple[tuple[int, str], ...]:
    """Every import statement of a file, lazy ones too, as (line, dotted name)."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import: {ast.unparse(node)}"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return tuple(found)


def row_of(module: str) -> int | None:
    """The row of a module in its package's table, None for a helper."""
    package, _, rest = module.partition(".")
    for number, row in enumerate(ROWS[package]):
        if rest.partition(".")[0] in row:
            return number
    return None


class Tree:
    """The three packages: which module is which file, and what it imports."""

    def __init__(self, sources: Mapping[Path, str]) -> None:
        self.files = {module_at(file): file for file in sources}
        self.imports = {
            module: [(line, self.module_of(name)) for line, name in imported(sources[file])]
            for module, file in self.files.items()
        }

    def module_of(self, name: str) -> str:
        """The module that importing `name` gets: what it offers is an attribute or a module."""
        while name not in self.files and name.partition(".")[0] in SOURCES and "." in name:
            name = name.rpartition(".")[0]
        return name

    def rows_reached(self, package: str, module: str) -> set[str]:
        """The row modules of `package` that importing `module` brings, through helpers too."""
        reached, seen, waiting = set(), set(), [module]
        while waiting:
            current = waiting.pop()
            if current in seen or current.partition(".")[0] != package:
                continue
            seen.add(current)
            if row_of(current) is None:
                waiting += [target for _, target in self.imports.get(current, [])]
            else:
                reached.add(current)
        return reached

    def complaint(self, importer: str, target: str) -> str | None:
        """Why `importer` may not import `target`, or None when it may."""
        package, target_package = importer.partition(".")[0], target.partition(".")[0]
        if target_package not in SOURCES:
            outside = allowed_outside(importer) | sys.stdlib_module_names
            return None if target_package in outside else "is none of its dependencies"
        if target_package != package:
            return None if target_package in PACKAGES_BELOW[package] else "is not below it"
        row = row_of(importer)
        if row is None:
            return None
        above = [high for high in self.rows_reached(package, target) if (row_of(high) or 0) > row]
        return f"leads up to {', '.join(sorted(above))}" if above else None

    def violations(self) -> set[str]:
        """Every forbidden import, one line each."""
        return {
            f"{self.files[importer]}:{line}: {target} {reason}"
            for importer, targets in self.imports.items()
            for line, target in targets
            if (reason := self.complaint(importer, target))
        }


def allowed_outside(module: str) -> set[str]:
    """Third-party packages that `module` may import."""
    return {
        name
        for owner, names in ALLOWED_OUTSIDE.items()
        if f"{module}.".startswith(f"{owner}.")
        for name in names
    }


def test_every_import_points_down():
    assert Tree(texts(ROOT)).violations() == set()


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("kernels/quiver_kernels/framing.py", "from quiver_kernels import wire"),
        ("kernels/quiver_kernels/options.py", "import quiver_kernels.quantized"),
        ("kernels/quiver_kernels/wire.py", "import quiver_kernels.dispatch"),
        ("kernels/quiver_kernels/errors.py", "import quiver_service"),
        ("kernels/quiver_kernels/dispatch.py", "def late():\n    import quiver_client.core"),
        ("kernels/quiver_kernels/tensors.py", "import numba"),
        ("kernels/quiver_kernels/gpu/backend.py", "import cupy"),
        ("service/quiver_service/planted.py", "from quiver_client import Client"),
        ("service/quiver_service/pool.py", "from quiver_service.engine import Engine"),
        ("service/quiver_service/planted.py", "import requests"),
        ("clients/python/quiver_client/planted.py", "from quiver_service import app"),
        ("clients/python/quiver_client/planted.py", "import numba"),
        ("clients/python/quiver_client/_core.py", "import quiver_client.adapters.torch_ddp"),
        ("clients/python/quiver_client/adapters/planted.py", "import torch"),
        ("clients/python/quiver_client/adapters/flower.py", "import torch"),
        ("clients/python/quiver_client/sharded/files.py", "import ray"),
        ("clients/python/quiver_client/files/opening.py", "import torch"),
        ("clients/python/quiver_client/files/planted.py", "import quiver_client.cli.app"),
        ("clients/python/quiver_client/planted.py", "import click"),
        ("clients/python/quiver_client/cli/planted.py", "import quiver_service"),
        ("kernels/quiver_kernels/codecs/chunks.py", "import zarr"),
        ("kernels/quiver_kernels/api.py", "import quiver_kernels.qvr.reader"),
        ("service/quiver_service/app.py", "import ray"),
    ],
)
def test_a_planted_upward_import_is_caught(file: str, statement: str):
    sources = texts(ROOT)
    before = Tree(sources).violations()
    sources[Path(file)] = f"{sources.get(Path(file), '')}\n{statement}\n"

    assert [line.partition(":")[0] for line in Tree(sources).violations() - before] == [file]


def test_an_upward_import_through_a_helper_is_caught():
    package = SOURCES["quiver_service"] / "quiver_service"
    sources = {
        package / "pool.py": "from quiver_service.helper import thing\n",
        package / "helper.py": "from quiver_service.app import thing\n",
        package / "app.py": "thing = 1\n",
    }

    assert Tree(sources).violations() == {
        "service/quiver_service/pool.py:1: quiver_service.helper leads up to quiver_service.app"
    }


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("quiver_kernels", {"numba", "llvmlite", "cupy", "fastapi"}),
        ("quiver_client", {"numba", "llvmlite", "cupy", "fastapi", "quiver_service"}),
        ("quiver_service", {"numba", "llvmlite", "cupy", "quiver_client"}),
    ],
)
def test_importing_a_package_loads_no_backend(package: str, absent: set[str]):
    code = f"import sys, {package}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    assert absent.isdisjoint(loaded)
