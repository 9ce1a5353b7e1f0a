"""What schemas are put together from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quiver_kernels.wire import MAX_BATCH_VECTORS, MAX_LIST_NUMBERS, MAX_NAME_BYTES

Json = dict[str, Any]


def ref(name: str) -> Json:
    """The shared schema of that name."""
    return {"$ref": f"#/components/schemas/{name}"}


BIN = {"type": "string", "format": "binary"}
NUMBERS = {"type": "array", "items": {"type": "number"}, "maxItems": MAX_LIST_NUMBERS}


def array_of(what: str) -> Json:
    """An array in any of its forms."""
    return {
        "description": f"{what} A tensor; or a bare `bin` of little-endian float32; or a short "
        f"list of at most {MAX_LIST_NUMBERS} numbers, taken as float32.",
        "anyOf": [ref("Tensor"), BIN, NUMBERS],
    }


def many(item: Json, what: str) -> Json:
    """A list of items, or a map of them by name."""
    return {
        "description": what,
        "anyOf": [
            {"type": "array", "items": item, "minItems": 1, "maxItems": MAX_BATCH_VECTORS},
            {
                "type": "object",
                "additionalProperties": item,
                "propertyNames": {
                    "minLength": 1,
                    "maxLength": MAX_NAME_BYTES,
                    "description": f"At most {MAX_NAME_BYTES} bytes of UTF-8.",
                },
                "minProperties": 1,
                "maxProperties": MAX_BATCH_VECTORS,
            },
        ],
    }


def closed_object(description: str, properties: Json, required: Sequence[str]) -> Json:
    """A map without other keys."""
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }
