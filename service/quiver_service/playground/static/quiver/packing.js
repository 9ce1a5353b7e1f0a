/** Packed codes: so many bits per value, least significant bit first; each block begins on a byte. */

/** Values that share a table or a scale, as a number. @param {number} size @param {number | bigint | null} blockSize */
export const blockOf = (size, blockSize) =>
  blockSize === null || blockSize > size ? size : Number(blockSize);

/** Number of blocks. @param {number} size @param {number | bigint | null} blockSize */
export const blocksOf = (size, blockSize) => Math.ceil(size / blockOf(size, blockSize));

/** Bytes of `size` codes in blocks. @param {number} size @param {number} bits @param {number} block */
export function packedSize(size, bits, block) {
  const whole = Math.floor(size / block);
  return whole * Math.ceil((block * bits) / 8) + Math.ceil(((size - whole * block) * bits) / 8);
}

/** The codes, one a byte. @param {Uint8Array} packed @param {number} size @param {number} bits @param {number} block */
export function unpackCodes(packed, size, bits, block) {
  const codes = new Uint8Array(size);
  const mask = (1 << bits) - 1;
  let at = 0;
  for (let start = 0; start < size; start += block) {
    const stop = Math.min(start + block, size);
    let word = 0, held = 0;
    for (let i = start; i < stop; i++) {
      if (held < bits) {
        word |= packed[at++] << held;
        held += 8;
      }
      codes[i] = word & mask;
      word >>>= bits;
      held -= bits;
    }
  }
  return codes;
}

/** The inverse: codes to bytes. @param {Uint8Array} codes @param {number} bits @param {number} block */
export function packCodes(codes, bits, block) {
  const packed = new Uint8Array(packedSize(codes.length, bits, block));
  let at = 0;
  for (let start = 0; start < codes.length; start += block) {
    const stop = Math.min(start + block, codes.length);
    let word = 0, held = 0;
    for (let i = start; i < stop; i++) {
      word |= codes[i] << held;
      held += bits;
      if (held >= 8) {
        packed[at++] = word & 255;
        word >>>= 8;
        held -= 8;
      }
    }
    if (held > 0) packed[at++] = word;
  }
  return packed;
}
