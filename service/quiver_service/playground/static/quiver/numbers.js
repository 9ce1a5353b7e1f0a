/** Element types: the bytes of numbers on the wire, and rounding to 16-bit types. */

import { DecodeError, require } from "./errors.js";
import { Float } from "./msgpack.js";

/** Bytes of an element of each type of numbers. */
export const ITEM_BYTES = Object.freeze({
  float16: 2, bfloat16: 2, float32: 4, float64: 8,
  int8: 1, int16: 2, int32: 4, int64: 8, uint8: 1, uint16: 2, uint32: 4, uint64: 8, bool: 1,
});

const VECTOR_TYPES = ["float16", "bfloat16", "float32", "float64"];
const MAX_DIMENSIONS = 8;
const MAX_ELEMENTS = 2 ** 40;

/** Largest magnitude, digits (bits of the significand) and least exponent of a vector type. */
const LIMITS = Object.freeze({
  float16: { largest: 65504, digits: 11, least: -14 },
  bfloat16: { largest: (2 - 2 ** -7) * 2 ** 127, digits: 8, least: -126 },
  float32: { largest: (2 - 2 ** -23) * 2 ** 127, digits: 24, least: -126 },
  float64: { largest: Number.MAX_VALUE, digits: 53, least: -1022 },
});

/** @param {string} dtype */
export const limitsOf = (dtype) => LIMITS[dtype];

/** @param {unknown} name @param {string} field @returns {string} */
export function vectorType(name, field) {
  require(VECTOR_TYPES.includes(name), field, `must be one of ${VECTOR_TYPES.join(", ")}`, name, "unsupported_dtype");
  return name;
}

/** Type of the level table of vectors of a type. @param {string} dtype */
export const levelsType = (dtype) => (dtype === "float64" ? "float64" : "float32");

/** Room for decoded values: 16-bit types are kept as float32. @param {string} dtype @param {number} size */
export const roomFor = (dtype, size) =>
  dtype === "float64" ? new Float64Array(size) : new Float32Array(size);

/** The function that rounds a number to a type, to the nearest, ties to even. @param {string} dtype */
export function rounderOf(dtype) {
  if (dtype === "float64") return (x) => x;
  if (dtype === "float32") return Math.fround;
  const { digits, least, largest } = LIMITS[dtype];
  // bfloat16 comes by way of float32, as in the library that writes the messages.
  const before = dtype === "bfloat16" ? Math.fround : (x) => x;
  const view = new DataView(new ArrayBuffer(8));
  return (value) => {
    const x = before(value), magnitude = Math.abs(x);
    if (!(magnitude > 0 && magnitude < Infinity)) return x;
    view.setFloat64(0, magnitude);
    const exponent = (view.getUint32(0) >>> 20) - 1023;
    const step = 2 ** (Math.max(exponent, least) - digits + 1);
    // Adding 2^52 rounds a number below it to a whole one, ties to even.
    const near = (magnitude / step + 2 ** 52 - 2 ** 52) * step;
    return Math.sign(x) * (near > largest ? Infinity : near);
  };
}

const half = (word) => {
  const exponent = (word >> 10) & 31, fraction = word & 1023, sign = word & 0x8000 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
};

/**
 * The numbers of little-endian bytes; of 16-bit types as float32.
 * @param {Uint8Array} data @param {string} dtype @param {string} field
 */
export function numbersOf(data, dtype, field) {
  const width = Object.hasOwn(ITEM_BYTES, dtype) ? ITEM_BYTES[dtype] : 0;
  require(width > 0, field, `must be of one of ${Object.keys(ITEM_BYTES).join(", ")}`, dtype, "unsupported_dtype");
  require(data.length % width === 0, field, `must hold whole ${dtype} numbers of ${width} bytes`, `${data.length} bytes`, "size_mismatch");
  const count = data.length / width;
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const filled = (Kind, read) => {
    const out = new Kind(count);
    for (let i = 0; i < count; i++) out[i] = read(i * width);
    return out;
  };
  switch (dtype) {
    case "float16": return filled(Float32Array, (at) => half(view.getUint16(at, true)));
    case "bfloat16": {
      const out = new Uint32Array(count);
      for (let i = 0; i < count; i++) out[i] = view.getUint16(2 * i, true) << 16;
      return new Float32Array(out.buffer);
    }
    case "float32": return filled(Float32Array, (at) => view.getFloat32(at, true));
    case "float64": return filled(Float64Array, (at) => view.getFloat64(at, true));
    case "int8": return filled(Int8Array, (at) => view.getInt8(at));
    case "int16": return filled(Int16Array, (at) => view.getInt16(at, true));
    case "int32": return filled(Int32Array, (at) => view.getInt32(at, true));
    case "int64": return filled(BigInt64Array, (at) => view.getBigInt64(at, true));
    case "uint16": return filled(Uint16Array, (at) => view.getUint16(at, true));
    case "uint32": return filled(Uint32Array, (at) => view.getUint32(at, true));
    case "uint64": return filled(BigUint64Array, (at) => view.getBigUint64(at, true));
    default: return data.slice(); // uint8, bool
  }
}

