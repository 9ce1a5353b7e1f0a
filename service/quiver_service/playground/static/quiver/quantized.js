/** The quantized vector: one message, read strictly, and decoded to numbers. */

import { DecodeError, InvalidArgument, UnsupportedMethod, require } from "./errors.js";
import { bytesOf, decodeMarked, encodeMessagePack } from "./msgpack.js";
import {
  Tensor, checkKeys, checkShape, isInteger, isMap, isNumber, levelsType, numberOf, numbersOf, roomFor,
  rounderOf, vectorType,
} from "./numbers.js";
import { blockOf, blocksOf, packedSize, unpackCodes } from "./packing.js";
import { SETS_STREAM, randomWords } from "./philox.js";
import { refuseCode } from "./scheme_parts.js";
import { SCHEMES } from "./schemes.js";
import { readWrap, unwrapped, wrapped } from "./wrap.js";

const NEEDED = ["v", "method", "bits", "num_levels", "shape", "dtype", "block_size", "seed", "levels", "codes", "vnmse"];
const OPTIONAL = ["device", "timings_ms", "level_sets", "parameters", "side", "wrap"];
const SIMBA = "simba";
const MAX_NAME = 32;
/** Decoded values unless told otherwise: 1 GiB of float32. */
const MAX_VALUES = 2 ** 28;

/** A vector as level tables and packed codes, or as what a scheme makes; it never changes. */
export class QuantizedVector {
  #fields;

  /** Use `fromBytes`. @param {object} parts @param {object} fields */
  constructor(parts, fields) {
    Object.assign(this, parts);
    this.#fields = fields;
    Object.freeze(this);
  }

  /**
   * Read one message. Codes are a view of `bytes`.
   * @param {Uint8Array | ArrayBuffer} bytes
   * @throws {DecodeError} Damaged, or parts that do not fit each other.
   * @throws {UnsupportedMethod} A scheme that is not known here.
   */
  static fromBytes(bytes) {
    return QuantizedVector.fromFields(decodeMarked(bytesOf(bytes)));
  }

  /** Read the map of a message whose floats are marked. @param {any} map @param {string} [where] */
  static fromFields(map, where = "") {
    checkKeys(map, NEEDED, OPTIONAL, where === "" ? "message" : where.slice(0, -1));
    return new QuantizedVector(read(map, where), map);
  }

  /** Number of values. */
  get size() {
    return this.shape.reduce((product, n) => product * n, 1);
  }

