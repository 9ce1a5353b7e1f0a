"""The JavaScript decoder beside Python: golden messages, damaged ones, and planted faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.js import corpus
from tests.js.golden import golden
from tests.js.node import PACKAGE, Node

from quiver_kernels.options import GIVEN, METHODS
from quiver_kernels.schemes import lloyd_max, registry

pytestmark = pytest.mark.faces

SOURCE = PACKAGE / "src"

INDEX = json.dumps((SOURCE / "index.js").as_uri())
KNOWN = json.dumps((SOURCE / "schemes.js").as_uri())
# Numbers of levels: the least, the greatest, those of whole bits and their neighbours.
COUNTS = [2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 128, 200, 255, 256]

# Of what is planted: file, right words, wrong words.
FAULTS = {
    "no end of a value is looked for": (
        "msgpack.js",
        "if (count > this.bytes.length - this.at)",
        "if (false)",
    ),
    "keys may repeat": ("msgpack.js", "if (key in found)", "if (false)"),
    "codes beyond the table are taken": ("quantized.js", "codes[i] >= numLevels", "false"),
    "ties are rounded up": (
        "numbers.js",
        "(magnitude / step + 2 ** 52 - 2 ** 52) * step",
        "Math.floor(magnitude / step + 0.5) * step",
    ),
    "seeds lose their upper half": ("philox.js", "Number(seed >> 32n)", "0"),
    "a block does not begin on a byte": (
        "packing.js",
        "let word = 0, held = 0;\n    for (let i = start; i < stop; i++) {\n      if (held < bits)",
        "var word, held;\n    for (let i = start; i < stop; i++) {\n      if (!(held >= bits))",
    ),
    "sizes of codes are not looked at": ("quantized.js", "require(fits,", "require(true,"),
}


def cases_of_golden() -> list[bytes]:
    return [corpus.case(message, np.array(decoded)) for _, message, decoded in golden()]


def test_golden_messages_have_the_values_that_they_had(node: Node, tmp_path: Path):
    cases = cases_of_golden()

    found = node.agreement(cases, tmp_path, SOURCE)

    assert found["problems"] == []
    assert found["cases"] == found["accepted"] == len(cases) > 200


def test_damaged_messages_are_refused_where_python_refuses_them(node: Node, tmp_path: Path):
    judged = list(corpus.judged([*corpus.chosen(), *corpus.damaged(4000)]))
    cases = [*judged, *corpus.unjudged(corpus.knocked(16_000))]

    found = node.agreement(cases, tmp_path, SOURCE)

    assert found["problems"] == []
    assert found["cases"] > 20_000
    assert 400 < found["accepted"] < 10_000
    assert found["slowest"] < 2.0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(node: Node, tmp_path: Path, fault: str, planted_cases: bytes):
    name, right, wrong = FAULTS[fault]
    planted = tmp_path / "src"
    shutil.copytree(SOURCE, planted)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    text = (planted / name).read_text()
    assert text.count(right) == 1, f"{name} has changed: plant the fault elsewhere"
    (planted / name).write_text(text.replace(right, wrong))

    found = node.agreement([planted_cases], tmp_path, planted)

    assert found["problems"]


@pytest.fixture(scope="module")
def planted_cases() -> bytes:
    return b"".join([*cases_of_golden(), *corpus.judged(corpus.chosen())])


def test_levels_of_the_normal_table_are_those_of_python(node: Node):
    program = f"""
        import {{ normalLevels }} from {json.dumps((SOURCE / "lloyd_max.js").as_uri())};
        console.log(JSON.stringify({COUNTS}.map((count) => [...normalLevels(count)])));
    """

    tables = json.loads(node.run("--input-type=module", "--eval", program))

    wanted = [lloyd_max.table(count).astype(np.float32).tolist() for count in COUNTS]
    assert tables == wanted


def test_the_page_names_every_method_and_no_more(node: Node):
    program = f"""
        import {{ SCHEMES }} from {KNOWN};
        const known = Object.entries(SCHEMES).map(
            ([name, one]) => [name, [one.levelCounts, Object.keys(one.parameters)]]);
        console.log(JSON.stringify(Object.fromEntries(known)));
    """

    known = json.loads(node.run("--input-type=module", "--eval", program))

    schemes = {name: registry.find(name) for name in registry.names() if name not in METHODS}
    wanted = {
        name: [set(one.level_counts), {each.name for each in one.parameters}]
        for name, one in schemes.items()
        if one is not None
    }
    assert {name: [set(counts), set(names)] for name, (counts, names) in known.items()} == wanted
    page = (PACKAGE / "README.md").read_text()
    start = page.index("for every method")
    listed = page[start : page.index("with\noutliers", start)]
    assert set(listed.split("`")[1::2]) == {*METHODS, GIVEN, *wanted}
    assert "Unsupported methods: none of these." in page


def test_a_message_of_an_unknown_scheme_says_what_to_do(node: Node, tmp_path: Path):
    message = next(message for name, message, _ in golden() if name.startswith("seq: "))
    assert message.count(b"\xa3seq") == 1
    (tmp_path / "message").write_bytes(message.replace(b"\xa3seq", b"\xa3own"))
    program = f"""
        import {{ readFileSync }} from "node:fs";
        import {{ QuantizedVector, UnsupportedMethod }} from {INDEX};
        try {{
            QuantizedVector.fromBytes(readFileSync("message"));
        }} catch (error) {{
            const {{ code, method, message }} = error;
            console.log(error instanceof UnsupportedMethod, code, method, message);
        }}
    """

    said = node.run("--input-type=module", "--eval", program, cwd=tmp_path)

    assert said.startswith("true unsupported_method own method ")
    assert "/dequantize" in said
