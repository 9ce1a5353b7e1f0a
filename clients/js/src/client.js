/** The client of a service: requests over `fetch`, tried again where that may help. */

import {
  BadAnswer, ConnectionFailed, DecodeError, InvalidArgument, TimedOut, UnsupportedMethod, serviceError,
} from "./errors.js";
import { decodeMarked, decodeMessagePack, encodeMessagePack } from "./msgpack.js";
import { Tensor, bytesOfNumbers, checkKeys } from "./numbers.js";
import { QuantizedVector } from "./quantized.js";

const MEDIA_TYPE = "application/vnd.msgpack";
const RETRIED = [429, 502, 503, 504];
// As many values as an answer for the most vectors has.
const MANY = { maxItems: 393_216 };

/** Options of quantize, as callers and as messages name them. */
const OPTIONS = Object.freeze({
  bits: "bits", numLevels: "num_levels", method: "method", bins: "bins", grid: "grid", levelSets: "level_sets",
  blockSize: "block_size", seed: "seed", device: "device", worldSize: "world_size", rank: "rank",
  sharedSeed: "shared_seed", parameters: "parameters", outliers: "outliers", entropy: "entropy",
  feedbackScale: "feedback_scale",
});
const ARRAYS = Object.freeze({ weights: "weights", levels: "levels" });
const CALL = ["signal", "timeout", "shape"];

export class QuiverClient {
  #url;
  #headers;
  #options;

  /**
   * @param {string | URL} url
   * @param {{apiKey?: string, fetch?: typeof fetch, timeout?: number, maxRetries?: number}} [options]
   *   `timeout` in milliseconds for a whole call, with its retries.
   */
  constructor(url, { apiKey, fetch = globalThis.fetch, timeout = 60_000, maxRetries = 4, ...unknown } = {}) {
    refuseUnknown(unknown);
    this.#url = String(url).replace(/\/+$/, "");
    if (!/^https?:\/\//.test(this.#url)) throw new InvalidArgument(`url must begin with http:// or https://; got ${url}`, "url");
    if (typeof fetch !== "function") throw new InvalidArgument("fetch must be a function", "fetch");
    if (!(timeout > 0)) throw new InvalidArgument(`timeout must be a positive number of milliseconds; got ${timeout}`, "timeout");
    if (!(maxRetries >= 0)) throw new InvalidArgument(`maxRetries must not be negative; got ${maxRetries}`, "maxRetries");
    this.#headers = apiKey === undefined ? {} : { Authorization: `Bearer ${apiKey}` };
    this.#options = { fetch, timeout, maxRetries };
  }

  /** Quantize one vector. @param {any} vector @param {any} [options] @returns {Promise<QuantizedVector>} */
  async quantize(vector, options = {}) {
    const request = { ...optionFields(options), vector: tensorFields(vector, "vector", options.shape) };
    request.seed ??= drawnSeed();
    return this.#post("/quantize", request, options, (body) => QuantizedVector.fromBytes(body));
  }

  /**
   * Quantize many vectors in one request: an array, or an object by name.
   * @param {any} vectors @param {any} [options]
   */
  async quantizeMany(vectors, options = {}) {
    const listed = Array.isArray(vectors);
    const items = listed ? vectors.map((vector, i) => [i, vector]) : [...(vectors instanceof Map ? vectors : Object.entries(vectors))];
    const tensors = items.map(([name, vector]) => [name, tensorFields(vector, `vectors[${JSON.stringify(name)}]`)]);
    const request = { ...optionFields(options), vectors: listed ? tensors.map(([, tensor]) => tensor) : new Map(tensors) };
    request.seed ??= drawnSeed();
    return this.#post("/quantize", request, options, (body) => {
      const answer = decodeMarked(body, MANY);
      checkKeys(answer, ["v", "vectors"], [], "answer");
      const read = ([name, fields]) => [name, QuantizedVector.fromFields(fields, `vectors[${name}].`)];
      const found = Object.entries(answer.vectors).map(read);
      return listed ? found.map(([, q]) => q) : Object.fromEntries(found);
    });
  }

  /**
   * Decode on the service: for methods that are not known here. Others need no service:
   * `QuantizedVector.dequantize`.
   * @param {QuantizedVector | Uint8Array} message @param {{signal?: AbortSignal, timeout?: number}} [options]
   */
  async dequantize(message, options = {}) {
    return this.#send("/dequantize", messageBytes(message), options, readTensor);
  }

  /**
   * The weighted mean of quantized vectors: values, or with `quantize` a quantized vector.
   * @param {(QuantizedVector | Uint8Array)[]} vectors
   * @param {{weights?: number[], quantize?: any, signal?: AbortSignal, timeout?: number}} [options]
   */
  async aggregate(vectors, { weights, quantize, ...options } = {}) {
    if (!Array.isArray(vectors)) throw new InvalidArgument("vectors must be an array", "vectors");
    const request = { vectors: vectors.map(messageBytes) };
    if (weights !== undefined) request.weights = [...weights];
    if (quantize === undefined) return this.#post("/aggregate", request, options, readTensor);
    request.quantize = optionFields(quantize);
    request.quantize.seed ??= drawnSeed();
    return this.#post("/aggregate", request, options, (body) => QuantizedVector.fromBytes(body));
  }

  /** Limits, devices and methods of the service. @param {{signal?: AbortSignal, timeout?: number}} [options] */
  async info(options = {}) {
    return this.#send("/info", null, options, (body) => JSON.parse(new TextDecoder().decode(body)));
  }

  #post(path, request, options, read) {
    return this.#send(path, encodeMessagePack(request), options, read);
  }

  /** One call: the same bytes, seed included, however often they are sent. */
  async #send(path, body, { signal, timeout = this.#options.timeout }, read) {
    const ends = performance.now() + timeout;
    for (let tried = 0; ; tried++) {
      const { result, error } = await this.#try(path, body, signal, ends - performance.now(), read);
      if (error === null) return result;
      const pause = Math.max(Math.random() * Math.min(8000, 250 * 2 ** tried), 1000 * (error.retryAfter ?? 0));
      const again = (error instanceof ConnectionFailed || RETRIED.includes(error.status)) && tried < this.#options.maxRetries;
      if (!again || signal?.aborted || pause >= ends - performance.now()) throw error;
      await paused(pause, signal);
    }
  }

  /** One try: a result, or the error that it failed with. */
  async #try(path, body, signal, left, read) {
    const stop = new AbortController();
    const forward = () => stop.abort(signal.reason);
    signal?.addEventListener("abort", forward, { once: true });
    const timer = setTimeout(() => stop.abort(new TimedOut("no complete answer within the timeout")), Math.max(0, left));
    try {
      signal?.throwIfAborted();
      const answer = await this.#answer(path, body, stop.signal);
      if (answer.status !== 200) return { error: serviceError(answer) };
      return { error: null, result: readAnswer(answer, path, read) };
    } catch (error) {
      if (error instanceof ConnectionFailed) return { error };
      throw error;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", forward);
    }
  }

  async #answer(path, body, signal) {
    // JSON is for /info and for problems.
    const headers = { Accept: `${MEDIA_TYPE}, application/json;q=0.5`, ...this.#headers };
    if (body !== null) headers["Content-Type"] = MEDIA_TYPE;
    const { fetch } = this.#options;
    try {
      const response = await fetch(this.#url + path, { method: body === null ? "GET" : "POST", headers, body, signal });
      return { status: response.status, headers: response.headers, body: new Uint8Array(await response.arrayBuffer()) };
    } catch (cause) {
      if (signal.aborted) throw signal.reason;
      throw new ConnectionFailed(`no answer of ${this.#url}${path}: ${cause?.cause?.message ?? cause?.message ?? cause}`, cause);
    }
  }
}

