// The client before a `fetch` of our own: what it sends, when it tries again, what it throws.

import assert from "node:assert/strict";
import test from "node:test";

import * as quiver from "../../clients/js/src/index.js";

const { QuiverClient, decodeMessagePack, encodeMessagePack } = quiver;
const URL_ = "http://127.0.0.1:1";

const tensor = (...values) => ({ dtype: "float32", shape: [values.length], data: new Uint8Array(Float32Array.from(values).buffer) });
const MESSAGE = encodeMessagePack({
  v: 1, method: "exact", bits: 1, num_levels: 2, shape: [3], dtype: "float32", block_size: null, seed: 2n ** 64n - 1n, vnmse: 0.5,
  levels: tensor(-1, 1), codes: new Uint8Array([0b101]),
});
const answered = (body, status = 200, headers = {}) => () => new Response(body, { status, headers });
const problem = (status, fields, headers) =>
  answered(JSON.stringify({ status, title: "no", detail: "it is not so", ...fields }), status, { "content-type": "application/problem+json", ...headers });

/** A client whose service gives these answers, one after the other, and what was asked for. */
function clientOf(answers, options = {}) {
  const calls = [];
  const fetch = async (url, init) => {
    calls.push({ url, ...init });
    const next = answers[Math.min(calls.length, answers.length) - 1];
    return next(init);
  };
  return { calls, client: new QuiverClient(`${URL_}/`, { fetch, ...options }) };
}

test("quantize sends options as the service names them, and a seed", async () => {
  const { client, calls } = clientOf([answered(MESSAGE)], { apiKey: "secret" });

  const q = await client.quantize(Float32Array.of(1, 2, 3, 4), {
    shape: [2, 2], numLevels: 3, blockSize: 2, method: "seq", parameters: { scale: "max" }, weights: [1, 1, 1, 1], feedbackScale: true,
  });

  assert.deepEqual([...q.dequantize()], [1, -1, 1]);
  const [{ url, method, headers, body }] = calls;
  assert.deepEqual([url, method, headers.Authorization], [`${URL_}/quantize`, "POST", "Bearer secret"]);
  assert.equal(headers["Content-Type"], "application/vnd.msgpack");
  const { seed, vector, weights, parameters, ...others } = decodeMessagePack(body);
  assert.deepEqual({ ...others }, { num_levels: 3, block_size: 2, method: "seq", feedback_scale: true });
  assert.deepEqual([...vector.shape], [2, 2]);
  assert.deepEqual([...weights.shape], [2, 2]);
  assert.deepEqual([...new Float32Array(vector.data.slice().buffer)], [1, 2, 3, 4]);
  assert.deepEqual({ ...parameters }, { scale: "max" });
  assert.ok(Number.isSafeInteger(seed) && seed >= 0);
});

test("seeds that are drawn differ, and given ones are sent as they are", async () => {
  const { client, calls } = clientOf([answered(MESSAGE)]);
  for (let i = 0; i < 20; i++) await client.quantize([1, 2]);
  await client.quantize([1, 2], { seed: 2n ** 64n - 1n });
  const seeds = calls.map(({ body }) => decodeMessagePack(body).seed);
  assert.equal(new Set(seeds).size, 21);
  assert.equal(seeds.at(-1), 2n ** 64n - 1n);
});

test("a busy service is asked again with the same bytes, not before it said", async () => {
  const busy = problem(503, { code: "busy" }, { "retry-after": "0.2" });
  const { client, calls } = clientOf([busy, busy, answered(MESSAGE)]);
  const begun = performance.now();

  await client.quantize([1, 2, 3]);

  assert.equal(calls.length, 3);
  assert.ok(performance.now() - begun >= 400);
  assert.deepEqual(calls[1].body, calls[0].body);
  assert.deepEqual(calls[2].body, calls[0].body);
});

test("retries end: at their number, at the timeout, and where the service names a later time", async () => {
  const busy = problem(503, { code: "busy" }, { "retry-after": "0" });
  const few = clientOf([busy], { maxRetries: 1 });
  await assert.rejects(few.client.quantize([1]), (error) => error instanceof quiver.Unavailable && error.code === "busy");
  assert.equal(few.calls.length, 2);
  const later = clientOf([problem(503, { code: "busy" }, { "retry-after": "30" })], { timeout: 1000 });
  await assert.rejects(later.client.quantize([1]), (error) => error.retryAfter === 30);
  assert.equal(later.calls.length, 1);
});

