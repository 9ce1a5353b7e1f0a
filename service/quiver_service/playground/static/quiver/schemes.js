/**
 * Schemes: methods whose messages have `parameters`. Each says which numbers of levels and parameters
 * it takes, how many bytes its codes have, checks its side information, and decodes.
 */

import { drive, eden } from "./eden.js";
import { require } from "./errors.js";
import { levelsType, limitsOf, roomFor, rounderOf } from "./numbers.js";
import { blockOf, blocksOf, packedSize, unpackCodes } from "./packing.js";
import { checkNoLevels, checkSide, refuseCode } from "./scheme_parts.js";
import { ectcq, tcq } from "./trellis.js";

const SCALE = { scale: { choices: ["search", "max", "mean"], default: "search" } };
const normChoice = (preset) => ({ norm: { choices: ["l2", "linf"], default: preset } });
const MODEL = { model: { choices: ["norms", "pooled"], default: "norms" } };
const WIDTHS = [4, 8, 16, 32, 64, 128, 256];
const upTo = (low, high, step = 1) =>
  Array.from({ length: Math.floor((high - low) / step) + 1 }, (_, i) => low + i * step);

/** Least and most bytes of codes. */
const exactly = (size) => [size, size];
const packed = (q) => packedSize(q.size, q.bits, blockOf(q.size, q.blockSize));

function checkScales(q, signed) {
  checkSide(q, { scales: [levelsType(q.dtype), blocksOf(q.size, q.blockSize)] });
  const fine = q.side.scales.values.every((scale) => Number.isFinite(scale) && (signed || scale >= 0));
  require(fine, "side.scales", signed ? "must be finite" : "must be finite and not negative", "something else", "invalid_levels");
}

/** The function that rounds a product once to a type: never infinite, and zeros without a sign. */
export function clippedTo(dtype) {
  const { largest } = limitsOf(dtype), round = rounderOf(dtype);
  return (x) => round(Math.max(-largest, Math.min(largest, x))) + 0;
}

/** Entry times scale. */
function products(q, codes, table, scaleOf, block) {
  const out = roomFor(q.dtype, q.size), round = clippedTo(q.dtype);
  for (let start = 0, row = 0; start < q.size; start += block, row++) {
    const stop = Math.min(start + block, q.size), scale = scaleOf(row);
    const entries = Float64Array.from(table, (entry) => round(entry * scale));
    for (let i = start; i < stop; i++) {
      if (codes[i] >= table.length) refuseCode(codes[i], table.length);
      out[i] = entries[codes[i]];
    }
  }
  return out;
}

// -- one table times a scale for each block -------------------------------------------------

/** Ternary codes, five to a byte. */
const trits = {
  size(q) {
    const block = blockOf(q.size, q.blockSize), whole = Math.floor(q.size / block);
    return whole * Math.ceil(block / 5) + Math.ceil((q.size - whole * block) / 5);
  },
  unpack(q) {
    const block = blockOf(q.size, q.blockSize), codes = new Uint8Array(q.size);
    let at = -1;
    for (let start = 0; start < q.size; start += block) {
      const stop = Math.min(start + block, q.size);
      for (let i = start, byte = 0; i < stop; i++) {
        if ((i - start) % 5 === 0) {
          byte = q.codes[++at];
          require(byte < 243, "codes", "must be bytes below 243", byte, "invalid_codes");
        }
        codes[i] = byte % 3;
        byte = Math.floor(byte / 3);
      }
    }
    return codes;
  },
};

const bits = { size: packed, unpack: (q) => unpackCodes(q.codes, q.size, q.bits, blockOf(q.size, q.blockSize)) };

/** @param {Record<number, number[]>} tables By number of levels. */
function scaled(tables, parameters, { signed = false, ternary = false } = {}) {
  const packing = (q) => (ternary && q.numLevels === 3 ? trits : bits);
  return {
    levelCounts: Object.keys(tables).map(Number),
    parameters,
    payload: (q) => exactly(packing(q).size(q)),
    check(q) {
      checkNoLevels(q);
      checkScales(q, signed);
    },
    decode(q) {
      const scales = q.side.scales.values;
      return products(q, packing(q).unpack(q), tables[q.numLevels], (row) => scales[row], blockOf(q.size, q.blockSize));
    },
  };
}

// -- a table on [-1, 1] times the norm of each block ------------------------------------------

const padded = (table, count) => [...table, ...Array(count - table.length).fill(1)];
const evenSteps = (count) => {
  const half = Math.floor((count - 1) / 2);
  return padded(upTo(-half, half).map((j) => j / half), count);
};
const powersOfTwo = (count) => {
  const half = Math.floor((count - 1) / 2), positive = upTo(0, half - 1).map((j) => 2 ** (j + 1 - half));
  return padded([...positive.map((level) => -level).reverse(), 0, ...positive], count);
};

/** @param {((count: number) => number[]) | null} tableOf null: the table travels. */
function normed(levelCounts, parameters, tableOf) {
  return {
    levelCounts,
    parameters,
    payload: (q) => exactly(packed(q)),
    check(q) {
      checkScales(q, false);
      if (tableOf !== null) return checkNoLevels(q);
      const table = q.levels.values;
      require(table.length === q.numLevels, "levels", `must have ${q.numLevels} numbers`, table.length, "size_mismatch");
      const whole = table[0] === -1 && table.at(-1) === 1;
      require(whole, "levels", "must go from -1 to 1", `${table[0]} to ${table.at(-1)}`, "invalid_levels");
    },
    decode(q) {
      const round = rounderOf(levelsType(q.dtype)), scales = q.side.scales.values;
      const table = tableOf === null ? q.levels.values : tableOf(q.numLevels).map(round);
      return products(q, bits.unpack(q), table, (row) => scales[row], blockOf(q.size, q.blockSize));
    },
  };
}

