// MessagePack by itself: every width, and everything that is refused.

import assert from "node:assert/strict";
import test from "node:test";

import { DecodeError, InvalidArgument, decodeMessagePack, encodeMessagePack } from "../../clients/js/src/index.js";

const hex = (text) => Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
const plain = (value) => (Array.isArray(value) ? value.map(plain)
  : typeof value === "object" && value !== null && !(value instanceof Uint8Array)
    ? Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item)])) : value);

const WRITTEN = [
  [null, "c0"], [false, "c2"], [true, "c3"], [0, "00"], [127, "7f"], [-1, "ff"], [-32, "e0"], [128, "cc80"],
  [255, "ccff"], [256, "cd0100"], [65_535, "cdffff"], [65_536, "ce00010000"], [2 ** 32, "cf0000000100000000"],
  [2n ** 64n - 1n, "cfffffffffffffffff"], [-33, "d0df"], [-128, "d080"], [-129, "d1ff7f"], [-32_769, "d2ffff7fff"],
  [-(2n ** 63n), "d38000000000000000"], [1.5, "cb3ff8000000000000"], [-0, "cb8000000000000000"], ["", "a0"],
  ["né", "a36ec3a9"], ["x".repeat(32), `d920${"78".repeat(32)}`], [new Uint8Array([1, 2]), "c4020102"],
  [[], "90"], [[1, [2]], "92019102"], [{}, "80"], [{ a: 1 }, "81a16101"], [new Map([["2", 0], ["1", 0]]), "82a13200a13100"],
  [{ ["__proto__"]: 1 }, "81a95f5f70726f746f5f5f01"],
];

test("values are written in the fewest bytes", () => {
  for (const [value, bytes] of WRITTEN) assert.deepEqual(encodeMessagePack(value), hex(bytes), String(bytes));
});

test("what is written is read again", () => {
  for (const [value, bytes] of WRITTEN) {
    if (!(value instanceof Map)) assert.deepEqual(plain(decodeMessagePack(hex(bytes))), value);
  }
  const listOf = (size) => Array.from({ length: size }, (_, i) => i);
  for (const size of [15, 16, 31, 32, 255, 256, 300]) {
    const map = Object.fromEntries(listOf(size).map((i) => [`k${i}`, i]));
    for (const value of ["é".repeat(size), new Uint8Array(size).fill(7), listOf(size), map]) {
      assert.deepEqual(plain(decodeMessagePack(encodeMessagePack(value))), value);
    }
  }
  for (const size of [65_535, 65_536]) {
    assert.equal(decodeMessagePack(encodeMessagePack("x".repeat(size))).length, size);
    assert.equal(decodeMessagePack(encodeMessagePack(new Uint8Array(size))).length, size);
    assert.equal(decodeMessagePack(encodeMessagePack(Array(size).fill(0)), { maxItems: 65_537 }).length, size);
  }
});

test("other widths are read too", () => {
  const read = [["cd0001", 1], ["d000", 0], ["d3ffffffffffffffff", -1], ["ca3fc00000", 1.5], ["da0001" + "61", "a"],
    ["db00000001" + "61", "a"], ["c500010f", new Uint8Array([15])], ["c6000000010f", new Uint8Array([15])],
    ["dc000101", [1]], ["dd0000000101", [1]], ["de0001a16101", { a: 1 }], ["df00000001a16101", { a: 1 }]];
  for (const [bytes, value] of read) assert.deepEqual(plain(decodeMessagePack(hex(bytes))), value, bytes);
});

test("keys cannot reach a prototype", () => {
  const found = decodeMessagePack(hex("81a95f5f70726f746f5f5f81a16101"));
  assert.equal(found.a, undefined);
  assert.equal({}.a, undefined);
  assert.deepEqual(Object.keys(found), ["__proto__"]);
});

const REFUSED = {
  malformed_message: ["", "c1", "d40000", "c70100aa", "cb0000", "a2c3", "a1ff", "c4", "c405", "dcffff", "ddffffffff", "dfffffffff",
    "c6ffffffff00", "8101", "81c00101", "91".repeat(7) + "00", "d6ff00000000"],
  trailing_bytes: ["0000", "c0c0", "8080"],
  duplicate_key: ["82a16101a16102", "82a16101d9016102"],
};

test("what is no strict message is refused", () => {
  for (const [code, all] of Object.entries(REFUSED)) {
    for (const bytes of all) {
      assert.throws(() => decodeMessagePack(hex(bytes)), (error) => error instanceof DecodeError && error.code === code, bytes);
    }
  }
});

test("limits are those of the format, or others", () => {
  const nested = (depth) => hex("91".repeat(depth) + "00");
  assert.ok(decodeMessagePack(nested(6)));
  assert.ok(decodeMessagePack(nested(60), { maxDepth: 60 }));
  assert.ok(decodeMessagePack(hex("91".repeat(6) + "90")), "an empty array holds no level");
  const wide = encodeMessagePack(Array(65_535).fill(0));
  assert.equal(decodeMessagePack(wide).length, 65_535);
  assert.throws(() => decodeMessagePack(encodeMessagePack(Array(65_536).fill(0))), /more than 65536 values/);
});

test("what a message cannot hold is not written", () => {
  const circular = [];
  circular.push(circular);
  for (const value of [undefined, () => 1, Symbol("x"), new Date(), new Float32Array(1), 2n ** 64n, -(2n ** 63n) - 1n, { a: undefined },
    new Map([[1, 2]]), circular]) {
    assert.throws(() => encodeMessagePack(value), InvalidArgument);
  }
});

test("a message is bytes", () => {
  for (const value of ["80", [0x80], null, undefined, new Uint16Array(1)]) {
    assert.throws(() => decodeMessagePack(value), InvalidArgument);
  }
  assert.deepEqual(plain(decodeMessagePack(hex("80").buffer)), {});
});
