"""Files: what is written is read, whatever is cut off or changed is refused with its byte."""

from __future__ import annotations

import io
import re
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quiver_kernels as qk
from quiver_kernels import qvr
from quiver_kernels.qvr import frames, reader, scanning

GOLDEN = Path(__file__).parent / "golden" / "model-1.qvr"
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "qvr.md").read_text()
WIRE_PAGE = (ROOT / "docs" / "wire-format.md").read_text()
# Small enough to change every byte of the file.
VALUES = {
    "layers.0.weight": np.random.default_rng(1).normal(size=(5, 20)).astype(np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "steps": np.arange(5, dtype=np.int64),
    "scale": np.array(2.5, np.float16),
}
HEADER = qvr.Header(
    (
        qvr.Tensor("layers.0.weight", "float32", (5, 20), True, 64, {"bits": 3}),
        qvr.Tensor("empty", "float32", (0, 3)),
        qvr.Tensor("steps", "int64", (5,), chunk=3),
        qvr.Tensor("scale", "float16", ()),
    ),
    seed=11,
    metadata={"format": "pt"},
)


def content(place: qvr.Place, header: qvr.Header = HEADER, values: Any = VALUES) -> Any:
    tensor = header.tensors[place.tensor]
    part = values[tensor.name].reshape(-1)[place.first : place.stop]
    if not tensor.quantized:
        return part
    return qk.quantize(part, bits=3, seed=qvr.chunk_seed(header.seed, place.tensor, place.first))


def written(header: qvr.Header = HEADER, values: Any = VALUES) -> bytes:
    stream = io.BytesIO()
    writer = qvr.StreamWriter(stream, header)
    for place in writer.remaining():
        writer.write(content(place, header, values))
    assert writer.finish() == len(stream.getvalue())
    return stream.getvalue()


@pytest.fixture(scope="module")
def whole() -> bytes:
    return written()


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def put(data: bytes) -> Path:
        path = tmp_path / "model.qvr"
        path.write_bytes(data)
        return path

    return put


def read_all(path: Path) -> dict[str, np.ndarray]:
    with qk.qvr.open(path) as opened:
        opened.verify()
        return {name: opened.read(name) for name in opened.names}


def borders(data: bytes) -> list[int]:
    """Where preamble, header, frames, payloads, index and footer begin."""
    found = [0, 32]
    found += [match.start() + at for match in re.finditer(b"QCHK", data) for at in (0, 48)]
    (index,) = struct.unpack("<Q", data[-32:-24])
    return [*found, index, len(data) - frames.FOOTER_BYTES]


@pytest.fixture(scope="module")
def slow() -> Callable[[bytes], dict[str, np.ndarray]]:
    """The reader of the documents: of docs/qvr.md, with the decoder of docs/wire-format.md."""
    names: dict[str, Any] = {}
    for page, mark in ((WIRE_PAGE, "def decode"), (PAGE, "def read_qvr")):
        code = [
            one
            for one in re.findall(r"```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
            if mark in one
        ]
        assert len(code) == 1
        assert "quiver" not in code[0]
        exec(compile(code[0], mark, "exec"), names)
    return lambda data: names["read_qvr"](data, names["decode"])


# -- what is written is read -----------------------------------------------------------------


def test_values_come_back(whole: bytes, file: Any):
    path = file(whole)
    with qk.qvr.open(path) as opened:
        assert opened.names == tuple(VALUES)
        assert opened.header == HEADER
        assert opened.nbytes == len(whole)
        sizes = [opened.stored_bytes(name) for name in opened.names]
        assert sum(sizes) == borders(whole)[-2] - borders(whole)[2]
        assert sizes[1] == 0
        expected = [qk.dequantize(content(place)) for place in qvr.Places(HEADER.tensors[:1])]
        decoded = opened.read("layers.0.weight")
        assert decoded.shape == (5, 20)
        assert np.array_equal(decoded.reshape(-1), np.concatenate(expected))
        for name in ("empty", "steps", "scale"):
            assert np.array_equal(opened.read(name), VALUES[name])
            assert opened.read(name).dtype == VALUES[name].dtype


def test_equal_input_gives_equal_files(whole: bytes):
    assert written() == whole


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=0, max_size=4),
    chunk=st.integers(1, 50),
    kinds=st.lists(st.sampled_from(["float32", "bfloat16", "int8", "bool", "complex128"])),
    seed=st.integers(0, 2**64 - 1),
    window=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    threads=st.sampled_from([None, 1, 3]),
)
def test_any_stretch_equals_the_slow_reader(tmp_path_factory, slow, **drawn: Any):
    random = np.random.default_rng(drawn["seed"])
    values, tensors = {}, []
    for number, size in enumerate(drawn["sizes"]):
        kind = drawn["kinds"][number] if number < len(drawn["kinds"]) else "float32"
        dtype = qvr.STORED_DTYPES[kind]
        name = f"{number}é"
        values[name] = (random.normal(size=size) * 3).astype(dtype)
        quantized = kind in ("float32", "bfloat16")
        tensors.append(qvr.Tensor(name, kind, (size,), quantized, drawn["chunk"]))
    header = qvr.Header(tuple(tensors), drawn["seed"])
    data = written(header, values)
    path = tmp_path_factory.mktemp("any") / "any.qvr"
    path.write_bytes(data)
    expected = slow(data)
    with qk.qvr.open(path) as opened:
        assert set(opened.names) == set(expected)
        for tensor in tensors:
            start, stop = sorted(min(at, tensor.size) for at in drawn["window"])
            part = opened.read(tensor.name, start, stop, threads=drawn["threads"])
            assert part.dtype == tensor.numpy_dtype
            assert part.tobytes() == expected[tensor.name][start:stop].tobytes()


