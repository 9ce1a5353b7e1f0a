/**
 * MessagePack, strict: one value and nothing after it, text keys, each once, no extension types,
 * bounded depth and number of values. Lengths are checked before anything is made of them.
 */

import { DecodeError, InvalidArgument } from "./errors.js";

export const MAX_DEPTH = 6;
export const MAX_ITEMS = 65_536;

/** A number that was a float in the message, where readers must tell it from an integer. */
export class Float {
  /** @param {number} value */
  constructor(value) {
    this.value = value;
  }
}

/**
 * The value of one message. Maps become objects without a prototype, `bin` becomes a view of
 * `bytes`; integers beyond 2^53 - 1 become BigInt.
 *
 * @param {Uint8Array | ArrayBuffer} bytes
 * @param {{maxDepth?: number, maxItems?: number}} [limits]
 */
export function decodeMessagePack(bytes, limits = {}) {
  return new Reader(bytesOf(bytes), limits, (value) => value).message();
}

/** The same with floats as `Float`. @param {Uint8Array | ArrayBuffer} bytes @param {object} [limits] */
export function decodeMarked(bytes, limits = {}) {
  return new Reader(bytesOf(bytes), limits, (value) => new Float(value)).message();
}

/** @param {unknown} bytes */
export function bytesOf(bytes) {
  if (bytes instanceof Uint8Array) return bytes;
  if (bytes instanceof ArrayBuffer) return new Uint8Array(bytes);
  throw new InvalidArgument(`a message must be a Uint8Array or an ArrayBuffer; got ${typeof bytes}`);
}

/** @param {string} detail @param {string} [code] */
function malformed(detail, code = "malformed_message") {
  return new DecodeError(detail, { code });
}

class Reader {
  constructor(bytes, { maxDepth = MAX_DEPTH, maxItems = MAX_ITEMS }, float) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
    this.left = maxItems;
    this.limits = { maxDepth, maxItems };
    this.float = float;
    this.text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  }

  message() {
    const value = this.value(0);
    const more = this.bytes.length - this.at;
    if (more > 0) throw malformed(`${more} bytes follow the message`, "trailing_bytes");
    return value;
  }

  /** Where the next `count` bytes begin, which are there. */
  take(count) {
    if (count > this.bytes.length - this.at) {
      throw malformed(`message is cut short: it ends at byte ${this.bytes.length}`);
    }
    const at = this.at;
    this.at += count;
    return at;
  }

  first() {
    if (this.left === 0) {
      throw malformed(`message holds more than ${this.limits.maxItems} values; send numbers as bin`);
    }
    this.left -= 1;
    return this.bytes[this.take(1)];
  }

  value(depth) {
    const first = this.first();
    if (first < 0x80) return first;
    if (first < 0x90) return this.map(first & 15, depth);
    if (first < 0xa0) return this.array(first & 15, depth);
    if (first < 0xc0) return this.string(first & 31);
    if (first >= 0xe0) return first - 256;
    switch (first) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: case 0xc5: case 0xc6: return this.binary(this.length(first - 0xc4));
      case 0xca: return this.float(this.view.getFloat32(this.take(4)));
      case 0xcb: return this.float(this.view.getFloat64(this.take(8)));
      case 0xcc: return this.view.getUint8(this.take(1));
      case 0xcd: return this.view.getUint16(this.take(2));
      case 0xce: return this.view.getUint32(this.take(4));
      case 0xcf: return narrowed(this.view.getBigUint64(this.take(8)));
      case 0xd0: return this.view.getInt8(this.take(1));
      case 0xd1: return this.view.getInt16(this.take(2));
      case 0xd2: return this.view.getInt32(this.take(4));
      case 0xd3: return narrowed(this.view.getBigInt64(this.take(8)));
      case 0xd9: case 0xda: case 0xdb: return this.string(this.length(first - 0xd9));
      case 0xdc: case 0xdd: return this.array(this.length(first - 0xdb), depth);
      case 0xde: case 0xdf: return this.map(this.length(first - 0xdd), depth);
      default:
        throw malformed(
          `byte 0x${first.toString(16)} at offset ${this.at - 1} starts no value allowed here ` +
            "(extension types are not accepted)",
        );
    }
  }

  /** A length of 1, 2 or 4 bytes: `width` is 0, 1 or 2. */
  length(width) {
    const at = this.take(1 << width);
    if (width === 0) return this.view.getUint8(at);
    return width === 1 ? this.view.getUint16(at) : this.view.getUint32(at);
  }

  string(size) {
    const at = this.take(size);
    try {
      return this.text.decode(this.bytes.subarray(at, at + size));
    } catch {
      throw malformed(`text at offset ${at} is not UTF-8`);
    }
  }

  binary(size) {
    const at = this.take(size);
    return this.bytes.subarray(at, at + size);
  }

  /** The depth inside a container of `size` values, each a byte at least. */
  inside(size, depth) {
    if (size > this.bytes.length - this.at) this.take(size);
    if (size > 0 && depth === this.limits.maxDepth) {
      throw malformed(`message nests deeper than ${this.limits.maxDepth} levels`);
    }
    return depth + 1;
  }

  array(size, depth) {
    const inside = this.inside(size, depth);
    const found = [];
    for (let i = 0; i < size; i++) found.push(this.value(inside));
    return found;
  }

  map(size, depth) {
    const inside = this.inside(size, depth);
    const found = Object.create(null);
    for (let i = 0; i < size; i++) {
      const key = this.key();
      if (key in found) {
        const shown = JSON.stringify(key.slice(0, 40));
        throw malformed(`key ${shown} appears twice in one map`, "duplicate_key");
      }
      found[key] = this.value(inside);
    }
    return found;
  }

  key() {
    const first = this.first();
    if (first >= 0xa0 && first < 0xc0) return this.string(first & 31);
    if (first >= 0xd9 && first <= 0xdb) return this.string(this.length(first - 0xd9));
    throw malformed(`map key at offset ${this.at - 1} is not text`);
  }
}

