/** Trellis-coded methods: which of two quantizers a code belongs to follows from the codes before it. */

import { decodeStream, openStream } from "./entropy.js";
import { require } from "./errors.js";
import { levelsType, limitsOf, roomFor, rounderOf } from "./numbers.js";
import { packedSize, unpackCodes } from "./packing.js";
import { checkNoLevels, checkSide } from "./scheme_parts.js";

/** `moves[state][bit]`: the state after a code whose lowest bit is `bit`. */
const MACHINES = {
  "4-state": { moves: [[0, 2], [2, 0], [1, 3], [3, 1]], quantizers: [0, 0, 1, 1] },
  "8-state": {
    moves: [[0, 2], [7, 5], [1, 3], [6, 4], [2, 0], [5, 7], [3, 1], [4, 6]],
    quantizers: [0, 1, 0, 1, 0, 1, 0, 1],
  },
};
const TRELLIS = { trellis: { choices: Object.keys(MACHINES), default: "8-state" } };
const WIDTHS = [2, 4, 8, 16, 32, 64, 128, 256];

/** Call `each(i, quantizer)` for every value; every chunk begins in state 0. */
function along(size, chunk, trellis, lowestBit, each) {
  const { moves, quantizers } = MACHINES[trellis];
  for (let start = 0; start < size; start += chunk) {
    const stop = Math.min(start + chunk, size);
    for (let i = start, state = 0; i < stop; i++) {
      each(i, quantizers[state]);
      state = moves[state][lowestBit(i)];
    }
  }
}

const chunkOf = (q, preset, most) => (q.blockSize === null ? preset : Math.min(Number(q.blockSize), most));

const tcqChunk = (q) => chunkOf(q, 2 ** 12, 2 ** 18);

export const tcq = {
  levelCounts: WIDTHS,
  parameters: TRELLIS,
  payload(q) {
    const size = packedSize(q.size, q.bits, tcqChunk(q));
    return [size, size];
  },
  check(q) {
    checkNoLevels(q);
    checkSide(q, { points: [levelsType(q.dtype), 2 * q.numLevels] });
    const fine = q.side.points.values.every((point) => Number.isFinite(rounderOf(q.dtype)(point)));
    require(fine, "side.points", `must be finite as ${q.dtype}`, "NaN or infinity", "invalid_levels");
  },
  decode(q) {
    const chunk = tcqChunk(q), out = roomFor(q.dtype, q.size);
    const points = q.side.points.values.map(rounderOf(q.dtype));
    const codes = unpackCodes(q.codes, q.size, q.bits, chunk);
    along(q.size, chunk, q.parameters.trellis, (i) => codes[i] & 1, (i, quantizer) => {
      out[i] = points[quantizer | ((codes[i] & 1) << 1) | ((codes[i] >> 1) << 2)];
    });
    return out;
  },
};

// -- ECTCQ ----------------------------------------------------------------------------------------

const MAX_DIRECT = 1023;
const MAX_CLASSES = 24;

const ectcqChunk = (q) => chunkOf(q, 2 ** 13, 2 ** 14);

/**
 * Symbols: small codes, `direct` to either side of 0; then two, even and odd, of each class of
 * larger ones, whose further bits say which of the class it is.
 */
function opened(q) {
  const [direct, classes] = q.side.range.values;
  const alphabet = 2 * direct + 1 + 2 * classes;
  const lowest = Uint8Array.from({ length: alphabet }, (_, symbol) =>
    symbol <= 2 * direct ? (symbol - direct) & 1 : (symbol - 2 * direct - 1) & 1);
  const { moves, quantizers } = MACHINES[q.parameters.trellis];
  const walk = { alphabet, moves: moves.map((next) => lowest.map((bit) => next[bit])), tables: quantizers };
  const stream = openStream(q.codes, q.size, walk);
  const chunk = ectcqChunk(q);
  require(stream.chunk === chunk, "codes", `must have chunks of ${chunk} values`, stream.chunk, "invalid_codes");
  return { stream, direct };
}

/** The codes of all symbols; those of classes take their further bits in turn. */
function codesOf(symbols, direct, further) {
  const codes = new Int32Array(symbols.length);
  let at = 0;
  for (let i = 0; i < symbols.length; i++) {
    const place = symbols[i] - 2 * direct - 1;
    if (place < 0) {
      codes[i] = symbols[i] - direct;
      continue;
    }
    const width = (place >> 1) + 1;
    require(at + width <= 8 * further.length, "side.further", "must have all further bits", `${further.length} bytes`, "invalid_codes");
    let bits = 0;
    for (let k = 0; k < width; k++, at++) bits += ((further[at >> 3] >> (at & 7)) & 1) * 2 ** k;
    const least = direct + 1, parity = place & 1;
    const size = least + ((parity ^ least) & 1) + 2 * (2 ** (width - 1) + (bits >> 1) - 1);
    codes[i] = bits & 1 ? -size : size;
  }
  const filled = further.length === Math.ceil(at / 8) && (at % 8 === 0 || further[at >> 3] >> (at % 8) === 0);
  require(filled, "side.further", `must have ${Math.ceil(at / 8)} bytes, filled up with zeros`, `${further.length} bytes`, "invalid_codes");
  return codes;
}

export const ectcq = {
  levelCounts: WIDTHS,
  parameters: {
    step: { low: 0, high: 64, default: 0 },
    multiplier: { low: 0, high: 8, default: 0.6 },
    ...TRELLIS,
  },
  /** As many bytes as the service writes at most. */
  payload(q) {
    const { step } = q.parameters;
    const symbols = 2 * Math.min(MAX_DIRECT, Math.floor(q.size / 16) + 4) + 1 + 2 * MAX_CLASSES;
    const fixed = 20 + 6 * symbols + 8 * Math.ceil(q.size / ectcqChunk(q));
    const rate = step === 0 ? q.bits : Math.max(0, -Math.log2(step)) + 4;
    return [0, Math.ceil((rate * q.size) / 8 + fixed)];
  },
  check(q) {
    checkNoLevels(q);
    checkSide(q, { step: ["float64", 1], range: ["uint16", 2], further: ["uint8", null] });
    const [step] = q.side.step.values, [direct, classes] = q.side.range.values;
    require(Number.isFinite(step) && step >= 0, "side.step", "must be finite, not negative", step);
    const inside = direct <= MAX_DIRECT && classes <= MAX_CLASSES;
    require(inside, "side.range", `must be at most ${MAX_DIRECT} and ${MAX_CLASSES}`, `${direct} and ${classes}`);
    const most = Math.ceil((q.size * classes) / 8), { length } = q.side.further.values;
    require(length <= most, "side.further", `must have at most ${most} bytes`, length, "size_mismatch");
    if (!q.wrap?.entropy) opened(q);
  },
  decode(q) {
    const { stream, direct } = opened(q);
    const codes = codesOf(decodeStream(stream), direct, q.side.further.values);
    const [step] = q.side.step.values, { largest } = limitsOf(q.dtype);
    const round = rounderOf(q.dtype), out = roomFor(q.dtype, q.size);
    along(q.size, stream.chunk, q.parameters.trellis, (i) => codes[i] & 1, (i, quantizer) => {
      const multiple = 2 * codes[i] - quantizer * Math.sign(codes[i]);
      out[i] = round(Math.max(-largest, Math.min(largest, multiple * step + 0)));
    });
    return out;
  },
};
