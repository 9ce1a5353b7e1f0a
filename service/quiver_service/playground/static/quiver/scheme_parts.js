/** Checks that schemes share. */

import { DecodeError, require } from "./errors.js";

/** Refuse side information of other names, types or lengths: `{name: [dtype, count]}`. */
export function checkSide(q, wanted) {
  const names = Object.keys(wanted), found = Object.keys(q.side);
  const right = names.length === found.length && names.every((name) => name in q.side);
  require(right, "side", `must hold ${names.join(", ")}`, found.join(", ") || "nothing");
  for (const [name, [dtype, count]] of Object.entries(wanted)) {
    const part = q.side[name];
    require(part.dtype === dtype, `side.${name}`, `must hold ${dtype} numbers`, part.dtype, "unsupported_dtype");
    require(count === null || part.values.length === count, `side.${name}`, `must hold ${count} numbers`, part.values.length, "size_mismatch");
  }
}

/** Refuse levels where the table is fixed. */
export function checkNoLevels(q) {
  require(q.levels.values.length === 0, "levels", "must be empty: the method's table is fixed", q.levels.values.length, "size_mismatch");
}

/** A code that is not in its table. */
export function refuseCode(code, count) {
  throw new DecodeError(`codes must be below num_levels=${count}; got ${code}`, { code: "invalid_codes", field: "codes" });
}