def test_only_the_chunks_asked_for_are_read(whole: bytes, file: Any):
    changed = bytearray(whole)
    first = borders(whole)[3]
    changed[first] ^= 1
    with qk.qvr.open(file(bytes(changed))) as opened:
        assert opened.read("layers.0.weight", 64, 100).size == 36
        assert np.array_equal(opened.read("steps"), VALUES["steps"])
        with pytest.raises(qvr.DamagedFile) as raised:
            opened.read("layers.0.weight", 63, 64)
    assert raised.value.offset == first


def test_chunks_are_messages(whole: bytes, file: Any):
    with qk.qvr.open(file(whole)) as opened:
        chunks = list(opened.chunks("layers.0.weight"))
        assert [(chunk.first, chunk.count) for chunk in chunks] == [(0, 64), (64, 36)]
        assert all(isinstance(chunk.content, qk.QuantizedVector) for chunk in chunks)
        assert chunks[0].content.seed == qvr.chunk_seed(11, 0, 0)
        assert chunks[0].content.timings_ms == {}


def test_unknown_names_and_ranges_are_refused(whole: bytes, file: Any):
    with qk.qvr.open(file(whole)) as opened:
        with pytest.raises(qk.InvalidInput, match=r"no tensor 'bias'; it has 'layers\.0\.weight'"):
            opened.read("bias")
        with pytest.raises(qk.InvalidInput, match="start <= stop <= 5"):
            opened.read("steps", 2, 6)


# -- what is cut off or changed is refused ---------------------------------------------------


def test_every_cut_is_refused_with_its_byte(whole: bytes, file: Any):
    edges = borders(whole)
    near = {edge + step for edge in edges for step in (-1, 0, 1)} & set(range(len(whole)))
    random = np.random.default_rng(2).integers(0, len(whole), 60)
    for length in sorted(near | set(random.tolist())):
        with pytest.raises(qvr.DamagedFile) as raised:
            qk.qvr.open(file(whole[:length]))
        assert raised.value.offset == length, str(raised.value)
        assert str(length) in str(raised.value)


def test_what_follows_the_footer_is_refused(whole: bytes, file: Any):
    for more in (b"\0", bytes(8), whole):
        with pytest.raises(qvr.DamagedFile):
            qk.qvr.open(file(whole + more))


def unnoticed(data: bytes, file: Any, places: range | None = None) -> list[int]:
    """Bytes of which a change is not noticed, or not in the part where it is."""
    edges = [*borders(data), len(data)]
    found = []
    for at in range(len(data)) if places is None else places:
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        try:
            read_all(file(bytes(changed)))
        except qvr.DamagedFile as error:
            part = max(edge for edge in edges if edge <= at)
            if part <= error.offset <= at:
                continue
        found.append(at)
    return found


def test_every_changed_byte_is_found_where_it_is(whole: bytes, file: Any):
    assert unnoticed(whole, file) == []


