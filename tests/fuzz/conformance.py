"""Requests made from the OpenAPI document, whose answers must be what the document says.

schemathesis makes valid and invalid requests for every operation of ``/openapi.json`` and checks
the answers: status, content type, headers and body as described, no 5xx, invalid requests refused.
Bodies go out as MessagePack too, which it is taught here.
"""

from __future__ import annotations

import base64
import copy
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import msgspec
import schemathesis
from hypothesis import HealthCheck
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR
from tests.fuzz import traffic
from tests.fuzz.findings import Finding

from quiver_kernels.wire import MEDIA_TYPES

# Not `positive_data_acceptance`: that sizes must agree with shapes, a schema cannot say.
CHECKS = (
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    missing_required_header,
    unsupported_method,
)
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
CONTROL_EXAMPLES = 20


@dataclass
class Report:
    """What a run saw."""

    cases: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def document_problems(document: Any) -> list[str]:
    """Where a document breaks the meta-schema of OpenAPI 3.1."""
    return [
        f"{'/'.join(map(str, error.instance_path))}: {error.message}"
        for error in OPENAPI_31_VALIDATOR.iter_errors(document)
    ]


@functools.cache
def teach() -> None:
    """Teach schemathesis the media types of the service."""

    @schemathesis.serializer(*MEDIA_TYPES)
    def packed(_: Any, value: Any) -> bytes:
        return _encoded(msgspec.msgpack.encode, value)

    @schemathesis.serializer("application/json")
    def as_json(_: Any, value: Any) -> bytes:
        return _encoded(msgspec.json.encode, value)

    @schemathesis.deserializer(*MEDIA_TYPES)
    def unpacked(_: Any, response: Any) -> Any:
        return _with_text(msgspec.msgpack.decode(response.content))

    del packed, as_json, unpacked
    # Short, of the sizes of small tensors, or of any.
    binary = st.one_of(st.sampled_from([bytes(4), bytes(8), bytes(16)]), st.binary(max_size=64))
    schemathesis.openapi.format("binary", binary)


def _encoded(encode: Any, value: Any) -> bytes:
    try:
        return encode(_with_bytes(value))
    except (OverflowError, TypeError, ValueError):
        # What the format cannot hold, such as integers beyond 64 bits.
        return json.dumps(value, default=str).encode()


def _with_bytes(value: Any) -> Any:
    if isinstance(value, str):
        return getattr(value, "data", value)
    if isinstance(value, dict):
        return {key: _with_bytes(item) for key, item in value.items()}
    return [_with_bytes(item) for item in value] if isinstance(value, list) else value


def _with_text(value: Any) -> Any:
    """The value as the document shows it: bins as base64 text."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: _with_text(item) for key, item in value.items()}
    return [_with_text(item) for item in value] if isinstance(value, list) else value


def operations(schema: Any) -> Iterator[Any]:
    """Every operation of a document."""
    for result in schema.get_all_operations():
        yield result.ok()


_ATTEMPTS = 5


def conform(
    url: str, examples: int, seed: int, *, paths: Sequence[str] = (), document: Any = None
) -> Report:
    """Ask every operation `examples` times in either mode.

    Parameters
    ----------
    url
        Of the service.
    examples, seed
        How many requests for each operation, and their random numbers.
    paths
        Only these; empty: all.
    document
        In place of the service's own.
    """
    teach()
    if document is None:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    else:
        schema = schemathesis.openapi.from_dict(document)
        schema.config.update(base_url=url)
    report = Report()
    for operation in operations(schema):
        if paths and operation.path not in paths:
            continue
        for mode in MODES:
            _ask(operation, mode, examples, seed, report)
    return report


def _ask(operation: Any, mode: GenerationMode, examples: int, seed: int, report: Report) -> None:
    """Ask one operation; once more with other requests where the generator fails at its own bytes.

    It asks its validator, which knows no bytes, whether a changed message is wrong indeed.
    """
    for attempt in range(_ATTEMPTS):
        try:
            _ask_once(operation, mode, examples, seed + attempt, report)
        except ValueError as error:
            if "Unsupported type: 'Binary'" not in str(error) or attempt == _ATTEMPTS - 1:
                raise
        else:
            return


def _ask_once(
    operation: Any, mode: GenerationMode, examples: int, seed: int, report: Report
) -> None:
    strategy = operation.as_strategy(generation_mode=mode)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=strategy)
    def ask(case: Any) -> None:
        response = case.call()
        report.cases += 1
        report.operations[operation.label] += 1
        report.statuses[str(response.status_code)] += 1
        try:
            case.validate_response(response, checks=list(CHECKS))
        except FailureGroup as group:
            for failure in group.exceptions:
                shown = " ".join(str(failure).split())[:300]
                body = repr(case.body)[:200]
                report.problems.append(f"{operation.label} {mode.value}: {shown}; body {body}")

    try:
        ask()
    except hypothesis.errors.Unsatisfiable:
        # Nothing can be wrong with a request that has no parameters and no body.
        if operation.body or mode is GenerationMode.POSITIVE:
            raise


def findings(examples: int, seed: int) -> list[Finding]:
    """The service against its document, and against a document that says too little."""
    with traffic.serving() as server:
        url = f"http://127.0.0.1:{server.port}"
        report = conform(url, examples, seed)
        document = document_of(url)
        wrong = copy.deepcopy(document)
        for change in CHANGES:
            change(wrong)
        told = conform(url, CONTROL_EXAMPLES, seed, paths=CHANGED, document=wrong)
    statuses = ", ".join(f"{count:,} x {name}" for name, count in sorted(report.statuses.items()))
    problems = (*document_problems(document), *report.problems)
    found = f"{report.cases:,} requests ({statuses}), {len(problems)} faults"
    bound = "statuses, types, headers and bodies are as the document says; invalid ones refused"
    figures = {"cases": report.cases, "statuses": dict(report.statuses)}
    main = Finding("OpenAPI document, all operations", bound, found, problems, figures)
    return [main, *(_control(change, sign, told) for change, sign in CHANGES.items())]


def _control(change: Callable[[Any], None], sign: str, report: Report) -> Finding:
    problems = tuple(problem for problem in report.problems if sign in problem)
    promise = (change.__doc__ or "").rstrip(".")
    found = f"{len(problems)} times '{sign}' in {report.cases} requests"
    return Finding(promise, "answers are as described", found, problems, control=True)


def document_of(url: str) -> Any:
    """The service's own document."""
    return schemathesis.openapi.from_url(f"{url}/openapi.json").raw_schema


# -- what is wrong with a document on purpose ----------------------------------------------


def _without_answer(document: Any) -> None:
    """A status of /dequantize is left out."""
    del document["paths"]["/dequantize"]["post"]["responses"]["422"]


def _with_other_type(document: Any) -> None:
    """Refusals of /levels are said to be XML."""
    answers = document["paths"]["/levels"]["post"]["responses"]
    answers["422"]["content"] = {"application/xml": {"schema": {"type": "string"}}}


def _with_other_answer(document: Any) -> None:
    """The service is said to have another name."""
    document["components"]["schemas"]["Info"]["properties"]["name"] = {"const": "river"}


CHANGES: Mapping[Callable[[Any], None], str] = {
    _without_answer: "Undocumented status code",
    _with_other_type: "Undocumented Content-Type",
    _with_other_answer: "Response violates schema",
}
"""What makes a document wrong, and how schemathesis says so."""
CHANGED = ("/levels", "/dequantize", "/info")
