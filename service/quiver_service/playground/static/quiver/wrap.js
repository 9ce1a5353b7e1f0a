/** What may be around a message: entropy coding, a scale, and values that are kept exactly. */

import { require } from "./errors.js";
import { decodeStream, openStream, single, varint } from "./entropy.js";
import { checkKeys, isInteger, isNumber, numberOf, numbersOf, rounderOf } from "./numbers.js";
import { blockOf, packCodes, packedSize } from "./packing.js";

const POSITION_BYTES = 6;

/** The key `wrap` of a message, checked; null where there is none. @param {any} map */
export function readWrap(map, q, size, where) {
  if (map === null) return null;
  const field = `${where}wrap`;
  checkKeys(map, [], ["outliers", "entropy", "scale"], field);
  const [outliers, entropy, scale] = [map.outliers ?? null, map.entropy ?? null, map.scale ?? null];
  const some = outliers !== null || entropy !== null || scale !== null;
  require(some, field, "must hold outliers, entropy or scale", "none of them", "missing_key");
  return Object.freeze({
    scale: scale === null ? null : readScale(scale, `${field}.scale`),
    entropy: entropy === null ? null : readEntropy(entropy, q, size, `${field}.entropy`),
    outliers: outliers === null ? null : readOutliers(outliers, q.dtype, size, `${field}.outliers`),
  });
}

function readScale(value, field) {
  require(isNumber(value), field, "must be a number", typeof value, "invalid_type");
  const scale = numberOf(value);
  require(scale > 0 && scale < 1, field, "must be between 0 and 1", scale);
  return scale;
}

function readEntropy(map, q, size, field) {
  checkKeys(map, ["symbols", "size"], [], field);
  require(["codes", "bytes"].includes(map.symbols), `${field}.symbols`, "must be codes or bytes", map.symbols);
  require(isInteger(map.size), `${field}.size`, "must be an integer", typeof map.size, "invalid_type");
  const coded = map.symbols === "codes", expected = packedSize(size, q.bits, blockOf(size, q.blockSize));
  require(map.size >= 1 && map.size <= 2 ** 43, `${field}.size`, "must be 1..2^43", map.size);
  if (coded) require(map.size === expected, `${field}.size`, `must be ${expected}`, map.size, "size_mismatch");
  openStream(q.codes, coded ? size : map.size, single(coded ? 1 << q.bits : 256));
  return Object.freeze({ symbols: map.symbols, size: map.size });
}

function readOutliers(map, dtype, size, field) {
  checkKeys(map, ["indices", "values"], [], field);
  const { indices, values: data } = map;
  const bins = indices instanceof Uint8Array && data instanceof Uint8Array;
  require(bins, field, "must hold bin", "something else", "invalid_type");
  require(data.length > 0, `${field}.values`, "must not be empty", 0, "size_mismatch");
  const values = numbersOf(data, dtype, `${field}.values`);
  require(values.every(Number.isFinite), `${field}.values`, "must be finite", "NaN or infinity", "non_finite");
  require(values.length <= indices.length, `${field}.indices`, `must hold ${values.length} varints`, `${indices.length} bytes`, "size_mismatch");
  const positions = new Float64Array(values.length);
  let at = 0, place = -1;
  for (let i = 0; i < values.length; i++) {
    const [gap, next] = varint(indices, at, POSITION_BYTES, `${field}.indices`);
    place += gap + 1;
    require(place < size, `${field}.indices`, `must be below ${size}`, place);
    positions[i] = place;
    at = next;
  }
  require(at === indices.length, `${field}.indices`, `must hold ${values.length} varints`, "more", "size_mismatch");
  return Object.freeze({ positions, values });
}

/** The method's own message: with codes as they were before they were entropy coded. */
export function unwrapped(q) {
  const how = q.wrap?.entropy ?? null;
  if (how === null) return q;
  const coded = how.symbols === "codes";
  const count = coded ? q.size : how.size;
  const symbols = decodeStream(openStream(q.codes, count, single(coded ? 1 << q.bits : 256)));
  const bytes = Uint8Array.from(symbols);
  return plainCopy(q, coded ? packCodes(bytes, q.bits, blockOf(q.size, q.blockSize)) : bytes);
}

const plainCopy = (q, codes) => ({ ...q, size: q.size, codes, wrap: null });

/** Decoded values with what is around them, in place. */
export function wrapped(q, values) {
  if (q.wrap === null) return values;
  const { scale, outliers } = q.wrap;
  if (scale !== null) {
    const round = rounderOf(q.dtype);
    for (let i = 0; i < values.length; i++) values[i] = round(values[i] * scale) + 0;
  }
  outliers?.positions.forEach((place, i) => { values[place] = outliers.values[i]; });
  return values;
}
