// node agree.mjs SOURCE CORPUS: what the decoder of a folder says of every case, beside Python's word.
// One line of JSON: cases, how many it accepts, and the first disagreements.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [source, corpus] = process.argv.slice(2);
const { QuantizedVector, QuiverError } = await import(pathToFileURL(`${source}/index.js`));
// Most of the time would go into traces.
Error.stackTraceLimit = 3;
const MOST_VALUES = 2 ** 20;
const MOST_SECONDS = 5;
const [REFUSED, ACCEPTED] = [0, 1];

const bytes = readFileSync(corpus);
const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
let at = 0;

function take(count) {
  at += count;
  return at - count;
}

function nextCase() {
  const length = view.getUint32(take(4), true);
  const start = take(length);
  // A copy of its own, so that reading beyond the end finds nothing.
  const message = new Uint8Array(bytes.subarray(start, start + length));
  const verdict = view.getUint8(take(1));
  if (verdict !== ACCEPTED) return { message, wanted: verdict === REFUSED ? null : undefined };
  const wanted = new Float64Array(view.getUint32(take(4), true));
  for (let i = 0; i < wanted.length; i++) wanted[i] = view.getFloat64(take(8), true);
  return { message, wanted };
}

function outcome(message) {
  try {
    return { values: QuantizedVector.fromBytes(message).dequantize({ maxValues: MOST_VALUES }) };
  } catch (error) {
    if (error instanceof QuiverError) return { refused: `${error.code}: ${error.message}` };
    return { crash: `${error?.stack ?? error}` };
  }
}

function disagreement({ values, refused, crash }, wanted) {
  if (crash !== undefined) return `it crashed: ${crash}`;
  if (wanted === undefined) return null;
  if (wanted === null) return values === undefined ? null : "it was accepted, and should not be";
  if (values === undefined) return `it was refused, and should not be: ${refused}`;
  const same = values.length === wanted.length && values.every((value, i) => Object.is(value, wanted[i]));
  return same ? null : `it has other values: ${values.slice(0, 4)} for ${wanted.slice(0, 4)}`;
}

const found = { cases: 0, accepted: 0, slowest: 0, problems: [] };
while (at < bytes.length) {
  const { message, wanted } = nextCase();
  const begun = performance.now();
  const got = outcome(message);
  const seconds = (performance.now() - begun) / 1000;
  found.slowest = Math.max(found.slowest, seconds);
  found.cases += 1;
  found.accepted += got.values === undefined ? 0 : 1;
  const problem = seconds > MOST_SECONDS ? `it took ${seconds} s` : disagreement(got, wanted);
  if (problem !== null && found.problems.length < 20) {
    found.problems.push(`case ${found.cases - 1}: ${problem}; ${Buffer.from(message).toString("hex").slice(0, 600)}`);
  }
}
console.log(JSON.stringify(found));
