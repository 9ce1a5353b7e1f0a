// The playground: what is chosen, what the service answers, and how it is shown.

import { $, bytes, element, short, table, whole } from "./dom.js";
import { curves, histogram, range, sample as legendSample, whenSized } from "./chart.js";
import { decodeMessagePack, encodeMessagePack } from "./quiver/msgpack.js";
import { QuantizedVector } from "./quiver/quantized.js";
import { watch } from "./live.js";
import { call, MESSAGE, post, Problem, vectorMessage } from "./service.js";
import { DISTRIBUTIONS, drawn, fromFile, fromText, InputError, MAX_VALUES, thinned } from "./sources.js";

// Beyond this, moving a slider would send too much: then the button does.
const AUTOMATIC_BYTES = 8 << 20;
const CURVE_VALUES = 1 << 16;
const PAUSE = 200;
const SHOWN_AT_FIRST = ["exact", "approx", "uniform", "simba", "eden"];
// `accelerated` finds what `exact` does, more slowly.
const NOT_COMPARED = new Set(["accelerated"]);
const MAX_SEED = (1n << 64n) - 1n;

const state = {
  info: null,
  draw: 1,
  file: null,
  vector: null,
  vectorOf: "",
  answer: null,
  curves: new Map(),
  curvesOf: null,
  shown: new Set(SHOWN_AT_FIRST),
  running: null,
  timer: 0,
};

const key = () => $("key").value.trim();
const chosenSource = () => document.querySelector("input[name=source]:checked").value;
const say = (text) => { if ($("status").textContent !== text) $("status").textContent = text; };

// ---- what is chosen

function schemeOf(method) {
  return state.info?.schemes.find((scheme) => scheme.name === method);
}

/** The numbers of bits that a method has. */
function bitsOf(method) {
  const counts = new Set(schemeOf(method)?.num_levels ?? []);
  const found = [1, 2, 3, 4, 5, 6, 7, 8].filter((bits) => counts.has(2 ** bits));
  return found.length ? found : [1, 2, 3, 4, 5, 6, 7, 8];
}

/** The bits that are asked for: the nearest that the method has. */
function effectiveBits() {
  const asked = Number($("bits").value);
  return bitsOf($("method").value).reduce((best, one) => (Math.abs(one - asked) < Math.abs(best - asked) ? one : best));
}

function chosenSeed() {
  const text = $("seed").value.trim();
  if (!/^\d{1,20}$/.test(text) || BigInt(text) > MAX_SEED) throw new InputError(`The seed must be a whole number from 0 to ${MAX_SEED}; got "${text.slice(0, 30)}".`);
  const seed = BigInt(text);
  return seed <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(seed) : seed;
}

async function chosenVector(signal) {
  const source = chosenSource();
  const of = { distribution: () => `d ${$("distribution").value} ${$("size").value} ${state.draw}`, numbers: () => `n ${$("numbers").value}`, file: () => `f ${state.file?.name} ${state.file?.size} ${state.file?.lastModified}` }[source]();
  if (of === state.vectorOf && state.vector) return state.vector;
  let vector;
  if (source === "distribution") vector = drawn($("distribution").value, Number($("size").value), state.draw);
  else if (source === "numbers") vector = fromText($("numbers").value);
  else if (state.file) vector = await fromFile(state.file);
  else throw new InputError("Choose a file, or drop one on the page.");
  const limit = state.info.limits.max_body_bytes;
  if (vector.nbytes + 1024 > limit) throw new InputError(`This service takes at most ${bytes(limit)} in a request; ${vector.name} has ${bytes(vector.nbytes)}.`);
  // Files are read while others may be chosen.
  if (!signal.aborted) [state.vector, state.vectorOf] = [vector, of];
  return vector;
}