  /** The message as bytes. @returns {Uint8Array} */
  toBytes() {
    return encodeMessagePack(this.#fields);
  }

  /** The message's map, to stand in another message. */
  toFields() {
    return this.#fields;
  }

  /**
   * The decoded values, in C order: Float64Array of float64 vectors, else Float32Array.
   * @param {{maxValues?: number}} [limits] More values than that are refused.
   * @throws {DecodeError} A code beyond its table, or too many values.
   */
  dequantize({ maxValues = MAX_VALUES } = {}) {
    const size = this.size;
    if (!(maxValues >= 0)) throw new InvalidArgument("maxValues must be a number, not negative", "maxValues");
    require(size <= maxValues, "shape", `must have at most ${maxValues} values (maxValues)`, size, "too_many_elements");
    return wrapped(this, decoded(unwrapped(this)));
  }
}

function decoded(q) {
  if (q.parameters !== null) return SCHEMES[q.method].decode(q);
  return q.levelSets === null ? lookedUp(q) : ofSets(q);
}

function lookedUp(q) {
  const { size, numLevels } = q;
  const block = blockOf(size, q.blockSize);
  const table = q.levels.values.map(rounderOf(q.dtype));
  const codes = unpackCodes(q.codes, size, q.bits, block);
  const out = roomFor(q.dtype, size);
  for (let start = 0, row = 0; start < size; start += block, row += numLevels) {
    const stop = Math.min(start + block, size);
    for (let i = start; i < stop; i++) {
      if (codes[i] >= numLevels) refuseCode(codes[i], numLevels);
      out[i] = table[row + codes[i]];
    }
  }
  return out;
}

/** Level sets: the set of each value follows from the seed. */
function ofSets(q) {
  const { size, numLevels, levelSets } = q;
  const table = q.levels.values.map(rounderOf(q.dtype));
  const codes = unpackCodes(q.codes, size, q.bits, size);
  const out = roomFor(q.dtype, size);
  const step = 1 << 16;
  for (let start = 0; start < size; start += step) {
    const words = randomWords(q.seed, start, Math.min(step, size - start), SETS_STREAM);
    for (let i = 0; i < words.length; i++) {
      const set = Math.floor((levelSets * words[i]) / 2 ** 32);
      const code = codes[start + i];
      if (code >= numLevels) refuseCode(code, numLevels);
      out[start + i] = table[set * numLevels + code];
    }
  }
  return out;
}

// -- reading ------------------------------------------------------------------------------

function read(map, where) {
  checkTypes(map, where);
  require(map.v === 1, `${where}v`, "must be 1", map.v, "unsupported_version");
  checkRanges(map, where);
  const size = checkShape(map.shape, `${where}shape`);
  require(size > 0, `${where}shape`, "must hold at least one value", map.shape, "empty_vector");
  const dtype = vectorType(map.dtype, `${where}dtype`);
  const timings = Object.entries(map.timings_ms ?? {}).map(([name, value]) => [name, numberOf(value)]);
  const parts = {
    method: map.method,
    bits: map.bits,
    numLevels: map.num_levels,
    shape: Object.freeze([...map.shape]),
    dtype,
    blockSize: map.block_size,
    seed: BigInt(map.seed),
    levels: Tensor.fromMap(map.levels, `${where}levels`),
    codes: map.codes,
    vnmse: numberOf(map.vnmse),
    device: map.device ?? "cpu",
    timingsMs: Object.freeze(Object.fromEntries(timings)),
    levelSets: map.level_sets ?? null,
    parameters: null,
    side: null,
    wrap: null,
  };
  if ((map.parameters ?? null) === null) {
    require((map.side ?? null) === null, `${where}side`, "needs parameters", "none", "missing_key");
  } else readScheme(map, parts, where);
  checkShapeOfLevels(parts, size, where);
  checkLevels(parts, where);
  parts.wrap = readWrap(map.wrap ?? null, parts, size, where);
  checkCodes({ ...parts, size }, where);
  return parts;
}

function checkCodes(q, where) {
  const scheme = isScheme(q) ? SCHEMES[q.method] : null;
  scheme?.check(q);
  const own = packedSize(q.size, q.bits, blockOf(q.size, q.blockSize));
  const [least, most] = scheme === null ? [own, own] : scheme.payload(q);
  const how = q.wrap?.entropy ?? null;
  if (scheme === null && how !== null) {
    require(how.symbols === "codes", `${where}wrap.entropy.symbols`, `must be codes for method ${q.method}`, how.symbols);
  }
  const [got, field] = how === null ? [q.codes.length, "codes"] : [how.size, "wrap.entropy.size"];
  // Streams of their own have been opened already; their length is as it is.
  const fits = (got >= least && got <= most) || (how === null && least !== most);
  const limit = least === most ? `${most}` : `at most ${most}`;
  require(fits, `${where}${field}`, `must be ${limit} bytes for ${q.size} values`, got, "size_mismatch");
}

function checkTypes(map, where) {
  const text = (value) => typeof value === "string";
  const whole = (value) => isInteger(value);
  const orNil = (test) => (value) => value === null || value === undefined || test(value);
  const isBin = (value) => value instanceof Uint8Array;
  const mapOf = (test) => (value) => isMap(value) && Object.values(value).every(test);
  const isValue = (value) => typeof value === "boolean" || text(value) || isNumber(value);
  const isPart = (value) => Array.isArray(value) && value.length === 2 && text(value[0]) && isBin(value[1]);
  const present = (test) => (value) => value === undefined || test(value);
  const types = {
    v: [whole, "an integer"], method: [text, "text"], bits: [whole, "an integer"],
    num_levels: [whole, "an integer"], dtype: [text, "text"], seed: [whole, "an integer"],
    block_size: [orNil(whole), "an integer or nil"], codes: [isBin, "bin"], vnmse: [isNumber, "a number"],
    device: [present(text), "text"], timings_ms: [present(mapOf(isNumber)), "a map of numbers"],
    level_sets: [orNil(whole), "an integer"], side: [orNil(mapOf(isPart)), "a map of a type and bin each"],
    parameters: [orNil(mapOf(isValue)), "a map of booleans, numbers and text"],
    wrap: [orNil(isMap), "a map"],
  };
  for (const [key, [test, kind]] of Object.entries(types)) {
    require(test(map[key]), `${where}${key}`, `must be ${kind}`, typeof map[key], "invalid_type");
  }
}

function checkRanges(map, where) {
  const inside = (key, low, high, limit) => {
    require(map[key] >= low && map[key] <= high, `${where}${key}`, limit, map[key]);
  };
  inside("bits", 1, 8, "must be 1..8");
  inside("num_levels", 2, 1 << map.bits, `must be 2..${1 << map.bits} for ${map.bits} bits`);
  if (map.block_size !== null) inside("block_size", 1, 2n ** 63n - 1n, "must be positive or null");
  inside("seed", 0, 2n ** 64n - 1n, "must be an unsigned 64-bit integer");
  const vnmse = numberOf(map.vnmse);
  require(Number.isFinite(vnmse) && vnmse >= 0, `${where}vnmse`, "must be finite and not negative", vnmse);
  for (const key of ["method", "device"]) {
    // Characters are counted, not halves of surrogate pairs.
    const count = [...(map[key] ?? "cpu")].length;
    require(count > 0 && count <= MAX_NAME, `${where}${key}`, `must have 1..${MAX_NAME} characters`, count);
  }
  const timings = Object.values(map.timings_ms ?? {}).map(numberOf);
  require(timings.length <= 16, `${where}timings_ms`, "must have at most 16 entries", timings.length);
  require(timings.every(Number.isFinite), `${where}timings_ms`, "must be finite", "NaN or infinity");
  const isSimba = map.method === SIMBA;
  const sets = map.level_sets ?? null;
  const fine = isSimba ? sets !== null && sets >= 2 && sets <= 8 : sets === null;
  require(fine, `${where}level_sets`, isSimba ? "must be 2..8 for method simba" : "is for method simba only", sets);
  if (isSimba) require(map.block_size === null, `${where}block_size`, "must be null for method simba", map.block_size);
}

function checkLevels(parts, where) {
  const { levels, dtype, numLevels } = parts;
  const wanted = levelsType(dtype), field = `${where}levels`;
  require(levels.dtype === wanted, `${field}.dtype`, `must be ${wanted} for ${dtype} vectors`, levels.dtype, "unsupported_dtype");
  const round = rounderOf(dtype);
  const finite = levels.values.every((value) => Number.isFinite(value) && (isScheme(parts) || Number.isFinite(round(value))));
  require(finite, field, `must be finite as ${dtype}`, "NaN or infinity", "invalid_levels");
  const ascend = levels.values.every((value, i) => i % numLevels === 0 || value >= levels.values[i - 1]);
  require(ascend, field, "must ascend", "a descending pair", "invalid_levels");
}

const isScheme = (parts) => parts.parameters !== null;

function checkShapeOfLevels(parts, size, where) {
  const { levels, numLevels, blockSize, levelSets } = parts;
  const field = `${where}levels.shape`;
  if (isScheme(parts)) {
    const right = levels.shape.length === 1 && (levels.shape[0] === 0 || levels.shape[0] === numLevels);
    return require(right, field, `must be [0] or [${numLevels}]`, levels.shape, "size_mismatch");
  }
  const expected = blockSize === null ? [numLevels] : [blocksOf(size, blockSize), numLevels];
  if (levelSets !== null) expected.unshift(levelSets);
  const right = levels.shape.length === expected.length && expected.every((n, i) => n === levels.shape[i]);
  require(right, field, `must be [${expected.join(", ")}]`, levels.shape, "size_mismatch");
}

/** What a scheme's message has beside: parameters, side information. */
function readScheme(map, parts, where) {
  const { method, numLevels, bits } = parts;
  const scheme = SCHEMES[method];
  if (scheme === undefined) {
    if (["exact", "approx", "accelerated", "uniform", SIMBA].includes(method)) {
      require(false, `${where}method`, "must be a scheme where there are parameters", method, "unsupported_method");
    }
    throw new UnsupportedMethod(method);
  }
  const { levelCounts, parameters } = scheme;
  require(levelCounts.includes(numLevels), `${where}num_levels`, `must be one that ${method} takes`, numLevels);
  const fewest = Math.ceil(Math.log2(numLevels));
  require(bits === fewest, `${where}bits`, `must be ${fewest} for ${numLevels} levels`, bits);
  for (const name of Object.keys(map.parameters)) {
    require(Object.hasOwn(parameters, name), `${where}parameters`, `must be ${Object.keys(parameters).join(", ") || "none"}`, name.slice(0, 32));
  }
  const chosen = Object.entries(parameters).map(([name, one]) => [name, chosenOf(one, map.parameters[name], `${where}parameters.${name}`)]);
  parts.parameters = Object.freeze(Object.fromEntries(chosen));
  parts.side = Object.freeze(readSide(map.side ?? {}, where));
}

function chosenOf({ choices, low, high, default: preset }, value, field) {
  if (value === undefined) return preset;
  if (choices !== undefined) {
    require(choices.includes(value), field, `must be one of ${choices.join(", ")}`, value?.value ?? value);
    return value;
  }
  const number = isNumber(value) ? numberOf(value) : NaN;
  require(number >= low && number <= high, field, `must be a number from ${low} to ${high}`, number);
  return number;
}

function readSide(side, where) {
  const names = Object.keys(side);
  const fine = names.length <= 8 && names.every((name) => [...name].length > 0 && [...name].length <= MAX_NAME);
  require(fine, `${where}side`, `must have at most 8 parts with names of 1..${MAX_NAME} characters`, names.length);
  const found = Object.create(null);
  for (const name of names) {
    const [dtype, data] = side[name];
    found[name] = Object.freeze({ dtype, values: numbersOf(data, dtype, `${where}side.${name}`) });
  }
  return found;
}
