/** EDEN and DRIVE: nearest levels of the normal table after a random rotation. */

import { require } from "./errors.js";
import { normalLevels } from "./lloyd_max.js";
import { levelsType, limitsOf, roomFor, rounderOf } from "./numbers.js";
import { packedSize, unpackCodes } from "./packing.js";
import { ROTATION_STREAM, randomWords } from "./philox.js";
import { rotateBack } from "./rotation.js";
import { checkNoLevels, checkSide, refuseCode } from "./scheme_parts.js";

const DEFAULT_BLOCK = 2 ** 14;
const MAX_BLOCK = 2 ** 16;
const SPAN = 2 ** 16;
const ONE = 2 ** 32;

/** A share of values, picked evenly from a random offset; both in units of 2^-32. */
class Share {
  constructor(share, offset) {
    const units = share * ONE, near = Math.round(units);
    // Ties go to the even one.
    const whole = near - units === 0.5 && near % 2 === 1 ? near - 1 : near;
    this.share = share === 0 ? 0 : Math.max(1, whole);
    this.offset = offset;
  }

  get isAll() {
    return this.share === ONE;
  }

  /** How many of the first `stop` values are picked. */
  count(stop) {
    return Number((BigInt(stop) * BigInt(this.share) + BigInt(this.offset)) / BigInt(ONE));
  }

  /** Whether each of the values from `start` to `stop` is picked. */
  picked(start, stop) {
    const found = new Uint8Array(stop - start);
    let rest = Number((BigInt(start) * BigInt(this.share) + BigInt(this.offset)) % BigInt(ONE));
    for (let i = 0; i < found.length; i++) {
      rest = (rest + this.share) % ONE;
      found[i] = rest < this.share ? 1 : 0;
    }
    return found;
  }
}

/** How the codes of a message lie. */
function layoutOf(q) {
  const { size, bits, blockSize, parameters } = q;
  const block = Math.min(size, blockSize === null ? DEFAULT_BLOCK : Math.min(Number(blockSize), MAX_BLOCK));
  const offsets = randomWords(q.seed, 1n << 60n, 2, ROTATION_STREAM);
  const kept = new Share(parameters.keep ?? 1, offsets[0]);
  const longer = new Share(parameters.extra ?? 0, offsets[1]);
  const plain = kept.isAll && longer.share === 0;
  return { size, bits, block, kept, longer, plain, blocks: Math.ceil(size / block) };
}

/** Parts of whole blocks of one length, each with the bytes of its codes where these are not plain. */
function* spansOf({ size, bits, block, kept, longer }) {
  const whole = Math.floor(size / block), rows = Math.max(1, Math.floor(SPAN / block));
  let begin = 0;
  function span(start, stop) {
    const first = kept.count(start), last = kept.count(stop);
    const more = longer.count(last) - longer.count(first);
    const head = packedSize(last - first, bits, last - first || 1), tail = Math.ceil(more / 8);
    const found = { start, stop, first, last, more, begin, head };
    begin += head + tail;
    return { ...found, end: begin };
  }
  for (let row = 0; row < whole; row += rows) {
    yield span(row * block, Math.min(row + rows, whole) * block);
  }
  if (size > whole * block) yield span(whole * block, size);
}

function payloadOf(layout) {
  if (layout.plain) return packedSize(layout.size, layout.bits, layout.block);
  let total = 0;
  for (const span of spansOf(layout)) total = span.end;
  return total;
}

/** The values of a span whose codes are not all of one length, before they are turned back. */
function turned(q, layout, span, tables) {
  const { kept, longer, bits } = layout, count = span.last - span.first;
  const codes = unpackCodes(q.codes.subarray(span.begin, span.begin + span.head), count, bits, count || 1);
  const extra = unpackCodes(q.codes.subarray(span.begin + span.head, span.end), span.more, 1, span.more || 1);
  const isLonger = longer.picked(span.first, span.last), isKept = kept.picked(span.start, span.stop);
  const values = new Float64Array(span.stop - span.start);
  let code = 0, next = 0;
  for (let i = 0; i < values.length; i++) {
    if (!isKept[i]) continue;
    const table = tables[isLonger[code]];
    const found = codes[code] | (isLonger[code] ? extra[next++] << bits : 0);
    if (found >= table.length) refuseCode(found, table.length);
    values[i] = table[found];
    code += 1;
  }
  return values;
}

function plainly(q, codes, span, table) {
  const values = new Float64Array(span.stop - span.start);
  for (let i = 0; i < values.length; i++) {
    const code = codes[span.start + i];
    if (code >= q.numLevels) refuseCode(code, q.numLevels);
    values[i] = table[code];
  }
  return values;
}

function scheme(levelCounts, parameters) {
  return {
    levelCounts,
    parameters: { scale: { choices: ["unbiased", "contraction"], default: "unbiased" }, ...parameters },
    payload(q) {
      const most = payloadOf(layoutOf(q));
      return [most, most];
    },
    check(q) {
      const fine = !(q.parameters.extra > 0 && q.numLevels > 128);
      require(fine, "parameters.extra", "must be 0 with more than 128 levels", q.parameters.extra);
      checkSide(q, { scales: [levelsType(q.dtype), layoutOf(q).blocks], exponent: ["int16", 1] });
      checkNoLevels(q);
      const inside = q.side.scales.values.every((scale) => scale >= 0 && scale <= 2 ** 42);
      require(inside, "side.scales", "must be 0..2^42", "others", "invalid_levels");
      const [exponent] = q.side.exponent.values;
      require(exponent >= -1100 && exponent <= 1024, "side.exponent", "must be -1100..1024", exponent, "invalid_levels");
    },
    decode(q) {
      const layout = layoutOf(q), { block, plain } = layout;
      const scales = q.side.scales.values, [exponent] = q.side.exponent.values;
      const { largest } = limitsOf(q.dtype), round = rounderOf(q.dtype), out = roomFor(q.dtype, q.size);
      const tables = [normalLevels(q.numLevels)];
      if (layout.longer.share > 0) tables.push(normalLevels(2 * q.numLevels));
      const codes = plain ? unpackCodes(q.codes, q.size, q.bits, block) : null;
      // In two steps: one power of two may be beyond float64.
      const low = 2 ** Math.floor(exponent / 2), high = 2 ** (exponent - Math.floor(exponent / 2));
      for (const span of spansOf(layout)) {
        const values = plain ? plainly(q, codes, span, tables[0]) : turned(q, layout, span, tables);
        for (let start = span.start; start < span.stop; start += block) {
          const row = values.subarray(start - span.start, Math.min(start + block, span.stop) - span.start);
          const scale = scales[start / block];
          for (let i = 0; i < row.length; i++) row[i] *= scale;
          rotateBack(row, q.seed, start);
          for (let i = 0; i < row.length; i++) {
            out[start + i] = round(Math.max(-largest, Math.min(largest, row[i] * low * high)));
          }
        }
      }
      return out;
    },
  };
}

export const eden = scheme(Array.from({ length: 255 }, (_, i) => i + 2), {
  extra: { low: 0, high: 1, default: 0 },
  keep: { low: 1 / 1024, high: 1, default: 1 },
});
export const drive = scheme([2], {});