def test_changes_would_pass_without_checksums(whole: bytes, file: Any, monkeypatch: Any):
    """The control: of a reader that compares no payloads' checksums, the test above finds that."""

    def careless(data: memoryview, at: int, frame: Any, next_at: int | None = None) -> memoryview:
        return data[at + 48 : at + 48 + frame.length]

    monkeypatch.setattr(reader, "check_payload", careless)

    last = borders(whole)[-3]
    assert unnoticed(whole, file, range(last, last + 2)) == [last, last + 1]


def resealed(data: bytes, at: int, part: bytes, size: int) -> bytes:
    """`data` with `part` at byte `at` of a sealed part that ends at `at + size`, sealed anew."""
    body = part + data[at + len(part) : at + size - 4]
    seal = struct.pack("<I", zlib.crc32(body))
    return data[:at] + body + seal + data[at + size :]


def test_chunks_of_another_place_or_file_are_refused(whole: bytes, file: Any):
    edges = borders(whole)
    chunks = [edge for edge in edges[2:-2] if whole[edge : edge + 4] == b"QCHK"]
    # The two chunks of int64 have other lengths, so exchange chunk 0 of two files instead.
    other = written(qvr.Header(HEADER.tensors, 12, HEADER.metadata))
    spliced = whole[: chunks[0]] + other[chunks[0] : chunks[1]] + whole[chunks[1] :]
    assert len(spliced) == len(whole)
    with qk.qvr.open(file(spliced)) as opened, pytest.raises(qvr.DamagedFile, match="another file"):
        opened.read("layers.0.weight")
    # A frame whose seal fits, but which says that it is another chunk.
    moved = resealed(whole, chunks[1], struct.pack("<4sIQ", b"QCHK", 0, 0), 48)
    with qk.qvr.open(file(moved)) as opened, pytest.raises(qvr.DamagedFile, match="values 64 to"):
        opened.verify()


@pytest.mark.parametrize("length", [0, 2**20, 2**63, 2**64 - 1])
def test_lengths_that_cannot_be_are_refused(whole: bytes, file: Any, length: int):
    (index,) = struct.unpack("<Q", whole[-32:-24])
    table = struct.pack("<Q", length) + whole[index + 8 : -frames.FOOTER_BYTES]
    at = len(whole) - frames.FOOTER_BYTES
    data = whole[:index] + table + whole[at:]
    footer = whole[at : at + 28] + struct.pack("<I", zlib.crc32(table))
    with pytest.raises(qvr.DamagedFile, match=r"at byte \d+: (chunk|the chunks)"):
        qk.qvr.open(file(resealed(data, at, footer, frames.FOOTER_BYTES)))


def with_header(told: Any) -> bytes:
    """A file without chunks whose header says what it is told to, with fitting checksums."""
    body = told if isinstance(told, bytes) else msgpack.packb(told)
    crc = zlib.crc32(body)
    start = frames.Preamble(len(body), crc).to_bytes() + body + bytes(-len(body) % 8)
    return start + frames.Footer(len(start), 0, crc, 0).to_bytes()


GOOD = {"name": "a", "dtype": "int8", "shape": [0], "stored": "raw", "chunk": 1, "settings": {}}
FEW: dict[str, Any] = {"seed": 0, "metadata": {}, "tensors": [GOOD]}


def test_a_made_up_header_is_read(file: Any):
    """The control of the next test: what it changes was right before."""
    assert read_all(file(with_header(FEW)))["a"].shape == (0,)


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"\xc1",
        b"\x81",
        msgpack.packb([1]),
        msgpack.packb(FEW) + b"\0",
        msgpack.packb(FEW)[:-1],
        {**FEW, "seed": -1},
        {**FEW, "seed": 1.5},
        {**FEW, "more": 1},
        {"seed": 0, "metadata": {}},
        {**FEW, "metadata": {"a": 1}},
        {**FEW, "tensors": [GOOD, GOOD]},
        *(
            {**FEW, "tensors": [{**GOOD, **change}]}
            for change in (
                {"name": ""},
                {"name": "x" * 1025},
                {"name": 5},
                {"dtype": "object"},
                {"dtype": "int8", "stored": "quantized"},
                {"stored": "both"},
                {"shape": [-1]},
                {"shape": [2**41]},
                {"shape": [2**63, 2**63]},
                {"shape": [0] * 9},
                {"shape": [1]},
                {"shape": [2**40]},
                {"chunk": 0},
                {"chunk": 2**28 + 1},
                {"settings": {str(i): i for i in range(33)}},
                {"settings": {"a": [1]}},
                {"extra": 1},
            )
        ),
    ],
)
def test_headers_that_cannot_be_are_refused(file: Any, told: Any):
    with pytest.raises(qvr.DamagedFile):
        qk.qvr.open(file(with_header(told)))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), keep=st.integers(0, 300))