function readAnswer(answer, path, read) {
  try {
    return read(answer.body);
  } catch (cause) {
    if (cause instanceof UnsupportedMethod) throw cause;
    if (!(cause instanceof DecodeError || cause instanceof SyntaxError)) throw cause;
    throw new BadAnswer(`the answer of ${path} cannot be read: ${cause.message}`, cause);
  }
}

const readTensor = (body) => Tensor.fromMap(decodeMessagePack(body), "answer").values;

function messageBytes(message) {
  if (message instanceof QuantizedVector) return message.toBytes();
  if (message instanceof Uint8Array) return message;
  throw new InvalidArgument("a quantized vector or its bytes are needed", "vectors");
}

/** The tensor map of numbers: float64 of a Float64Array, else float32. */
function tensorFields(vector, field, shape) {
  if (vector instanceof Tensor) return tensorFields(vector.values, field, vector.shape);
  const known = vector instanceof Float32Array || vector instanceof Float64Array;
  if (!known && !Array.isArray(vector)) throw new InvalidArgument(`${field} must be a Float32Array, a Float64Array or an array of numbers`, field);
  const values = known ? vector : Float32Array.from(vector, (value) => numberIn(value, field));
  const dims = shape === undefined ? [values.length] : [...shape];
  const size = dims.reduce((product, n) => product * n, 1);
  if (size !== values.length) throw new InvalidArgument(`shape must hold ${values.length} values; got ${size}`, "shape");
  const dtype = values instanceof Float64Array ? "float64" : "float32";
  return { dtype, shape: dims, data: bytesOfNumbers(values) };
}

function numberIn(value, field) {
  if (typeof value !== "number") throw new InvalidArgument(`${field} must hold numbers; got ${typeof value}`, field);
  return value;
}

/** The options of a request; absent ones are left out. */
function optionFields(options) {
  const found = {};
  for (const [name, value] of Object.entries(options)) {
    if (CALL.includes(name) || value === undefined) continue;
    if (Object.hasOwn(OPTIONS, name)) found[OPTIONS[name]] = value;
    else if (Object.hasOwn(ARRAYS, name)) found[ARRAYS[name]] = value === null ? null : tensorFields(value, name, name === "weights" ? options.shape : undefined);
    else refuseUnknown({ [name]: value });
  }
  return found;
}

function refuseUnknown(options) {
  for (const name of Object.keys(options)) throw new InvalidArgument(`there is no option ${JSON.stringify(name)}`, name);
}

/** 53 random bits: a safe integer. */
function drawnSeed() {
  const half = (bits) => Math.floor(Math.random() * 2 ** bits);
  if (globalThis.crypto?.getRandomValues === undefined) return half(26) * 2 ** 27 + half(27);
  const [low, high] = crypto.getRandomValues(new Uint32Array(2));
  return (high >>> 11) * 2 ** 32 + low;
}

/** Wait, unless aborted. @param {number} milliseconds @param {AbortSignal} [signal] */
function paused(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve(undefined);
    }, milliseconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
