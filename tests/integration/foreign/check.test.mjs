// What a foreign client sees of a live server (QUIVER_TEST_URL): its own arithmetic agrees with what it is told.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Refused, numbers, post, quantize, restore, tables, tensor, unpack } from "./client.mjs";
import { decode } from "@msgpack/msgpack";

const url = process.env.QUIVER_TEST_URL;
const MAX_SEED = 2n ** 64n - 1n;
const SIGMAS = 5; // the seeds are fixed, so a pass stays a pass

/** Repeatable, roughly normal float32 values (a linear congruential generator, twelve draws each). */
function sample(size, state = 1) {
  const draw = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  return Float32Array.from({ length: size }, () => {
    let sum = -6;
    for (let k = 0; k < 12; k++) sum += draw();
    return sum;
  });
}

/** The levels on both sides of x, as indices into its table. */
function neighbours(table, x) {
  let k = 0;
  while (k < table.length - 2 && table[k + 1] <= x) k++;
  return [k, k + 1];
}

/** Measured squared error, its expectation and its standard deviation, from values and levels. */
function errors(values, message) {
  const restored = restore(message);
  const table = tables(message);
  let [measured, expected, variance, norm] = [0, 0, 0, 0];
  values.forEach((x, i) => {
    const [low, high] = neighbours(table(i), x).map((k) => table(i)[k]);
    const [down, up] = [x - low, high - x];
    measured += (restored[i] - x) ** 2;
    expected += down * up;
    variance += down * up * (down - up) ** 2;
    norm += x * x;
  });
  return { measured, expected, deviation: Math.sqrt(variance), norm };
}

function assertFaithful(values, message) {
  const codes = unpack(message);
  const table = tables(message);
  values.forEach((x, i) => {
    const levels = table(i);
    assert.ok(levels[0] <= x && x <= levels.at(-1), `value ${i} is outside its table`);
    const level = levels[codes[i]];
    const [low, high] = neighbours(levels, x).map((k) => levels[k]);
    assert.ok(level === low || level === high, `value ${i}: ${x} became ${level}, not ${low} or ${high}`);
  });
}

for (let bits = 1; bits <= 8; bits++) {
  test(`${bits} bits: neighbours, length, error as stated`, async () => {
    const values = sample(20_011, bits);
    const { message } = await quantize(url, values, { bits, seed: BigInt(bits) });
    const { measured, expected, deviation, norm } = errors(values, message);

    assert.equal(message.v, 1);
    assert.equal(message.codes.length, Math.ceil((values.length * bits) / 8));
    assert.equal(numbers(message.levels).length, 2 ** bits);
    assertFaithful(values, message);
    assert.ok(Math.abs(message.vnmse - expected / norm) <= 1e-6 * message.vnmse, "vnmse is not the expectation");
    assert.ok(Math.abs(measured - expected) <= SIGMAS * deviation, `measured ${measured}, expected ${expected}`);
  });
}

test("a number of levels that is no power of two", async () => {
  const values = sample(501);
  const { message } = await quantize(url, values, { num_levels: 5, seed: 3n });

  assert.equal(message.bits, 3);
  assert.equal(numbers(message.levels).length, 5);
  assertFaithful(values, message);
});

test("each block starts on a byte and has its table", async () => {
  const values = sample(250);
  const { message } = await quantize(url, values, { bits: 3, block_size: 100, seed: 3n });

  assert.deepEqual(message.levels.shape.map(Number), [3, 8]);
  assert.equal(message.codes.length, 38 + 38 + 19);
  assertFaithful(values, message);
});

test("the first and last levels are the minimum and the maximum", async () => {
  const values = sample(999);
  const { message } = await quantize(url, values, { bits: 4 });
  const levels = numbers(message.levels);

  assert.equal(levels[0], Math.min(...values));
  assert.equal(levels.at(-1), Math.max(...values));
});

for (const constant of [0, 2.5, -1e30]) {
  test(`a constant vector of ${constant} comes back exactly`, async () => {
    const values = new Float32Array(77).fill(constant);
    const { message } = await quantize(url, values, { bits: 2, seed: 1n });

    assert.equal(message.vnmse, 0);
    assert.deepEqual(numbers(message.levels), new Float32Array(4).fill(constant));
    assert.deepEqual(restore(message), values);
  });
}

test("seeds are uint64: the largest comes back, and decides the codes", async () => {
  const values = sample(5_000);
  const [first, again, other] = await Promise.all(
    [MAX_SEED, MAX_SEED, MAX_SEED - 1n].map((seed) => quantize(url, values, { bits: 4, seed })),
  );

  assert.equal(first.message.seed, MAX_SEED);
  assert.deepEqual(first.message.codes, again.message.codes);
  assert.notDeepEqual(first.message.codes, other.message.codes);
});

test("many vectors by name are one request, each as if sent alone", async () => {
  const weight = sample(1_000);
  const bias = sample(10);
  const vectors = { weight: tensor(weight), bias: { vector: tensor(bias), bits: 8, seed: 5n } };
  const answer = decode(await post(url, "/quantize", { vectors, bits: 3, seed: MAX_SEED }), { useBigInt64: true });

  assert.deepEqual(Object.keys(answer.vectors), ["weight", "bias"]);
  assertFaithful(weight, answer.vectors.weight);
  assertFaithful(bias, answer.vectors.bias);
  const { message } = await quantize(url, weight, { bits: 3, seed: answer.vectors.weight.seed });
  assert.deepEqual(message.codes, answer.vectors.weight.codes);
  assert.ok(Number.isSafeInteger(Number(answer.vectors.weight.seed)));
});

test("a seed drawn by the server repeats its answer", async () => {
  const values = sample(5_000);
  const drawn = await quantize(url, values, { bits: 4 });
  const again = await quantize(url, values, { bits: 4, seed: BigInt(drawn.message.seed) });

  assert.deepEqual(again.message.codes, drawn.message.codes);
});

test("the server restores what this client restores", async () => {
  const { bytes, message } = await quantize(url, sample(1_003), { bits: 5 });
  const answer = decode(await post(url, "/dequantize", bytes));

  assert.deepEqual(answer.shape, [1_003]);
  assert.deepEqual(numbers(answer), restore(message));
});

test("a refusal is a problem document with a code", async () => {
  const refused = post(url, "/quantize", { vector: tensor(sample(8)), bits: 4, colour: "red" });

  await assert.rejects(refused, (error) => {
    assert.ok(error instanceof Refused);
    assert.equal(error.status, 422);
    assert.equal(error.problem.code, "unknown_key");
    assert.match(error.problem.detail, /colour/);
    return true;
  });
});
