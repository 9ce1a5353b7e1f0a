"""What is sent to the service: good requests with broken bodies, and broken heads.

`Range.shot` makes the bytes of one case and says which ends are right.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.fuzz.codec import STORMS, Target
from tests.fuzz.mutator import changed_bytes, mutated, source

from quiver_kernels.wire import MEDIA_TYPE, MEDIA_TYPES

OCTETS = "application/octet-stream"
JSON = "application/json"

# Every status of a refusal that is the client's fault, and success.
ANY = frozenset({200, 400, 404, 405, 408, 411, 413, 415, 422})
BODY = frozenset({200, 400, 413, 415, 422})
# Longer than any body here, shorter than anything that may be allocated.
TOO_LONG = 1 << 30

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Shot:
    """One case as it goes out.

    Attributes
    ----------
    kind
        What is broken.
    data
        What is sent.
    statuses
        Statuses that may come.
    answers
        How many answers may come at most; each is read.
    must_answer
        Whether closing without an answer is a fault.
    all_answers
        Whether all of `answers` must come, unless one announces the end of the connection.
    rest
        Sent when the server asks for it with ``100 Continue``.
    leaves
        Whether the client closes the connection without waiting.
    keeps
        Whether the connection may serve the next case.
    head
        Whether answers have no body (HEAD).
    """

    kind: str
    data: bytes
    statuses: frozenset[int] = ANY
    answers: int = 1
    must_answer: bool = True
    all_answers: bool = False
    rest: bytes = b""
    leaves: bool = False
    keeps: bool = False
    head: bool = False


@dataclass(frozen=True)
class Request:
    """A request in parts that can be broken one by one."""

    path: bytes
    body: bytes
    method: bytes = b"POST"
    query: bytes = b""
    version: bytes = b"HTTP/1.1"
    media_type: bytes = MEDIA_TYPE.encode()
    headers: Headers = field(default_factory=list)

    def fields(self) -> Headers:
        """Header fields, those that a request needs first."""
        return [
            (b"Host", b"test"),
            (b"Content-Type", self.media_type),
            (b"Content-Length", str(len(self.body)).encode()),
            *self.headers,
        ]

    def line(self) -> bytes:
        """The request line."""
        target = self.path + (b"?" + self.query if self.query else b"")
        return b" ".join((self.method, target, self.version)) + b"\r\n"

    def encode(self, fields: Headers | None = None) -> bytes:
        """Head and body; `fields` in place of its own."""
        lines = (name + b": " + value + b"\r\n" for name, value in fields or self.fields())
        return self.line() + b"".join(lines) + b"\r\n" + self.body


def with_field(fields: Headers, name: bytes, *values: bytes) -> Headers:
    """`fields` with `values` for `name`, however many."""
    others = [item for item in fields if item[0].lower() != name.lower()]
    return [*others, *((name, value) for value in values)]


# -- bodies -------------------------------------------------------------------------------

ROUTES: Mapping[str, bytes] = {
    "quantize": b"/quantize",
    "quantize many": b"/quantize",
    "levels": b"/levels",
    "quantized vector": b"/dequantize",
    "aggregate": b"/aggregate",
}
ACCEPTS = (
    MEDIA_TYPE.encode(),
    b"application/json",
    b"*/*",
    b"application/json;q=0.5, application/msgpack;q=0.4",
    b"application/vnd.msgpack;q=nan, application/json;q=-1",
    b"text/html",
    b";;,,;q=",
    b"\xff\xfe",
    b"a/b;" * 500,
)
QUERIES = (
    *(b"bits=2", b"bits=9", b"bits", b"bits=2&bits=2", b"=", b"&&", b"%", b"%zz=1", b"bits=%ff"),
    *(b"seed=18446744073709551616", b"seed=1e9", b"num_levels=2&bits=1", b"method=exact;bits=2"),
    *(b"bits=+2", b"bits=%32", b"bits=\xd9\xa2", b"b[]=1", b"vector=1", b"weights=1", b"?", b"#"),
    *(b"&".join(b"a%d=1" % i for i in range(64)), b"method=" + b"x" * 4000, b"bins=1" + b"0" * 900),
    *(b"block_size=null", b"seed=nan", b"device=gpu", b"device=cpu&grid=uniform&bins=3"),
)


@dataclass(frozen=True)
class Range:
    """Everything that may be sent.

    Attributes
    ----------
    targets
        The decoders of request bodies, by name, with their seeds.
    kinds
        Only these kinds of cases; empty: all.
    routes
        Only these routes; empty: all.
    """

    targets: Mapping[str, Target]
    kinds: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()

    def shot(self, seed: int, number: int) -> Shot:
        """Case `number`."""
        rng = source(seed, number)
        kinds = self.kinds or tuple(KINDS)
        [kind] = rng.choices(kinds, [KINDS[name][1] for name in kinds])
        return replace(KINDS[kind][0](self, rng), kind=kind)

    def good(self, rng: random.Random) -> Request:
        """A request that is served."""
        name = rng.choice(self.routes or tuple(ROUTES))
        seed = rng.choice(self.targets[name].seeds)
        prefix = b"/v1" if rng.random() < 0.2 else b""
        return Request(prefix + ROUTES[name], seed.data)

    def broken(self, rng: random.Random) -> Request:
        """A request whose body is mutated and whose head is right."""
        name = rng.choice(self.routes or tuple(ROUTES))
        seeds = self.targets[name].seeds
        request = self.good(rng)
        headers: Headers = []
        if rng.random() < 0.3:
            headers.append((b"Accept", rng.choice(ACCEPTS)))
        body = mutated(rng, rng.choice(seeds), rng.choice(seeds))
        return replace(request, path=ROUTES[name], body=body, headers=headers)


def bodies(all_: Range, rng: random.Random) -> Shot:
    """A mutated MessagePack body."""
    return Shot("", all_.broken(rng).encode(), BODY, keeps=True)


def json_bodies(all_: Range, rng: random.Random) -> Shot:
    """A mutated JSON body."""
    seeds = all_.targets["quantize JSON"].seeds
    body = mutated(rng, rng.choice(seeds), rng.choice(seeds))
    request = Request(b"/quantize", body, media_type=JSON.encode())
    if rng.random() < 0.5:
        request = replace(request, headers=[(b"Accept", b"application/json")])
    return Shot("", request.encode(), BODY, keeps=True)


def raw_bodies(all_: Range, rng: random.Random) -> Shot:
    """Raw values with options in the query string, either broken."""
    seed = rng.choice(all_.targets["quantize raw"].seeds)
    query, _, body = seed.data.partition(b"\0")
    kind = rng.randrange(3)
    if kind == 0:
        body = changed_bytes(rng, body)
    elif kind == 1:
        query = bytes(c if 32 < c < 127 else 63 for c in changed_bytes(rng, query))
    else:
        query = b"&".join(rng.sample(QUERIES, rng.randint(1, 2)))
    request = Request(b"/quantize", body, query=query, media_type=OCTETS.encode())
    # What is no ASCII in a target is refused before the service sees it.
    return Shot("", request.encode(), BODY, keeps=query.isascii())


def storms(all_: Range, rng: random.Random) -> Shot:
    """A megabyte of small values."""
    name = rng.choice(all_.routes or tuple(ROUTES))
    body = rng.choice(STORMS[:4] if all_.routes else STORMS)
    media_type = JSON if body[:1] in (b"[", b"{") and name == "quantize" else MEDIA_TYPE
    request = Request(ROUTES[name], body, media_type=media_type.encode())
    return Shot("", request.encode(), BODY)


def pipelined(all_: Range, rng: random.Random) -> Shot:
    """Two or three requests in one packet."""
    makers = (all_.good, all_.broken)
    requests = [rng.choice(makers)(rng) for _ in range(rng.randint(2, 3))]
    data = b"".join(request.encode() for request in requests)
    return Shot("", data, BODY, answers=len(requests), all_answers=True)


# -- heads --------------------------------------------------------------------------------

BAD_LENGTHS = (
    *(b"-1", b"+5", b"5, 5", b"0x10", b"1e3", b"", b" ", b"5 5", b"5;", b"\xd9\xa3", b"nan", b"\0"),
    *(b"18446744073709551616", b"18446744073709551615", b"9223372036854775808", b"9" * 40),
    *(b"0" * 30 + b"5", b"00", b"1_0", b"\t7", str(TOO_LONG).encode(), b"9223372036854775807"),
)


def lengths(all_: Range, rng: random.Random) -> Shot:
    """A Content-Length that is no number, too large, or given twice."""
    request = all_.good(rng)
    true = str(len(request.body)).encode()
    values = rng.choice(
        (
            (rng.choice(BAD_LENGTHS),),
            (true, true),
            (true, rng.choice(BAD_LENGTHS)),
            (),
        )
    )
    fields = with_field(request.fields(), b"Content-Length", *values)
    return Shot("", request.encode(fields), ANY, answers=2)


def short_bodies(all_: Range, rng: random.Random) -> Shot:
    """A Content-Length that is a little more or less than what comes."""
    request = all_.good(rng)
    size = len(request.body) + rng.choice((-len(request.body), -9, -1, 1, 8))
    fields = with_field(request.fields(), b"Content-Length", str(max(size, 0)).encode())
    return Shot("", request.encode(fields), ANY, answers=4)


TRANSFER = (
    *(b"chunked", b"Chunked", b"gzip, chunked", b"chunked, chunked", b"identity", b"xchunked"),
    *(b"chunked;q=1", b" chunked", b"\x0bchunked", b"chunked\0", b"", b"deflate", b"gzip"),
)


def transfer(all_: Range, rng: random.Random) -> Shot:
    """A Transfer-Encoding, with and without a length, and chunks that lie."""
    request = all_.good(rng)
    fields = request.fields()
    if rng.random() < 0.7:
        fields = with_field(fields, b"Content-Length")
    fields = [*fields, (b"Transfer-Encoding", rng.choice(TRANSFER))]
    body = request.body
    size = rng.choice(
        (b"%x" % len(body), b"%x" % (len(body) + 9), b"1", b"f" * 16, b"f" * 17, b"-1", b"g", b"")
    )
    extension = rng.choice((b"", b";a=b", b";" + b"x" * 4000))
    chunks = size + extension + b"\r\n" + body + rng.choice((b"\r\n", b"", b"\n")) + b"0\r\n"
    trailer = rng.choice((b"\r\n", b"a: b\r\n\r\n", b"Content-Length: 5\r\n\r\n", b""))
    return Shot("", replace(request, body=chunks + trailer).encode(fields), ANY, answers=4)


def chunk_storms(all_: Range, rng: random.Random) -> Shot:
    """Thousands of chunks of one byte."""
    request = replace(
        all_.good(rng), body=b"1\r\na\r\n" * rng.choice((1, 100, 5000)) + b"0\r\n\r\n"
    )
    fields = with_field(request.fields(), b"Content-Length")
    return Shot("", request.encode([*fields, (b"Transfer-Encoding", b"chunked")]), ANY)


def expecting(all_: Range, rng: random.Random) -> Shot:
    """Expect: accepted, beyond the limit, or of an unknown kind."""
    request = all_.broken(rng)
    fields = request.fields()
    kind = rng.randrange(3)
    if kind == 0:
        fields = with_field(fields, b"Content-Length", str(TOO_LONG).encode())
        fields.append((b"Expect", b"100-continue"))
        return Shot("", request.encode(fields)[: -len(request.body) or None], frozenset({413}))
    if kind == 1 and request.body:
        fields.append((b"Expect", rng.choice((b"100-continue", b"100-Continue"))))
        head = replace(request, body=b"").encode(fields)
        return Shot("", head, BODY, rest=request.body)
    fields.append((b"Expect", rng.choice((b"200-ok", b"", b"100-continue, x", b"\xff"))))
    return Shot("", request.encode(fields), ANY)


def hosts(all_: Range, rng: random.Random) -> Shot:
    """No Host, several, an empty or strange one; other versions of HTTP."""
    request = replace(
        all_.good(rng),
        version=rng.choice(
            (
                b"HTTP/1.1",
                b"HTTP/1.1",
                b"HTTP/1.0",
                b"HTTP/0.9",
                b"HTTP/2.0",
                b"HTTP/1.2",
                b"X",
                b"",
            )
        ),
    )
    values = rng.choice(((), (b"a", b"a"), (b"a", b"b"), (b"",), (b"a:b:c",), (b"\xff@",)))
    return Shot("", request.encode(with_field(request.fields(), b"Host", *values)), ANY, answers=2)


METHODS = (
    *(b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"PATCH", b"PROPFIND"),
    *(
        b"FOO",
        b"post",
        b"P\xd6ST",
        b"",
        b"POST" * 200,
        b"PRI",
        b"GE\0T",
        b"\t",
        b"QUERY",
        b"SOURCE",
    ),
)


def methods(all_: Range, rng: random.Random) -> Shot:
    """Another method."""
    method = rng.choice(METHODS)
    request = replace(all_.good(rng), method=method)
    if rng.random() < 0.5:
        request = replace(request, body=b"")
    return Shot("", request.encode(), ANY, answers=2, head=method == b"HEAD")


PATHS = (
    *(b"/", b"//", b"//quantize", b"/quantize/", b"/Quantize", b"/v1", b"/v1/v1/quantize", b"*"),
    *(b"/v2/quantize", b"/quantize%00", b"/%2e%2e/quantize", b"/../../etc/passwd", b"/%", b"/%zz"),
    *(
        b"http://other/quantize",
        b"quantize",
        b"",
        b"/\xff\xfe",
        b"/" + b"a" * 60_000,
        b"/quantize#x",
    ),
    *(
        b"/qu antize",
        b"/quantize;a=b",
        b"/" + b"%41" * 5000,
        b"/livez/..",
        b"/\x7f",
        b"/%F0%9F%92%A3",
    ),
)
PROBES = (b"/livez", b"/readyz", b"/healthz", b"/info", b"/metrics", b"/docs", b"/openapi.json")


def paths(all_: Range, rng: random.Random) -> Shot:
    """Another target."""
    return Shot("", replace(all_.good(rng), path=rng.choice(PATHS)).encode(), ANY, answers=2)


def probes(all_: Range, rng: random.Random) -> Shot:
    """Probes and pages, with bodies and queries that they do not have."""
    request = Request(
        rng.choice(PROBES),
        rng.choice((b"", b"", b"x", b"\xc1" * 100)),
        method=rng.choice((b"GET", b"GET", b"GET", b"POST", b"HEAD")),
        query=rng.choice((b"", b"verbose", b"verbose=1&verbose=2", b"%ff", b"a=" + b"b" * 3000)),
    )
    return Shot("", request.encode(), ANY, answers=1, head=request.method == b"HEAD")


NAMES = (
    *(b"X Y", b"X\0Y", b"\xff", b"X:Y", b"", b" X", b"X\tY", b"X(", b"X\r", b"content_length"),
    *(b"X-Request-ID", b"Accept", b"Authorization", b"Content-Encoding", b"Content-Type"),
    *(b"Connection", b"Upgrade", b"Keep-Alive", b"TE", b"Trailer", b"Range", b"Cookie", b"Origin"),
    *(b"traceparent", b"X-Request-Timeout", b"X-Forwarded-For", b"If-None-Match", b"Date"),
    *(b"Sec-WebSocket-Key", b"HTTP2-Settings", b"Proxy-Connection", b"Content-Range", b"Via"),
)
VALUES = (
    *(
        b"",
        b" ",
        b"x",
        b"\xff\xfe",
        b"a\0b",
        b"a\rb",
        b"a\r\n b",
        b"a\nb",
        b"a\x0bb",
        b"\x7f",
        b"\t",
    ),
    *(b"close", b"keep-alive", b"Upgrade", b"websocket", b"h2c", b"upgrade, close", b"gzip", b"br"),
    *(
        b"Bearer ",
        b"Bearer x",
        b"Basic eA==",
        b"bearer \xff",
        b"0",
        b"-1",
        b"1e999",
        b"nan",
        b"inf",
    ),
    *(
        b"0.0001",
        b"9" * 400,
        b"x" * 129,
        b"a" * 128,
        b"../..",
        b"%s",
        b"{}",
        b"<script>",
        b"identity",
    ),
    *(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"bytes=0-1", b"trailers", b"*"),
    *(
        b"text/plain",
        b"application/json",
        b"application/json; charset=utf-16",
        b"multipart/form-data",
    ),
)


def odd_fields(all_: Range, rng: random.Random) -> Shot:
    """One to three further fields with odd names or values."""
    request = all_.good(rng)
    fields = request.fields()
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(fields) + 1)
        fields.insert(place, (rng.choice(NAMES), rng.choice(VALUES)))
    return Shot("", request.encode(fields), ANY, answers=2, must_answer=False)


def long_heads(all_: Range, rng: random.Random) -> Shot:
    """One very long line, or thousands of fields."""
    request = all_.good(rng)
    fields = request.fields()
    kind = rng.randrange(4)
    if kind == 0:
        fields.append((b"X", b"y" * rng.choice((8192, 65_536, 1_000_000))))
    elif kind == 1:
        fields.append((b"X" * rng.choice((8192, 65_536, 1_000_000)), b"y"))
    elif kind == 2:
        fields += [(b"X", b"y")] * rng.choice((100, 1000, 10_000))
    else:
        fields += [(b"X-%d" % i, b"y") for i in range(rng.choice((100, 1000, 10_000)))]
    # A limit on the head may be set, and answers 400 or closes.
    return Shot("", request.encode(fields), ANY | {431}, must_answer=False)


ENCODINGS = (
    b"gzip",
    b"deflate",
    b"br",
    b"zstd",
    b"x-gzip",
    b"identity, gzip",
    b"\xff",
    b"aes128gcm",
)
TYPES = (
    *(b"text/plain", b"", b"*/*", b"application/cbor", b"multipart/form-data; boundary=x", b";"),
    *(
        b"application/msgpack; charset=\xff",
        b"application/x-www-form-urlencoded",
        b"\0",
        b"x" * 5000,
    ),
    *(JSON.encode(), OCTETS.encode(), *(name.encode() for name in MEDIA_TYPES)),
)


def media(all_: Range, rng: random.Random) -> Shot:
    """A content encoding, or another media type than that of the body."""
    request = all_.broken(rng)
    if rng.random() < 0.5:
        request = replace(request, headers=[(b"Content-Encoding", rng.choice(ENCODINGS))])
        return Shot("", request.encode(), frozenset({400, 415}))
    request = replace(request, media_type=rng.choice(TYPES))
    return Shot("", request.encode(), BODY)


def changed_heads(all_: Range, rng: random.Random) -> Shot:
    """Any bytes of a head changed."""
    request = all_.good(rng)
    head = replace(request, body=b"").encode(request.fields())
    data = changed_bytes(rng, head) + request.body
    return Shot("", data, ANY, answers=4, must_answer=False, head=b"HEAD" in data[:8])


def garbage(all_: Range, rng: random.Random) -> Shot:
    """What is no HTTP."""
    data = rng.choice(
        (
            rng.randbytes(rng.randint(1, 400)),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(300),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
            b"\r\n" * rng.randint(1, 200),
            all_.good(rng).body,
            b"GET\r\n\r\n",
            b"\0" * 1000,
            struct.pack(">I", 100) + b"\0" * 100,
        )
    )
    return Shot("", data, ANY, answers=4, must_answer=False)


def cut_short(all_: Range, rng: random.Random) -> Shot:
    """Half a request, and the client waits or leaves."""
    data = all_.good(rng).encode()
    part = data[: rng.randrange(len(data))]
    leaves = rng.random() < 0.9
    return Shot("", part, ANY, must_answer=False, leaves=leaves)


Maker = Callable[[Range, random.Random], Shot]

# Kind: who makes it, and how many of a hundred.
KINDS: Mapping[str, tuple[Maker, float]] = {
    "bodies": (bodies, 55),
    "json_bodies": (json_bodies, 10),
    "raw_bodies": (raw_bodies, 6),
    "pipelined": (pipelined, 4),
    "media": (media, 3),
    "lengths": (lengths, 2),
    "short_bodies": (short_bodies, 0.5),
    "transfer": (transfer, 2),
    "chunk_storms": (chunk_storms, 0.5),
    "expecting": (expecting, 2),
    "hosts": (hosts, 2),
    "methods": (methods, 2),
    "paths": (paths, 2),
    "probes": (probes, 1),
    "odd_fields": (odd_fields, 4),
    "long_heads": (long_heads, 0.2),
    "changed_heads": (changed_heads, 3),
    "garbage": (garbage, 1),
    "cut_short": (cut_short, 1),
    "storms": (storms, 0.05),
}


def range_of(
    targets: Sequence[Target], kinds: Sequence[str] = (), routes: Sequence[str] = ()
) -> Range:
    """Everything that may be sent, from the decoders' seeds."""
    return Range({target.name: target for target in targets}, tuple(kinds), tuple(routes))