function describeChoice() {
  const scheme = schemeOf($("method").value);
  $("method-help").textContent = scheme ? `${scheme.summary[0].toUpperCase()}${scheme.summary.slice(1)}.` : "";
  const [asked, used] = [Number($("bits").value), effectiveBits()];
  $("bits-value").textContent = String(used);
  $("bits-help").textContent = asked === used ? "" : `${scheme.name} has ${bitsOf(scheme.name).join(", ")}: ${used} is taken.`;
  $("bits").setAttribute("aria-valuetext", `${used} bits, ${2 ** used} levels`);
  for (const pane of document.querySelectorAll("[data-pane]")) pane.hidden = pane.dataset.pane !== chosenSource();
}

// ---- what is asked

/** Ask soon; what was asked before is outdated. */
function changed() {
  describeChoice();
  clearTimeout(state.timer);
  state.running?.abort();
  state.running = null;
  $("results").setAttribute("aria-busy", "true");
  state.timer = setTimeout(() => update(false), PAUSE);
}

async function update(forced) {
  clearTimeout(state.timer);
  state.running?.abort();
  const running = new AbortController();
  state.running = running;
  $("results").setAttribute("aria-busy", "true");
  try {
    if (!state.info) await learn(running.signal);
    const vector = await chosenVector(running.signal);
    if (running.signal.aborted) return;
    if (!forced && vector.nbytes > AUTOMATIC_BYTES) {
      waitForButton(vector);
      return;
    }
    say("Quantizing.");
    const options = { method: $("method").value, bits: effectiveBits(), seed: chosenSeed() };
    await quantize(vector, options, running.signal);
    await compare(vector, running.signal);
    $("problem").hidden = true;
    $("results").classList.remove("stale");
  } catch (error) {
    if (running.signal.aborted) return;
    // What is shown belongs to an earlier choice.
    $("results").classList.add("stale");
    complain(error);
  } finally {
    if (state.running === running) $("results").setAttribute("aria-busy", "false");
  }
}

function waitForButton(vector) {
  $("problem").hidden = true;
  state.answer = null;
  $("save").disabled = true;
  for (const id of ["tile-size", "tile-expected", "tile-measured", "tile-time"]) $(id).textContent = "–";
  showHistogram();
  say(`${vector.name}: ${whole(vector.size)} values, ${bytes(vector.nbytes)}. Press Quantize to send them.`);
}

async function learn(signal) {
  state.info = await (await call("info", { key: key(), signal })).json();
  $("live-version").textContent = `version ${state.info.version}`;
  $("file-limit").textContent = `, ${bytes(state.info.limits.max_body_bytes)} at most`;
  const before = $("method").value || state.info.defaults.method;
  $("method").replaceChildren(...state.info.methods.map((name) => element("option", { value: name, selected: name === before }, name)));
  showLegend();
  describeChoice();
}

async function quantize(vector, options, signal) {
  const begun = performance.now();
  const message = await post("quantize", vectorMessage(options, vector), { key: key(), signal });
  const milliseconds = performance.now() - begun;
  const answer = decodeMessagePack(message);
  const decoded = vector.size <= MAX_VALUES ? await decode(message, options.method, signal) : null;
  state.answer = { vector, options, message, milliseconds, fields: answer, levels: levelsOf(answer), decoded };
  showTiles();
  showHistogram();
  $("results").classList.remove("stale");
  $("save").disabled = false;
  const { nbytes } = vector;
  say(`Done: ${options.method}, ${options.bits} bits, ${bytes(nbytes)} became ${bytes(message.length)}, expected error ${short(answer.vnmse)}.`);
}

/** The values of a message: by this page if it can, else by the service. */
async function decode(message, method, signal) {
  try {
    return { values: QuantizedVector.fromBytes(message).dequantize(), by: "decoded in this page" };
  } catch (error) {
    if (error.name !== "UnsupportedMethod") throw error;
  }
  const tensor = decodeMessagePack(await post("dequantize", message, { key: key(), signal }));
  return { values: numbersOf(tensor), by: `${method} is decoded by the service` };
}

/** The values of a tensor of float32 or float64; of others none. */
function numbersOf({ dtype, data }) {
  const kind = { float32: Float32Array, float64: Float64Array }[dtype];
  return kind ? new kind(data.slice().buffer) : null;
}

