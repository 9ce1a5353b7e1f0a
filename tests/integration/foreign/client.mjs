// A client in another language, written from docs/wire-format.md alone: it shares no code with QUIVER.

import { decode, encode } from "@msgpack/msgpack";

const MEDIA_TYPE = "application/vnd.msgpack";
const BIGINT = { useBigInt64: true }; // a seed may be any uint64

export class Refused extends Error {
  constructor(status, problem) {
    super(`${status} ${problem.code}: ${problem.detail}`);
    this.status = status;
    this.problem = problem;
  }
}

/** A float32 vector as a tensor of the wire: little-endian bytes, whatever this machine's order is. */
export function tensor(values) {
  const data = new Uint8Array(4 * values.length);
  const view = new DataView(data.buffer);
  values.forEach((value, i) => view.setFloat32(4 * i, value, true));
  return { dtype: "float32", shape: [values.length], data };
}

/** The numbers of a float32 tensor of the wire. */
export function numbers({ dtype, data }) {
  if (dtype !== "float32") throw new TypeError(`expected float32, got ${dtype}`);
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  return Float32Array.from({ length: data.byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** Send one message and return the answer's bytes; throw Refused with the problem document. */
export async function post(url, path, message) {
  const body = message instanceof Uint8Array ? message : encode(message, BIGINT);
  const headers = { "content-type": MEDIA_TYPE, accept: MEDIA_TYPE };
  const answer = await fetch(url + path, { method: "POST", headers, body });
  const bytes = new Uint8Array(await answer.arrayBuffer());
  if (answer.ok) return bytes;
  const isJson = answer.headers.get("content-type").includes("json");
  throw new Refused(answer.status, isJson ? JSON.parse(new TextDecoder().decode(bytes)) : decode(bytes));
}

/** Quantize a float32 vector: the message as bytes, and as a map. */
export async function quantize(url, values, options = {}) {
  const bytes = await post(url, "/quantize", { vector: tensor(values), ...options });
  return { bytes, message: decode(bytes, BIGINT) };
}

/** The codes, one number each: `bits` per value, least significant bit first, blocks on whole bytes. */
export function unpack({ bits, shape, block_size: blockSize, codes }) {
  const size = shape.reduce((product, n) => product * Number(n), 1);
  const block = blockSize === null ? size : Number(blockSize);
  const blockBytes = Math.ceil((block * bits) / 8);
  const unpacked = new Uint8Array(size);
  for (let i = 0; i < size; i++) {
    const start = Math.floor(i / block) * blockBytes * 8 + (i % block) * bits;
    for (let b = 0; b < bits; b++) {
      const position = start + b;
      unpacked[i] |= ((codes[position >> 3] >> (position & 7)) & 1) << b;
    }
  }
  return unpacked;
}

/** For each value, the level table of its block. */
export function tables(message) {
  const levels = numbers(message.levels);
  const s = message.num_levels;
  const block = message.block_size === null ? Infinity : Number(message.block_size);
  return (i) => {
    const at = Math.floor(i / block) * s;
    return levels.subarray(at, at + s);
  };
}

/** The vector that a message stands for. */
export function restore(message) {
  const table = tables(message);
  return Float32Array.from(unpack(message), (code, i) => table(i)[code]);
}
