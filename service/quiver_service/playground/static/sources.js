// Vectors: drawn here, read from text, or from files of which only a part is looked at.

// More values than this are not read here: charts are drawn from a sample.
export const MAX_VALUES = 1 << 21;
const SAMPLE_PIECES = 128;
const MAX_TEXT_BYTES = 64 << 20;
const MAX_BYTES = 0xffffffff; // of a MessagePack bin
const ITEM_BYTES = { float16: 2, float32: 4, float64: 8 };

/** What is wrong with what the user gave. */
export class InputError extends Error {}

/** A generator of numbers in [0, 1): mulberry32. */
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

const normal = (random) => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
const exponential = (random) => -Math.log(1 - random());

/** What can be drawn, by name: a label and a function of a generator. */
export const DISTRIBUTIONS = {
  normal: ["Normal", normal],
  laplace: ["Laplace", (random) => (random() < 0.5 ? -1 : 1) * exponential(random)],
  lognormal: ["Lognormal", (random) => Math.exp(normal(random))],
  gradient: ["Like a gradient (heavy tails)", (random) => 0.01 * normal(random) * Math.exp(normal(random))],
  humps: ["Two humps", (random) => (random() < 0.35 ? 3 + 0.4 * normal(random) : 0.8 * normal(random))],
  sparse: ["Sparse (nine of ten are zero)", (random) => (random() < 0.9 ? 0 : normal(random))],
  uniform: ["Uniform", (random) => 2 * random() - 1],
};

/** A float32 vector drawn from a distribution; the same for the same seed. */
export function drawn(name, size, seed) {
  const random = generator(seed);
  const [label, draw] = DISTRIBUTIONS[name];
  return ofValues(Float32Array.from({ length: size }, () => draw(random)), label);
}

/** A float32 vector of numbers in text. */
export function fromText(text, name = "numbers") {
  const words = text.replace(/^\s*\[|\]\s*$/g, " ").split(/[\s,;]+/).filter((word) => word !== "");
  if (words.length === 0) throw new InputError("There are no numbers yet.");
  const values = new Float32Array(words.length);
  for (let index = 0; index < words.length; index += 1) {
    const number = Number(words[index]);
    if (!Number.isFinite(number) || !/\d/.test(words[index]) || !Number.isFinite(Math.fround(number))) {
      throw new InputError(`Value ${index + 1} must be a finite number of float32; got "${words[index].slice(0, 30)}".`);
    }
    values[index] = number;
  }
  return ofValues(values, name);
}

function ofValues(values, name) {
  return { name, dtype: "float32", shape: [values.length], size: values.length, data: littleEndian(values), nbytes: values.byteLength, sample: values, complete: true };
}

function littleEndian(values) {
  // All platforms of browsers are little-endian.
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

/** The vector in a file: .npy, text, or raw float32. Large ones stay where they are. */
export async function fromFile(file) {
  const head = new Uint8Array(await file.slice(0, 65_536).arrayBuffer());
  if (head[0] === 0x93 && String.fromCharCode(...head.subarray(1, 6)) === "NUMPY") return fromNpy(file, head);
  if (/\.npy$/i.test(file.name)) throw new InputError(`${file.name} does not begin as an .npy file does.`);
  if (/\.(txt|csv|tsv|json)$/i.test(file.name)) {
    if (file.size > MAX_TEXT_BYTES) throw new InputError(`Text may have at most ${MAX_TEXT_BYTES >> 20} MiB; larger vectors are better .npy files.`);
    return fromText(await file.text(), file.name);
  }
  if (/\.(f32|bin|raw|dat)$/i.test(file.name)) {
    if (file.size === 0 || file.size % 4) throw new InputError(`Raw float32 must have 4 bytes per value; ${file.name} has ${file.size} bytes.`);
    return fromBlob(file, file.name, "float32", [file.size / 4]);
  }
  throw new InputError(`${file.name}: the name must end in .npy, .f32, .txt, .csv or .json.`);
}

function fromNpy(file, head) {
  const view = new DataView(head.buffer);
  const long = head[6] >= 2;
  const start = long ? 12 : 10;
  const end = start + (long ? view.getUint32(8, true) : view.getUint16(8, true));
  if (end > head.length) throw new InputError(`The head of ${file.name} is cut short, or longer than 64 KiB.`);
  const text = new TextDecoder("latin1").decode(head.subarray(start, end));
  const descr = /'descr':\s*'([^']*)'/.exec(text)?.[1];
  const fortran = /'fortran_order':\s*True/.test(text);
  const dimensions = /'shape':\s*\(([^)]*)\)/.exec(text)?.[1];
  if (descr === undefined || dimensions === undefined) throw new InputError(`The head of ${file.name} cannot be read: it must name one type and a shape.`);
  const dtype = { "<f2": "float16", "<f4": "float32", "<f8": "float64" }[descr];
  if (dtype === undefined) throw new InputError(`${file.name} must hold little-endian float16, float32 or float64; got ${descr}. In NumPy: x.astype("<f4").`);
  const shape = dimensions.split(",").map((part) => part.trim()).filter((part) => part !== "").map(Number);
  // Values of Fortran order are those of the transpose in C order.
  if (fortran) shape.reverse();
  const size = shape.reduce((product, length) => product * length, 1);
  if (!Number.isSafeInteger(size) || file.size - end !== size * ITEM_BYTES[dtype]) {
    throw new InputError(`${file.name} must have ${size * ITEM_BYTES[dtype]} bytes of values; it has ${file.size - end}.`);
  }
  return fromBlob(file.slice(end), file.name, dtype, shape);
}

async function fromBlob(data, name, dtype, shape) {
  const item = ITEM_BYTES[dtype];
  const size = data.size / item;
  if (size === 0) throw new InputError(`${name} holds no values.`);
  if (data.size > MAX_BYTES) throw new InputError(`${name} must have at most 4 GiB of values; it has ${data.size} bytes.`);
  const complete = size <= MAX_VALUES;
  const piece = complete ? size : Math.floor(MAX_VALUES / SAMPLE_PIECES / 2);
  const pieces = [];
  for (let index = 0; index < (complete ? 1 : SAMPLE_PIECES); index += 1) {
    const first = complete ? 0 : Math.floor((index * (size - piece)) / (SAMPLE_PIECES - 1));
    pieces.push(data.slice(first * item, (first + piece) * item));
  }
  const sample = valuesOf(await new Blob(pieces).arrayBuffer(), dtype);
  return { name, dtype, shape, size, data, nbytes: data.size, sample, complete };
}

function valuesOf(buffer, dtype) {
  if (dtype === "float32") return new Float32Array(buffer);
  if (dtype === "float64") return new Float64Array(buffer);
  return Float32Array.from(new Uint16Array(buffer), fromHalf);
}

function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** At most `most` values, evenly spread over the sample, as float32. */
export function thinned(sample, most) {
  if (sample.length <= most) return Float32Array.from(sample);
  const step = sample.length / most;
  return Float32Array.from({ length: most }, (_, index) => sample[Math.floor(index * step)]);
}