test("lost connections are tried again, then told", async () => {
  const lost = () => { throw new TypeError("fetch failed"); };
  const { client, calls } = clientOf([lost, answered(MESSAGE)]);
  await client.quantize([1]);
  assert.equal(calls.length, 2);
  const none = clientOf([lost], { maxRetries: 0 });
  await assert.rejects(none.client.info(), quiver.ConnectionFailed);
});

test("problems become errors by status", async () => {
  const kinds = { 400: "BadRequest", 401: "Unauthorized", 413: "TooLarge", 422: "Invalid", 429: "QuotaExceeded", 503: "Unavailable", 504: "DeadlineExceeded", 500: "ServiceError" };
  for (const [status, name] of Object.entries(kinds)) {
    const { client, calls } = clientOf([problem(Number(status), { code: "some_code", field: "bits", request_id: "r1" })], { maxRetries: 0 });
    await assert.rejects(client.quantize([1]), (error) => {
      assert.ok(error instanceof quiver[name] && error instanceof quiver.ServiceError && error instanceof quiver.QuiverError);
      assert.deepEqual([error.name, error.status, error.code, error.field, error.requestId, error.message], [name, Number(status), "some_code", "bits", "r1", "it is not so"]);
      return true;
    });
    assert.equal(calls.length, 1);
  }
  const page = clientOf([answered("<html>", 502)], { maxRetries: 0 });
  await assert.rejects(page.client.quantize([1]), (error) => error.code === "http_502" && error.status === 502);
});

test("a date says when to try again", async () => {
  const at = new Date(Date.now() + 20_000).toUTCString();
  const { client } = clientOf([problem(429, { code: "quota" }, { "retry-after": at })], { maxRetries: 0 });
  await assert.rejects(client.quantize([1]), (error) => error.retryAfter > 15 && error.retryAfter <= 20);
});

const hanging = ({ signal }) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));

test("a call ends at its timeout", async () => {
  const { client } = clientOf([hanging], { timeout: 50 });
  await assert.rejects(client.quantize([1]), quiver.TimedOut);
});

test("a call can be aborted: before, while it waits for an answer, and while it pauses", async () => {
  const before = clientOf([hanging]);
  await assert.rejects(before.client.quantize([1], { signal: AbortSignal.abort() }), { name: "AbortError" });
  assert.equal(before.calls.length, 0);
  for (const answer of [hanging, problem(503, {}, { "retry-after": "5" })]) {
    const { client } = clientOf([answer]);
    const controller = new AbortController();
    const call = client.quantize([1], { signal: controller.signal });
    setTimeout(() => controller.abort("enough"), 30);
    assert.equal(await call.catch((reason) => reason), "enough");
  }
});

test("an answer that is no message is told", async () => {
  const { client } = clientOf([answered("hello")]);
  await assert.rejects(client.quantize([1]), quiver.BadAnswer);
  await assert.rejects(client.aggregate([MESSAGE]), quiver.BadAnswer);
  await assert.rejects(client.info(), quiver.BadAnswer);
});

test("wrong arguments are refused before anything is sent", async () => {
  const { client, calls } = clientOf([answered(MESSAGE)]);
  const wrong = [
    () => client.quantize("text"), () => client.quantize(new Int32Array(2)), () => client.quantize([1, "2"]),
    () => client.quantize([1, 2], { bitz: 3 }), () => client.quantize([1, 2], { shape: [3] }), () => client.aggregate("x"),
    () => client.aggregate([[1]]), () => client.dequantize("x"), () => client.quantize([1], { seed: 2n ** 64n }),
  ];
  for (const call of wrong) await assert.rejects(call, quiver.InvalidArgument);
  assert.equal(calls.length, 0);
  for (const make of [() => new QuiverClient("ftp://x"), () => new QuiverClient(URL_, { timeout: 0 }), () => new QuiverClient(URL_, { maxRetries: -1 }), () => new QuiverClient(URL_, { retries: 1 })]) {
    assert.throws(make, quiver.InvalidArgument);
  }
});

test("many vectors go by list or by name", async () => {
  const one = decodeMessagePack(MESSAGE);
  const listed = clientOf([answered(encodeMessagePack({ v: 1, vectors: [one, one] }))]);
  assert.equal((await listed.client.quantizeMany([[1], Float64Array.of(2)])).length, 2);
  assert.equal(decodeMessagePack(listed.calls[0].body).vectors[1].dtype, "float64");
  const named = clientOf([answered(encodeMessagePack({ v: 1, vectors: { b: one, a: one } }))]);
  const found = await named.client.quantizeMany(new Map([["b", [1]], ["a", [2]]]), { bits: 1 });
  assert.deepEqual(Object.keys(found), ["b", "a"]);
  assert.deepEqual(found.a.toBytes(), MESSAGE);
});
