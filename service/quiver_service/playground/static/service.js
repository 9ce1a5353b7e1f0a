// The service that this page came from: requests, and problem documents as errors.

import { encodeMessagePack } from "./quiver/msgpack.js";

export const MESSAGE = "application/vnd.msgpack";
// This file is at ui/ below the service, wherever a proxy has put it.
const BASE = new URL("../", import.meta.url);

// Milliseconds until a lost request is sent again.
const AGAIN = 250;

/** What the service, or the way to it, said instead of an answer. */
export class Problem extends Error {
  constructor(title, document = {}) {
    super(document.detail ?? title);
    this.title = title;
    this.status = document.status ?? 0;
    this.code = document.code ?? "";
    this.requestId = document.request_id ?? "";
    this.retryAfter = document.retry_after_seconds ?? null;
  }
}

/** The address of a path of this service. */
export const address = (path) => new URL(path.startsWith("/") ? path.slice(1) : path, BASE);

/** Send a request, and once more if the connection broke; the answer, whatever its status. */
export async function send(path, { key = "", headers = {}, ...rest } = {}) {
  if (!/^[!-~]*$/.test(key)) throw new Problem("The key cannot be sent", { detail: "A key holds printable ASCII characters only." });
  const all = new Headers(headers);
  if (key) all.set("Authorization", `Bearer ${key}`);
  const request = { ...rest, headers: all, cache: "no-store", credentials: "omit" };
  const once = () => fetch(address(path), request);
  const lost = (error) => error instanceof TypeError;
  try {
    // Every request is pure: it may be sent again. A network that changes breaks all connections.
    return await once().catch(async (error) => {
      if (!lost(error)) throw error;
      await new Promise((resolve) => { setTimeout(resolve, AGAIN); });
      return once();
    });
  } catch (error) {
    if (!lost(error)) throw error;
    throw new Problem("The service cannot be reached", { detail: "It does not answer, or the connection broke. Is it still running?" });
  }
}

/** Send a request and check its status; raises a Problem. */
export async function call(path, options = {}) {
  const answer = await send(path, options);
  if (answer.ok) return answer;
  let problem = {};
  try {
    problem = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  throw new Problem(problem.title ?? `Status ${answer.status}`, { status: answer.status, ...problem });
}

/** Post a MessagePack body; the bytes of the answer. */
export async function post(path, body, options = {}) {
  const headers = { "Content-Type": MESSAGE, Accept: `${MESSAGE}, application/problem+json` };
  const answer = await call(path, { ...options, method: "POST", headers, body });
  return new Uint8Array(await answer.arrayBuffer());
}

/**
 * A message of options and one vector, in pieces: the values are neither read nor copied.
 * `vector` has dtype, shape, data (a Blob or bytes) and nbytes.
 */
export function vectorMessage(options, vector) {
  const empty = { dtype: vector.dtype, shape: vector.shape, data: new Uint8Array(0) };
  // The vector comes last, so the message ends with the head of an empty bin: c4 00.
  const head = encodeMessagePack({ ...options, vector: empty }).slice(0, -2);
  const length = new Uint8Array(5);
  length[0] = 0xc6;
  new DataView(length.buffer).setUint32(1, vector.nbytes);
  return new Blob([head, length, vector.data]);
}