def test_any_bytes_are_refused(tmp_path_factory, whole: bytes, data: bytes, keep: int):
    path = tmp_path_factory.mktemp("bytes") / "model.qvr"
    path.write_bytes(whole[:keep] + data)
    with pytest.raises(qvr.DamagedFile):
        read_all(path)


def test_a_later_version_is_refused(whole: bytes, file: Any):
    later = resealed(whole, 0, whole[:8] + b"\2\0", 32)
    with pytest.raises(qvr.DamagedFile, match="byte 8: its version must be 1; got 2"):
        qk.qvr.open(file(later))


# -- what is written is whole ----------------------------------------------------------------


def write_some(path: Path, count: int | None = None, header: qvr.Header = HEADER) -> int:
    """Write so many chunks and fail, or all; how many were there before."""
    with qvr.Writer(path, header) as writer:
        for done, place in enumerate(writer.remaining()):
            if done == count:
                raise KeyboardInterrupt
            writer.write(content(place, header))
        return writer.resumed


@pytest.mark.parametrize("count", range(5))
def test_a_resumed_file_is_the_same(whole: bytes, tmp_path: Path, count: int):
    path = tmp_path / "model.qvr"
    with pytest.raises(KeyboardInterrupt):
        write_some(path, count)
    assert not path.exists()

    assert write_some(path) == count
    assert path.read_bytes() == whole
    assert [one.name for one in tmp_path.iterdir()] == ["model.qvr"]


def test_seeds_that_are_drawn_would_show(whole: bytes, tmp_path: Path):
    """The control: chunks whose seeds do not follow from their places make another file."""
    path = tmp_path / "model.qvr"
    with qvr.Writer(path, HEADER) as writer:
        for place in writer.remaining():
            made = content(place)
            drawn = isinstance(made, qk.QuantizedVector)
            part = VALUES["layers.0.weight"].reshape(-1)[place.first : place.stop]
            writer.write(qk.quantize(part, bits=3) if drawn else made)

    assert path.read_bytes() != whole


def test_a_part_is_taken_up_wherever_it_ends(whole: bytes, tmp_path: Path):
    path, part = tmp_path / "model.qvr", tmp_path / "model.qvr.part"
    edges = borders(whole)
    for length in sorted({edge + step for edge in edges for step in (0, 1, 20)}):
        part.write_bytes(whole[:length])
        begun = [edge for edge in edges if whole[edge : edge + 4] == b"QCHK" and edge < length]
        assert write_some(path) in {len(begun), len(begun) - 1, 0}
        assert path.read_bytes() == whole


def test_damage_in_a_part_is_written_anew(whole: bytes, tmp_path: Path):
    path, part = tmp_path / "model.qvr", tmp_path / "model.qvr.part"
    changed = bytearray(whole[: borders(whole)[-2]])
    changed[borders(whole)[5]] ^= 1
    part.write_bytes(changed)

    assert write_some(path) == 1
    assert path.read_bytes() == whole


def test_a_part_of_another_header_is_refused(tmp_path: Path):
    path = tmp_path / "model.qvr"
    with pytest.raises(KeyboardInterrupt):
        write_some(path, 1)
    other = qvr.Header(HEADER.tensors, 12, HEADER.metadata)
    with pytest.raises(qk.InvalidInput, match="begun with other tensors, options or seed"):
        write_some(path, header=other)
    with qvr.Writer(path, other, resume=False) as writer:
        assert writer.resumed == 0
        for place in writer.remaining():
            writer.write(content(place, other))
    assert qvr.part_header(tmp_path / "model.qvr.part") is None


@pytest.mark.parametrize("resume", [True, False])
def test_a_file_that_is_no_part_is_not_written_over(tmp_path: Path, resume: bool):
    part = tmp_path / "thesis.txt"
    part.write_bytes(b"years of work")
    with pytest.raises(qk.InvalidInput, match=r"thesis\.txt is another"):
        qvr.Writer(tmp_path / "model.qvr", HEADER, part=part, resume=resume)
    assert part.read_bytes() == b"years of work"


