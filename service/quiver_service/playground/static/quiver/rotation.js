/** Random rotations of blocks, turned back: signs, Hadamard transforms, and turns of pairs. */

import { ROTATION_STREAM, randomWords } from "./philox.js";

const SHORT = 256;
const MOST_ROUNDS = 16;

/**
 * Turn one block back, in place.
 * @param {Float64Array} row @param {bigint} seed @param {number} start Index of its first value.
 */
export function rotateBack(row, seed, start) {
  const size = row.length, power = 2 ** Math.floor(Math.log2(size)), rest = size - power;
  const offsets = rest === 0 ? [0, 0] : [0, rest, 0, rest];
  const scale = 1 / Math.sqrt(power);
  const first = Math.floor(start / 8);
  const words = randomWords(seed, first, Math.ceil((start + size) / 8) - first, ROTATION_STREAM);
  for (let number = offsets.length - 1; number >= 0; number--) {
    if (rest > 0 && number % 2 === 1) mix(row);
    const part = row.subarray(offsets[number], offsets[number] + power);
    transform(part);
    for (let i = 0; i < power; i++) part[i] *= scale;
    for (let i = 0; i < size; i++) {
      const place = start + i - 8 * first;
      // Eight values share a word, four bits each, one for each pass.
      if ((words[Math.floor(place / 8)] >>> (4 * (place % 8) + number)) & 1) row[i] = -row[i];
    }
  }
  if (size > 1 && size < SHORT) turnPairsBack(row, seed, start);
}

/** Its own inverse: sums and differences of values half of the length apart. */
function mix(row) {
  const half = Math.floor(row.length / 2), factor = Math.sqrt(0.5);
  for (let i = 0; i < half; i++) {
    const a = row[i], b = row[half + i];
    row[i] = (a + b) * factor;
    row[half + i] = (a - b) * factor;
  }
}

/** The Hadamard transform, without scale, from neighbours outwards. */
function transform(part) {
  for (let distance = 1; distance < part.length; distance *= 2) {
    for (let start = 0; start < part.length; start += 2 * distance) {
      for (let i = start; i < start + distance; i++) {
        const a = part[i], b = part[i + distance];
        part[i] = a + b;
        part[i + distance] = a - b;
      }
    }
  }
}

function turnPairsBack(row, seed, start) {
  const size = row.length, rounds = size >= 16 ? 8 : MOST_ROUNDS;
  const firstOf = (number) => BigInt(number + 1) << 52n;
  const shifts = randomWords(seed, firstOf(MOST_ROUNDS), rounds, ROTATION_STREAM);
  for (let number = rounds - 1; number >= 0; number--) {
    const shift = shifts[number] % size;
    const words = randomWords(seed, firstOf(number) + BigInt(start), size, ROTATION_STREAM);
    for (let i = 0; i < size; i++) {
      const j = (shift - i + size) % size;
      if (i >= j) continue;
      const t = (words[i] + 0.5) * 2 ** -31 - 1, inverse = 1 / (1 + t * t);
      const cosine = (1 - t * t) * inverse, sine = -(2 * t * inverse);
      const a = row[i], b = row[j];
      row[i] = cosine * a - sine * b;
      row[j] = sine * a + cosine * b;
    }
  }
}
