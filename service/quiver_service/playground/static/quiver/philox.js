/** Philox4x32-10: the random word of an element follows from (seed, index) alone. */

/** Counter word 2 of level sets (`simba`), and of rotations (`eden`, `drive`). */
export const SETS_STREAM = 3;
export const ROTATION_STREAM = 4;

const ROUNDS = 10;

/** The upper 32 bits of a product of two 32-bit numbers. */
function high(a, b) {
  const al = a & 0xffff, ah = a >>> 16, bl = b & 0xffff, bh = b >>> 16;
  const middle = ah * bl + ((al * bl) >>> 16);
  const lower = al * bh + (middle & 0xffff);
  return (ah * bh + Math.floor(middle / 65536) + Math.floor(lower / 65536)) >>> 0;
}

/**
 * The four words of one counter, into `out` at `at`.
 * @param {number[]} counter @param {number} key0 @param {number} key1
 * @param {Uint32Array} out @param {number} at
 */
export function philox(counter, key0, key1, out, at) {
  let [c0, c1, c2, c3] = counter;
  for (let round = 0; round < ROUNDS; round++) {
    const h0 = high(0xd2511f53, c0), l0 = Math.imul(0xd2511f53, c0) >>> 0;
    const h1 = high(0xcd9e8d57, c2), l1 = Math.imul(0xcd9e8d57, c2) >>> 0;
    c0 = (h1 ^ c1 ^ key0) >>> 0;
    c1 = l1;
    c2 = (h0 ^ c3 ^ key1) >>> 0;
    c3 = l0;
    key0 = (key0 + 0x9e3779b9) >>> 0;
    key1 = (key1 + 0xbb67ae85) >>> 0;
  }
  out[at] = c0;
  out[at + 1] = c1;
  out[at + 2] = c2;
  out[at + 3] = c3;
}

/**
 * The words of elements `start` .. `start + count - 1` of a stream.
 * @param {bigint} seed @param {number | bigint} start @param {number} count @param {number} stream
 */
export function randomWords(seed, start, count, stream) {
  const key0 = Number(seed & 0xffffffffn), key1 = Number(seed >> 32n);
  const first = BigInt(start) / 4n, skipped = Number(BigInt(start) % 4n);
  const groups = Math.ceil((skipped + count) / 4);
  const words = new Uint32Array(4 * groups);
  // Counted on in two words: BigInt for each would take most of the time.
  let low = Number(first & 0xffffffffn), top = Number(first >> 32n);
  for (let group = 0; group < groups; group++) {
    philox([low, top, stream, 0], key0, key1, words, 4 * group);
    low = (low + 1) >>> 0;
    if (low === 0) top = (top + 1) >>> 0;
  }
  return words.subarray(skipped, skipped + count);
}