// -- powers of two ------------------------------------------------------------------------------

const TOPS = { float16: [-24, 15], bfloat16: [-128, 127], float32: [-128, 127], float64: [-1074, 1023] };

const pow2 = {
  levelCounts: WIDTHS,
  parameters: {
    rounding: { choices: ["linear", "log", "unbiased"], default: "linear" },
    top: { choices: ["search", "max"], default: "search" },
  },
  payload: (q) => exactly(packed(q)),
  check(q) {
    checkNoLevels(q);
    checkSide(q, { tops: [q.dtype === "float64" ? "int16" : "int8", blocksOf(q.size, q.blockSize)] });
    const [low, high] = TOPS[q.dtype];
    const fine = q.side.tops.values.every((top) => top >= low && top <= high);
    require(fine, "side.tops", `must be ${low}..${high} for ${q.dtype} vectors`, "others");
  },
  decode(q) {
    const half = q.numLevels / 2, round = rounderOf(q.dtype), out = roomFor(q.dtype, q.size);
    const block = blockOf(q.size, q.blockSize), tops = q.side.tops.values, codes = bits.unpack(q);
    for (let i = 0; i < q.size; i++) {
      const step = codes[i] % half, power = step - (half - 1) + tops[Math.floor(i / block)];
      const size = step === 0 ? 0 : round(2 ** power);
      out[i] = (codes[i] < half ? size : -size) + 0;
    }
    return out;
  },
};

// -- four-bit floats ------------------------------------------------------------------------------

const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6];
const FP4_BLOCKS = { nvfp4: 16, mx: 32, power: 32, float32: 64 };
const e4m3 = (byte) => (byte < 8 ? byte * 2 ** -9 : (8 + (byte & 7)) * 2 ** ((byte >> 3) - 10));

const fp4Block = (q) => blockOf(q.size, q.blockSize ?? FP4_BLOCKS[q.parameters.scale]);

const fp4 = {
  levelCounts: [16],
  parameters: {
    scale: { choices: Object.keys(FP4_BLOCKS), default: "nvfp4" },
    rounding: { choices: ["nearest", "stochastic"], default: "nearest" },
  },
  payload: (q) => exactly(packedSize(q.size, 4, fp4Block(q))),
  check(q) {
    checkNoLevels(q);
    const kind = q.parameters.scale, blocks = Math.ceil(q.size / fp4Block(q)), type = levelsType(q.dtype);
    const most = (limit) => {
      const top = q.side.scales.values.reduce((found, byte) => Math.max(found, byte), 0);
      require(top <= limit, "side.scales", `must be at most ${limit}`, top, "invalid_levels");
    };
    if (kind === "float32") {
      checkSide(q, { scales: [type, blocks] });
      const fine = q.side.scales.values.every((scale) => Number.isFinite(scale) && scale >= 0);
      require(fine, "side.scales", "must be finite and not negative", "something else", "invalid_levels");
    } else if (kind === "nvfp4") {
      checkSide(q, { scales: ["uint8", blocks], global: [type, 1] });
      most(0x7e);
      const [unit] = q.side.global.values;
      require(Number.isFinite(unit) && unit > 0, "side.global", "must be finite and positive", unit, "invalid_levels");
    } else {
      const shifted = "shift" in q.side;
      checkSide(q, { scales: ["uint8", blocks], ...(shifted ? { shift: ["int16", 1] } : {}) });
      most(254);
      if (!shifted) return;
      const [shift] = q.side.shift.values, place = (byte) => byte - 127 + shift;
      const fine = shift !== 0 && q.side.scales.values.every((byte) => place(byte) >= -1074 && place(byte) <= 1023);
      require(fine, "side.shift", "must not be 0, and exponents with it must be -1074..1023", shift);
    }
  },
  decode(q) {
    const { scales, global, shift } = q.side, kind = q.parameters.scale;
    const scaleOf = {
      nvfp4: (row) => Math.min(e4m3(scales.values[row]) * global.values[0], Number.MAX_VALUE),
      float32: (row) => scales.values[row],
    }[kind] ?? ((row) => 2 ** (scales.values[row] - 127 + (shift?.values[0] ?? 0)));
    const block = fp4Block(q);
    return products(q, unpackCodes(q.codes, q.size, 4, block), E2M1, scaleOf, block);
  },
};

const SEQ = { 2: [-1, 1], 3: [-2 / 3, 0, 2 / 3], 4: [-0.75, -0.25, 0.25, 0.75] };

/** By method. */
export const SCHEMES = Object.freeze({
  __proto__: null,
  seq: scaled(SEQ, SCALE, { ternary: true }),
  lsq: scaled({ 8: upTo(-4, 3), 16: upTo(-8, 7) }, SCALE),
  sign: scaled({ 2: [-1, 1] }, {}),
  signed_binary: scaled({ 2: [0, 1] }, {}, { signed: true }),
  qsgd: normed([...upTo(3, 255, 2), ...WIDTHS], normChoice("l2"), evenSteps),
  terngrad: normed([3, 4], normChoice("linf"), evenSteps),
  nuqsgd: normed(WIDTHS, normChoice("l2"), powersOfTwo),
  amq: normed(WIDTHS, { ...normChoice("l2"), ...MODEL, multiplier: { low: 0, high: 0.999, default: 0 } }, null),
  alq: normed(upTo(3, 256), { ...normChoice("l2"), ...MODEL }, null),
  pow2,
  fp4,
  eden,
  drive,
  tcq,
  ectcq,
});