def test_scanning_lets_go_of_what_it_has_seen(monkeypatch: Any, whole: bytes):
    monkeypatch.setattr(scanning, "_RELEASED", 100)
    start, index = borders(whole)[2], borders(whole)[-2]
    crc = struct.unpack("<I", whole[16:20])[0]
    gone: list[tuple[int, int]] = []
    scanning.scan(
        memoryview(whole),
        start,
        crc,
        HEADER.tensors,
        qvr.Places(HEADER.tensors),
        payloads=True,
        release=lambda begin, end: gone.append((begin, end)),
    )
    assert [begin for begin, _ in gone] == [start, *(end for _, end in gone[:-1])]
    assert index - 100 < gone[-1][1] <= index


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_two_writers_exclude_each_other(tmp_path: Path):
    path = tmp_path / "model.qvr"
    first = qvr.Writer(path, HEADER)
    with pytest.raises(qk.InvalidInput, match="another process"):
        qvr.Writer(path, HEADER)
    first.close()
    qvr.Writer(path, HEADER).close()


def test_a_file_with_missing_chunks_is_not_made(tmp_path: Path):
    with (
        pytest.raises(qk.InvalidInput, match="5 of them are missing"),
        qvr.Writer(tmp_path / "model.qvr", HEADER),
    ):
        pass
    assert not (tmp_path / "model.qvr").exists()


def test_wrong_contents_are_refused():
    writer = qvr.StreamWriter(io.BytesIO(), HEADER)
    places = list(writer.remaining())
    with pytest.raises(qk.InvalidInput, match="must be 64 values of float32, from value 0"):
        writer.write(content(places[1]))
    writer.write(content(places[0]))
    writer.write(VALUES["layers.0.weight"].reshape(-1)[64:])
    with pytest.raises(qk.InvalidInput, match="3 values of int64"):
        writer.write(qk.quantize(np.zeros(3, np.float32), bits=1))
    for place in places[2:]:
        writer.write(content(place))
    with pytest.raises(qk.InvalidInput, match="all of them are written"):
        writer.write(content(places[2]))


def test_scanning_without_payloads_reads_frames_alone(whole: bytes):
    changed = bytearray(whole)
    changed[borders(whole)[3]] ^= 1
    start = borders(whole)[2]
    crc = struct.unpack("<I", whole[16:20])[0]
    places = qvr.Places(HEADER.tensors)
    for payloads, count in ((False, 5), (True, 0)):
        data = memoryview(bytes(changed))
        found = scanning.scan(data, start, crc, HEADER.tensors, places, payloads=payloads)
        assert len(found.lengths) == count


# -- what was written once is read for ever --------------------------------------------------


def test_the_golden_file_is_read(slow: Any):
    """Written once, by the first version; never again."""
    expected = slow(GOLDEN.read_bytes())
    found = read_all(GOLDEN)

    assert list(found) == ["embedding", "layers.0.weight", "layers.0.norm", "steps", "empty"]
    for name, values in found.items():
        assert values.tobytes() == expected[name].astype(values.dtype).tobytes()
    assert found["steps"].tolist() == [1, 2, 300]
    assert found["embedding"].shape == (40, 50)
    error = found["embedding"] - np.sin(np.arange(2000, dtype=np.float32)).reshape(40, 50)
    assert 0 < np.abs(error).max() < 0.2
    assert np.isnan(found["layers.0.weight"][0, 0])


def test_the_example_of_the_page_has_its_bytes(tmp_path: Path, monkeypatch: Any):
    shown = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)[-1]
    data = bytes.fromhex("".join(line[5:] for line in shown.splitlines()))
    code = re.findall(r"<!-- test: example -->\n```python\n(.*?)```", PAGE, re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "qvr.md", "exec"), {})

    assert (tmp_path / "n.qvr").read_bytes() == data
    (tmp_path / "m.qvr").write_bytes(data)
    assert read_all(tmp_path / "m.qvr")["n"].tolist() == [1, 2, -3]


def test_the_page_tells_the_limits():
    from quiver_kernels.qvr import header

    assert header.MAX_TENSORS == 131_072
    assert header.MAX_HEADER_BYTES == 2**26
    assert header.MAX_CHUNK == 2**28
    assert header.MAX_NAME_BYTES == 1024
    for name in qvr.STORED_DTYPES:
        if not re.fullmatch(r"u?int\d+", name):
            assert name in PAGE
    assert "131 072" in PAGE