function levelsOf(answer) {
  const found = answer.levels ? numbersOf(answer.levels) : null;
  return found ? Array.from(found) : [];
}

/** Error curves: one request for all methods, and only for those and the vector that are new. */
async function compare(vector, signal) {
  if (state.curvesOf !== vector) state.curves.clear();
  state.curvesOf = vector;
  const missing = state.info.methods.filter((name) => state.shown.has(name) && !state.curves.has(name));
  if (missing.length) {
    const values = thinned(vector.sample, CURVE_VALUES);
    const data = new Uint8Array(values.buffer);
    const norm = values.reduce((sum, value) => sum + value * value, 0);
    const request = { vectors: { v: { dtype: "float32", shape: [values.length], data } }, methods: missing, raw: false };
    const plan = decodeMessagePack(await post("plan", encodeMessagePack(request), { key: key(), signal }));
    const { bits, methods, errors } = plan.curves.v;
    for (const name of missing) state.curves.set(name, []);
    methods.forEach((name, index) => state.curves.get(name)?.push([bits[index], norm > 0 ? errors[index] / norm : 0]));
    for (const points of state.curves.values()) points.sort((one, other) => one[0] - other[0]);
  }
  showCurves();
}

// ---- what is shown

function complain(error) {
  const known = error instanceof Problem || error instanceof InputError;
  if (!known) console.error(error);
  const title = error instanceof Problem ? error.title : error instanceof InputError ? "" : "The answer cannot be read";
  const notes = [error.code && `code ${error.code}`, error.requestId && `request ${error.requestId}`].filter(Boolean).join(", ");
  if (error.status === 401) $("key-box").open = true;
  const hint = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  $("problem").replaceChildren(element("strong", {}, title ? `${title}. ` : ""), `${error.message}${hint}`, element("p", { class: "help" }, notes));
  $("problem").hidden = false;
  say(error instanceof InputError ? "Nothing was sent." : "No result.");
}

function measured({ vector, decoded }) {
  if (!decoded?.values || !vector.complete) return null;
  let [error, norm] = [0, 0];
  vector.sample.forEach((value, index) => {
    error += (value - decoded.values[index]) ** 2;
    norm += value * value;
  });
  return norm > 0 ? error / norm : 0;
}

function showTiles() {
  const { vector, options, message, milliseconds, fields, decoded } = state.answer;
  const smaller = message.length <= vector.nbytes;
  $("tile-size-name").textContent = smaller ? "Smaller by" : "Larger by";
  $("tile-size").textContent = `${short(smaller ? vector.nbytes / message.length : message.length / vector.nbytes)}×`;
  $("tile-size-note").textContent = `${bytes(vector.nbytes)} to ${bytes(message.length)}`;
  $("tile-expected").textContent = short(fields.vnmse);
  const found = measured(state.answer);
  $("tile-measured").textContent = found === null ? "–" : short(found);
  $("tile-measured-note").textContent = found === null ? "too many values to decode here" : decoded.by;
  $("tile-time").textContent = `${short(milliseconds)} ms`;
  const inside = fields.timings_ms ? Object.values(fields.timings_ms).reduce((sum, time) => sum + time, 0) : null;
  $("tile-time-note").textContent = inside === null ? `${options.method}, there and back` : `${short(inside)} ms of it computing`;
}

function showHistogram() {
  const { vector, answer } = state;
  if (!vector) {
    $("histogram").replaceChildren(element("p", { class: "empty" }, "The histogram of the vector appears here."));
    return;
  }
  const levels = answer?.vector === vector ? answer.levels : [];
  const [low, high] = range(vector.sample);
  const part = vector.complete ? "" : ` of ${whole(vector.sample.length)} of its ${whole(vector.size)} values`;
  const label = `Histogram${part}: ${vector.name}, from ${short(low)} to ${short(high)}, with ${levels.length} levels. They are in the table below.`;
  histogram($("histogram"), { values: vector.sample, levels, logarithmic: $("log-counts").checked, label });
  const method = answer?.options.method ?? "";
  const lines = levels.length
    ? `${vector.name}: the lines are the ${new Set(levels).size} levels of ${method} that values are rounded to.`
    : answer ? `${vector.name}: ${method} has no table of levels of its own.` : vector.name;
  $("histogram-note").textContent = `${lines}${part ? ` The histogram is${part}.` : ""}`;
  $("levels-table").replaceChildren(table(["level", "value"], levels.map((level, index) => [String(index), String(level)])));
}

