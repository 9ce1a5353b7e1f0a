/** Entropy coded streams: rANS with 32 bits of state and words of 16 bits, in chunks. */

import { DecodeError, require } from "./errors.js";

const FIELD = "codes";
const MAX_CHUNK = 1 << 14;
const VARINT_BYTES = 3;
const LEAST = 2 ** 16;

/** One table for all symbols: `moves[state][symbol]` is the next state, `tables[state]` its table. */
export const single = (alphabet) => ({ alphabet, moves: [new Uint8Array(alphabet)], tables: [0] });

const refuse = (holds, limit, got, code = "invalid_codes") => require(holds, FIELD, limit, got, code);

/**
 * A stream whose sizes fit; takes no more memory than some times its bytes.
 * @param {Uint8Array} data @param {number} size Symbols in all.
 * @param {{alphabet: number, moves: Uint8Array[], tables: number[]}} walk
 */
export function openStream(data, size, walk) {
  refuse(data.length >= 3, "must have 3 bytes at least", data.length, "size_mismatch");
  const precision = data[0], chunk = data[1] | (data[2] << 8);
  const right = precision >= 8 && precision <= 15 && chunk >= 1 && chunk <= MAX_CHUNK;
  refuse(right, `must begin with 8..15 and a chunk of 1..${MAX_CHUNK} symbols`, `${precision}, ${chunk}`);
  const tables = [];
  let at = 3;
  for (let table = 0; table <= Math.max(...walk.tables); table++) {
    const ends = new Float64Array(walk.alphabet + 1);
    for (let symbol = 0; symbol < walk.alphabet; symbol++) {
      const [value, next] = varint(data, at, VARINT_BYTES, FIELD);
      ends[symbol + 1] = ends[symbol] + value;
      at = next;
    }
    const sum = ends[walk.alphabet];
    refuse(sum === 2 ** precision, `must have frequencies that add up to ${2 ** precision}`, sum);
    tables.push(ends);
  }
  if (at % 2 === 1) refuse(data[at++] === 0, "must have a zero byte after its tables", "another");
  const chunks = Math.ceil(size / chunk);
  refuse(data.length >= at + 6 * chunks, `must have ${at + 6 * chunks} bytes at least for ${size} symbols`, data.length, "size_mismatch");
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  let words = 0;
  for (let i = 0; i < chunks; i++) words += view.getUint16(at + 2 * i, true) + 2;
  const expected = at + 2 * chunks + 2 * words;
  refuse(data.length === expected, `must have ${expected} bytes, as its chunks say`, data.length, "size_mismatch");
  return { view, at, chunks, chunk, size, precision, tables, walk };
}

/** The symbols of a stream. @param {ReturnType<typeof openStream>} stream */
export function decodeStream({ view, at, chunks, chunk, size, precision, tables, walk }) {
  const out = new Uint16Array(size);
  const slots = tables.map((ends) => {
    const symbols = new Uint16Array(2 ** precision);
    for (let symbol = 0; symbol < walk.alphabet; symbol++) symbols.fill(symbol, ends[symbol], ends[symbol + 1]);
    return symbols;
  });
  const mask = 2 ** precision - 1;
  let place = at + 2 * chunks;
  for (let i = 0; i < chunks; i++) {
    let x = view.getUint32(place, true), state = 0;
    const end = place + 4 + 2 * view.getUint16(at + 2 * i, true);
    place += 4;
    for (let k = i * chunk; k < Math.min((i + 1) * chunk, size); k++) {
      const table = walk.tables[state], slot = x & mask, ends = tables[table];
      const symbol = slots[table][slot];
      out[k] = symbol;
      state = walk.moves[state][symbol];
      // Below 2^32: the frequency is at most 2^p.
      x = (ends[symbol + 1] - ends[symbol]) * Math.floor(x / 2 ** precision) + slot - ends[symbol];
      if (x < LEAST) {
        if (place >= end) throw unfit(i);
        x = x * LEAST + view.getUint16(place, true);
        place += 2;
      }
    }
    if (x !== LEAST || place !== end) throw unfit(i);
  }
  return out;
}

const unfit = (chunk) =>
  new DecodeError(`codes must hold words that fit the symbols of each chunk; chunk ${chunk} does not`, {
    code: "invalid_codes",
    field: FIELD,
  });

/**
 * The number at a place, seven bits a byte, least significant first, in the fewest bytes; and where
 * the next one begins.
 * @param {Uint8Array} data @param {number} at @param {number} most @param {string} field
 */
export function varint(data, at, most, field) {
  for (let value = 0, length = 1; length <= most && at < data.length; length++) {
    const byte = data[at++];
    value += (byte & 127) * 2 ** (7 * (length - 1));
    if (byte < 128) {
      require(byte > 0 || length === 1, field, "must be varints of the fewest bytes", "a longer one");
      return [value, at];
    }
  }
  throw new DecodeError(`${field} must hold whole varints of at most ${most} bytes`, { code: "size_mismatch", field });
}
