"""The JavaScript package: its own tests, with a real service too; its page, types and files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.js.golden import TESTS
from tests.js.node import PACKAGE, Node

from quiver_client import __version__

pytestmark = pytest.mark.faces

MANIFEST = json.loads((PACKAGE / "package.json").read_text())
EXPORTED = re.compile(r"export \{([^}]*)\}")
DECLARED = re.compile(r"^export (?:class|function) (\w+)", re.MULTILINE)


@pytest.mark.parametrize("name", ["messagepack.test.mjs", "client.test.mjs"])
def test_it_passes_its_own_tests(node: Node, name: str):
    assert node.tests(name) >= 8


def test_it_agrees_with_a_real_service(node: Node, live_server: str):
    assert node.tests("live.test.mjs", QUIVER_TEST_URL=live_server) == 5


@pytest.mark.parametrize("body", ["assert.equal(1, 2)", "context.skip()"])
def test_a_test_that_fails_or_is_skipped_is_seen(node: Node, tmp_path: Path, body: str):
    program = f"""
        import assert from "node:assert/strict";
        import test from "node:test";
        test("one", (context) => {body});
    """
    (tmp_path / "one.test.mjs").write_text(program)

    with pytest.raises(AssertionError, match="# Subtest: one"):
        node.tests(str(tmp_path / "one.test.mjs"))


def test_examples_of_the_page_run(node: Node, project: Path, live_server: str):
    page = (PACKAGE / "README.md").read_text()
    examples = re.findall(r"<!-- test: (\w+) -->\n```js\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in examples] == ["decode", "client"]
    assert page.count("```js") == len(examples)
    golden = TESTS / "wire" / "golden" / "vector-05-float32-exact-100-block120.msgpack"
    shutil.copy(golden, project / "vector.msgpack")

    written = {}
    for name, code in examples:
        program = project / f"{name}.js"
        program.write_text(code.replace("http://127.0.0.1:8000", live_server))
        written[name] = node.run(program, cwd=project)

    assert written["decode"] == "exact [ 250 ] 7n 250\n"
    lines = written["client"].splitlines()
    assert lines[0] == "5000 10000 3 10 10000"
    assert lines[1].startswith("422 non_finite vector ")


def test_types_declare_what_is_exported():
    exported = EXPORTED.findall((PACKAGE / "src" / "index.js").read_text())
    names = {name.strip() for part in exported for name in part.split(",") if name.strip()}

    declared = set(DECLARED.findall((PACKAGE / "src" / "index.d.ts").read_text()))

    assert names == declared
    assert {"QuantizedVector", "QuiverClient", "DecodeError"} <= names


def test_it_needs_nothing_and_has_the_version_and_licence_of_all():
    assert MANIFEST["version"] == __version__
    assert not [key for key in MANIFEST if "ependencies" in key or key in {"scripts", "bin"}]
    assert MANIFEST["license"] == "Apache-2.0"
    licence = (PACKAGE.parents[1] / "LICENSE").read_bytes()
    assert (PACKAGE / "LICENSE").read_bytes() == licence
    for path in (PACKAGE / "src").glob("*.js"):
        for name in re.findall(r'from "([^"]+)"', path.read_text()):
            assert name.startswith("./"), f"{path.name} imports {name}"


def test_npm_packs_the_sources_alone(node: Node):
    if shutil.which("npm") is None:
        reason = "npm is not installed: what it would publish cannot be checked"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    command = ["npm", "pack", "--dry-run", "--json", "--ignore-scripts", "--offline"]
    done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=True)

    (packed,) = json.loads(done.stdout)

    sources = {f"src/{path.name}" for path in (PACKAGE / "src").iterdir()}
    files = {file["path"] for file in packed["files"]}
    assert files == {"LICENSE", "README.md", "package.json", *sources}
    assert packed["unpackedSize"] < 200_000