/** The place of a method among all, which is its colour and marker: the same whatever is shown. */
function placeOf(name) {
  const order = [...SHOWN_AT_FIRST, ...state.info.methods.filter((one) => !SHOWN_AT_FIRST.includes(one) && !NOT_COMPARED.has(one))];
  return order.indexOf(name);
}

function showLegend() {
  const names = state.info.methods.filter((name) => !NOT_COMPARED.has(name));
  names.sort((one, other) => placeOf(one) - placeOf(other));
  $("legend").replaceChildren(...names.map((name) => {
    const box = element("input", { type: "checkbox", value: name, checked: state.shown.has(name) });
    return element("label", {}, box, legendSample(placeOf(name)), element("span", {}, name));
  }));
}

function showCurves() {
  const shown = [...state.curves].filter(([name]) => state.shown.has(name) && placeOf(name) >= 0);
  const series = shown.map(([name, points]) => ({ name, place: placeOf(name), points })).sort((one, other) => one.place - other.place);
  curves($("errors"), { series, bits: effectiveBits(), chosen: $("method").value, label: `Expected squared error over squared norm, for 1 to 8 bits: ${series.map(({ name }) => name).join(", ")}. The figures are in the table below.` });
  const vector = state.curvesOf;
  const part = vector && vector.size > CURVE_VALUES ? ` Computed from ${whole(CURVE_VALUES)} of its values.` : "";
  $("errors-note").textContent = `Expected squared error over the squared norm; lower is better.${part}`;
  const rows = [1, 2, 3, 4, 5, 6, 7, 8].map((bits) => [String(bits), ...series.map(({ points }) => short(points.find(([count]) => count === bits)?.[1] ?? NaN).replace("NaN", "–"))]);
  $("errors-table").replaceChildren(table(["bits", ...series.map(({ name }) => name)], rows));
}

// ---- events

function choose(source) {
  document.querySelector(`input[name=source][value=${source}]`).checked = true;
}

function take(file) {
  if (!file) return;
  state.file = file;
  $("file-name").textContent = `${file.name}, ${bytes(file.size)}`;
  choose("file");
  changed();
}

function save() {
  const link = element("a", { download: `${state.answer.options.method}-${state.answer.options.bits}.quiver`, href: URL.createObjectURL(new Blob([state.answer.message], { type: MESSAGE })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function listen() {
  $("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    update(true);
  });
  for (const id of ["distribution", "size", "method"]) $(id).addEventListener("change", changed);
  for (const id of ["numbers", "bits", "seed"]) $(id).addEventListener("input", changed);
  $("key").addEventListener("change", changed);
  $("source").addEventListener("change", changed);
  $("file").addEventListener("change", () => take($("file").files[0]));
  $("draw").addEventListener("click", () => { state.draw += 1; changed(); });
  $("log-counts").addEventListener("change", showHistogram);
  $("legend").addEventListener("change", (event) => {
    const { value, checked } = event.target;
    if (checked) state.shown.add(value);
    else state.shown.delete(value);
    if (state.vector && checked && !state.curves.has(value)) changed();
    else showCurves();
  });
  $("save").addEventListener("click", save);
  document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
  document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    take(event.dataTransfer.files[0]);
  });
  whenSized($("histogram"), showHistogram);
  whenSized($("errors"), () => { if (state.info) showCurves(); });
}

$("distribution").replaceChildren(...Object.entries(DISTRIBUTIONS).map(([name, [label]]) => element("option", { value: name }, label)));
describeChoice();
listen();
watch(key);
update(false);
