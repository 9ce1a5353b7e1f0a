"""The OpenAPI document as a whole.

Routes read bodies themselves, so FastAPI cannot derive these; they are stated here once.
"""

from __future__ import annotations

from collections.abc import Mapping

from quiver_service.openapi import operations
from quiver_service.openapi.components import COMPONENTS
from quiver_service.openapi.parts import Json

DESCRIPTION = """\
Vectors in, levels and unbiased codes out. A stochastically quantized value is, on average,
the value itself; the levels are chosen for each vector so that the expected squared error
is as small as it can be.

**Messages are MessagePack maps** (`application/vnd.msgpack`; `application/msgpack` and
`application/x-msgpack` are read too). Schemas below show them as JSON objects; properties of
`format: binary` are MessagePack `bin` (base64 text where a message is sent or asked for as
JSON). Unknown keys, duplicate keys and trailing bytes are refused.

Every body needs a `Content-Length`. Errors are RFC 9457 problem documents with a stable
`code`. `/v1/...` serves the same operations.
"""

TAGS = [
    {"name": "operations", "description": "Quantize, decode, choose levels, average, plan."},
    {"name": "operators", "description": "Health, metrics, limits."},
]

PATHS = frozenset(
    {
        *("/quantize", "/dequantize", "/levels", "/aggregate", "/plan"),
        *("/livez", "/readyz", "/healthz", "/metrics", "/info"),
        *("/", "/ui", "/docs", "/redoc", "/openapi.json"),
    }
)
"""Paths with a label of their own in logs and metrics."""


_STATED: Mapping[str, Json] = {
    "/quantize": operations.QUANTIZE,
    "/dequantize": operations.DEQUANTIZE,
    "/levels": operations.LEVELS,
    "/aggregate": operations.AGGREGATE,
    "/plan": operations.PLAN,
}


def _restore(path: str, operation: Json) -> None:
    """Put bodies back as they are stated here: FastAPI drops every null, of examples too."""
    stated = _STATED[path]
    operation["requestBody"] = stated["openapi_extra"]["requestBody"]
    operation["responses"]["200"]["content"] = stated["responses"][200]["content"]


def complete(document: Json) -> Json:
    """Add the shared schemas to the document that FastAPI made, and tidy what it guessed."""
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(COMPONENTS)
    components["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "Only where the service was started with keys.",
        }
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method == "post":
                _restore(path, operation)
                operation["security"] = [{}, {"key": []}]
                # FastAPI assumes that every answer may be JSON of any form.
                operation["responses"].pop("default", None)
    return document