/** @param {bigint} value */
function narrowed(value) {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

/**
 * One value as a message. Objects and `Map` become maps, `Uint8Array` becomes `bin`, whole numbers
 * and BigInt become integers, other numbers float64.
 *
 * @param {unknown} value
 * @returns {Uint8Array}
 */
export function encodeMessagePack(value) {
  const writer = new Writer();
  writer.value(value, 0);
  return writer.bytes.slice(0, writer.at);
}

// Deeper values are taken for circular ones.
const DEEPEST = 100;

class Writer {
  constructor() {
    this.grown(new Uint8Array(256));
    this.at = 0;
  }

  grown(bytes) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer);
  }

  /** Where the next `count` bytes go. It may put other bytes in place of `bytes`: ask it first. */
  room(count) {
    const end = this.at + count;
    if (end > this.bytes.length) {
      const wider = new Uint8Array(Math.max(end, 2 * this.bytes.length));
      wider.set(this.bytes);
      this.grown(wider);
    }
    const at = this.at;
    this.at = end;
    return at;
  }

  byte(value) {
    const at = this.room(1);
    this.bytes[at] = value;
  }

  /** A length: in the first byte up to `most`, else behind one of three; `one` may be none. */
  head(size, [short, most], [one, two, four]) {
    if (size <= most) this.byte(short | size);
    else if (one !== null && size < 1 << 8) {
      this.byte(one);
      this.byte(size);
    } else if (size < 1 << 16) {
      this.byte(two);
      this.big(size, 2);
    } else if (size < 2 ** 32) {
      this.byte(four);
      this.big(size, 4);
    } else throw new InvalidArgument(`a MessagePack value holds at most 2^32 - 1 bytes; got ${size}`);
  }

  value(value, depth) {
    if (depth > DEEPEST) throw new InvalidArgument(`values nest deeper than ${DEEPEST} levels`);
    if (value === null) this.byte(0xc0);
    else if (typeof value === "boolean") this.byte(value ? 0xc3 : 0xc2);
    else if (typeof value === "number") this.number(value);
    else if (typeof value === "bigint") this.integer(value);
    else if (typeof value === "string") this.string(value);
    else if (value instanceof Float) this.float(value.value);
    else if (value instanceof Uint8Array) this.binary(value);
    else if (Array.isArray(value)) {
      this.head(value.length, [0x90, 15], [null, 0xdc, 0xdd]);
      for (const item of value) this.value(item, depth + 1);
    } else if (value instanceof Map) this.map([...value], depth);
    else if (typeof value === "object" && isPlain(value)) this.map(Object.entries(value), depth);
    else throw new InvalidArgument(`a message cannot hold ${kindOf(value)}`);
  }

  number(value) {
    if (!Number.isInteger(value) || Object.is(value, -0)) this.float(value);
    else if (value >= -32 && value < 128) this.byte(value & 255);
    else if (Number.isSafeInteger(value)) this.integer(BigInt(value));
    else this.float(value);
  }

  float(value) {
    this.byte(0xcb);
    const at = this.room(8);
    this.view.setFloat64(at, value);
  }

  integer(value) {
    if (value >= 2n ** 64n || value < -(2n ** 63n)) {
      throw new InvalidArgument(`an integer must fit 64 bits; got ${value}`);
    }
    if (value >= -32n && value < 128n) return this.byte(Number(value) & 255);
    const negative = value < 0n;
    const size = [1, 2, 4, 8].find((width) =>
      negative ? value >= -(2n ** BigInt(8 * width - 1)) : value < 2n ** BigInt(8 * width),
    );
    this.byte((negative ? 0xd0 : 0xcc) + Math.log2(size));
    this.big(value, size);
  }

  /** The lowest `size` bytes of an integer, the highest first. */
  big(value, size) {
    const at = this.room(8);
    this.view.setBigUint64(at, BigInt.asUintN(64, BigInt(value) << BigInt(64 - 8 * size)));
    this.at = at + size;
  }

  string(value) {
    const bytes = new TextEncoder().encode(value);
    this.head(bytes.length, [0xa0, 31], [0xd9, 0xda, 0xdb]);
    const at = this.room(bytes.length);
    this.bytes.set(bytes, at);
  }

  binary(value) {
    this.head(value.length, [0, -1], [0xc4, 0xc5, 0xc6]);
    const at = this.room(value.length);
    this.bytes.set(value, at);
  }

  map(entries, depth) {
    this.head(entries.length, [0x80, 15], [null, 0xde, 0xdf]);
    for (const [key, item] of entries) {
      if (typeof key !== "string") throw new InvalidArgument(`keys must be text; got ${typeof key}`);
      this.string(key);
      this.value(item, depth + 1);
    }
  }
}

function isPlain(value) {
  const prototype = Object.getPrototypeOf(value);
  return prototype === null || prototype === Object.prototype;
}

function kindOf(value) {
  return typeof value === "object" ? (value.constructor?.name ?? "an object") : typeof value;
}
