"""What ``quiver inspect`` says of a ``.qvr`` file, and of a quantized vector's message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from quiver_client.cli.sizes import in_bytes
from quiver_client.cli.tables import number, shape_of, shortened, table
from quiver_kernels import qvr
from quiver_kernels.quantized import QuantizedVector

_NAME = 48
_MOST_ROWS = 200


def vector_data(q: QuantizedVector) -> dict[str, Any]:
    """A message's head, and sizes."""
    return {
        "kind": "message",
        "method": q.method,
        "bits": q.bits,
        "num_levels": q.num_levels,
        "shape": list(q.shape),
        "dtype": q.dtype,
        "block_size": q.block_size,
        "seed": q.seed,
        "vnmse": q.vnmse,
        "nbytes": q.nbytes,
        "bits_per_value": q.bits_per_value,
        "parameters": None if q.parameters is None else dict(q.parameters),
        "wrapped": q.wrap is not None,
    }


def vector_text(name: str, q: QuantizedVector) -> str:
    """The same for people."""
    rows = [
        [name, f"quantized vector, {q.dtype}, {shape_of(q.shape)}"],
        ["method", f"{q.method}, {q.num_levels} levels ({q.bits} bits per code)"],
        ["size", f"{in_bytes(q.nbytes)}, {q.bits_per_value:.4g} bits per value"],
        ["error", f"vNMSE {number(q.vnmse)} expected"],
        ["seed", str(q.seed)],
    ]
    if q.block_size is not None:
        rows.append(["blocks", f"{q.block_size:,} values share a table"])
    if q.parameters:
        told = ", ".join(f"{name}={value}" for name, value in q.parameters.items())
        rows.append(["parameters", told])
    return table(rows, left=2)


def file_data(reader: qvr.Reader) -> dict[str, Any]:
    """A file's header and a row for each tensor."""
    tensors = [_tensor(reader, tensor) for tensor in reader.header.tensors]
    values = sum(one["nbytes"] for one in tensors)
    return {
        "kind": "qvr",
        "file_bytes": reader.nbytes,
        "decoded_bytes": values,
        "ratio": values / reader.nbytes,
        "seed": reader.header.seed,
        "metadata": dict(reader.header.metadata),
        "tensors": tensors,
    }


def _tensor(reader: qvr.Reader, tensor: qvr.Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "nbytes": tensor.nbytes,
        "stored_bytes": reader.stored_bytes(tensor.name),
        "quantized": tensor.quantized,
        "chunks": tensor.chunks,
        "settings": dict(tensor.settings),
    }


def file_text(name: str, data: Mapping[str, Any]) -> str:
    """The same for people."""
    tensors = data["tensors"]
    head = table(
        [
            [name, f".qvr file of {len(tensors)} tensors"],
            ["size", f"{in_bytes(data['file_bytes'])}, decoded {in_bytes(data['decoded_bytes'])}"],
            ["ratio", f"{data['ratio']:.2f}x smaller"],
            ["seed", str(data["seed"])],
            *([key, shortened(text, 80)] for key, text in sorted(data["metadata"].items())[:20]),
        ],
        left=2,
    )
    rows = [["tensor", "type", "shape", "kept as", "chunks", "bytes", "smaller"]]
    for one in tensors[:_MOST_ROWS]:
        stored = one["stored_bytes"]
        rows.append(
            [
                shortened(one["name"], _NAME),
                one["dtype"],
                shape_of(one["shape"]),
                how(one),
                str(one["chunks"]),
                f"{stored:,}",
                f"{one['nbytes'] / stored:.1f}x" if stored else "-",
            ]
        )
    more = len(tensors) - _MOST_ROWS
    rest = [f"... and {more} more: --json has all"] if more > 0 else []
    return "\n\n".join([head, table(rows, left=4), *rest])


def how(one: Mapping[str, Any]) -> str:
    """How a tensor is stored, in two words."""
    if not one["quantized"]:
        return "raw"
    settings = one["settings"]
    bits, method = settings.get("bits"), settings.get("method")
    return " ".join([str(method or "quantized"), *([f"{bits} bits"] if bits else [])])


def chunk_data(reader: qvr.Reader, name: str) -> list[dict[str, Any]]:
    """What each chunk of a tensor is; reads them all."""
    rows = []
    for chunk in reader.chunks(name):
        content = chunk.content
        row: dict[str, Any] = {"first": chunk.first, "values": chunk.count, "bytes": chunk.nbytes}
        if isinstance(content, QuantizedVector):
            row |= {"method": content.method, "bits": content.bits, "vnmse": content.vnmse}
        rows.append(row)
    return rows


def chunk_text(name: str, data: Mapping[str, Any]) -> str:
    """A tensor of a file for people."""
    tensor, chunks = data["tensor"], data["chunks"]
    stored = tensor["stored_bytes"]
    kinds = Counter(chunk.get("method", "raw") for chunk in chunks)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
    smaller = f", {tensor['nbytes'] / stored:.2f}x smaller" if stored else ""
    head = table(
        [
            [name, f"{tensor['dtype']}, {shape_of(tensor['shape'])}"],
            ["kept as", how(tensor)],
            ["size", f"{in_bytes(stored)}, decoded {in_bytes(tensor['nbytes'])}{smaller}"],
            ["chunks", told],
        ],
        left=2,
    )
    rows = [["first value", "values", "bytes", "method", "bits", "vNMSE"]]
    rows += [
        [
            f"{chunk['first']:,}",
            f"{chunk['values']:,}",
            f"{chunk['bytes']:,}",
            chunk.get("method", "raw"),
            str(chunk.get("bits", "-")),
            number(chunk.get("vnmse")),
        ]
        for chunk in chunks[:_MOST_ROWS]
    ]
    return f"{head}\n\n{table(rows, left=0)}" if chunks else head
