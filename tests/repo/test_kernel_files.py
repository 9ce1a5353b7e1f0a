"""A kernel calls kernels of its own file only: Numba's disk cache knows no other dependency."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "kernels" / "quiver_kernels"
DECORATORS = {"kernel", "inlined"}


def foreign_names(source: str) -> list[str]:
    """Names that kernels in `source` use although another module of the backend defines them."""
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("quiver_kernels")
        for alias in node.names
    }
    kernels = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(d, ast.Name) and d.id in DECORATORS for d in node.decorator_list)
    ]
    return [
        f"{function.name}: {name.id}"
        for function in kernels
        for statement in function.body
        for name in ast.walk(statement)
        if isinstance(name, ast.Name) and name.id in imported
    ]


def test_kernels_stay_in_their_files() -> None:
    files = [*sorted((PACKAGE / "cpu").glob("*.py")), *sorted((PACKAGE / "schemes").rglob("*.py"))]
    with_kernels = [path for path in files if "@kernel" in path.read_text()]
    assert {path.parent.name for path in with_kernels} >= {"cpu", "schemes", "pow2"}
    for path in files:
        assert foreign_names(path.read_text()) == [], path.name


def test_a_planted_call_is_found() -> None:
    planted = (
        "from quiver_kernels.cpu.compile import kernel\n"
        "from quiver_kernels.cpu.path import best_path\n"
        "@kernel\n"
        "def solve(x):\n"
        "    return best_path(x)\n"
    )
    assert foreign_names(planted) == ["solve: best_path"]