/** The bytes of float32 or float64 numbers, little-endian. @param {Float32Array | Float64Array} values */
export function bytesOfNumbers(values) {
  const wide = values instanceof Float64Array;
  const out = new Uint8Array(values.length * (wide ? 8 : 4));
  const view = new DataView(out.buffer);
  for (let i = 0; i < values.length; i++) {
    if (wide) view.setFloat64(8 * i, values[i], true);
    else view.setFloat32(4 * i, values[i], true);
  }
  return out;
}

/** A checked shape and its number of elements. @param {unknown} shape @param {string} field */
export function checkShape(shape, field) {
  require(Array.isArray(shape) && shape.every((n) => isInteger(n)), field, "must be an array of integers", shape, "invalid_type");
  require(shape.length <= MAX_DIMENSIONS, field, `must have at most ${MAX_DIMENSIONS} dimensions`, shape.length, "size_mismatch");
  require(shape.every((n) => n >= 0), field, "must not be negative", shape, "size_mismatch");
  // In float64 products of so few are right wherever they are near the limit.
  const size = shape.reduce((product, n) => product * Number(n), 1);
  const fits = size <= MAX_ELEMENTS && shape.every((n) => n <= MAX_ELEMENTS);
  require(fits, field, `must have at most ${MAX_ELEMENTS} elements`, shape, "too_many_elements");
  return size;
}

/** Whether a marked value is an integer. @param {unknown} value */
export const isInteger = (value) => typeof value === "bigint" || (typeof value === "number" && Number.isInteger(value));

/** Whether a marked value is any number. @param {unknown} value */
export const isNumber = (value) => value instanceof Float || isInteger(value);

/** Its value. @param {any} value */
export const numberOf = (value) => (value instanceof Float ? value.value : Number(value));

/** A tensor as it is read: type, shape and numbers. */
export class Tensor {
  constructor(dtype, shape, values) {
    this.dtype = dtype;
    this.shape = Object.freeze([...shape]);
    this.values = values;
    Object.freeze(this);
  }

  /** The map of a message. @param {any} map @param {string} field */
  static fromMap(map, field) {
    checkKeys(map, ["dtype", "shape", "data"], [], field);
    require(typeof map.dtype === "string", `${field}.dtype`, "must be text", map.dtype, "invalid_type");
    require(map.data instanceof Uint8Array, `${field}.data`, "must be bin", typeof map.data, "invalid_type");
    const dtype = vectorType(map.dtype, `${field}.dtype`);
    const size = checkShape(map.shape, `${field}.shape`);
    const expected = size * ITEM_BYTES[dtype];
    require(map.data.length === expected, `${field}.data`, `must have ${expected} bytes for its shape`, map.data.length, "size_mismatch");
    return new Tensor(dtype, map.shape, numbersOf(map.data, dtype, `${field}.data`));
  }
}

/**
 * Refuse a value that is no map of these keys.
 * @param {any} map @param {string[]} needed @param {string[]} optional @param {string} field
 */
export function checkKeys(map, needed, optional, field) {
  require(isMap(map), field, "must be a map", map === null ? "nil" : typeof map, "invalid_type");
  for (const key of Object.keys(map)) {
    require(needed.includes(key) || optional.includes(key), field, "must have no unknown key", JSON.stringify(key), "unknown_key");
  }
  for (const key of needed) {
    if (!(key in map)) throw new DecodeError(`${field} must have the key ${key}; got none`, { code: "missing_key", field });
  }
}

/** Whether a decoded value is a map. @param {unknown} value */
export const isMap = (value) =>
  typeof value === "object" && value !== null && Object.getPrototypeOf(value) === null;
