// The client and the decoder with a real service, at QUIVER_TEST_URL.

import assert from "node:assert/strict";
import test from "node:test";

import { Invalid, QuantizedVector, QuiverClient } from "../../clients/js/src/index.js";

const client = new QuiverClient(process.env.QUIVER_TEST_URL);
const x = Float32Array.from({ length: 3000 }, (_, i) => Math.sin(i) ** 3 * (1 + (i % 7)));

const error = (a, b) => a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0) / b.reduce((sum, value) => sum + value ** 2, 0);

test("every method of the service is decoded here as there", async () => {
  const { methods } = await client.info();
  assert.ok(methods.length >= 20);
  for (const method of methods) {
    const q = await client.quantize(x, { method, seed: 7 });
    const here = q.dequantize(), there = await client.dequantize(q);
    assert.equal(q.method, method);
    assert.deepEqual(here, there, method);
    assert.ok(error(here, x) < 100, method); // qsgd on one block has the largest.
  }
});

test("options reach the service: types, blocks, wrappers, seeds", async () => {
  const wide = Float64Array.from(x);
  const cases = [
    [wide, { bits: 3, blockSize: 100 }], [x, { numLevels: 5, method: "uniform", outliers: 0.99, entropy: true, feedbackScale: true }],
    [x, { method: "fp4", entropy: true, outliers: 0.98 }], [x, { method: "ectcq", parameters: { step: 0.5 }, blockSize: 700 }],
    [x, { method: "eden", parameters: { keep: 0.3, extra: 0.25, scale: "contraction" }, blockSize: 200 }],
    [x, { levels: Float32Array.of(-8, 0, 8) }], [x, { weights: x.map(Math.abs), bits: 2 }], [x, { shape: [3, 1000], seed: 2n ** 64n - 1n }],
  ];
  for (const [vector, options] of cases) {
    const q = await client.quantize(vector, options);
    assert.deepEqual(q.dequantize(), await client.dequantize(q.toBytes()), JSON.stringify(options, (_, value) => `${value}`));
    const again = await client.quantize(vector, { ...options, seed: q.seed });
    assert.deepEqual(again.dequantize(), q.dequantize());
  }
});

test("means are those of the decoded vectors", async () => {
  const vectors = [await client.quantize(x, { bits: 2 }), await client.quantize(x, { method: "lsq", numLevels: undefined })];
  const [a, b] = vectors.map((q) => q.dequantize());

  const mean = await client.aggregate(vectors, { weights: [1, 3] });
  const again = await client.aggregate(vectors, { quantize: { bits: 8, seed: 1 } });

  assert.ok(mean instanceof Float32Array);
  mean.forEach((value, i) => assert.ok(Math.abs(value - (a[i] + 3 * b[i]) / 4) < 1e-5));
  assert.ok(again instanceof QuantizedVector);
  assert.ok(error(again.dequantize(), a.map((value, i) => (value + b[i]) / 2)) < 1e-3);
});

test("many vectors have a seed each", async () => {
  const found = await client.quantizeMany({ weight: x, bias: x.slice(0, 10) }, { bits: 3, seed: 7 });
  const alone = await client.quantize(x, { bits: 3, seed: found.weight.seed });
  assert.deepEqual(found.weight.dequantize(), alone.dequantize());
  assert.equal(found.weight.seed, 6431797256318352n);
  assert.equal(found.bias.size, 10);
});

test("a refusal is an error with a code and a field", async () => {
  await assert.rejects(client.quantize(Float32Array.of(1, NaN)), (refused) => {
    assert.ok(refused instanceof Invalid);
    assert.deepEqual([refused.status, refused.code, refused.field], [422, "non_finite", "vector"]);
    return refused.requestId.length > 0;
  });
  await assert.rejects(client.quantize([1, 2], { bits: 9 }), { code: "invalid_option", field: "bits" });
});
